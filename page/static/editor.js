// Correcting one picture after the other: tools, keys, pointers, and saving by itself.

import { View } from "./canvas.js";
import { Mask } from "./mask.js";
import { byId, make, say, swatch } from "./parts.js";
import { ask } from "./server.js";

const TOOLS = { h: "hand", b: "brush", e: "eraser", p: "polygon", w: "wand" };
const CLASSLESS = ["hand", "eraser"]; // tools that paint no class of a person's choice
const UNSURE = 255;
const OTHER_END = 5; // the button that a pen's eraser is
const TWITCH = 12; // CSS pixels that a finger may slip before the second of two comes
const dialog = byId("editor"), guide = byId("guide-layer");

let list = [], place = 0, base = "", classes = [], table = "", changed = () => {};
let view = null, mask = null, tag = "", origin = "";
let tool = "brush", value = 1, corners = [], cursor = null, stroke = null, pinch = null;
let dirty = false, stored = false, saving = null, timer = 0, loading = 0, penned = false;
const pointers = new Map();

// Opens the editor on one of several photographs; `onChange(id)` is told of each that was saved.
export async function edit(collection, photographs, id, onChange) {
  list = photographs;
  ({ classes, table } = collection);
  base = `/api/collections/${collection.id}/photographs`;
  changed = onChange;
  value = Math.min(Math.max(1, value), classes.length - 1);
  showClasses();
  choose(tool);
  if (!dialog.open) dialog.showModal();
  await load(list.findIndex(entry => entry.id === id));
}

async function load(index) {
  if (index < 0 || index >= list.length || !(await leave())) return;
  settled();
  const mine = ++loading, entry = list[index];
  place = index;
  byId("editor-name").textContent = `${entry.name} · ${index + 1} of ${list.length}`;
  byId("previous").disabled = index === 0;
  byId("next").disabled = index === list.length - 1;
  status("Loading …");
  // Nothing is painted on a picture that is about to go.
  view?.close();
  view = mask = null;
  delete dialog.dataset.ready;
  try {
    const answer = await ask(`${base}/${entry.id}/mask`);
    const data = new Uint8Array(await answer.arrayBuffer());
    if (mine !== loading) return;
    if (answer.headers.get("X-Classes") !== table) return conflict("These photographs have other classes now.", true);
    const [width, height] = answer.headers.get("X-Size").split(",").map(Number);
    tag = answer.headers.get("ETag");
    origin = answer.headers.get("X-Origin");
    mask = new Mask(width, height, data);
    view = new View(byId("photo-layer"), byId("mask-layer"), mask, `${base}/${entry.id}`, classes);
    view.opacity = byId("opacity").value / 100;
    [corners, cursor] = [[], null];
    dialog.dataset.ready = entry.id;
    draw();
    status({ correction: "Corrected", prediction: "Predicted", data: "From the data set", nothing: "Not painted yet" }[origin]);
    guide.focus({ preventScroll: true });
  } catch (error) {
    status("");
    say(error.message, true);
  }
}

const status = text => { byId("saved").textContent = text; };

function draw() {
  if (!view) return;
  view.draw();
  drawGuide();
  byId("undo").disabled = !mask.done.length;
  byId("redo").disabled = !mask.undone.length;
  byId("finish").hidden = corners.length < 3;
}

// --- Saving: a moment after each stroke, and before another picture is shown ---

function touched(box) {
  if (!box) return;
  dirty = true;
  view.drawMask(box);
  byId("undo").disabled = !mask.done.length;
  byId("redo").disabled = !mask.undone.length;
  status("Not saved yet");
  saveSoon(900);
}

function saveSoon(milliseconds) {
  clearTimeout(timer);
  // A stroke is saved whole: it may still be taken back.
  timer = setTimeout(() => (stroke?.kind === "paint" ? saveSoon(300) : flush()), milliseconds);
}

// True when nothing is left to save; what is painted while it is saved is saved as well.
function flush() {
  clearTimeout(timer);
  saving ??= drain().finally(() => { saving = null; });
  return saving;
}

async function drain() {
  while (dirty) if (!(await store(tag))) return false;
  return true;
}

// A stroke that is not ended ends, and all is saved.
async function saveAll() {
  do {
    settle();
    if (!(await flush())) return false;
  } while (stroke || dirty);
  return true;
}

// Before another picture. The list behind is told now, since it counts the mask.
async function leave() {
  if (!(await saveAll())) return false;
  if (stored) changed(list[place].id);
  stored = false;
  return true;
}

async function store(seen) {
  const entry = list[place], saved = mask;
  dirty = false;
  status("Saving …");
  try {
    const body = await packed(saved.data);
    const answer = await ask(`${base}/${entry.id}/mask`, { method: "PUT", body, headers: { "If-Match": seen, "X-Classes": table }, keepalive: body.size < 60000 });
    tag = answer.headers.get("ETag");
    entry.corrected = true;
    status(dirty ? "Not saved yet" : "Saved");
    stored = true;
    return true;
  } catch (error) {
    dirty = true;
    status("Not saved");
    if ([409, 412].includes(error.status)) conflict(error.message, error.status === 409);
    else if (error.status === 0 || error.status === 401) {
      // The server is away, or was started anew: as soon as it is back, or its new address is open
      // in another window, this is saved.
      status(`Not saved yet. ${error.message}`);
      saveSoon(3000);
    } else say(error.message, true);
    return false;
  }
}

async function packed(data) {
  const blob = new Blob([data]);
  if (!("CompressionStream" in window)) return blob;
  return new Response(blob.stream().pipeThrough(new CompressionStream("gzip"))).blob();
}

// Another window has saved this picture, or has given all of them other classes.
function conflict(sentence, otherClasses) {
  if (dialog.querySelector(".conflict")) return;
  const choices = otherClasses ? [["Reload the page", () => { dirty = false; location.reload(); }]]
    : [["Load it again", () => { dirty = false; load(place); }], ["Keep mine", () => { tag = "*"; flush(); }]];
  const choice = (text, then) => make("button", { type: "button", onclick: () => { box.remove(); then(); } }, text);
  const box = make("div", { class: "messages conflict", role: "alert" }, make("div", { class: "message error" }, make("p", {}, sentence),
    make("p", { class: "row" }, choices.map(([text, then]) => choice(text, then)))));
  dialog.append(box);
  box.querySelector("button").focus();
}

// What was asked of a picture that is left is asked no more, and is not in the way of the next.
const settled = () => dialog.querySelector(".conflict")?.remove();

// --- Tools ---

function choose(name) {
  tool = name;
  corners = [];
  for (const button of byId("tools").children) {
    const on = button.dataset.tool === name;
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
  }
  byId("size-label").hidden = !["brush", "eraser"].includes(name);
  byId("tolerance-label").hidden = name !== "wand";
  guide.classList.toggle("hand", name === "hand");
  showClass();
  draw();
}

function showClasses() {
  const entries = [...classes.map((entry, index) => [index, entry.name, entry.color, index + 1]), [UNSURE, "not sure", [150, 150, 150], 0]];
  byId("classes").replaceChildren(...entries.map(([index, name, color, key]) => make("button", {
    type: "button", role: "radio", "data-value": index,
    title: key < 10 ? `${name} (${key})` : name, onclick: () => pick(index),
  }, swatch(color), key < 10 ? make("kbd", {}, `${key} `) : null, name)));
}

function pick(index) {
  if (index !== UNSURE && index >= classes.length) return;
  value = index;
  if (CLASSLESS.includes(tool)) choose("brush");
  else showClass();
}

// The class stays chosen for the tools that paint it, and is no more than outlined for the others.
function showClass() {
  const used = !CLASSLESS.includes(tool);
  byId("classes").classList.toggle("unused", !used);
  for (const button of byId("classes").children) {
    const on = Number(button.dataset.value) === value;
    button.setAttribute("aria-checked", on && used);
    button.tabIndex = on ? 0 : -1;
  }
}

const radius = () => byId("size").value / 2;
const painted = () => (tool === "eraser" ? 0 : value);

// A brush of one pixel paints the one below the pointer, wherever in it that is.
const aimed = point => (radius() > 0.5 ? point : point.map(value => Math.floor(value) + 0.5));

function paint(from, to, index) {
  const box = mask.line(...aimed(from), ...aimed(to), radius(), index);
  if (box) view.drawMask(box);
}

async function press([x, y]) {
  if (tool === "polygon") {
    const near = corners.length > 2 && Math.hypot(...difference(view.toWindow(...corners[0]), view.toWindow(x, y))) < 10;
    if (near) return fillPolygon();
    corners.push([x, y]);
    byId("finish").hidden = corners.length < 3;
  } else if (tool === "wand") {
    await wave(Math.floor(x), Math.floor(y));
  }
}

const difference = (a, b) => [a[0] - b[0], a[1] - b[1]];

async function wave(x, y) {
  if (mask.at(x, y) === null) return;
  const here = mask;
  try {
    status("Looking …");
    const body = JSON.stringify({ x, y, tolerance: Number(byId("tolerance").value) });
    const answer = await ask(`${base}/${list[place].id}/wand`, { method: "POST", body });
    const found = new Uint8Array(await answer.arrayBuffer());
    if (here !== mask) return;
    settle();
    mask.begin();
    mask.stamp(answer.headers.get("X-Box").split(",").map(Number), found, painted());
    const box = mask.end();
    status(box ? "" : "All that looks alike has this class already");
    touched(box);
  } catch (error) {
    say(error.message, true);
  }
}

function fillPolygon() {
  settle();
  if (corners.length > 2) {
    mask.begin();
    mask.polygon(corners, painted());
    touched(mask.end());
  }
  corners = [];
  draw();
}

function back(step) {
  if (stroke || !mask) return;
  if (corners.length && step === "undo") {
    corners.pop();
    return draw();
  }
  touched(mask[step]());
}

// --- Pointers: one paints, two move and scale; a mouse's other buttons move ---
//
// A pen paints alike however hard it is pressed, and its other end erases. The hand that lies beside
// it touches, too: once a pen has been used, fingers move and scale, and do not paint.

function at(event) {
  const box = guide.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// What a pointer does from where it is put down.
function begin(event) {
  const spot = at(event), from = view.toPicture(...spot), pen = event.pointerType === "pen";
  const erases = pen && event.button === OTHER_END, moves = penned && event.pointerType === "touch";
  const paints = ["brush", "eraser"].includes(tool) && event.button === 0 && !moves;
  if (erases || paints) {
    stroke = { kind: "paint", pen, spot, way: 0, last: from, index: erases ? 0 : painted() };
    mask.begin();
    paint(from, from, stroke.index);
  } else if (tool === "hand" || moves || event.button > 0) stroke = { kind: "move", pen, spot };
  else stroke = { kind: "press", pen, spot };
}

// Ends what a pointer is doing; what it has painted stays.
function settle() {
  if (stroke?.kind === "paint") touched(mask.end());
  stroke = pinch = null;
}

// Gives way to a second finger or a pen. What was painted on a way stays, a dot does not.
function giveWay() {
  if (stroke?.kind === "paint" && stroke.way < TWITCH) {
    mask.cancel();
    view.drawMask();
    stroke = null;
  }
  settle();
}

guide.addEventListener("pointerdown", event => {
  if (!view) return;
  event.preventDefault();
  const pen = event.pointerType === "pen";
  if (stroke?.pen && !pen) return;
  guide.focus({ preventScroll: true });
  penned ||= pen;
  if (pen) pointers.clear(); // the hand came first
  guide.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  if (pen || pointers.size === 2) giveWay();
  if (pointers.size === 2) pinch = [...pointers.values()];
  else if (pointers.size === 1) begin(event);
});

guide.addEventListener("pointermove", event => {
  if (!view || (stroke?.pen && event.pointerType !== "pen")) return;
  cursor = view.toPicture(...at(event));
  if (pointers.has(event.pointerId)) {
    pointers.set(event.pointerId, at(event));
    if (pinch && pointers.size === 2) scalePinch();
    else if (stroke?.kind === "move") {
      view.pan(...difference(at(event), stroke.spot));
      stroke.spot = at(event);
      view.draw();
    } else if (stroke?.kind === "paint") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) {
        const next = view.toPicture(...at(each));
        paint(stroke.last, next, stroke.index);
        stroke.last = next;
      }
      stroke.way = Math.max(stroke.way, Math.hypot(...difference(at(event), stroke.spot)));
    }
  }
  drawGuide();
});

function scalePinch() {
  const now = [...pointers.values()];
  const middle = pair => [(pair[0][0] + pair[1][0]) / 2, (pair[0][1] + pair[1][1]) / 2];
  const span = pair => Math.max(1, Math.hypot(...difference(pair[0], pair[1])));
  view.pan(...difference(middle(now), middle(pinch)));
  view.zoom(span(now) / span(pinch), ...middle(now));
  pinch = now;
  view.draw();
}

function lift(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (pointers.size < 2) pinch = null;
  const ended = stroke;
  stroke = null;
  if (ended?.kind === "paint") touched(mask.end());
  else if (ended?.kind === "press" && event.type === "pointerup") press(view.toPicture(...ended.spot));
  drawGuide();
}
guide.addEventListener("pointerup", lift);
guide.addEventListener("pointercancel", lift);
guide.addEventListener("pointerleave", () => { if (!pointers.size) { cursor = null; drawGuide(); } });
guide.addEventListener("contextmenu", event => event.preventDefault());
guide.addEventListener("dblclick", () => tool === "polygon" && fillPolygon());
guide.addEventListener("wheel", event => {
  event.preventDefault();
  view?.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...at(event));
  draw();
}, { passive: false });

// --- The cursor and the corners, above both ---

function drawGuide() {
  if (!view) return;
  Object.assign(guide, { width: view.photo.width, height: view.photo.height });
  const context = guide.getContext("2d"), scale = view.ratio;
  context.scale(scale, scale);
  const trace = (width, color, path) => {
    context.beginPath();
    path();
    Object.assign(context, { lineWidth: width, strokeStyle: color });
    context.stroke();
  };
  const both = path => { trace(3, "#000a", path); trace(1.4, "#fff", path); };
  if (cursor) {
    const [x, y] = view.toWindow(...cursor), ring = Math.max(2, radius() * view.scale / scale);
    if (["brush", "eraser"].includes(tool)) both(() => context.arc(x, y, ring, 0, 7));
    else if (tool !== "hand") both(() => { context.moveTo(x - 8, y); context.lineTo(x + 8, y); context.moveTo(x, y - 8); context.lineTo(x, y + 8); });
  }
  if (corners.length) {
    const points = [...corners, ...(cursor ? [cursor] : [])].map(p => view.toWindow(...p));
    both(() => points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y))));
    for (const corner of corners) both(() => context.arc(...view.toWindow(...corner), 3.5, 0, 7));
  }
  const index = cursor && mask.at(...cursor);
  byId("place").textContent = index == null ? "" : index === UNSURE ? "not sure" : classes[index]?.name ?? "";
}

// --- Keys ---

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const middleOf = ({ width, height }) => [Math.floor(width / 2) + 0.5, Math.floor(height / 2) + 0.5];

function onArrow(event) {
  const [dx, dy] = ARROWS[event.key];
  if (event.ctrlKey || tool === "hand") {
    view.pan(-60 * dx, -60 * dy);
    return view.draw();
  }
  const step = Math.max(1, Math.round(6 * view.ratio / view.scale));
  const old = cursor ?? middleOf(mask);
  const clamp = (v, top) => Math.min(top - 0.5, Math.max(0.5, v));
  cursor = [clamp(old[0] + dx * step, mask.width), clamp(old[1] + dy * step, mask.height)];
  view.show(...cursor);
  if (event.shiftKey && ["brush", "eraser"].includes(tool)) atOnce(old, cursor);
  draw();
}

function atOnce(from, to) {
  settle();
  mask.begin();
  paint(from, to, painted());
  touched(mask.end());
}

function onCanvasKey(event) {
  if (event.key in ARROWS) onArrow(event);
  else if (event.key === " ") {
    cursor ??= middleOf(mask);
    if (tool === "brush" || tool === "eraser") atOnce(cursor, cursor);
    else press(cursor);
    drawGuide();
  } else if (event.key === "Enter" && corners.length) fillPolygon();
  else if (event.key === "Backspace" && corners.length) back("undo");
  else return false;
  return true;
}

function onKey(event) {
  const key = event.key.toLowerCase(), plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if ((event.ctrlKey || event.metaKey) && key === "s") saveAll();
  else if ((event.ctrlKey || event.metaKey) && key === "z") back(event.shiftKey ? "redo" : "undo");
  else if ((event.ctrlKey || event.metaKey) && key === "y") back("redo");
  else if (!plain) return false;
  else if (key in TOOLS) choose(TOOLS[key]);
  else if (/^\d$/.test(key)) pick(key === "0" ? UNSURE : Number(key) - 1);
  else if (key === "z") back("undo");
  else if (key === "y") back("redo");
  else if (key === "[" || key === "]") resizeBrush(key === "]" ? 1.25 : 0.8);
  else if (key === "+" || key === "=") zoomBy(1.25);
  else if (key === "-") zoomBy(0.8);
  else if (key === "f") fitAll();
  else if (key === "pageup" || key === "pagedown") load(place + (key === "pagedown" ? 1 : -1));
  else return false;
  return true;
}

dialog.addEventListener("keydown", event => {
  if (!view && !/^Page/.test(event.key)) return;
  const typing = event.target.matches("input") && (event.key in ARROWS || event.key.startsWith("Page"));
  if (typing) return;
  if ((event.target === guide && onCanvasKey(event)) || onKey(event)) event.preventDefault();
  else if (event.target.matches("[role=radio]") && event.key in ARROWS) {
    const all = [...event.target.parentElement.children], step = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
    const next = all[(all.indexOf(event.target) + step + all.length) % all.length];
    next.click();
    next.focus();
    event.preventDefault();
  }
});

function resizeBrush(factor) {
  const size = byId("size");
  size.value = Math.max(Number(size.min), factor > 1 ? Math.ceil(size.value * factor) : Math.floor(size.value * factor));
  drawGuide();
}

function zoomBy(factor) {
  view?.zoom(factor);
  draw();
}

function fitAll() {
  view?.fit();
  draw();
}

// --- Buttons ---

async function close() {
  if (corners.length) {
    corners = [];
    return draw();
  }
  if (!(await leave())) return;
  settled();
  loading++; // what is still on its way is not wanted any more
  view?.close();
  view = mask = null;
  delete dialog.dataset.ready;
  dialog.close();
}

for (const button of byId("tools").children) button.addEventListener("click", () => choose(button.dataset.tool));
byId("close").addEventListener("click", close);
dialog.addEventListener("cancel", event => { event.preventDefault(); close(); });
byId("previous").addEventListener("click", () => load(place - 1));
byId("next").addEventListener("click", () => load(place + 1));
byId("keep").addEventListener("click", async () => {
  dirty = Boolean(mask);
  if ((await leave()) && place + 1 < list.length) load(place + 1);
});
byId("undo").addEventListener("click", () => back("undo"));
byId("redo").addEventListener("click", () => back("redo"));
byId("finish").addEventListener("click", fillPolygon);
byId("zoom-in").addEventListener("click", () => zoomBy(1.25));
byId("zoom-out").addEventListener("click", () => zoomBy(0.8));
byId("fit").addEventListener("click", fitAll);
byId("opacity").addEventListener("input", () => {
  if (!view) return;
  view.opacity = byId("opacity").value / 100;
  view.drawMask();
});
new ResizeObserver(() => { if (view?.resize()) fitAll(); }).observe(byId("stage"));
window.addEventListener("beforeunload", event => { if (dirty || saving || stroke) event.preventDefault(); });
document.addEventListener("visibilitychange", () => { if (document.hidden && mask) saveAll(); });
