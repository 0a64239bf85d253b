// A model with its sidecar: from a picture file to logits, heads, rollout and milliseconds.

import { decode } from "./decode.js";
import { crop, modelInput } from "./prepare.js";
import { compile, imageSize, run } from "./runtime.js";
import { readSidecar } from "./sidecar.js";

/** Load a .tflite file and its sidecar, each a blob with a name, for "webgpu" or "wasm". */
export async function loadClassifier(file, described, accelerator) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const sidecar = await readSidecar(await described.text(), described.name, bytes);
  const model = await compile(bytes, accelerator);
  if (String(imageSize(model)) !== String(sidecar.image_size)) {
    throw new Error(`${file.name} takes images of ${imageSize(model)}, ${described.name} says otherwise.`);
  }

  const classifier = new Classifier(file.name, model, sidecar);
  await classifier.warmUp();
  return classifier;
}

class Classifier {
  constructor(name, model, sidecar) {
    this.name = name;
    this.model = model;
    this.sidecar = sidecar;
  }

  /** "webgpu" or "wasm": what it runs on, which may be other than what was asked for. */
  get accelerator() {
    return this.model.options.accelerator;
  }

  /** The first run makes shaders and memory, and takes longest. */
  async warmUp() {
    const [height, width] = this.sidecar.image_size;
    const blank = { pixels: new Uint8ClampedArray(height * width * 3), height, width };
    await run(this.model, modelInput(blank, this.sidecar));
  }

  /**
   * Classify a picture file.
   *
   * Returns `seen`, the picture as the model sees it; `logits`; `heads` [2, C] and `rollout` with its
   * `grid` of rows and columns where the file gives them; `milliseconds` of preparation and network.
   */
  async classify(blob) {
    const started = performance.now();
    const picture = await decode(blob, this.sidecar.exif_orientation);
    const seen = crop(picture, this.sidecar);
    const input = modelInput(seen, this.sidecar);
    const prepared = performance.now();
    const outputs = await run(this.model, input);
    const finished = performance.now();

    const logits = outputs.logits ?? Object.values(outputs)[0];
    return {
      seen,
      logits: logits.values,
      heads: outputs.heads?.values,
      rollout: outputs.rollout?.values,
      grid: outputs.rollout?.shape.slice(1),
      milliseconds: { preparation: prepared - started, network: finished - prepared },
    };
  }

  close() {
    this.model.delete();
  }
}
