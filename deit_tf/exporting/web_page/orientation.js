// How a picture is to be turned: the Exif tag of JPEG files, read and obeyed as in
// deit_tf/data/orientation.py. Numbers 1 to 8: TIFF 6.0 and Exif 2.3, tag 0x0112.

import { headerSegments, isJpeg } from "./metadata.js";

const LOOKED_THROUGH = 1 << 17; // bytes, as in deit_tf
const ENTRY = 12; // bytes of an entry: tag, type, count, value
const ORIENTATION = 0x0112;
const SHORT = 3;
const CHANNELS = 3;

/** The orientation of a file, 1 to 8; 1, as it is, where it says nothing or nonsense. */
export function exifOrientation(bytes) {
  if (!isJpeg(bytes)) return 1;
  const head = bytes.subarray(0, LOOKED_THROUGH);
  const exif = headerSegments(head).find((segment) => segment.isExif);
  return exif ? orientationInTiff(head, exif.start + 10) : 1;
}

/** Turn a picture {pixels [H, W, 3], height, width} upright. */
export function turn(picture, orientation) {
  if (orientation === 1) return picture;
  const { pixels, height, width } = picture;
  const onItsSide = orientation > 4;
  const mirrored = [2, 3, 6, 7].includes(orientation); // left and right change places
  const upsideDown = [3, 4, 7, 8].includes(orientation);
  const [newHeight, newWidth] = onItsSide ? [width, height] : [height, width];
  const turned = new Uint8ClampedArray(pixels.length);

  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      const row = upsideDown ? newHeight - 1 - y : y;
      const column = mirrored ? newWidth - 1 - x : x;
      const from = onItsSide ? column * width + row : row * width + column;
      const to = y * newWidth + x;
      for (let c = 0; c < CHANNELS; c++) turned[to * CHANNELS + c] = pixels[from * CHANNELS + c];
    }
  }

  return { pixels: turned, height: newHeight, width: newWidth };
}

/** The tag in the first directory behind a TIFF header. */
function orientationInTiff(bytes, start) {
  // Zeros behind, so that what points beyond the end reads zeros.
  const view = new DataView(new Uint8Array([...bytes.subarray(start), ...new Uint8Array(32)]).buffer);
  const last = view.byteLength - 32;
  const little = view.getUint8(0) === "I".charCodeAt(0);

  const first = Math.min(Math.max(view.getInt32(4, little), 0), last);
  const count = Math.min(view.getUint16(first, little), Math.floor((last - first) / ENTRY));
  for (let i = 0; i < count; i++) {
    const at = first + 2 + ENTRY * i;
    const value = view.getUint16(at + 8, little);
    const fits = view.getUint16(at, little) === ORIENTATION && value >= 1 && value <= 8;
    if (fits && view.getUint16(at + 2, little) === SHORT) return value;
  }

  return 1;
}
