// Data: what a data set holds and what is wrong with it, as the data check says.

import { refresh } from "./main.js";
import { byId, legend, make, percent, rgb, tried } from "./parts.js";
import { open, thumbnail } from "./photographs.js";
import { get, post, put } from "./server.js";
import { chooseData } from "./train.js";

const PAGE = 48;
let shown = ""; // the job whose result is shown

export function update() {}

export async function ended(job) {
  if (job.kind !== "check" || shown === job.id) return;
  shown = job.id;
  if (job.state !== "done") return byId("checked").replaceChildren();
  const collection = await tried(() => get(`/api/collections/${job.result.collection}`));
  if (collection) showResult(job, collection);
}

async function check(folder) {
  const job = await tried(() => post("/api/data", { folder }), "check");
  if (!job) return;
  byId("checked").replaceChildren(make("p", { class: "card soft" }, "Every photograph and mask is read once; this may take a while."));
  refresh();
}

function showResult(job, collection) {
  const result = job.result;
  byId("checked").replaceChildren(
    make("div", { class: "card" }, make("h2", {}, collection.title), ...result.reading.split("\n").map(fact => make("p", {}, fact)), splits(result), shares(result),
      make("p", { class: "row" }, make("button", { type: "button", class: "primary", onclick: () => trainOn(job.about) }, "Train on it"))),
    make("div", { class: "card" }, make("h2", {}, "Findings"), ...findings(result, collection)),
    pairs(collection));
}

function trainOn(folder) {
  chooseData(folder);
  location.hash = "#train";
}

function splits(result) {
  const row = split => make("tr", {}, make("th", { scope: "row" }, split.split), make("td", {}, split.pairs),
    make("td", {}, `${split.width} × ${split.height}`), make("td", {}, Object.keys(split.formats).join(", ")));
  const head = ["Split", "Pairs", "Width × height", "Formats"].map(name => make("th", { scope: "col" }, name));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Splits" },
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, result.splits.map(row))));
}

function shares(result) {
  const bars = result.splits.flatMap((split, i) => {
    const text = result.classes.map(entry => `${entry.name} ${percent(entry.shares[i], 2)}`).join(", ");
    const bar = make("div", { class: "share", role: "img", "aria-label": text, title: text }, result.classes.map(entry => {
      const part = make("span");
      part.style.width = `${100 * entry.shares[i]}%`;
      part.style.background = entry.color.some(Boolean) ? rgb(entry.color) : "#cfd8d2";
      return part;
    }));
    return [make("span", {}, split.split), bar];
  });
  const text = entry => `${entry.name} ${entry.shares.map(value => percent(value, 2)).join(" · ")}`;
  return make("div", { class: "shares" }, make("h3", {}, "Shares of the pixels"), make("div", { class: "bars" }, bars), legend(result.classes, text));
}

function findings(result, collection) {
  if (!result.findings.length) return [make("p", {}, "Nothing is wrong.")];
  return result.findings.map(finding => make("details", { open: finding.problem && finding.count < 20 },
    make("summary", {}, make("span", { class: finding.problem ? "badge bad" : "badge" }, String(finding.count)), ` ${finding.what}`),
    make("ul", { class: "findings" }, finding.items.map(item => make("li", {},
      item.photograph ? make("button", { type: "button", class: "link", onclick: () => look(collection, item.photograph) }, item.text) : item.text)))));
}

function look(collection, id) {
  return open(collection, collection.photographs, id, changed => {
    const entry = collection.photographs.find(each => each.id === changed);
    Object.assign(entry, { corrected: true, version: Date.now() });
  });
}

function pairs(collection) {
  let count = PAGE;
  const box = make("div", { class: "pairs" });
  const more = make("button", { type: "button", onclick: () => { count += PAGE; draw(); } }, "Show more");
  const draw = () => {
    box.replaceChildren(...collection.photographs.slice(0, count).map(entry => make("button",
      { type: "button", class: "open", onclick: () => look(collection, entry.id) }, thumbnail(collection, entry), make("span", {}, entry.name))));
    more.hidden = collection.photographs.length <= count;
  };
  draw();
  return make("div", { class: "card" }, make("h2", {}, "Pairs, mask over photograph"),
    make("p", { class: "soft" }, "Open one to correct its mask; the data set itself stays as it is."), box, make("p", {}, more));
}

byId("data-form").addEventListener("submit", event => {
  event.preventDefault();
  check(new FormData(event.target).get("folder"));
});
byId("choose-archive").addEventListener("click", () => byId("archive").click());
byId("archive").addEventListener("change", async event => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  const made = await tried(() => put("/api/archives", file), "check");
  if (!made) return;
  byId("data-form").elements.folder.value = made.folder;
  check(made.folder);
});
