// Runs the page's own modules on raw pictures, for test_web_page.py: node prepare_pictures.mjs PAGE FOLDER
// FOLDER/cases.json: [{name, height, width, sidecar}], beside it NAME.rgb and, where it is asked for the
// orientation, NAME.jpg; writes NAME.pixels (uint8), NAME.input (float32) and orientations.json.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , page, folder] = process.argv;
const load = (name) => import(pathToFileURL(join(page, name)).href);
const { crop, modelInput } = await load("prepare.js");
const { exifOrientation, turn } = await load("orientation.js");
const { withoutMetadata } = await load("metadata.js");

const orientations = {};
for (const { name, height, width, sidecar } of JSON.parse(readFileSync(join(folder, "cases.json")))) {
  const path = (suffix) => join(folder, name + suffix);
  let picture = { pixels: new Uint8Array(readFileSync(path(".rgb"))), height, width };

  if (existsSync(path(".jpg"))) {
    const bytes = new Uint8Array(readFileSync(path(".jpg")));
    orientations[name] = exifOrientation(bytes);
    picture = turn(picture, orientations[name]);
    writeFileSync(path(".plain.jpg"), withoutMetadata(bytes));
  }

  const seen = crop(picture, sidecar);
  writeFileSync(path(".pixels"), seen.pixels);
  writeFileSync(path(".input"), new Uint8Array(modelInput(seen, sidecar).buffer));
}
writeFileSync(join(folder, "orientations.json"), JSON.stringify(orientations));
