// Starts the page: which section is shown, what is at work, and what the server knows, asked anew
// every second while something works and every few seconds otherwise.

import * as data from "./data.js";
import { byId, counted, fill, leave, make, say, tried } from "./parts.js";
import * as photographs from "./photographs.js";
import { get, hasToken, post, setToken } from "./server.js";
import * as train from "./train.js";
import * as video from "./video.js";

const VIEWS = ["photographs", "data", "train", "video"];
const listeners = [photographs, data, train, video];
const VIEW_OF = { segment: "photographs", sample: "photographs", check: "data", train: "train", video: "video" }; // a job
const ended = new Set(); // jobs whose end was seen
let first = true, timer = 0, asking = null;

function show() {
  const wanted = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "photographs";
  for (const name of VIEWS) byId(name).hidden = name !== wanted;
  byId("login").hidden = true;
  leave(wanted);
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function askPassword() {
  for (const name of VIEWS) byId(name).hidden = true;
  byId("login").hidden = false;
}

// Asks what the server knows; views get it, and each job once when it has ended.
export function refresh() {
  asking ??= look().finally(() => { asking = null; });
  return asking;
}

async function look() {
  clearTimeout(timer);
  let state;
  try {
    state = await get("/api/state");
  } catch (error) {
    if (error.status === 401) return askPassword();
    if (!byId("jobs").querySelector(".failed")) byId("jobs").replaceChildren(make("div", { class: "job failed" }, error.message));
    timer = setTimeout(refresh, 3000);
    return;
  }
  const works = state.jobs.some(isAtWork) || state.runs.some(run => run.state === "running");
  timer = setTimeout(refresh, works ? 1000 : 4000);
  const folders = state.folders.map(folder => make("option", { value: folder }));
  byId("folders").replaceChildren(...folders);
  // What is chosen where nobody has chosen is the newest, which need not be the best.
  const newest = model => state.models.length > 1 && model.id === state.preferred ? "Newest: " : "";
  const models = state.models.map(model => [model.id, newest(model) + nameOf(model)]);
  for (const id of ["model", "video-model"]) {
    const select = byId(id), chosen = select.dataset.chosen ?? state.preferred; // until somebody chooses
    fill(select, models.length ? models : [["", "none yet"]], chosen);
  }
  showJobs(state.jobs);
  for (const listener of listeners) listener.update(state);
  for (const job of state.jobs) {
    if (isAtWork(job) || ended.has(job.id)) continue;
    ended.add(job.id);
    if (!first) {
      if (job.state === "failed") say(job.error, true, `${job.kind}:${job.about}`, VIEW_OF[job.kind]);
      for (const listener of listeners) listener.ended?.(job);
    }
  }
  first = false;
}

export const isAtWork = job => ["waiting", "running"].includes(job.state);

export function nameOf(model) {
  if (!model.epochs) return model.name; // a checkpoint from elsewhere
  const once = counted(model.epochs, "epoch"), trained = model.folds ? `${model.folds} folds, ${once} each` : once;
  const reached = model.miou == null ? "" : `, mIoU ${model.miou.toFixed(2)}`;
  return `${model.name} (${trained}${reached}${model.finished ? "" : ", not finished"})`;
}

// A model is chosen, here or where its training is shown.
export function chooseModel(id, select = byId("model")) {
  select.dataset.chosen = select.value = id;
}

function showJobs(jobs) {
  const working = jobs.filter(isAtWork);
  const box = byId("jobs");
  const seen = new Map([...box.children].map(row => [row.dataset.id, row]));
  for (const [id, row] of seen) if (!working.some(job => job.id === id)) row.remove();
  for (const job of working) {
    let row = seen.get(job.id);
    if (!row) {
      row = make("div", { class: "job", "data-id": job.id }, make("span"), make("progress", { "aria-label": job.title }),
        make("button", { type: "button", onclick: () => tried(() => post(`/api/jobs/${job.id}/stop`)) }, "Stop"));
      box.append(row);
    }
    const counted = job.total ? ` – ${job.done} of ${job.total}` : "";
    row.firstChild.textContent = job.state === "waiting" ? `${job.title} – waiting` : job.title + counted;
    const bar = row.children[1];
    if (job.total) Object.assign(bar, { max: job.total, value: job.done });
    else bar.removeAttribute("value");
  }
}

byId("login-form").addEventListener("submit", async event => {
  event.preventDefault();
  const password = new FormData(event.target).get("password");
  const answer = await tried(() => post("/api/login", { password }), "login");
  if (!answer) return;
  setToken(answer.token);
  event.target.reset();
  show();
  refresh();
});

// A section that is open already would be scrolled to its top, which hides the way to the others.
for (const link of document.querySelectorAll(".top nav a")) {
  link.addEventListener("click", event => {
    const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey; // into another tab or window
    if (link.hasAttribute("aria-current") && !elsewhere) event.preventDefault();
  });
}
window.addEventListener("hashchange", () => {
  show();
  refresh();
});
for (const id of ["model", "video-model"]) byId(id).addEventListener("change", ({ target }) => chooseModel(target.value, target));
// A file that misses the place to drop it must not take the place of the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, event => event.preventDefault());
if (hasToken()) show();
else askPassword();
refresh();
