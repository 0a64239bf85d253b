// LiteRT.js: a .tflite file compiled for WebGPU or WASM, and run.

import { Tensor, isWebGPUSupported, loadAndCompile, loadLiteRt } from "@litertjs/core";

const WASM = new URL("litert/wasm/", import.meta.url).href;
let loading;

/** Whether this browser has WebGPU, and a device for it. */
export async function hasWebGpu() {
  return isWebGPUSupported() && Boolean(await navigator.gpu.requestAdapter().catch(() => null));
}

/**
 * Compile the bytes of a .tflite file.
 *
 * Returns the model; `model.options.accelerator` is what it runs on: "wasm" also where WebGPU was asked
 * for and does not take all of its operations.
 */
export async function compile(bytes, accelerator) {
  loading ??= loadLiteRt(WASM);
  await loading;

  // float32, as Keras: half precision moves logits by a hundredth.
  const model = await loadAndCompile(bytes, { accelerator, gpuOptions: { precision: "fp32" } });
  if (accelerator === "wasm" || model.isFullyAccelerated) return model;
  model.delete();
  return loadAndCompile(bytes, { accelerator: "wasm" });
}

/** Height and width that a model takes. */
export function imageSize(model) {
  const [, height, width] = model.getInputDetails()[0].shape;
  return [height, width];
}

/** Run a model on one image; returns each output by name, as {values, shape}. */
export async function run(model, image) {
  const [input] = model.getInputDetails();
  const tensor = new Tensor(image, [...input.shape]);
  const answers = await model.run({ [input.name]: tensor });
  tensor.delete();

  const outputs = {};
  for (const { name, shape } of model.getOutputDetails()) {
    const answer = await answers[name].moveTo("wasm");
    outputs[name] = { values: Float32Array.from(answer.toTypedArray()), shape: [...shape] };
    answer.delete();
  }
  return outputs;
}
