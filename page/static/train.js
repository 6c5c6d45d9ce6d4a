// Train: what a person chooses, and the run as it goes.

import { chooseModel, isAtWork, nameOf, refresh } from "./main.js";
import { byId, counted, duration, fill, make, say, tried } from "./parts.js";
import { blobOf, post, ticket } from "./server.js";

const WORDS = { running: "at work", done: "finished", stopped: "stopped", failed: "failed" };
const GOOD = { done: "badge good", failed: "badge bad" };
let drawn = "", running = "", corrected = false;
let decided = false; // whether a person has said if corrections count
const picture = { name: "", url: "" }; // the last one that was fetched

export function update(state) {
  const weights = [["", "the recipe's own"], ["none", "none, random"], ...state.models.filter(model => !model.folds).map(model => [model.id, `your model ${nameOf(model)}`])];
  fill(byId("weights"), weights);
  const sets = state.corrected.map(({ classes, count }) => `${count} with ${classes.join(", ")}`);
  byId("corrected-count").textContent = `(${sets.join("; ") || "none yet"})`;
  corrected = sets.length > 0;
  tickCorrections();
  // One at a time: meanwhile none begins, and none goes on.
  const working = state.runs.some(each => each.state === "running");
  const busy = working || state.jobs.some(job => job.kind === "train" && isAtWork(job));
  byId("start").disabled = busy;
  byId("start-note").textContent = busy ? "A training is at work; wait for its end, or stop it." : "";
  const runs = busy ? state.runs.map(each => ({ ...each, can_go_on: false })) : state.runs, [run] = runs;
  const now = JSON.stringify([run, busy, runs.map(each => each.state)]);
  if (now === drawn) return;
  drawn = now;
  if (running === run?.id && run.state !== "running") say(`The training is ${WORDS[run.state]}.`, run.state === "failed", "train", "train");
  running = run?.state === "running" ? run.id : "";
  byId("live").replaceChildren(...(run ? [live(run)] : []));
  if (run) showPicture(run);
  history(runs);
}

// Without a data set, corrections are all there is to learn from.
function tickCorrections() {
  const { data, corrections } = byId("train-form").elements;
  if (!decided) corrections.checked = corrected && !data.value.trim();
}

// A data set is chosen, here or where it was looked at.
export function chooseData(folder) {
  byId("train-form").elements.data.value = folder;
  tickCorrections();
}

// Several learn from the same: as its model is called, what from and when.
const called = run => `${run.title} ${run.id}`;

function live(run) {
  const epoch = run.history.length, last = run.history.at(-1);
  const title = make("div", { class: "head" }, make("h2", {}, called(run)), make("span", { class: GOOD[run.state] ?? "badge" }, WORDS[run.state]));
  const parts = [title];
  if (run.state === "running") {
    const inside = run.step && epoch < run.epochs ? run.step[0] / run.step[1] : 0;
    parts.push(make("progress", { max: run.epochs, value: Math.min(run.epochs, epoch + inside), "aria-label": "Epochs" }));
    parts.push(make("p", { class: "soft" }, epoch ? `Epoch ${epoch} of ${run.epochs}, about ${duration(run.seconds_left)} left`
      : "Starting: photographs and masks are read, the first epoch follows"));
  } else if (last) parts.push(make("p", { class: "soft" }, `${epoch} of ${counted(run.epochs, "epoch")}`));
  if (run.error && run.state !== "running") parts.push(make("p", {}, run.error));
  const doing = (what, path) => make("button", { type: "button", onclick: async () => { await tried(() => post(`/api/runs/${run.id}/${path}`), "train"); refresh(); } }, what);
  parts.push(make("p", { class: "row" },
    run.state === "running" ? doing("Stop", "stop") : null,
    run.can_go_on ? doing("Go on", "resume") : null,
    run.has_report && run.state !== "running" ? make("button", { type: "button", class: "primary", onclick: () => report(run.id) }, "Show the report") : null,
    run.model && run.state !== "running" ? make("button", { type: "button", onclick: () => { chooseModel(run.model); location.hash = "#photographs"; } }, "Segment photographs") : null));
  if (last) {
    parts.push(make("div", { class: "charts" },
      chart("Mean IoU", run.history, "miou"), chart("Loss", run.history, "loss")));
    parts.push(make("div", { id: "run-picture" }));
  }
  parts.push(make("details", {}, make("summary", {}, "What it prints"), make("pre", { tabindex: 0, role: "region", "aria-label": "What the training prints" }, run.log || "nothing yet")));
  return make("div", { class: "card" }, parts);
}

// Photograph, truth and prediction after the last epoch.
async function showPicture(run) {
  if (!run.pictured || !byId("run-picture")) return;
  const name = `${run.id}/${run.pictured}`;
  if (picture.name !== name) {
    const blob = await tried(() => blobOf(`/api/runs/${run.id}/picture`));
    if (!blob) return;
    if (picture.url) URL.revokeObjectURL(picture.url);
    Object.assign(picture, { name, url: URL.createObjectURL(blob) });
  }
  const text = "Validation pictures after the last epoch: photograph, truth, prediction";
  byId("run-picture")?.replaceChildren(make("img", { class: "picture", src: picture.url, alt: text }), make("p", { class: "soft" }, text));
}

const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function chart(title, rows, figure) {
  const [width, height, left, bottom] = [360, 190, 40, 22];
  const lines = [["train", "#8a6d1f"], ["valid", "#1f6b43"]];
  const values = lines.map(([split]) => rows.map(row => row[`${split}_${figure}`]));
  const all = values.flat().filter(value => typeof value === "number");
  const high = figure === "miou" ? 1 : Math.max(...all, 1e-9) * 1.05, last = Math.max(2, rows.length);
  const x = i => left + (width - left - 8) * (last === 1 ? 0 : i / (last - 1)), y = v => (height - bottom - 14) * (1 - v / high) + 10;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const now = lines.map(([split], i) => `${split === "valid" ? "validation" : "training"} ${values[i].at(-1)?.toFixed(2)}`);
  svg.append(draw("title", {}, `${title} by epoch; last: ${now.join(", ")}`));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(draw("line", { x1: left, x2: width - 8, y1: y(share * high), y2: y(share * high), stroke: "#e2e8e3" }));
    svg.append(draw("text", { x: left - 6, y: y(share * high) + 4, "text-anchor": "end", "font-size": 11, fill: "#56625a" }, (share * high).toFixed(2)));
  }
  svg.append(draw("text", { x: width - 8, y: height - 4, "text-anchor": "end", "font-size": 11, fill: "#56625a" }, `epoch ${rows.length}`));
  lines.forEach(([, color], i) => {
    const points = values[i].map((v, n) => (typeof v === "number" ? `${x(n).toFixed(1)},${y(v).toFixed(1)}` : null)).filter(Boolean);
    svg.append(draw("polyline", { points: points.join(" "), fill: "none", stroke: color, "stroke-width": 2.4, "stroke-linejoin": "round" }));
    if (points.length) svg.append(draw("circle", { cx: points.at(-1).split(",")[0], cy: points.at(-1).split(",")[1], r: 3.5, fill: color }));
  });
  return make("figure", {}, make("figcaption", {}, make("b", {}, title), ...now.map((text, i) => {
    const entry = make("span", {}, ` ${text}`);
    entry.style.color = lines[i][1];
    return entry;
  })), svg);
}

async function report(id) {
  const url = await tried(() => ticket("report", id));
  if (!url) return;
  byId("report").replaceChildren(make("div", { class: "card" }, make("h2", {}, "Report"), make("iframe", { src: url, title: "Report of the training" })));
  byId("report").scrollIntoView({ behavior: "smooth" });
}

function history(runs) {
  byId("runs-card").hidden = runs.length < 2;
  const row = run => make("tr", {}, make("td", { class: "name" }, called(run)),
    make("td", {}, make("span", { class: GOOD[run.state] ?? "badge" }, WORDS[run.state])),
    make("td", {}, run.has_report ? make("button", { type: "button", class: "link", onclick: () => report(run.id) }, "report") : "",
      run.can_go_on ? make("button", { type: "button", class: "link", onclick: async () => { await tried(() => post(`/api/runs/${run.id}/resume`), "train"); refresh(); } }, " go on") : ""));
  const head = ["Training", "State", ""].map(name => make("th", { scope: "col" }, name || "Open"));
  byId("runs").replaceChildren(make("thead", {}, make("tr", {}, head)), make("tbody", {}, runs.map(row)));
}

byId("train-form").elements.data.addEventListener("input", tickCorrections);
byId("train-form").elements.corrections.addEventListener("change", () => { decided = true; });
byId("train-form").addEventListener("submit", async event => {
  event.preventDefault();
  const form = new FormData(event.target), number = name => (form.get(name) ? Number(form.get(name)) : null);
  const wish = { data: form.get("data").trim(), recipe: form.get("recipe"), weights: form.get("weights"), model: form.get("model"),
    corrections: form.has("corrections"), epochs: number("epochs"), width: number("width"), height: number("height"), batch: number("batch") };
  await tried(() => post("/api/runs", wish), "train");
  byId("report").replaceChildren();
  refresh();
});
