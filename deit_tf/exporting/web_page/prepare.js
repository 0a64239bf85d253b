// From a picture of any size to what the network takes, as the sidecar says and as ImageProcessor in
// deit_tf/data/preprocess.py does it. A picture is {pixels: Uint8Array [H, W, 3], height, width}.

import { resize } from "./resize.js";

const { fround } = Math;
const CHANNELS = 3;

/** Resize and center-crop a picture to the `image_size` of a sidecar. */
export function crop(picture, sidecar) {
  const [height, width] = beforeCrop(picture, sidecar.resize_to);
  return centerCrop(resize(picture, height, width, sidecar.interpolation), sidecar.image_size);
}

/** Pixels as the file takes them: as they are, or normalized to float32. */
export function modelInput(picture, sidecar) {
  if (sidecar.input.type === "uint8") return Uint8Array.from(picture.pixels);
  return normalize(picture.pixels, sidecar.mean, sidecar.std);
}

/** Map pixels 0..255 to float32 with `mean` at 0 and one `std` at 1, both of pixels in 0..1. */
export function normalize(pixels, mean, std) {
  const scale = std.map((s) => fround(1 / (255 * s)));
  const offset = mean.map((m, channel) => fround(m / std[channel]));

  return Float32Array.from(pixels, (value, i) => {
    const channel = i % CHANNELS;
    return fround(value * scale[channel]) - offset[channel];
  });
}

/** Height and width before the crop: both are given, or the short side is. */
function beforeCrop({ height, width }, resizeTo) {
  if (Array.isArray(resizeTo)) return resizeTo;
  const short = Math.min(height, width);
  return [height, width].map((side) => Math.floor((resizeTo * side) / short));
}

function centerCrop({ pixels, height, width }, [cropHeight, cropWidth]) {
  const top = halfToEven((height - cropHeight) / 2);
  const left = halfToEven((width - cropWidth) / 2);
  const cropped = new Uint8ClampedArray(cropHeight * cropWidth * CHANNELS);

  for (let y = 0; y < cropHeight; y++) {
    const from = ((top + y) * width + left) * CHANNELS;
    cropped.set(pixels.subarray(from, from + cropWidth * CHANNELS), y * cropWidth * CHANNELS);
  }

  return { pixels: cropped, height: cropHeight, width: cropWidth };
}

/** Round half to even, as torchvision does. */
function halfToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
