// Photographs: brought in, segmented, listed with their figures, opened to be corrected.

import { edit } from "./editor.js";
import { refresh } from "./main.js";
import { byId, counted, dropZone, fill, make, percent, say, tried } from "./parts.js";
import { blobOf, get, post, put, ticket } from "./server.js";
import { chooseData } from "./train.js";

const PAGE = 60;
let chosen = "", known = null, state = null, shown = PAGE;
let wish = ""; // the order that a person has asked for
const ready = new Map(); // addresses of thumbnails, and of the pictures that came from there

export function update(now) {
  state = now;
  const none = !state.models.length;
  byId("no-model").hidden = !none;
  byId("segment-form").hidden = none;
  byId("sample").classList.toggle("link", !none);
  const listed = state.collections.filter(entry => entry.kind !== "data");
  byId("collection-label").hidden = !listed.length;
  if (!listed.some(entry => entry.id === chosen)) chosen = listed.at(-1)?.id ?? "";
  fill(byId("collection"), listed.map(entry => [entry.id, `${entry.title} (${entry.count})`]), chosen);
  const working = state.jobs.some(job => job.kind === "segment" && job.about === chosen && ["waiting", "running"].includes(job.state));
  byId("segment").disabled = working || !chosen;
  const count = listed.find(entry => entry.id === chosen)?.count;
  byId("segment-note").textContent = working ? "At work" : count ? counted(count, "photograph") : "Add photographs first";
  if (chosen && known?.id !== chosen) show(chosen);
}

export function ended(job) {
  if (job.kind === "segment") {
    if (job.about === chosen) show(chosen);
    if (job.result.remark) say(job.result.remark);
    if (job.notes.length && job.state !== "failed") say(`${job.notes.length} left out. ${job.notes[0]}`, true, job.kind, "photographs");
  }
  if (job.kind === "sample" && job.result.photographs) {
    chooseData(job.result.folder);
    show(job.result.photographs);
    say("The sample leaves are drawn. Next: section Train.");
  }
}

export async function show(id) {
  chosen = id;
  const collection = await tried(() => get(`/api/collections/${id}`));
  if (!collection || chosen !== id) return;
  if (known?.id !== id) shown = PAGE;
  known = collection;
  list();
}

// --- Bringing photographs in ---

async function upload(files) {
  const images = files.filter(file => file.type.startsWith("image/") || /\.(tiff?|heic|heif|jp2|bmp|dng)$/i.test(file.name));
  if (!images.length) return say("There is no photograph among these files.", true, "upload");
  const title = `Dropped on ${new Date().toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`;
  const collection = await tried(() => post("/api/collections", { title }), "upload");
  if (!collection) return;
  const bar = byId("upload");
  Object.assign(bar, { hidden: false, max: images.length, value: 0 });
  const unseen = /^\.|^(Thumbs\.db|desktop\.ini)$/i; // a system's own
  const others = files.filter(file => !images.includes(file) && !unseen.test(file.name));
  const reasons = new Set();
  let taken = 0;
  for (const file of images) {
    try {
      await put(`/api/collections/${collection.id}/photographs`, file);
      taken++;
    } catch (error) {
      reasons.add(error.message);
      if (error.status === 507) break; // nor is there room for the rest
    }
    bar.value++;
  }
  bar.hidden = true;
  for (const file of others) reasons.add(`${file.name} is no photograph by its ending.`);
  if (reasons.size) say(`${images.length + others.length - taken} left out. ${[...reasons].slice(0, 3).join(" ")}`, true, "upload");
  chosen = collection.id;
  known = null;
  await refresh();
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("choose-folder").addEventListener("click", () => byId("folder-files").click());
for (const id of ["files", "folder-files"]) {
  byId(id).addEventListener("change", async event => {
    const files = [...event.target.files];
    event.target.value = "";
    await upload(files);
  });
}
dropZone(byId("drop"), upload);
byId("folder-form").addEventListener("submit", async event => {
  event.preventDefault();
  const folder = new FormData(event.target).get("folder");
  const collection = await tried(() => post("/api/collections", { folder }), "folder");
  if (!collection) return;
  chosen = collection.id;
  known = null;
  await refresh();
});
byId("collection").addEventListener("change", event => show(event.target.value));
byId("sample").addEventListener("click", async () => {
  await tried(() => post("/api/sample"), "sample");
  refresh();
});
byId("segment-form").addEventListener("submit", async event => {
  event.preventDefault();
  await tried(() => post(`/api/collections/${chosen}/segment`, { model: byId("model").value }), "segment");
  refresh();
});

// --- The table ---

const figure = (entry, name) => entry.figures[name];

function columns() {
  const names = new Set(known.photographs.flatMap(entry => Object.keys(entry.figures)));
  const last = known.classes?.at(-1)?.name;
  const wanted = [
    ["severity", "Severity", entry => severity(entry)],
    [`regions_${last}`, `Patches of ${last}`, entry => figure(entry, `regions_${last}`) ?? ""],
    ["confidence", "Confidence", entry => percent(figure(entry, "confidence"), 0)],
    ["unlike_training", "Unlike the training", entry => percent(figure(entry, "unlike_training"), 0)],
  ];
  return wanted.filter(([name]) => names.has(name));
}

// A share with its interval, where the model brings one; what a person has corrected has none.
function severity(entry) {
  const [value, low, high] = ["severity", "severity_low", "severity_high"].map(name => figure(entry, name));
  const text = percent(value);
  if (entry.corrected) return make("span", { title: "counted of the corrected mask" }, `${text} `, make("span", { class: "soft" }, "corrected"));
  if (typeof low !== "number" || typeof high !== "number") return text;
  const bar = make("span", { class: "interval" }, make("i"), make("b"));
  bar.firstChild.style.left = `${100 * low}%`;
  bar.firstChild.style.width = `${Math.max(1, 100 * (high - low))}%`;
  bar.lastChild.style.left = `${Math.min(97, 100 * value)}%`;
  return make("span", { title: `between ${percent(low)} and ${percent(high)}` }, `${text} (${percent(low)} to ${percent(high)})`, bar);
}

function ordered() {
  const by = byId("order").value, entries = [...known.photographs];
  if (by === "name") return entries;
  if (by === "rank") return entries.sort((a, b) => (a.rank ?? Infinity) - (b.rank ?? Infinity) || 0);
  const key = entry => figure(entry, by) ?? -1;
  if (by === "open") return entries.sort((a, b) => a.corrected - b.corrected);
  const sign = by === "confidence" ? 1 : -1;
  return entries.sort((a, b) => sign * (key(a) - key(b)));
}

function list() {
  const shownColumns = columns();
  const orders = shownColumns.map(([name, title]) => [name, name === "confidence" ? "least confident" : `most ${title.toLowerCase()}`]);
  if (known.photographs.some(entry => entry.rank != null)) orders.unshift(["rank", "look at these first"]);
  const all = [...orders, ["name", "name"], ["open", "not corrected first"]];
  // Results come with what to look at first. What is painted without a model stays where it is.
  fill(byId("order"), all, all.some(([name]) => name === wish) ? wish : known.model ? all[0][0] : "name");
  byId("results").hidden = !known.photographs.length;
  byId("results-title").textContent = known.model ? `${known.title}, segmented with ${known.model}` : known.title;
  const corrected = known.photographs.filter(entry => entry.corrected).length;
  byId("counts").textContent = `${counted(known.photographs.length, "photograph")}, ${corrected} corrected`;
  byId("first").textContent = known.classes ? "Look through and correct" : "Paint them";
  const sorter = ([name, title]) => make("th", { class: "number", scope: "col" }, make("button", {
    type: "button", onclick: () => { byId("order").value = name; reorder(); } }, title));
  byId("table").tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "Picture"), make("th", { scope: "col" }, "Name"),
    ...shownColumns.map(sorter), make("th", { scope: "col" }, "State")));
  downloads();
  rows();
}

function reorder() {
  wish = byId("order").value;
  rows();
}

function rows() {
  const entries = ordered(), shownColumns = columns();
  byId("table").tBodies[0].replaceChildren(...entries.slice(0, shown).map(entry => make("tr", {},
    make("td", {}, make("button", { type: "button", class: "open", "aria-label": `Open ${entry.name}`, onclick: () => open(known, entries, entry.id, changed) }, thumbnail(known, entry))),
    make("td", { class: "name" }, entry.name),
    ...shownColumns.map(([, , cell]) => make("td", { class: "number" }, cell(entry))),
    make("td", {}, stateOf(entry)))));
  byId("more").hidden = entries.length <= shown;
}

const stateOf = entry => entry.corrected ? make("span", { class: "badge good" }, "corrected")
  : make("span", { class: "badge" }, entry.segmented ? "segmented" : "new");

const watcher = new IntersectionObserver(seen => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    fetchThumbnail(target);
  }
}, { rootMargin: "300px" });

// A small picture with its mask, fetched when it comes into sight.
export function thumbnail(collection, entry) {
  const version = `${entry.corrected ? entry.version ?? "c" : ""}${entry.segmented ? collection.model : ""}`;
  const image = make("img", { class: "thumb", alt: "", width: 96, height: 72 });
  const address = `/api/collections/${collection.id}/photographs/${entry.id}/thumbnail?v=${encodeURIComponent(version)}`;
  if (ready.has(address)) image.src = ready.get(address);
  else {
    image.dataset.address = address;
    watcher.observe(image);
  }
  return image;
}

async function fetchThumbnail(image) {
  const { address } = image.dataset;
  try {
    if (!ready.has(address)) ready.set(address, URL.createObjectURL(await blobOf(address)));
    image.src = ready.get(address);
  } catch {
    image.alt = "cannot be read";
  }
}

async function changed(id) {
  const collection = known, entry = collection.photographs.find(each => each.id === id);
  const version = Date.now();
  Object.assign(entry, { corrected: true, version });
  const now = await tried(() => get(`/api/collections/${collection.id}/photographs/${id}`));
  if (now && entry.version === version) Object.assign(entry, now);
  if (known === collection) list();
}

// Opens the editor, after asking for the classes where nobody knows them.
export async function open(collection, entries, id, onChange) {
  if (!collection.classes) {
    const names = await askClasses();
    if (!names) return;
    const done = await tried(async () => { await post(`/api/collections/${collection.id}/classes`, { names }); return true; });
    if (!done) return;
    Object.assign(collection, await get(`/api/collections/${collection.id}`));
    list();
  }
  await edit(collection, entries, id, onChange);
}

function askClasses() {
  const dialog = byId("ask-classes");
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener("close", () => {
    const names = new FormData(byId("classes-form")).get("names").split(",").map(name => name.trim()).filter(Boolean);
    resolve(dialog.returnValue === "yes" ? names : null);
  }, { once: true }));
}

byId("first").addEventListener("click", () => {
  const entries = ordered();
  const next = entries.find(entry => !entry.corrected) ?? entries[0];
  open(known, entries, next.id, changed);
});
byId("order").addEventListener("change", reorder);
byId("more").addEventListener("click", () => { shown += PAGE; rows(); });

// --- Downloads ---

const TITLES = { "results.csv": "Table (CSV)", "summary.html": "Gallery", "cvat.zip": "CVAT", "coco.json": "COCO", "labelstudio.json": "Label Studio" };

export async function download(what, id) {
  const url = await tried(() => ticket(what, id));
  if (url) make("a", { href: url, download: "" }).click();
}

function downloads() {
  const wanted = known.downloads.map(name => [name, TITLES[name]]);
  if (known.masks || known.photographs.some(entry => entry.corrected)) wanted.unshift(["masks", "Masks"]);
  byId("downloads").replaceChildren(...wanted.map(([what, title]) => make("button", { type: "button", onclick: async () => {
    if (what !== "summary.html") return download(what, known.id);
    const url = await tried(() => ticket(what, known.id));
    if (url) window.open(url, "_blank", "noopener");
  } }, title)));
}
