// The page: what is chosen, dropped or switched, and what follows.

import { connectCamera } from "./camera.js";
import { loadClassifier } from "./classifier.js";
import { hasWebGpu } from "./runtime.js";
import { showAnswer, showModel, showStatus, showStrength } from "./view.js";

const MODELS = "models.json"; // names of the .tflite files in this folder
const byId = (id) => document.getElementById(id);
const accelerator = () => new FormData(byId("settings")).get("accelerator");

let source = null; // of the model: its file and its sidecar, as blobs with names
let classifier = null;
let picture = null; // the last one, to be asked again of another model
let work = Promise.resolve(); // one thing at a time

/** Do one thing after the other; what fails is said, and the page goes on. */
function enqueue(task) {
  document.body.setAttribute("aria-busy", "true");
  work = work.then(task).catch((error) => showStatus(error.message, true));
  const mine = work;
  mine.then(() => mine === work && document.body.setAttribute("aria-busy", "false"));
  return work;
}

async function load() {
  showStatus(`Loading ${source.file.name} …`);
  const loaded = await loadClassifier(source.file, source.described, accelerator());
  classifier?.close();
  classifier = loaded;

  showModel(classifier);
  const fell = classifier.accelerator !== accelerator();
  byId("settings").elements.accelerator.value = classifier.accelerator;
  showStatus(fell ? "WebGPU does not take all of this model: it runs on WASM." : "");
  if (picture) await classify();
}

async function classify() {
  if (!classifier) throw new Error("There is no model yet: open a .tflite file and its .json below.");
  showAnswer(await classifier.classify(picture), classifier);
}

function ask(blob) {
  return enqueue(async () => {
    picture = blob;
    showStatus("");
    await classify();
  });
}

/** A picture, or a .tflite file with its sidecar. */
function open(files) {
  const ending = (suffix) => files.find(({ name }) => name.toLowerCase().endsWith(suffix));
  const [file, described] = [ending(".tflite"), ending(".json")];
  if (!file && !described) return files.length ? ask(files[0]) : undefined;

  return enqueue(() => {
    if (!file || !described) throw new Error("Open a .tflite file together with the .json beside it.");
    source = { file, described };
    return load();
  });
}

async function loadFromFolder(name) {
  const described = name.replace(/\.tflite$/, ".json");
  source = { file: await fetchFile(name), described: await fetchFile(described) };
  await load();
}

async function fetchFile(name) {
  const answer = await fetch(encodeURIComponent(name));
  if (!answer.ok) throw new Error(`${name} is not in this folder (${answer.status}).`);
  return new File([await answer.blob()], name);
}

async function start() {
  const gpu = await hasWebGpu();
  const [webgpu] = byId("settings").elements.accelerator;
  webgpu.disabled = !gpu;
  byId("settings").elements.accelerator.value = gpu ? "webgpu" : "wasm";

  const names = await (await fetchFile(MODELS)).text().then(JSON.parse);
  byId("models").replaceChildren(...names.map((name) => new Option(name)));
  byId("models-label").hidden = names.length < 2;
  if (!names.length) throw new Error("There is no model in this folder: open a .tflite file and its .json.");
  await loadFromFolder(names[0]);
}

function connect() {
  const drop = document.documentElement;
  const over = (is) => byId("drop").classList.toggle("over", is);
  drop.addEventListener("dragover", (event) => (event.preventDefault(), over(true)));
  drop.addEventListener("dragleave", () => over(false));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    open([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => open([...event.clipboardData.files]));

  for (const id of ["file", "model-files"]) {
    byId(id).addEventListener("change", async ({ target }) => {
      await open([...target.files]);
      target.value = ""; // so that the same file can be chosen again
    });
  }

  connectCamera(ask, (text) => showStatus(text, true));
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("models").addEventListener("change", ({ target }) => enqueue(() => loadFromFolder(target.value)));
  for (const radio of byId("settings").elements.accelerator) {
    radio.addEventListener("change", () => source && enqueue(load));
  }
  byId("strength").addEventListener("input", ({ target }) => showStrength(target.value / 100));
  showStrength(byId("strength").value / 100);
}

connect();
enqueue(start);
