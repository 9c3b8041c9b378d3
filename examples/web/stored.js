// Pictures as their files store them, and not as browsers show them: what a header says that a decoded bitmap does not.

export class CalipsoError extends Error {}

// What open_clip resizes before it is RGB: after a decoder has made it RGB, the graph would be given another picture.
const NOT_PLAIN = "open_clip resizes before it is RGB: convert it to RGB first if that is what is meant";
const SOI = 0xffd8;
const SCAN = 0xda;
// Markers of frames: all of C0 to CF but DHT, JPG and DAC.
const NO_FRAMES = [0xc4, 0xc8, 0xcc];
const PALETTE = 3;
const GREY = 0;

// The file without its EXIF orientation, which browsers apply whatever they are asked, and open_clip does not.
export async function asStored(file, name) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const text = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length > 12 && view.getUint16(0) === SOI) return new Blob(jpeg(bytes, view, text, name));
  if (text(0) === "\x89PNG") return new Blob(png(bytes, view, text, name));
  if (text(0) === "RIFF") return new Blob(webp(bytes, view, text));
  if (text(0) === "GIF8") throw new CalipsoError(`${name} has a palette, which ${NOT_PLAIN}`);
  return file;
}

function jpeg(bytes, view, text, name) {
  const parts = [];
  let kept = 0;
  for (let at = 2; at + 10 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== SCAN; ) {
    const marker = bytes[at + 1];
    const next = at + 2 + view.getUint16(at + 2);
    if (marker >= 0xc0 && marker <= 0xcf && !NO_FRAMES.includes(marker) && bytes[at + 9] === 4) {
      throw new CalipsoError(`${name} is CMYK, which ${NOT_PLAIN}`);
    }
    if (marker === 0xe1 && text(at + 4) === "Exif") {
      parts.push(bytes.subarray(kept, at));
      kept = next;
    }
    at = next;
  }
  return [...parts, bytes.subarray(kept)];
}

function png(bytes, view, text, name) {
  const [depth, colours] = [bytes[24], bytes[25]];
  if (colours === PALETTE) throw new CalipsoError(`${name} has a palette, which ${NOT_PLAIN}`);
  if (depth === 16 || (colours === GREY && depth === 1)) throw new CalipsoError(`${name} has ${depth} bits a channel, which ${NOT_PLAIN}`);
  const parts = [];
  let kept = 0;
  for (let at = 8, next; at + 12 <= bytes.length; at = next) {
    next = at + 12 + view.getUint32(at);
    if (text(at + 4) === "eXIf") {
      parts.push(bytes.subarray(kept, at));
      kept = next;
    }
  }
  return [...parts, bytes.subarray(kept)];
}

// Chunks of other names are passed over: the orientation is hidden by another name.
function webp(bytes, view, text) {
  for (let at = 12; at + 8 <= bytes.length; at += 8 + 2 * Math.ceil(view.getUint32(at + 4, true) / 2)) {
    if (text(at) === "EXIF") bytes[at] = "?".charCodeAt(0);
  }
  return [bytes];
}
