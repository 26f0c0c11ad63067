// Draw: a prompt to a grid of images, each growing while it is drawn.

import * as api from "./api.js";
import { drawInto, element, oneAtATime, status } from "./pictures.js";

const get = (id) => document.getElementById(id);
const STYLED = /^(.*), ([\w-]+) style$/s;

export function setup(actions) {
  const line = status(get("draw-said"));
  const guidance = get("guidance");
  const showGuidance = () => { get("guidance-shown").value = guidance.value === "0" ? "model's own" : guidance.value; };
  guidance.addEventListener("input", showGuidance);
  showGuidance();

  get("draw-more").addEventListener("click", () => {
    get("seed").value = Math.floor(Math.random() * 1e6);
    get("draw-form").requestSubmit();
  });
  oneAtATime(get("draw-form"), get("draw-stop"), line, async (signal) => {
    const style = get("style").value.trim();
    const prompt = get("prompt").value.trim() + (style ? `, ${style} style` : "");
    const [count, seed] = [get("count").valueAsNumber, get("seed").valueAsNumber];
    const fields = { prompt, n: count, seed, ...(guidance.value === "0" ? {} : { guidance_scale: guidance.valueAsNumber }) };
    if (get("best-of").value) fields.best_of = get("best-of").valueAsNumber;
    const titles = Array.from({ length: count }, () => prompt);
    line.say(`Drawing ${count === 1 ? "one image" : `${count} images`} …`);
    const begun = performance.now();
    await drawInto(get("drawn"), titles, facts, actions, (onImage) => api.draw(fields, onImage, signal), signal);
    line.say(`Drawn in ${((performance.now() - begun) / 1000).toFixed(1)} s.`);
  });
  get("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) get("draw-form").requestSubmit();
  });
}

export const facts = (event) => element("span", { className: "quiet", textContent: `${event.tokens.ids.length} codes · seed ${event.seed}` });

// Fill the form with how a picture was drawn.
export function fill(recipe) {
  const styled = recipe.style ? [null, recipe.prompt, recipe.style] : STYLED.exec(recipe.prompt ?? "");
  get("prompt").value = styled ? styled[1] : recipe.prompt ?? "";
  get("style").value = styled ? styled[2] : "";
  get("seed").value = recipe.seed;
  get("count").value = 1;
  get("best-of").value = recipe.best_of ?? 1;
  get("guidance").value = recipe.guidance ?? 0;
  get("guidance").dispatchEvent(new Event("input"));
  const choice = get("model-choice");
  choice.value = recipe.adaptor ?? "";
  if (choice.selectedIndex < 0) choice.value = "";  // drawn with an adaptor that is not served here
  choice.dispatchEvent(new Event("change"));
}
