// Small things that all views build with. Text goes in as text, never as HTML.

export const byId = id => document.getElementById(id);

// An element: its attributes, listeners as on..., and children, which may be texts.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key.startsWith("aria-")) element.setAttribute(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter(child => child != null));
  return element;
}

// Says something for a while. An error takes the place of an earlier one about the same thing, and is
// of a section, the open one unless another is named: see `leave`.
export function say(text, error = false, about = text, view = document.body.dataset.view) {
  if (error) hush(about);
  const more = error ? { class: "message error", "data-about": about, "data-view": view } : { class: "message" };
  const box = make("div", more, text), all = byId("messages");
  // An open dialog covers all that lies outside it.
  const place = document.querySelector("dialog[open]") ?? document.body;
  if (all.parentElement !== place) place.append(all);
  all.append(box);
  setTimeout(() => box.remove(), error ? 12000 : 5000);
}

const forget = which => {
  for (const box of document.querySelectorAll(".message[data-about]")) if (which(box.dataset)) box.remove();
};

// What went wrong with a thing is not said any more, nor with one of several such: "video:b.mp4" of "video".
export const hush = about => forget(error => error.about === about || error.about.startsWith(`${about}:`));

// Errors of other sections do not follow into the one that is shown now.
export function leave(view) {
  forget(error => error.view !== view);
  document.body.dataset.view = view;
}

// Runs what may be refused, and says why if it is. What was said of an earlier attempt goes.
export async function tried(work, about) {
  const view = document.body.dataset.view; // where it was asked for; the answer may take a while
  hush(about);
  try {
    return await work();
  } catch (error) {
    say(error.message, true, about, view);
    return undefined;
  }
}

export const percent = (value, digits = 1) =>
  typeof value === "number" && isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–";

export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const rgb = color => `rgb(${color.join(", ")})`;

export function swatch(color) {
  const box = make("span", { class: "swatch" });
  box.style.background = rgb(color);
  return box;
}

export const legend = (classes, text = entry => entry.name) =>
  make("p", { class: "legend" }, classes.map(entry => make("span", {}, swatch(entry.color), text(entry))));

export function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// Fills a select and keeps what is chosen in it, where that is still there.
export function fill(select, options, chosen = select.value) {
  const same = select.options.length === options.length &&
    options.every(([value, text], i) => select.options[i].value === value && select.options[i].text === text);
  if (!same) select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

// A place to drop files: an outline while they hover, then `take` gets them.
export function dropZone(element, take) {
  element.addEventListener("dragover", event => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", event => {
    event.preventDefault();
    element.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}
