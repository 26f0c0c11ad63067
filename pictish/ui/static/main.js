// The page: tabs, the images of the session, files that are dropped.

import * as api from "./api.js";
import * as describe from "./describe.js";
import * as draw from "./draw.js";
import * as edit from "./edit.js";
import * as inside from "./inside.js";
import { add, element, pictures, status } from "./pictures.js";

const get = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab, focus = false) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    get(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
}

for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) open(tabs[(place + step + tabs.length) % tabs.length], true);
  });
}

const current = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true");

// What each tab does with a picture that it is given.
const take = {};
const send = (name) => (picture) => {
  open(get(`tab-${name}`));
  take[name](picture);
  scrollTo({ top: 0, behavior: "smooth" });
};
const actions = [["Edit", send("edit")], ["Describe", send("describe")], ["Look inside", send("inside")]];

async function received(file) {
  const name = current().getAttribute("aria-controls");
  const line = status(get(`${name}-said`));
  try {
    const picture = await add(file, file.name.replace(/\.\w+$/, ""));
    if (picture.recipe?.prompt && picture.recipe.command === "generate") draw.fill(picture.recipe);
    take[name](picture);
    const filled = picture.recipe?.command === "generate" && name !== "draw";
    if (filled) line.say("The file says how it was drawn; the Draw tab has its settings.");
  } catch (error) {
    line.fail(error);
  }
}

draw.setup(actions);
take.draw = (picture) => {
  if (picture.recipe?.prompt && picture.recipe.command === "generate") draw.fill(picture.recipe);
  else status(get("draw-said")).say("This image does not say how it was drawn; edit it, describe it or look inside.");
};
take.edit = edit.setup(actions, received);
take.describe = describe.setup(received);
take.inside = inside.setup(received);

document.addEventListener("pictures", () => {
  get("session").hidden = false;
  get("strip").replaceChildren(...pictures.map((picture) => {
    const button = element("button", { type: "button", title: picture.title, onclick: () => send(current().getAttribute("aria-controls"))(picture) });
    button.setAttribute("aria-label", picture.title);
    button.append(element("img", { src: picture.url, alt: "" }));
    return button;
  }));
});

let depth = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; get("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (carries(event)) { depth -= 1; get("drop").hidden = depth > 0 ? false : true; } });
addEventListener("dragover", (event) => carries(event) && event.preventDefault());
addEventListener("drop", async (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  depth = 0;
  get("drop").hidden = true;
  for (const file of event.dataTransfer.files) await received(file);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) received(file);
});

async function greet() {
  try {
    const found = await api.models();
    get("model").textContent = found[0].id;
    get("model").hidden = found.length > 1;
    get("models").hidden = found.length === 1;
    get("model-choice").replaceChildren(...found.map((model) => {
      return element("option", { value: model.parent ? model.id : "", textContent: model.id });
    }));
    api.setModel(get("model-choice").value);
  } catch (error) {
    get("model").textContent = error.message;
    get("model").hidden = false;
    get("access").open = true;
  }
}
get("model-choice").addEventListener("change", (event) => api.setModel(event.target.value));
get("key").addEventListener("change", (event) => { api.setKey(event.target.value.trim()); greet(); });
get("access-form").addEventListener("submit", (event) => event.preventDefault());
greet();
