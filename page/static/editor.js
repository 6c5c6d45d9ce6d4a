// Correcting one picture after the other: tools, keys, pointers, and saving by itself.

import { View } from "./canvas.js";
import { Mask } from "./mask.js";
import { byId, make, say, swatch } from "./parts.js";
import { Refusal, ask, post } from "./server.js";

const TOOLS = { h: "hand", b: "brush", e: "eraser", p: "polygon", w: "wand" };
const UNSURE = 255;
const dialog = byId("editor"), guide = byId("guide-layer");

let list = [], place = 0, base = "", classes = [], changed = () => {};
let view = null, mask = null, tag = "", origin = "";
let tool = "brush", value = 1, corners = [], cursor = null, stroke = null, pinch = null;
let dirty = false, saving = null, timer = 0, loading = 0;
const pointers = new Map();

// Opens the editor on one of several photographs; `onChange(id)` is told of each that is saved.
export async function edit(collection, photographs, id, onChange) {
  list = photographs;
  classes = collection.classes;
  base = `/api/collections/${collection.id}/photographs`;
  changed = onChange;
  value = Math.min(Math.max(1, value), classes.length - 1);
  showClasses();
  choose(tool);
  if (!dialog.open) dialog.showModal();
  await load(list.findIndex(entry => entry.id === id));
}

async function load(index) {
  if (index < 0 || index >= list.length || !(await flush())) return;
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
    const [width, height] = answer.headers.get("X-Size").split(",").map(Number);
    tag = answer.headers.get("ETag");
    origin = answer.headers.get("X-Origin");
    mask = new Mask(width, height, data);
    view = new View(byId("photo-layer"), byId("mask-layer"), mask, `${base}/${entry.id}`, classes);
    view.opacity = byId("opacity").value / 100;
    [corners, cursor, stroke, dirty] = [[], null, null, false];
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
  clearTimeout(timer);
  timer = setTimeout(flush, 900);
}

// True when nothing is left to save.
async function flush() {
  clearTimeout(timer);
  if (saving) await saving;
  if (!dirty) return true;
  saving = store(tag);
  const done = await saving;
  saving = null;
  return done;
}

async function store(seen) {
  const entry = list[place], saved = mask;
  dirty = false;
  status("Saving …");
  try {
    const body = await packed(saved.data);
    const answer = await ask(`${base}/${entry.id}/mask`, { method: "PUT", body, headers: { "If-Match": seen }, keepalive: body.size < 60000 });
    tag = answer.headers.get("ETag");
    entry.corrected = true;
    status(dirty ? "Not saved yet" : "Saved");
    changed(entry.id);
    return true;
  } catch (error) {
    dirty = true;
    status("Not saved");
    if (error instanceof Refusal && error.status === 412) conflict(error.message);
    else if (error.status === 0 || error.status === 401) {
      // The server is away, or was started anew: as soon as it is back, or its new address is open
      // in another window, this is saved.
      status(`Not saved yet. ${error.message}`);
      timer = setTimeout(flush, 3000);
    } else say(error.message, true);
    return false;
  }
}

async function packed(data) {
  const blob = new Blob([data]);
  if (!("CompressionStream" in window)) return blob;
  return new Response(blob.stream().pipeThrough(new CompressionStream("gzip"))).blob();
}

function conflict(sentence) {
  const box = make("div", { class: "message error" }, make("p", {}, sentence),
    make("p", { class: "row" },
      make("button", { type: "button", onclick: async () => { box.remove(); dirty = false; await load(place); } }, "Load it again"),
      make("button", { type: "button", onclick: async () => { box.remove(); await store("*"); } }, "Keep mine")));
  dialog.append(make("div", { class: "messages" }, box));
}

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
  draw();
}

function showClasses() {
  const entries = [...classes.map((entry, index) => [index, entry.name, entry.color, index + 1]), [UNSURE, "not sure", [150, 150, 150], 0]];
  byId("classes").replaceChildren(...entries.map(([index, name, color, key]) => make("button", {
    type: "button", role: "radio", "data-value": index, "aria-checked": index === value, tabindex: index === value ? 0 : -1,
    title: key < 10 ? `${name} (${key})` : name, onclick: () => pick(index),
  }, swatch(color), name)));
}

function pick(index) {
  if (index !== UNSURE && index >= classes.length) return;
  value = index;
  if (tool === "eraser" || tool === "hand") choose("brush");
  for (const button of byId("classes").children) {
    const on = Number(button.dataset.value) === index;
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
  }
}

const radius = () => byId("size").value / 2;
const painted = () => (tool === "eraser" ? 0 : value);

// A brush of one pixel paints the one below the pointer, wherever in it that is.
const aimed = point => (radius() > 0.5 ? point : point.map(value => Math.floor(value) + 0.5));

function paint(from, to) {
  const box = mask.line(...aimed(from), ...aimed(to), radius(), painted());
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

function at(event) {
  const box = guide.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

guide.addEventListener("pointerdown", event => {
  if (!view) return;
  event.preventDefault();
  guide.focus({ preventScroll: true });
  guide.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  if (pointers.size === 2) {
    if (stroke?.kind === "paint") {
      mask.cancel();
      view.drawMask();
    }
    stroke = null;
    pinch = [...pointers.values()];
  } else if (pointers.size === 1) {
    const place = view.toPicture(...at(event));
    if (tool === "hand" || event.button > 0) stroke = { kind: "move", last: at(event) };
    else if (tool === "brush" || tool === "eraser") {
      stroke = { kind: "paint", last: place };
      mask.begin();
      paint(place, place);
    } else stroke = { kind: "press", start: at(event) };
  }
});

guide.addEventListener("pointermove", event => {
  if (!view) return;
  cursor = view.toPicture(...at(event));
  if (pointers.has(event.pointerId)) {
    pointers.set(event.pointerId, at(event));
    if (pinch && pointers.size === 2) scalePinch();
    else if (stroke?.kind === "move") {
      view.pan(...difference(at(event), stroke.last));
      stroke.last = at(event);
      view.draw();
    } else if (stroke?.kind === "paint") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) {
        const next = view.toPicture(...at(each));
        paint(stroke.last, next);
        stroke.last = next;
      }
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
  if (stroke?.kind === "paint") touched(mask.end());
  else if (stroke?.kind === "press" && event.type === "pointerup") press(view.toPicture(...stroke.start));
  stroke = null;
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
  mask.begin();
  paint(from, to);
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
  if ((event.ctrlKey || event.metaKey) && key === "z") back(event.shiftKey ? "redo" : "undo");
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
  if (!(await flush())) return;
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
  dirty = true;
  if ((await flush()) && place + 1 < list.length) load(place + 1);
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
window.addEventListener("beforeunload", event => { if (dirty || saving) event.preventDefault(); });
document.addEventListener("visibilitychange", () => { if (document.hidden) flush(); });
