// What a file says beside its pixels. Browsers turn pictures and convert colors by it, each in its own
// way and deit_tf in none: so it is taken out before a browser decodes the file.

const EXIF = "Exif\0\0";
// PNG chunks by which colors or orientation would change (PNG, third edition, section 11.3).
const PNG_CHANGES = ["cHRM", "cICP", "eXIf", "gAMA", "iCCP", "sRGB"];
const PNG_HEAD = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const APPLICATION_1 = 0xe1; // Exif, XMP
const APPLICATION_2 = 0xe2; // color profile
const COMMENT = 0xfe;

export function isJpeg(bytes) {
  return startsWith(bytes, [0xff, 0xd8, 0xff]);
}

/** The same picture without Exif and color profile; other files than JPEG and PNG as they are. */
export function withoutMetadata(bytes) {
  if (isJpeg(bytes)) {
    const changes = ({ marker }) => marker === APPLICATION_1 || marker === APPLICATION_2;
    return without(bytes, headerSegments(bytes).filter(changes));
  }
  if (startsWith(bytes, PNG_HEAD)) {
    return without(bytes, pngChunks(bytes).filter(({ type }) => PNG_CHANGES.includes(type)));
  }
  return bytes;
}

/** Application segments and comments of a JPEG file, which precede the picture. */
export function headerSegments(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const segments = [];
  let start = 2;

  while (start + 10 < bytes.length && bytes[start] === 0xff) {
    const marker = bytes[start + 1];
    if ((marker < 0xe0 || marker > 0xef) && marker !== COMMENT) break;
    const stop = start + 2 + view.getUint16(start + 2);
    const isExif = marker === APPLICATION_1 && text(bytes, start + 4, EXIF.length) === EXIF;
    segments.push({ marker, start, stop, isExif });
    start = stop;
  }

  return segments;
}

function pngChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = [];
  let start = PNG_HEAD.length;

  while (start + 12 <= bytes.length) {
    const stop = start + 12 + view.getUint32(start); // length, type and checksum around the content
    chunks.push({ type: text(bytes, start + 4, 4), start, stop });
    start = stop;
  }

  return chunks;
}

function without(bytes, parts) {
  const kept = [];
  let from = 0;
  for (const { start, stop } of parts) {
    kept.push(bytes.subarray(from, start));
    from = stop;
  }
  kept.push(bytes.subarray(from));

  const joined = new Uint8Array(kept.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of kept) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

function startsWith(bytes, head) {
  return head.every((byte, i) => bytes[i] === byte);
}

function text(bytes, start, length) {
  return String.fromCharCode(...bytes.subarray(start, start + length));
}
