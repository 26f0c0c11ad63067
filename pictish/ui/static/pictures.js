// The images of this session: where they come from, how they are shown, and what can be done with them next.

export const pictures = [];
const PNG = [137, 80, 78, 71, 13, 10, 26, 10];
const MOST = 60; // of the session; older ones are dropped from the strip

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

export const pngOf = (base64) => new Blob([bytesOf(base64)], { type: "image/png" });

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

// A picture of the session: { blob, url, title, name, width, height, recipe or null, tokens or null }.
export async function add(blob, title, tokens = null) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${title}: the browser cannot show this image; PNG, JPEG, WebP and GIF fit.`);
  }
  const recipe = recipeOf(new Uint8Array(await blob.arrayBuffer()));
  const picture = {
    blob, url, image, title, recipe, tokens: tokens ?? (recipe ? tokensOf(recipe) : null),
    name: fileName(title), width: image.naturalWidth, height: image.naturalHeight,
  };
  pictures.unshift(picture);
  for (const old of pictures.splice(MOST)) URL.revokeObjectURL(old.url);
  document.dispatchEvent(new CustomEvent("pictures"));
  return picture;
}

const fileName = (title) => `${title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "image"}.png`;

// The JSON that pictish writes into a PNG (docs/formats.md): how it was drawn. Null for other files.
export function recipeOf(bytes) {
  if (!PNG.every((byte, place) => bytes[place] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const text = new TextDecoder();
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = text.decode(bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IEND") return null;
    if (kind === "iTXt" && text.decode(body.subarray(0, 8)) === "pictish\0") {
      const flags = 10; // key, zero, "not compressed", method; then language and translated key, each ended by zero
      const language = body.indexOf(0, flags);
      const start = body.indexOf(0, language + 1) + 1;
      try {
        const recipe = JSON.parse(text.decode(body.subarray(start)));
        return recipe && typeof recipe === "object" ? recipe : null;
      } catch {
        return null;
      }
    }
    at += length + 12;
  }
  return null;
}

// The tokens in a recipe: a token file, which is a safetensors blob.
function tokensOf(recipe) {
  try {
    const bytes = bytesOf(recipe.tokens);
    const view = new DataView(bytes.buffer);
    const start = 8 + view.getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    const facts = JSON.parse(header.__metadata__.pictish);
    const numbers = (name) => {
      if (!header[name]) return null;
      const { dtype, shape: [count], data_offsets: [from] } = header[name];
      const wide = dtype === "U32";
      return Array.from({ length: count }, (_, k) => (wide ? view.getUint32(start + from + 4 * k, true) : view.getUint16(start + from + 2 * k, true)));
    };
    return { ids: numbers("ids"), cells: numbers("cells"), grid: facts.grid, size: facts.size, tokenizer: facts.tokenizer, codebook_size: facts.codebook_size };
  } catch {
    return null;
  }
}

export function element(name, properties = {}, ...children) {
  const { data, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  Object.assign(made.dataset, data ?? {});
  made.append(...children);
  return made;
}

// A tile under way: `preview(blob)` while it is drawn, `done(picture)` at the end, `failed()` otherwise.
export function tile(title, actions) {
  const image = element("img", { alt: "", hidden: true });
  const bar = element("progress", { max: 1 });
  bar.setAttribute("aria-label", `Drawing ${title}`);
  const caption = element("figcaption", {}, element("b", { textContent: title, title }));
  const figure = element("figure", { className: "tile busy" }, element("div", { className: "view" }, image, bar), caption);
  let shown = null;
  let count = 0;
  return {
    figure,
    preview(blob) {
      if (shown) URL.revokeObjectURL(shown);
      shown = URL.createObjectURL(blob);
      Object.assign(image, { src: shown, hidden: false, alt: `${title}, unfinished` });
      count += 1;
      bar.value = 1 - 0.75 ** count;
    },
    done(picture, facts) {
      if (shown) URL.revokeObjectURL(shown);
      Object.assign(image, { src: picture.url, hidden: false, alt: title });
      figure.classList.remove("busy");
      bar.remove();
      const buttons = actions.map(([label, act]) => element("button", { type: "button", textContent: label, onclick: () => act(picture) }));
      const save = element("a", { className: "button", href: picture.url, download: picture.name, textContent: "Download" });
      caption.append(facts, element("div", { className: "buttons" }, ...buttons, save));
    },
    failed() {
      if (shown) URL.revokeObjectURL(shown);
      figure.remove();
    },
  };
}

// Where a tab's picture is chosen: shows it, or asks for a file. `onFile` gets a chosen file.
export function source(place, label, onFile) {
  const input = () => element("input", { type: "file", accept: "image/*", onchange: (event) => event.target.files[0] && onFile(event.target.files[0]) });
  const empty = () => place.replaceChildren(element("label", { className: "pick" }, element("b", { textContent: label }), "or drop one anywhere, or take one of this session", input()));
  empty();
  return {
    show(picture, ...over) {
      const view = element("div", { className: "view" }, element("img", { src: picture.url, alt: picture.title }), ...over);
      place.replaceChildren(view, element("label", { className: "again" }, "Other image", input()));
    },
  };
}

// Say how something goes in a line of status.
export function status(place) {
  return {
    say(text) { place.classList.remove("error"); place.textContent = text; },
    fail(error) {
      const stopped = error.name === "AbortError";
      place.classList.toggle("error", !stopped);
      place.textContent = stopped ? "Stopped." : error.message;
    },
  };
}

// Run one request at a time from a form: its button is disabled and Stop is shown while it lasts.
export function oneAtATime(form, stop, line, work) {
  let abort = null;
  stop.addEventListener("click", () => abort?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (abort) return;
    abort = new AbortController();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    stop.hidden = false;
    try {
      await work(abort.signal);
    } catch (error) {
      line.fail(error);
    } finally {
      abort = null;
      button.disabled = false;
      stop.hidden = true;
    }
  });
}

// Draw `count` images into a grid: `request(onImage, signal)` asks for all, titles are by place.
export async function drawInto(grid, titles, facts, actions, request, signal) {
  const tiles = titles.map((title) => tile(title, actions));
  grid.prepend(...tiles.map((one) => one.figure));
  const open = new Set(tiles.keys());
  const added = [];
  try {
    await request((place, base64, event) => {
      if (!event) { tiles[place].preview(pngOf(base64)); return; }
      open.delete(place);
      added.push(add(pngOf(base64), titles[place], event.tokens).then((picture) => tiles[place].done(picture, facts(event))));
    }, signal);
    await Promise.all(added);
    if (open.size) throw new Error("The server ended before all images were drawn.");
  } finally {
    for (const place of open) tiles[place].failed();
  }
}
