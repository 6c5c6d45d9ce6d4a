"""The page's addresses: what a request may say, checked, and which part of the desk answers it.

A body is read piece by piece and counted; JSON is small; nothing of it becomes a path, HTML or a
word of a shell. What works on files runs in threads, so that the page stays quick meanwhile.
"""

import errno
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from common.cli import explain
from common.errors import UserError
from common.text import printable
from data.images import is_image_name, read_header, read_image
from page.desk import ConflictError, Desk, OtherClassesError
from page.guard import REPORT_POLICY, Guard
from page.pictures import fingerprint, pack, unpack
from page.room import NoRoomError, keep_room
from page.workspace import Photograph, clean_name, free_name, legend

HERE = Path(__file__).resolve().parent
MAX_UPLOAD = 64 << 20  # bytes of a photograph, a video, an archive, a mask
MAX_PHOTOGRAPHS = 10_000  # of a collection that was dropped
MAX_JSON = 1 << 16
WRONG_GUESS = 1.0  # seconds until the next password may be tried
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mts", ".3gp")
DOWNLOADS = ("results.csv", "summary.html", "cvat.zip", "coco.json", "labelstudio.json")


class RefusedError(Exception):
    """An answer that is no success: its status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


async def receive_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body piece by piece, counted while it streams, whatever its head claims.

    Raises:
        RefusedError: 413, it is larger than `limit`.
    """
    sentence = f"The file is larger than {limit >> 20} MiB; name its folder instead."
    claimed = request.headers.get("content-length", "0")
    if not claimed.isdecimal() or int(claimed) > limit:
        raise RefusedError(413, sentence)
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit:
            raise RefusedError(413, sentence)
        yield chunk


async def read_json(request: Request) -> dict:
    """A small JSON object.

    Raises:
        RefusedError: it is none.
    """
    body = b"".join([chunk async for chunk in receive_body(request, MAX_JSON)])
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "That request is no JSON; reload the page.") from error
    if not isinstance(content, dict):
        raise RefusedError(400, "That request is no JSON object; reload the page.")
    return content


def text_of(content: dict, name: str, longest: int = 1000) -> str:
    """A text of a request, "" where there is none."""
    value = content.get(name, "")
    if not isinstance(value, str) or len(value) > longest:
        raise RefusedError(400, f"{name} is no short text; reload the page.")
    return value


def number_of(content: dict, name: str, low: int, high: int) -> int | None:
    """A whole number of a request, None where there is none."""
    value = content.get(name)
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RefusedError(400, f"{name} must be a whole number from {low} to {high}.")
    return value


class Pages:
    """The handlers. All that they know is the desk, the token and the password."""

    def __init__(self, desk: Desk, token: str, password: str | None):
        self.desk, self._token = desk, token
        self._password = None if password is None else hashlib.sha256(password.encode()).digest()
        self._login = anyio.Lock()
        self._tickets: dict[str, Path] = {}

    # --- The page itself ---

    async def page(self, request: Request) -> Response:
        text = (HERE / "templates" / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text)

    async def login(self, request: Request) -> Response:
        content = await read_json(request)
        if self._password is None:
            raise RefusedError(404, "This server has no password; open the address it printed.")
        given = hashlib.sha256(text_of(content, "password").encode()).digest()
        async with self._login:  # one guess after the other
            if not hmac.compare_digest(given, self._password):
                await anyio.sleep(WRONG_GUESS)
                raise RefusedError(403, "That is not the password.")
        return JSONResponse({"token": self._token})

    async def state(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._state))

    def _state(self) -> dict:
        desk = self.desk
        collections = [
            {"id": c.id, "title": c.title, "kind": c.kind, "count": len(c.photographs)}
            | {"root": str(c.root) if c.kind != "dropped" else "", "model": c.model}
            for c in list(desk.space.collections.values())
        ]
        runs = [desk.trainings.describe(name) for name in desk.trainings.names()[:20]]
        for run in runs[1:]:
            run |= {"log": "", "history": run["history"][-1:]}
        models, told = desk.models(), ("name", "epochs", "miou", "folds", "finished")
        by_run = {model.path.parent.name: name for name, model in models.items()}
        for run in runs:
            run["model"] = by_run.get(run["id"], "")
        jobs = [job.to_plain() for job in list(desk.worker.jobs.values())]
        return {
            "collections": collections,
            "models": [
                {"id": name} | {key: getattr(model, key) for key in told}
                for name, model in models.items()
            ],
            "preferred": desk.preferred(models),
            "runs": runs,
            "jobs": jobs,
            "folders": desk.space.offered(),
            "corrected": [
                {"classes": names, "count": count} for _, names, count in desk.corrections.sets()
            ],
        }

    # --- Photographs ---

    async def new_collection(self, request: Request) -> Response:
        content = await read_json(request)
        folder = text_of(content, "folder", 4000)

        def make() -> dict:
            if folder:
                collection = self.desk.space.open(self.desk.space.named_folder(folder), "folder")
            else:
                title = text_of(content, "title", 200) or "Dropped photographs"
                collection = self.desk.space.create(title)
            return {"id": collection.id}

        return JSONResponse(await run_in_threadpool(make), 201)

    async def collection(self, request: Request) -> Response:
        collection = self.desk.collection(request.path_params["cid"])

        def show() -> dict:
            classes = collection.classes
            listed = [path for path in DOWNLOADS if (collection.results / path).is_file()]
            rows = self.desk.table.rows(collection)
            painted = any(row["corrected"] for row in rows) and "results.csv" not in listed
            listed = ["results.csv"] * painted + listed
            return {
                "id": collection.id,
                "title": collection.title,
                "kind": collection.kind,
                "model": collection.model,
                "downloads": listed,
                "masks": any(collection.results.rglob("*_mask.png")),
                "classes": classes and legend(classes),
                "corrected": self.desk.corrections.count(classes) if classes else {},
                "table": self.desk.table_id(collection) if classes else "",
                "photographs": rows,
            }

        return JSONResponse(await run_in_threadpool(show))

    async def add_photograph(self, request: Request) -> Response:
        collection = self.desk.collection(request.path_params["cid"])
        if collection.kind != "dropped":
            raise RefusedError(409, "Photographs are dropped into a collection of their own.")
        if len(collection.photographs) >= MAX_PHOTOGRAPHS:
            sentence = f"{MAX_PHOTOGRAPHS} photographs are dropped at most; name their folder."
            raise RefusedError(413, sentence)
        name = clean_name(request.query_params.get("name", ""))
        if not is_image_name(name):
            raise RefusedError(415, f"{printable(name)} is no photograph by its ending.")
        waiting = await self._receive(request, collection.root, name, read_image)
        taken = {entry.name.casefold() for entry in collection.photographs.values()}
        entry = collection.add(waiting.rename(free_name(collection.root, name, taken)))
        return JSONResponse({"id": entry.id, "name": printable(entry.name)}, 201)

    async def _receive(
        self, request: Request, folder: Path, name: str, check: Callable[[Path], Any]
    ) -> Path:
        """Stream a body into a file of a folder, whose hidden name is changed when it is sound.

        Raises:
            NoRoomError: the disk would be full.
            RefusedError: it is too large, or not sound.
        """
        folder.mkdir(parents=True, exist_ok=True)
        claimed = request.headers.get("content-length", "0")
        keep_room(folder, min(int(claimed), MAX_UPLOAD) if claimed.isdecimal() else 0)
        waiting = folder / f".tmp-{secrets.token_hex(4)}{Path(name).suffix}"
        try:
            async with await anyio.open_file(waiting, "xb") as file:
                async for chunk in receive_body(request, MAX_UPLOAD):
                    keep_room(folder, len(chunk))
                    await file.write(chunk)
            try:
                await run_in_threadpool(check, waiting)
            except UserError as error:
                raise RefusedError(422, str(error).replace(str(waiting), name)) from error
        except BaseException:
            waiting.unlink(missing_ok=True)
            raise
        return waiting

    async def segment(self, request: Request) -> Response:
        collection = self.desk.collection(request.path_params["cid"])
        model = text_of(await read_json(request), "model")
        job = await run_in_threadpool(self.desk.segment, collection, model)
        return JSONResponse(job.to_plain(), 202)

    async def classes(self, request: Request) -> Response:
        collection = self.desk.collection(request.path_params["cid"])
        names = (await read_json(request)).get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RefusedError(400, "names must be a list of texts.")
        await run_in_threadpool(self.desk.set_classes, collection, names)
        return Response(status_code=204)

    def _photograph(self, request: Request) -> tuple[Any, Photograph]:
        collection = self.desk.collection(request.path_params["cid"])
        return collection, collection.photographs[request.path_params["pid"]]

    async def photograph(self, request: Request) -> Response:
        found = self._photograph(request)
        return JSONResponse(await run_in_threadpool(self.desk.table.row, *found))

    async def tile(self, request: Request) -> Response:
        _, entry = self._photograph(request)
        place = [int(request.path_params[name]) for name in ("level", "column", "row")]
        if place[0] > 12:
            raise RefusedError(404, "There is no such tile.")
        jpeg = await run_in_threadpool(self.desk.pictures.tile, entry.path, *place)
        return Response(jpeg, media_type="image/jpeg", headers=CACHED)

    async def thumbnail(self, request: Request) -> Response:
        jpeg = await run_in_threadpool(self.desk.thumbnail, *self._photograph(request))
        return Response(jpeg, media_type="image/jpeg", headers=CACHED)

    async def wand(self, request: Request) -> Response:
        _, entry = self._photograph(request)
        content = await read_json(request)
        x, y = (number_of(content, name, 0, 10**6) for name in ("x", "y"))
        tolerance = number_of(content, "tolerance", 0, 255)
        if None in (x, y, tolerance):
            raise RefusedError(400, "x, y and tolerance are needed.")
        box, found = await run_in_threadpool(self.desk.pictures.alike, entry.path, x, y, tolerance)
        packed = await run_in_threadpool(pack, memoryview(found))
        headers = {"x-box": ",".join(map(str, box)), "content-encoding": "gzip"}
        return Response(packed, media_type="application/octet-stream", headers=headers)

    async def mask(self, request: Request) -> Response:
        found = self._photograph(request)
        mask, source = await run_in_threadpool(self.desk.mask, *found)
        headers = {"etag": fingerprint(mask), "content-encoding": "gzip", "x-origin": source}
        headers["x-size"] = f"{mask.shape[1]},{mask.shape[0]}"
        headers["x-classes"] = self.desk.table_id(found[0])
        packed = await run_in_threadpool(pack, mask)
        return Response(packed, media_type="application/octet-stream", headers=headers)

    async def save_mask(self, request: Request) -> Response:
        collection, entry = self._photograph(request)
        seen = request.headers.get("if-match")
        if seen is None:
            raise RefusedError(428, "Say with If-Match which mask was painted on.")
        table = request.headers.get("x-classes", "")
        body = b"".join([chunk async for chunk in receive_body(request, MAX_UPLOAD)])

        def save() -> str:
            size = read_header(entry.path).size
            mask = unpack(body, size, len(self.desk.adopt_classes(collection)))
            return self.desk.save_mask(collection, entry, mask, seen, table)

        tag = await run_in_threadpool(save)
        return Response(status_code=204, headers={"etag": tag})

    # --- Jobs, data sets, trainings, videos ---

    async def stop_job(self, request: Request) -> Response:
        self.desk.worker.jobs[request.path_params["jid"]].stop.set()
        return Response(status_code=204)

    async def sample(self, request: Request) -> Response:
        return JSONResponse(self.desk.draw_sample().to_plain(), 202)

    async def check(self, request: Request) -> Response:
        text = text_of(await read_json(request), "folder", 4000)
        folder = await run_in_threadpool(self.desk.space.named_folder, text, data=True)
        return JSONResponse(self.desk.check(folder).to_plain(), 202)

    async def add_archive(self, request: Request) -> Response:
        name = clean_name(request.query_params.get("name", ""))
        if not name.lower().endswith(".zip"):
            raise RefusedError(415, "An archive is a .zip file here.")
        folder = self.desk.space.path / "data"
        waiting = await self._receive(request, folder, name, lambda _: None)
        unpacked = await run_in_threadpool(self.desk.unpack, waiting, name)
        return JSONResponse({"folder": str(unpacked)}, 201)

    async def train(self, request: Request) -> Response:
        content = await read_json(request)
        sides = [number_of(content, side, 32, 4096) for side in ("width", "height")]
        wish = {name: text_of(content, name, 4000) for name in ("data", "recipe", "weights")}
        wish["model"] = text_of(content, "model", 100)
        if wish["recipe"] not in ("light", "finetune", "scratch"):
            raise RefusedError(400, "recipe must be light, finetune or scratch.")
        if wish["model"] and not re.fullmatch(r"[\w./-]+", wish["model"]):
            raise RefusedError(400, "model must be the name of a backbone, as timm/NAME.")
        wish["epochs"] = number_of(content, "epochs", 1, 10_000) or 30
        wish["batch"] = number_of(content, "batch", 1, 1024)
        wish["imgsz"] = tuple(sides) if all(sides) else None
        wish["corrections"] = content.get("corrections") is True
        job = await run_in_threadpool(self.desk.train, wish)
        return JSONResponse(job.to_plain(), 202)

    def _run(self, request: Request) -> str:
        name = request.path_params["rid"]
        if name not in self.desk.trainings.names():
            raise KeyError(name)
        return name

    async def stop_run(self, request: Request) -> Response:
        await run_in_threadpool(self.desk.trainings.stop, self._run(request))
        return Response(status_code=204)

    async def resume_run(self, request: Request) -> Response:
        await run_in_threadpool(self.desk.trainings.go_on, self._run(request))
        return Response(status_code=204)

    async def run_picture(self, request: Request) -> Response:
        path = self.desk.trainings.picture(self._run(request))
        if path is None:
            raise KeyError("picture")
        return FileResponse(path, headers={"x-epoch": path.stem.removeprefix("epoch_")})

    async def add_video(self, request: Request) -> Response:
        name = clean_name(request.query_params.get("name", ""))
        if Path(name).suffix.lower() not in VIDEO_ENDINGS:
            raise RefusedError(415, f"{printable(name)} is no video by its ending.")
        folder, model = self.desk.space.path / "videos", request.query_params.get("model", "")
        await run_in_threadpool(self.desk.model, model)  # before a long way for nothing
        waiting = await self._receive(request, folder, name, lambda _: None)
        # What is marked is an .mp4 of the same stem, whatever the video was.
        taken = {path.stem.casefold() for path in folder.rglob("*")}
        path = waiting.rename(free_name(folder, name, taken))
        try:
            job = await run_in_threadpool(self.desk.mark_video, path, model)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return JSONResponse(job.to_plain(), 202)

    # --- Files that a browser opens by itself ---

    async def ticket(self, request: Request) -> Response:
        """An address for one file, secret like the token: a link cannot send a header."""
        content = await read_json(request)
        path = await run_in_threadpool(self._file_for, content)
        name = secrets.token_urlsafe(24)
        self._tickets[name] = path
        return JSONResponse({"url": f"/ticket/{name}"}, 201)

    def _file_for(self, content: dict) -> Path:
        """The file that a request means, by ids and known names alone."""
        what, name = text_of(content, "what"), text_of(content, "id")
        if what == "report" and name in self.desk.trainings.names():
            path = self.desk.trainings.folder / name / "report.html"
        elif what == "video":
            path = self.desk.space.path / self.desk.worker.jobs[name].result.get("file", "")
        elif what == "masks":
            path = self.desk.mask_archive(self.desk.collection(name))
        elif what == "results.csv":
            path = self.desk.table.write(self.desk.collection(name))
        elif what in DOWNLOADS:
            path = self.desk.collection(name).results / what
        else:
            raise KeyError(what)
        if not path.is_file():
            raise KeyError(what)
        return path

    async def file(self, request: Request) -> Response:
        path = self._tickets[request.path_params["ticket"]]
        if path.name in ("report.html", "summary.html"):
            headers = {"content-security-policy": REPORT_POLICY, "x-frame-options": "SAMEORIGIN"}
            return FileResponse(path, headers=headers)
        shown = path.suffix == ".mp4" and "download" not in request.query_params
        how = "inline" if shown else "attachment"
        return FileResponse(path, filename=path.name, content_disposition_type=how)


CACHED = {"cache-control": "private, max-age=600"}


def make_app(
    desk: Desk,
    token: str,
    *,
    port: int | None = None,
    remote: bool = False,
    password: str | None = None,
) -> Guard:
    """The page as an ASGI application behind its guard."""
    pages = Pages(desk, token, password)
    photograph = "/api/collections/{cid}/photographs/{pid}"
    routes = [
        Route("/", pages.page),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/api/login", pages.login, methods=["POST"]),
        Route("/api/state", pages.state),
        Route("/api/sample", pages.sample, methods=["POST"]),
        Route("/api/collections", pages.new_collection, methods=["POST"]),
        Route("/api/collections/{cid}", pages.collection),
        Route("/api/collections/{cid}/photographs", pages.add_photograph, methods=["PUT"]),
        Route("/api/collections/{cid}/segment", pages.segment, methods=["POST"]),
        Route("/api/collections/{cid}/classes", pages.classes, methods=["POST"]),
        Route(photograph, pages.photograph),
        Route(photograph + "/tile/{level:int}/{column:int}/{row:int}", pages.tile),
        Route(photograph + "/thumbnail", pages.thumbnail),
        Route(photograph + "/wand", pages.wand, methods=["POST"]),
        Route(photograph + "/mask", pages.mask),
        Route(photograph + "/mask", pages.save_mask, methods=["PUT"]),
        Route("/api/jobs/{jid}/stop", pages.stop_job, methods=["POST"]),
        Route("/api/data", pages.check, methods=["POST"]),
        Route("/api/archives", pages.add_archive, methods=["PUT"]),
        Route("/api/runs", pages.train, methods=["POST"]),
        Route("/api/runs/{rid}/stop", pages.stop_run, methods=["POST"]),
        Route("/api/runs/{rid}/resume", pages.resume_run, methods=["POST"]),
        Route("/api/runs/{rid}/picture", pages.run_picture),
        Route("/api/videos", pages.add_video, methods=["PUT"]),
        Route("/api/tickets", pages.ticket, methods=["POST"]),
        Route("/ticket/{ticket}", pages.file),
    ]
    handlers = {RefusedError: _refused, UserError: _explained, KeyError: _missing}
    handlers |= {OSError: _explained, ClientDisconnect: _gone, Exception: _explained}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, port, remote)


async def _refused(request: Request, error: Exception) -> Response:
    # What a body still holds is not read to its end.
    headers = {"connection": "close"} if error.status == 413 else None
    return JSONResponse({"error": str(error)}, error.status, headers)


def _is_full(error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, NoRoomError)


async def _explained(request: Request, error: Exception) -> Response:
    if isinstance(error, FileNotFoundError):
        return await _missing(request, error)
    if _is_full(error):
        return JSONResponse({"error": explain(error)}, 507, {"connection": "close"})
    statuses = {OtherClassesError: 409, ConflictError: 412, UserError: 422}
    status = next((s for kind, s in statuses.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": explain(error)}, status)


async def _missing(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "That is not there any more; reload the page."}, 404)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it
