// What the page shows of an answer.

import { disagreement, mostProbable } from "./probabilities.js";
import { className } from "./sidecar.js";

const SHOWN = 5; // classes
const SMALL = 128; // pixels: below, each is shown as a square
const HUE = [255, 122, 0]; // of attention
const byId = (id) => document.getElementById(id);

/** Show what a classifier answered to a picture. */
export function showAnswer(answer, classifier) {
  const { sidecar } = classifier;
  showSeen(answer.seen);
  showRollout(answer);
  showClasses(mostProbable(answer.logits, SHOWN, sidecar.activation), sidecar);
  showHeads(disagreement(answer.heads, sidecar.activation), sidecar);
  showTimes(answer.milliseconds, classifier.accelerator);
  byId("result").hidden = false;
}

/** A line about what the page does, or about what went wrong. */
export function showStatus(text, isAlarm = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("alarm", isAlarm);
}

/** A line about the model. */
export function showModel({ name, sidecar }) {
  const [height, width] = sidecar.image_size;
  const classes = sidecar.labels ? `${sidecar.labels.length} classes, ` : "";
  byId("about").textContent =
    `${name}: ${classes}${width} × ${height} pixels. It runs in this page: no picture leaves your device.`;
}

/** Strength of the attention over the picture, 0 to 1. */
export function showStrength(strength) {
  byId("attention").style.opacity = strength;
}

function showSeen({ pixels, height, width }) {
  const canvas = byId("seen");
  drawPixels(canvas, height, width, (i) => [...pixels.subarray(3 * i, 3 * i + 3), 255]);
  canvas.classList.toggle("small", Math.max(height, width) < SMALL);
  byId("caption").textContent = `As the model sees it: ${width} × ${height} pixels`;
}

/** The share of each patch as a color over the picture, the more opaque the larger. */
function showRollout({ rollout, grid }) {
  byId("attention").hidden = byId("strength-label").hidden = !rollout;
  if (!rollout) return;

  const [least, most] = [Math.min(...rollout), Math.max(...rollout)];
  const opacity = (i) => (255 * (rollout[i] - least)) / Math.max(most - least, 1e-12);
  const [rows, columns] = grid;
  drawPixels(byId("attention"), rows, columns, (i) => [...HUE, opacity(i)]);
}

function drawPixels(canvas, height, width, color) {
  canvas.height = height;
  canvas.width = width;
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) image.data.set(color(i), 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showClasses(found, sidecar) {
  const items = found.map(({ index, probability }) => {
    const item = document.createElement("li");
    const bar = span("bar", "");
    bar.style.width = `${100 * probability}%`;
    item.append(bar, span("name", className(sidecar, index)), span("share", percent(probability)));
    return item;
  });
  byId("classes").replaceChildren(...items);
}

function showHeads(differing, sidecar) {
  byId("heads").hidden = !differing;
  for (const [head, { index, probability }] of Object.entries(differing ?? {})) {
    byId(`head-${head}`).textContent = `${className(sidecar, index)}, ${percent(probability)}`;
  }
}

function showTimes({ preparation, network }, accelerator) {
  const place = { webgpu: "WebGPU", wasm: "WASM" }[accelerator];
  byId("times").textContent =
    `${network.toFixed(1)} ms on ${place}; before it ${preparation.toFixed(1)} ms to decode, resize and crop.`;
}

function span(name, text) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  return element;
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}
