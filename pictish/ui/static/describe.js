// Describe: a conversation about a picture.

import * as api from "./api.js";
import { dataUrl, element, oneAtATime, source, status } from "./pictures.js";

const get = (id) => document.getElementById(id);

export function setup(onFile) {
  const line = status(get("describe-said"));
  const place = source(get("describe-source"), "Choose an image", onFile);
  const talk = get("talk");
  let picture = null;

  oneAtATime(get("describe-form"), get("describe-stop"), line, async (signal) => {
    if (!picture) throw new Error("Choose an image first.");
    const question = get("question").value.trim();
    const content = [{ type: "image_url", image_url: { url: await dataUrl(picture.blob) } }];
    if (question) content.push({ type: "text", text: question });
    const answer = element("li", { className: "answer" });
    talk.append(element("li", { className: "asked", textContent: question || "Describe the image." }), answer);
    get("question").value = "";
    line.say("");
    try {
      await api.chat([{ role: "user", content }], (more) => {
        answer.append(more);
        talk.scrollTop = talk.scrollHeight;
      }, signal);
      if (!answer.textContent) answer.append("(The model gave no answer.)");
    } finally {
      if (!answer.textContent) answer.remove();
    }
  });
  get("talk-clear").addEventListener("click", () => talk.replaceChildren());

  return (chosen) => {
    if (picture && picture !== chosen) talk.replaceChildren();
    picture = chosen;
    place.show(chosen);
    line.say("");
  };
}
