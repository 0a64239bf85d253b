// The bytes of an image file to a picture {pixels [H, W, 3], height, width}, decoded by the browser.

import { withoutMetadata } from "./metadata.js";
import { exifOrientation, turn } from "./orientation.js";

const MAX_ASPECT = 100; // long side over short side, as in deit_tf/config/bounds.py

/**
 * Decode a file or blob.
 *
 * Gray images get three equal channels, and an alpha channel is dropped, as in deit_tf/data/decode.py.
 * Throws an Error, for people, where it is no image.
 */
export async function decode(blob, upright) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const bitmap = await decodeBytes(bytes, blob);
  const { height, width } = bitmap;
  if (Math.max(height, width) > MAX_ASPECT * Math.min(height, width)) {
    throw new Error(`A picture's long side is at most ${MAX_ASPECT} times its short side.`);
  }

  const picture = { pixels: withoutAlpha(readPixels(bitmap)), height, width };
  bitmap.close();
  return upright ? turn(picture, exifOrientation(bytes)) : picture;
}

async function decodeBytes(bytes, blob) {
  try {
    const plain = new Blob([withoutMetadata(bytes)], { type: blob.type });
    return await createImageBitmap(plain, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`${blob.name ?? "This file"} is no picture that this browser can read.`);
  }
}

/** RGBA pixels of a bitmap. */
function readPixels(bitmap) {
  const { height, width } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return isOpaque(data) ? data : (readByTexture(bitmap) ?? data);
}

/** The same through a texture: a canvas multiplies colors by alpha, and loses them where it is 0. */
function readByTexture(bitmap) {
  const { height, width } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(height, width) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;

  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const texture = gl.getParameter(gl.TEXTURE_BINDING_2D);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);

  const pixels = new Uint8Array(height * width * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return pixels;
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

function withoutAlpha(rgba) {
  const rgb = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}
