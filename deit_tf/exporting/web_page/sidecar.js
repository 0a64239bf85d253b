// The JSON file beside a .tflite file: how to feed it, what its classes are called
// (deit_tf/exporting/sidecar.py).

const KEYS = ["file", "input", "labels", "sha256"];
const PREPARATION = ["image_size", "resize_to", "interpolation", "mean", "std"];

/** Read and check a sidecar; throws an Error, for people, where it does not fit. */
export async function readSidecar(text, name, model) {
  const sidecar = parse(text, name);
  const missing = KEYS.filter((key) => !(key in sidecar));
  if (missing.length) throw new Error(`${name} lacks ${missing.join(", ")}: it is no sidecar of deit-tf.`);
  if (PREPARATION.some((key) => !(key in sidecar))) {
    throw new Error(`${name} does not say how pictures are prepared. Export the run again.`);
  }

  const found = await sha256(model);
  if (found && found !== sidecar.sha256) {
    throw new Error(`${name} belongs to another ${sidecar.file}: the checksum differs. Copy both again.`);
  }
  // Exports of before it was written down turned pictures.
  return { exif_orientation: true, ...sidecar };
}

/** The name of a class; its number where the export knew none. */
export function className(sidecar, index) {
  return sidecar.labels?.[index] ?? `class ${index}`;
}

function parse(text, name) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON file.`);
  }
}

/** SHA-256 in hexadecimal; null where the browser has none, on http beyond this machine. */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
