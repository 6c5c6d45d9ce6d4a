// Video: a clip in, the marked clip out.

import { refresh } from "./main.js";
import { byId, dropZone, legend, make, say, tried } from "./parts.js";
import { download } from "./photographs.js";
import { put, ticket } from "./server.js";

const shown = new Set();

export function update(state) {
  byId("choose-video").disabled = !state.models.length;
  for (const job of state.jobs) if (job.kind === "video" && ["done", "stopped"].includes(job.state)) show(job);
}

async function show(job) {
  if (shown.has(job.id) || !job.result.file) return;
  shown.add(job.id);
  const url = await tried(() => ticket("video", job.id));
  if (!url) return;
  byId("videos").prepend(make("div", { class: "card" }, make("h2", {}, job.title.replace(/^Marking /, "")),
    ...job.notes.map(note => make("p", {}, note)),
    make("video", { controls: true, preload: "metadata", src: url, "aria-label": `Marked video ${job.title}` }),
    legend(job.result.classes.filter(({ color }) => color.some(Boolean))), // black leaves the picture as it is
    make("p", { class: "row" }, make("button", { type: "button", onclick: () => download("video", job.id) }, "Download"))));
}

async function upload([file]) {
  if (!file) return;
  const bar = byId("video-upload");
  bar.hidden = false;
  const job = await tried(() => put("/api/videos", file, { model: byId("video-model").value }), "video");
  bar.hidden = true;
  if (job) say("The video is in the line; it appears here when it is marked.");
  refresh();
}

byId("video-form").addEventListener("submit", event => {
  event.preventDefault();
  byId("video-file").click();
});
byId("video-file").addEventListener("change", async event => {
  const files = [...event.target.files];
  event.target.value = "";
  await upload(files);
});
dropZone(byId("video-drop"), upload);
