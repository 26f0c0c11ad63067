// Edit: a picture, the region that may change, and an instruction.

import * as api from "./api.js";
import { facts } from "./draw.js";
import { drawInto, oneAtATime, source, status } from "./pictures.js";

const get = (id) => document.getElementById(id);
const STEP = 0.02; // of the width, for an arrow key

export function setup(actions, onFile) {
  const line = status(get("edit-said"));
  const place = source(get("edit-source"), "Choose an image", onFile);
  let picture = null;
  let region = null; // canvas of the picture's size, painted where it may change
  let painted = false;
  let cursor = [0.5, 0.5];

  function paint(x, y) {
    const context = region.getContext("2d");
    const add = document.querySelector("[name=brush]:checked").value === "add";
    context.globalCompositeOperation = add ? "source-over" : "destination-out";
    context.fillStyle = "#5b4bdb";
    context.beginPath();
    context.arc(x * region.width, y * region.height, (get("brush").value / 200) * region.width, 0, 7);
    context.fill();
    painted ||= add;
  }

  function clear() {
    region?.getContext("2d").clearRect(0, 0, region.width, region.height);
    painted = false;
  }

  function canvasOf({ width, height }) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height, tabIndex: 0 });
    canvas.style.opacity = 0.55;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Region to change: arrow keys move the brush, the space bar paints");
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      paint((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); at(event); });
    canvas.addEventListener("pointermove", (event) => event.buttons && at(event));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
      const move = moves[event.key];
      if (!move && event.key !== " ") return;
      event.preventDefault();
      if (move) cursor = cursor.map((value, axis) => Math.min(1, Math.max(0, value + move[axis])));
      if (!move || event.shiftKey) paint(...cursor);
      line.say(`Brush at ${cursor.map((value) => `${Math.round(100 * value)} %`).join(", ")} of width and height; shift with an arrow key paints.`);
    });
    return canvas;
  }

  // Opaque where pixels stay, transparent where they may change, as the API wants it.
  function maskOf() {
    const mask = Object.assign(document.createElement("canvas"), { width: region.width, height: region.height });
    const context = mask.getContext("2d");
    context.fillRect(0, 0, mask.width, mask.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(region, 0, 0);
    return new Promise((resolve) => { mask.toBlob(resolve, "image/png"); });
  }

  get("region-clear").addEventListener("click", clear);
  oneAtATime(get("edit-form"), get("edit-stop"), line, async (signal) => {
    if (!picture) throw new Error("Choose an image first.");
    const prompt = get("instruction").value.trim();
    const [count, seed] = [get("edit-count").valueAsNumber, get("edit-seed").valueAsNumber];
    const mask = painted ? await maskOf() : null;
    line.say("Editing …");
    const begun = performance.now();
    const titles = Array.from({ length: count }, () => prompt);
    const request = (onImage) => api.edit({ prompt, n: count, seed }, picture.blob, mask, onImage, signal);
    await drawInto(get("edited"), titles, facts, actions, request, signal);
    line.say(`Edited in ${((performance.now() - begun) / 1000).toFixed(1)} s.`);
  });

  return (chosen) => {
    picture = chosen;
    region = canvasOf(chosen);
    painted = false;
    place.show(chosen, region);
    line.say("");
  };
}
