// A bundle of raw pixels on onnxruntime-web: what the runtime does in Python, and nothing of the preparation.
import { asStored, CalipsoError } from "./stored.js";

const SCHEMA_VERSION = 1;
// By order of the channels: where each is taken from in RGBA.
const ORDERS = { rgb: [0, 1, 2], bgr: [2, 1, 0], rgba: [0, 1, 2, 3], bgra: [2, 1, 0, 3] };
// Pillow's limit, so that a picture is refused by all hosts or by none.
const MOST_PIXELS = 89478485;
const OPAQUE = 255;
// Not colour-managed, and not multiplied by alpha.
const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };


export { CalipsoError };

export class Classifier {
  // Of a bundle's URL. Settings: engine, "wasm" or "webgpu", the latter where it can be if none is given; threads of WASM,
  // 0 for as many as onnxruntime-web finds right; library, the URL of onnxruntime-web's dist/.
  static async load(bundle, { engine, threads = 0, library }) {
    const manifest = await manifestOf(bundle);
    engine ??= await bestEngine(manifest.input);
    if (engine === "webgpu" && manifest.input.size === null) {
      throw new CalipsoError("WebGPU is for graphs of fixed size: export with --pixels-size, or take ?engine=wasm");
    }
    const [graph, data] = await Promise.all(["model.onnx", "model.onnx.data"].map((name) => fileOf(bundle, name, manifest)));
    const ort = await import(`${library}ort.${engine}.min.mjs`);
    ort.env.wasm.wasmPaths = library;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
    const externalData = data ? [{ path: "model.onnx.data", data }] : [];
    // What WebGPU has no kernel for is computed by WebAssembly.
    const executionProviders = engine === "webgpu" ? ["webgpu", "wasm"] : ["wasm"];
    try {
      const session = await ort.InferenceSession.create(graph, { executionProviders, externalData, logSeverityLevel: 3 });
      return new Classifier(manifest, session, ort, engine);
    } catch (error) {
      throw new CalipsoError(`${bundle}model.onnx cannot be loaded on ${engine}: ${error.message ?? error}`);
    }
  }

  constructor(manifest, session, ort, engine) {
    Object.assign(this, { manifest, session, ort, engine, threads: ort.env.wasm.numThreads });
  }

  // Of a file, a video's frame, or anything else that createImageBitmap takes: all classes, the best first.
  async classify(source, name = source.name ?? "the picture") {
    const started = performance.now();
    const pixels = await decode(source, this.manifest.input, name);
    const decoded = performance.now();
    const answers = await this.session.run({ pixels: new this.ort.Tensor("uint8", pixels.data, pixels.shape) }, ["logits"]);
    const ran = performance.now();
    const logits = Array.from(answers.logits.data);
    if (!logits.every(Number.isFinite)) {
      throw new CalipsoError(`${name}: the graph answered logits that are not finite: it overflows on ${this.engine}`);
    }
    const times = { decode_ms: decoded - started, run_ms: ran - decoded };
    return { image: name, ...this.#ranked(logits), times, height: pixels.shape[1], width: pixels.shape[2] };
  }

  // As `calipso classify --json` says it: equal logits in the order of the labels.
  #ranked(logits) {
    const { labels, confidence } = this.manifest;
    const temperature = confidence?.temperature ?? 1;
    const largest = logits.reduce((most, logit) => Math.max(most, logit));
    const raised = logits.map((logit) => Math.exp((logit - largest) / temperature));
    const sum = raised.reduce((total, value) => total + value, 0);
    const predictions = logits.map((logit, place) => ({ label: labels[place], probability: raised[place] / sum, logit }));
    predictions.sort((a, b) => b.logit - a.logit);
    const threshold = confidence?.unknown?.threshold;
    const unknown = threshold == null ? {} : { unknown: predictions[0].probability < threshold };
    return { ...unknown, predictions };
  }
}

// onnxruntime-web 1.30 finds no place on WebGPU for the double precision of graphs that take any size.
async function bestEngine({ size }) {
  return size !== null && (await navigator.gpu?.requestAdapter()) ? "webgpu" : "wasm";
}

// A picture -> uint8 [1,H,W,C] in the order that the graph takes. Its alpha has to be opaque.
async function decode(source, input, name) {
  if (source.size === 0) throw new CalipsoError(`${name} is empty: choose a picture`);
  const stored = source instanceof Blob ? await asStored(source, name) : source;
  let bitmap;
  try {
    bitmap = await createImageBitmap(stored, AS_STORED);
  } catch (error) {
    throw new CalipsoError(`${name} cannot be decoded: it is no picture, truncated, or too large (${error.message})`);
  }
  const { width, height } = bitmap;
  try {
    check(width, height, input, name);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const data = ordered(context.getImageData(0, 0, width, height).data, input.channels, name);
    return { data, shape: [1, height, width, input.channels.length] };
  } finally {
    bitmap.close();
  }
}

function check(width, height, { size }, name) {
  if (width * height > MOST_PIXELS) {
    throw new CalipsoError(`${name} is too large: ${width} x ${height} pixels, the limit is ${MOST_PIXELS}. Scale it down`);
  }
  if (size && (size[0] !== height || size[1] !== width)) {
    throw new CalipsoError(`${name} is ${width} x ${height}: this graph takes pictures of ${size[1]} x ${size[0]} alone`);
  }
}

function ordered(rgba, channels, name) {
  const order = ORDERS[channels];
  const pixels = new Uint8Array((rgba.length / 4) * order.length);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (rgba[from + 3] !== OPAQUE) {
      throw new CalipsoError(`${name} is transparent, or too large for a canvas: give an opaque picture, or scale it down`);
    }
    for (const channel of order) pixels[to++] = rgba[from + channel];
  }
  return pixels;
}

async function manifestOf(bundle) {
  const url = `${bundle}manifest.json`;
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(await fetched(url)));
  } catch (error) {
    if (error instanceof CalipsoError) throw error;
    throw new CalipsoError(`${url} is not a Calipso manifest: it is no JSON`);
  }
  const wrong = whatIsWrong(manifest);
  if (wrong) throw new CalipsoError(`${url} ${wrong}`);
  return manifest;
}

// Why a manifest is of no bundle that this page can ask; undefined if it is.
function whatIsWrong(manifest) {
  if (!Number.isInteger(manifest?.schema_version)) return "is not a Calipso manifest: it has no schema_version";
  if (manifest.schema_version > SCHEMA_VERSION) return `has schema version ${manifest.schema_version}; this page reads up to ${SCHEMA_VERSION}`;
  if (manifest.input?.name !== "pixels" || !ORDERS[manifest.input.channels]) return "is of a graph that does not take raw pixels: export with --pixels";
  const kind = manifest.head?.kind ?? "baked";
  if (kind !== "baked") return `has a head of kind "${kind}": bundles that take any labels or taught heads are for Python alone. Export with --head-mode baked`;
  if (!manifest.labels?.length || !manifest.files?.["model.onnx"]) return "does not follow the manifest's schema: it lacks labels or files";
  return undefined;
}

// A file of the bundle, as its manifest promises it; undefined where the bundle has none of the name.
async function fileOf(bundle, name, manifest) {
  const promised = manifest.files[name];
  if (!promised) return undefined;
  const content = await fetched(bundle + name);
  // Browsers hash on https and on localhost alone: elsewhere the size has to do.
  const digest = self.crypto.subtle ? await sha256(content) : promised.sha256;
  if (content.length !== promised.bytes || digest !== promised.sha256) {
    throw new CalipsoError(`${bundle}${name} is not what its manifest says: truncated, or changed after its export. Copy it again`);
  }
  return content;
}

async function sha256(content) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (value) => value.toString(16).padStart(2, "0")).join("");
}

async function fetched(url) {
  const response = await fetch(url).catch((error) => ({ statusText: error.message }));
  if (!response.ok) throw new CalipsoError(`${url} cannot be read: ${response.status ?? ""} ${response.statusText}. Is a bundle there?`);
  return new Uint8Array(await response.arrayBuffer());
}
