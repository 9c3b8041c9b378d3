// The page: files and the camera in, answers out. In its URL: ?bundle=, ?engine=wasm or webgpu, ?threads=.
import { CalipsoError, Classifier } from "./calipso.js";

const SHOWN = 5;
// Pictures beyond this many are answered, and not shown.
const MOST_ROWS = 50;
const settings = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const status = element("status");

// What was asked, in order, as `calipso classify --json` says it, or with an `error`.
export const answers = [];
let classifier;
// Files are answered one after the other, whoever gives them.
let queue = Promise.resolve();

function tell(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function made(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function words({ times, width, height, unknown }) {
  const known = unknown ? " · probably none of the classes" : "";
  return `${width} x ${height} · decoded in ${times.decode_ms.toFixed(1)} ms · answered in ${times.run_ms.toFixed(1)} ms${known}`;
}

function classes(predictions) {
  return predictions.slice(0, SHOWN).map(({ label, probability }) =>
    made("div", { className: "class" }, made("span", { textContent: label }), made("meter", { value: probability }), made("span", { textContent: `${(100 * probability).toFixed(2)}%` })),
  );
}

function row(answer, file) {
  const picture = made("img", { src: URL.createObjectURL(file), alt: "" });
  picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
  const name = made("div", { className: "name", textContent: answer.image });
  const body = answer.error
    ? [made("div", { className: "error", textContent: answer.error })]
    : [made("div", { className: "times", textContent: words(answer) }), ...classes(answer.predictions)];
  element("answers").prepend(made("article", { className: "answer" }, picture, made("div", {}, name, ...body)));
  while (element("answers").childElementCount > MOST_ROWS) element("answers").lastChild.remove();
}

async function ask(source, name) {
  try {
    return await classifier.classify(source, name);
  } catch (error) {
    // What we did not foresee is told too: an engine's own error, or no memory.
    return { image: name, error: error instanceof CalipsoError ? error.message : `${name}: ${error.message ?? error}` };
  }
}

function take(files) {
  queue = [...files].reduce(async (before, file) => {
    await before;
    const answer = await ask(file, file.name);
    answers.push(answer);
    row(answer, file);
    tell(answer.error ?? `${answers.length} answered`, "error" in answer);
  }, queue);
}

async function watch() {
  const video = element("video");
  const size = classifier.manifest.input.size;
  const wanted = size ? { height: { exact: size[0] }, width: { exact: size[1] } } : true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
    await video.play();
  } catch (error) {
    tell(`The camera cannot be used: ${error.message}`, true);
    return;
  }
  video.hidden = false;
  element("camera").disabled = true;
  for (;;) {
    await new Promise((next) => video.requestVideoFrameCallback(next));
    const answer = await ask(video, "camera");
    const body = answer.error ? [answer.error] : [made("div", { className: "times", textContent: words(answer) }), ...classes(answer.predictions)];
    element("live").replaceChildren(...body);
  }
}

function describe({ manifest, engine, threads }) {
  const { input, preprocess, model, precision, parity, labels } = manifest;
  const shown = {
    model: model.name,
    classes: `${labels.length}: ${labels.slice(0, SHOWN).join(", ")}${labels.length > SHOWN ? " …" : ""}`,
    takes: `${input.channels}, ${input.size ? `${input.size[1]} x ${input.size[0]}` : "any size"}; resized to ${preprocess.size.join(" x ")} in the graph`,
    precision,
    "parity with eager PyTorch": parity,
    engine: engine === "wasm" ? `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}` : "WebGPU",
  };
  for (const [name, text] of Object.entries(shown)) {
    element("facts").append(made("dt", { textContent: name }), made("dd", { textContent: text }));
  }
  element("manifest").textContent = JSON.stringify(manifest, null, 2);
}

async function start() {
  const engine = settings.get("engine") ?? undefined;
  if (![undefined, "wasm", "webgpu"].includes(engine)) throw new CalipsoError(`?engine=${engine}: expected wasm or webgpu`);
  const threads = Number(settings.get("threads") ?? 0);
  if (!(Number.isInteger(threads) && threads >= 0)) throw new CalipsoError(`?threads=${settings.get("threads")}: expected a whole number`);
  const library = new URL("node_modules/onnxruntime-web/dist/", location).href;
  classifier = await Classifier.load(settings.get("bundle") ?? "bundle/", { engine, threads, library });
  describe(classifier);
  for (const id of ["files", "camera"]) element(id).disabled = false;
  const failed = classifier.manifest.parity === "failed";
  tell(failed ? "This bundle's parity gate failed: its answers may differ from the model's" : "Ready", failed);
}

element("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
element("camera").addEventListener("click", watch);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  element("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && classifier) take(event.dataTransfer.files);
  });
}

// Settles when the bundle is loaded, or cannot be.
export const ready = start().catch((error) => tell(error.message ?? String(error), true));
