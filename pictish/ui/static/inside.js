// Look inside: the codes of a picture, what they give back, and what changes with them.

import * as api from "./api.js";
import { add, dataUrl, element, pictures, pngOf, source, status } from "./pictures.js";

const get = (id) => document.getElementById(id);
const WAIT = 250; // ms without a move of the slider before the server is asked

export function setup(onFile) {
  const line = status(get("inside-said"));
  const place = source(get("inside-source"), "Choose an image", onFile);
  const slider = get("codes");
  let picture = null;
  let tokens = null; // as they are shown
  let original = null; // as they came, to mark changed cells
  let past = []; // earlier tokens, for undo
  let chosen = null; // cell whose code is shown
  let picking = false; // the next cell gives its code to the chosen one
  let abort = null;
  let shown = null; // URL of the reconstruction
  let rebuilt = null; // its PNG, and the tokens that gave it
  let timer = 0;

  const places = () => new Map(tokens.cells.map((cell, place) => [cell, place]));

  // The newest request counts: an older one that still runs is given up.
  async function latest(work) {
    abort?.abort();
    const mine = abort = new AbortController();
    try {
      await work(mine.signal);
    } catch (error) {
      if (abort === mine) line.fail(error);
    }
  }

  async function rebuild(signal) {
    const asked = tokens;
    const blob = pngOf(await api.detokenize(asked, signal));
    const url = URL.createObjectURL(blob);
    rebuilt = { blob, tokens: asked };
    if (shown) URL.revokeObjectURL(shown);
    shown = url;
    get("rebuilt").replaceChildren(element("img", { src: url, alt: `Reconstruction from ${tokens.ids.length} codes` }));
    get("rebuilt-said").textContent = `Reconstruction from ${tokens.ids.length} codes`;
    Object.assign(get("rebuilt-save"), { href: url, download: picture.name.replace(".png", `-${tokens.ids.length}-codes.png`) });
    get("rebuilt-buttons").hidden = false;
    line.say("");
  }

  function fresh(found, said) {
    tokens = original = found;
    get("kept-said").textContent = said;
    past = [];
    chosen = null;
    const [rows, columns] = found.grid;
    Object.assign(slider, { max: rows * columns, disabled: false, value: found.ids.length });
    show();
  }

  function show() {
    get("codes-shown").value = `${tokens.ids.length} of ${slider.max}`;
    get("undo").disabled = past.length === 0;
    get("codes-auto").disabled = false;
    showCells();
    showList();
    showCode();
  }

  function showCells() {
    const [rows, columns] = tokens.grid;
    const over = element("div", { className: "over" });
    over.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
    over.setAttribute("role", "group");
    over.setAttribute("aria-label", "Cells of the image");
    const at = places();
    const before = new Map(original.cells.map((cell, place) => [cell, original.ids[place]]));
    const same = at.has(chosen) ? tokens.ids[at.get(chosen)] : null;
    for (let cell = 0; cell < rows * columns; cell += 1) {
      const code = at.has(cell) ? tokens.ids[at.get(cell)] : null;
      const name = `row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}`;
      const title = code === null ? `${name}: no code` : `${name}: code ${code}`;
      const button = element("button", { type: "button", title, data: { cell }, tabIndex: cell === (chosen ?? 0) ? 0 : -1 });
      button.setAttribute("aria-label", title);
      button.classList.toggle("dropped", code === null);
      button.classList.toggle("same", code !== null && code === same);
      button.classList.toggle("chosen", cell === chosen);
      button.classList.toggle("changed", code !== (before.get(cell) ?? null));
      over.append(button);
    }
    get("kept").replaceChildren(element("img", { src: picture.url, alt: picture.title }), over);
  }

  function showList() {
    get("code-list").replaceChildren(...tokens.ids.map((code, place) => element("li", {}, element("button", {
      type: "button", textContent: code, title: `Code ${place + 1} of ${tokens.ids.length}`,
      onclick: () => choose(tokens.cells[place]),
    }))));
  }

  function showCode() {
    const panel = get("code");
    panel.hidden = chosen === null;
    if (chosen === null) return;
    const place = places().get(chosen);
    const code = place === undefined ? null : tokens.ids[place];
    get("code-title").textContent = code === null ? "A cell without a code" : `Code ${code}`;
    Object.assign(get("code-new"), { max: tokens.codebook_size - 1, value: code ?? 0 });
    get("code-erase").disabled = code === null || tokens.ids.length === 1;
    get("code-pick").setAttribute("aria-pressed", picking);
    const patches = code === null ? [] : patchesOf(code);
    get("code-patches").replaceChildren(...patches.length ? patches : [element("p", { className: "quiet", textContent: "No patch in the images of this session." })]);
  }

  // Patches with a code, cut out of the images of this session.
  function patchesOf(code) {
    const found = [];
    for (const one of pictures) {
      const known = one === picture ? original : one.tokens;
      if (!known?.cells || known.tokenizer !== tokens.tokenizer) continue;
      const [rows, columns] = known.grid;
      known.ids.forEach((id, place) => {
        if (id !== code || found.length >= 40) return;
        const [row, column] = [Math.floor(known.cells[place] / columns), known.cells[place] % columns];
        const [width, height] = [one.width / columns, one.height / rows];
        const canvas = element("canvas", { width: 52, height: 52, title: one.title });
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `Patch of ${one.title}, row ${row + 1}, column ${column + 1}`);
        canvas.getContext("2d").drawImage(one.image, column * width, row * height, width, height, 0, 0, 52, 52);
        found.push(canvas);
      });
    }
    return found;
  }

  function choose(cell) {
    if (picking && cell !== chosen) {
      const code = tokens.ids[places().get(cell)];
      picking = false;
      if (code === undefined) { line.say("That cell has no code."); showCode(); return; }
      change(code);
      return;
    }
    chosen = cell;
    showCells();
    showCode();
    get("kept").querySelector(`[data-cell="${cell}"]`).focus({ preventScroll: true });
  }

  // Give the chosen cell another code, or none, and draw the picture again.
  function change(code) {
    const at = places();
    const codes = new Map([...at].map(([cell, place]) => [cell, tokens.ids[place]]));
    if (code === null) codes.delete(chosen);
    else codes.set(chosen, code);
    const cells = [...codes.keys()].sort((a, b) => a - b);
    past.push(tokens);
    tokens = { ...tokens, cells, ids: cells.map((cell) => codes.get(cell)) };
    show();
    line.say("Reconstructing …");
    latest(rebuild);
  }

  async function tokenize(budget) {
    line.say("Tokenizing …");
    await latest(async (signal) => {
      const found = await api.tokenize(await dataUrl(picture.blob), budget, signal);
      if (!budget && !picture.tokens?.cells) picture.tokens = found;
      fresh(found, budget ? `The ${budget} cells that are kept` : "Kept cells");
      await rebuild(signal);
    });
  }

  get("kept").addEventListener("click", (event) => {
    const cell = event.target.dataset?.cell;
    if (cell !== undefined) choose(Number(cell));
  });
  get("kept").addEventListener("keydown", (event) => {
    const cell = Number(event.target.dataset?.cell);
    if (!tokens || Number.isNaN(cell)) return;
    const [rows, columns] = tokens.grid;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step === undefined || cell + step < 0 || cell + step >= rows * columns) return;
    event.preventDefault();
    get("kept").querySelector(`[data-cell="${cell + step}"]`).focus();
  });
  slider.addEventListener("input", () => {
    get("codes-shown").value = `${slider.value} of ${slider.max}`;
    clearTimeout(timer);
    timer = setTimeout(() => tokenize(slider.valueAsNumber), WAIT);
  });
  get("codes-auto").addEventListener("click", () => tokenize(null));
  get("undo").addEventListener("click", () => {
    tokens = past.pop();
    show();
    latest(rebuild);
  });
  get("keep").addEventListener("click", async () => {
    await add(rebuilt.blob, `${picture.title}, ${rebuilt.tokens.ids.length} codes`, rebuilt.tokens);
    line.say("Kept among the images of this session.");
  });
  get("code-erase").addEventListener("click", () => change(null));
  get("code-pick").addEventListener("click", () => {
    picking = !picking;
    showCode();
    line.say(picking ? "Choose the cell whose code is copied." : "");
  });
  get("code-swap").addEventListener("click", () => {
    const field = get("code-new");
    if (!field.reportValidity() || field.value === "") return;
    change(field.valueAsNumber);
  });

  return (next) => {
    picture = next;
    place.show(next);
    get("rebuilt").replaceChildren();
    get("rebuilt-buttons").hidden = true;
    if (!next.tokens?.cells) { tokenize(null); return; } // language models may write codes without cells
    fresh(next.tokens, next.recipe ? "Cells as they were drawn" : "Kept cells");
    line.say("Reconstructing …");
    latest(rebuild);
  };
}
