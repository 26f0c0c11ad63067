// Requests to the server's API. Errors are thrown as Error with the server's own message.

let key = "";
export const setKey = (text) => { key = text; };
let model = "";  // name of an adaptor; empty for the model itself
export const setModel = (name) => { model = name; };
const asked = () => (model ? { model } : {});

async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const form = body instanceof FormData;
  if (body && !form) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, body: body && !form ? JSON.stringify(body) : body,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (!answer.ok) throw new Error(await said(answer));
  return answer;
}

async function said(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

// The objects of a stream of server-sent events, until its end or [DONE].
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

export const models = async () => (await (await ask("/v1/models")).json()).data;

const PREVIEWS = 6;

// Drawing: onImage(index, base64 PNG, completed event or null) for each preview and each finished image.
export async function draw(fields, onImage, signal) {
  const body = { ...asked(), ...fields, stream: true, partial_images: PREVIEWS };
  await follow(await ask("/v1/images/generations", body, signal), onImage);
}

export async function edit(fields, image, mask, onImage, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, stream: true, partial_images: PREVIEWS })) form.append(name, value);
  form.append("image", image, "image.png");
  if (mask) form.append("mask", mask, "mask.png");
  await follow(await ask("/v1/images/edits", form, signal), onImage);
}

async function follow(answer, onImage) {
  for await (const event of events(answer)) {
    onImage(event.index ?? 0, event.b64_json, event.type.endsWith(".completed") ? event : null);
  }
}

// A conversation: onPiece(more) for each piece of the answer.
export async function chat(messages, onPiece, signal) {
  for await (const event of events(await ask("/v1/chat/completions", { ...asked(), messages, stream: true }, signal))) {
    const more = event.choices?.[0]?.delta?.content;
    if (more) onPiece(more);
  }
}

export async function tokenize(image, budget, signal) {
  const body = { image, ...(budget ? { budget } : {}) };
  return (await (await ask("/v1/tokenize", body, signal)).json()).tokens;
}

export async function detokenize(tokens, signal) {
  return (await (await ask("/v1/detokenize", { tokens }, signal)).json()).data[0].b64_json;
}
