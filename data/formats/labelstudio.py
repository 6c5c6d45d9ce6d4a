"""Label Studio's JSON export: a list of tasks, each with its annotations."""

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from common.errors import UserError
from common.text import printable
from config import Size
from data.decoding import MAX_PIXELS
from data.formats.files import Folder, number_of, size_of, split_of
from data.formats.records import Annotations, Picture, Shape, annotation
from data.formats.regions import Outline, Region, Runs, ellipse, outline, rotated

NAME = "Label Studio JSON"
KINDS = ("polygon", "rectangle", "ellipse", "brush")


def fits(content: object) -> bool:
    """Whether a JSON file is a list of Label Studio's tasks."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) for task in content)
        and any(isinstance(task.get("data"), dict) and _is_told(task) for task in content)
    )


def _is_told(task: dict) -> bool:
    """Whether a task has annotations, or predictions that wait for them."""
    return "annotations" in task or "predictions" in task


def read(folder: Folder, files: list[Path]) -> Annotations:
    """All annotated pictures with their shapes, painted in the file's order.

    Predictions, drafts and cancelled annotations are no truth. A task that nobody finished is left
    out: that a picture holds nothing is said by a finished annotation without results.
    """
    found = Annotations(NAME, ordered=True)
    for path in files:
        for number, task in enumerate(folder.json(path)):
            where = f"{printable(path)}, task {printable(task.get('id', number))}"
            with found.picture(path, where):
                _add_task(found, folder, path, task)
        folder.forget(path)
    found.names.sort()
    return found


def _add_task(found: Annotations, folder: Folder, path: Path, task: dict) -> None:
    annotations = task.get("annotations")
    if annotations is None and task.get("predictions"):
        raise UserError("it holds predictions alone; correct them in Label Studio, then export")
    if not isinstance(annotations, list):
        raise UserError("it has no list of annotations; export as JSON, not as JSON-MIN.")
    done = [
        one
        for one in annotations
        if isinstance(one, dict)
        and not one.get("was_cancelled")
        and isinstance(one.get("result"), list)
    ]
    if not done:
        found.counts["task|tasks without a finished annotation (left out)"] += 1
        return
    found.counts["task|tasks with several annotations (the newest is taken)"] += len(done) > 1
    newest = max(done, key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
    photo = _photograph(folder, path, task)
    picture = Picture(photo, path, split=split_of(path, folder.root))
    other = _add_shapes(picture, newest["result"])
    found.add_names(shape.label for shape in picture.shapes)
    found.add_picture(picture, other=other)


def _photograph(folder: Folder, path: Path, task: dict) -> Path:
    """The photograph of a task, by its own name or the one that the upload gave it.

    Raises:
        UserError: it is not in the folder; addresses are never asked.
    """
    data = task.get("data")
    values = data.values() if isinstance(data, dict) else ()
    texts = [value for value in values if isinstance(value, str)]
    upload = task.get("file_upload")
    texts = [upload] * isinstance(upload, str) + texts
    problem = None
    for text in texts:
        name = _file_name(text)
        for candidate in (name, re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name)):
            try:
                return folder.find_picture(candidate, path.parent)
            except UserError as error:
                problem = problem or error
        if text.startswith(("http:", "https:")):
            problem = UserError(
                f"the photograph {printable(text[:100])} is an address, and none is fetched; put "
                "the file into the data's folder"
            )
    raise problem or UserError("it names no photograph")


def _file_name(text: str) -> str:
    """The path within an upload (`/data/upload/8/1a2b3c4d-a.jpg`) or address (`...?d=b/a.jpg`)."""
    try:
        split = urlsplit(text.replace("\\", "/"))
        inner = parse_qs(split.query).get("d")
    except ValueError:
        return text
    name = inner[0] if inner else unquote(split.path)
    name = re.sub(r"^/?data/(upload|local-files)/", "", name.replace("\\", "/"))
    return name if ".." in name.split("/") else name.lstrip("/")


def _add_shapes(picture: Picture, results: list) -> int:
    """Add an annotation's areas; returns how many of its results are none."""
    other = 0
    labels = _labels(results)
    for number, item in enumerate(results):
        value = item.get("value") if isinstance(item, dict) else None
        where = f"result {printable(item.get('id', number)) if value is not None else number}"
        with annotation(where):
            kind = _kind(value)
            if kind is None:
                other += 1
                continue
            size = size_of(item.get("original_height"), item.get("original_width"))
            if picture.size not in (None, size):
                raise UserError("its original size is another than that of the results before it")
            if item.get("image_rotation") not in (None, 0):
                raise UserError("the picture was turned while it was annotated")
            picture.size = size
            names = labels.get(str(item.get("id"))) or _own_labels(value)
            if len(names) != 1:
                raise UserError(f"it has {len(names)} labels, and a pixel has one class")
            picture.shapes.append(Shape(names[0], _region(kind, value, size), where))
    return other


def _kind(value: object) -> str | None:
    """Which area a result describes, by what it holds; None for anything else."""
    if not isinstance(value, dict):
        return None
    if "points" in value:
        return "polygon"
    if "rle" in value:
        return "brush"
    if "radiusX" in value:
        return "ellipse"
    return "rectangle" if {"x", "y", "width", "height"} <= value.keys() else None


def _own_labels(value: dict) -> list[str]:
    keys = [f"{kind}labels" for kind in KINDS] + ["labels"]
    lists = [value[key] for key in keys if isinstance(value.get(key), list)]
    return [str(name).strip() for name in (lists[0] if lists else [])]


def _labels(results: list) -> dict[str, list[str]]:
    """Labels that stand in a result of their own, by the id that they share with an area."""
    found: dict[str, list[str]] = {}
    for item in results:
        value = item.get("value") if isinstance(item, dict) else None
        names = _own_labels(value) if isinstance(value, dict) else []
        if names and "id" in item:
            found.setdefault(str(item["id"]), names)
    return found


def _region(kind: str, value: dict, size: Size) -> Region:
    """An area, from per cent of the picture's width and height to pixels."""
    height, width = size
    scale = np.array((width, height)) / 100
    if kind == "brush":
        return unpack_brush(value.get("rle"), size)
    if kind == "polygon":
        points = outline(value["points"]).rings[0] * scale
        if len(points) < 3:
            raise UserError("it has fewer than three points")
        return outline(points)

    def number(key: str, default: object = None) -> float:
        return number_of(value.get(key, default), f"its {key}")

    corner = np.array((number("x"), number("y"))) * scale
    if kind == "ellipse":
        shape = ellipse(*corner, *(np.array((number("radiusX"), number("radiusY"))) * scale))
    else:
        right, bottom = corner + np.array((number("width"), number("height"))) * scale
        left, top = corner
        shape: Outline = outline([left, top, right, top, right, bottom, left, bottom])
    # A rectangle turns around its own first corner, an ellipse around its centre.
    return rotated(shape, number("rotation", 0), tuple(corner))


def unpack_brush(packed: object, size: Size) -> Runs:
    """A brush's mask: RGBA by rows, packed bit by bit; covered where the fourth value is above 127.

    The stream holds the number of values (32 bits), the bits of a value less one (5), four widths
    of run lengths, each less one (4 bits), and then blocks: one bit, whether a value is repeated;
    two, which width the length has; the length less one; the value or values.

    Raises:
        UserError: it is damaged, or of another size than the picture.
    """
    height, width = size
    if height * width > MAX_PIXELS:
        raise UserError(f"its picture claims {width}x{height} px")
    try:
        data = np.array(packed, np.uint8)
        if data.ndim != 1 or (np.asarray(packed) != data).any():
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError("its brush mask is no list of bytes") from error
    bits = _Bits(data.tobytes())
    total, word = bits.take(32), bits.take(5) + 1
    widths = [bits.take(4) + 1 for _ in range(4)]
    if total != 4 * height * width or word != 8:
        raise UserError(
            f"its brush mask has {total} values; {width}x{height} px of RGBA have others"
        )
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeated, kind = bits.take(1), bits.take(2)
        count = bits.take(widths[kind]) + 1
        if done + count > total:
            raise UserError("its brush mask has more values than it says")
        values[done : done + count] = bits.take(8) if repeated else bits.take_bytes(count)
        done += count
    covered = values[3::4] > 127
    edges = np.flatnonzero(np.diff(covered)) + 1
    counts = np.diff(np.concatenate(([0], edges, [covered.size])))
    return Runs(np.concatenate(([0], counts)) if covered[0] else counts, size)


class _Bits:
    """A stream of bits, the highest of each byte first."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def take(self, count: int) -> int:
        """The next bits as a number."""
        start, self.place = self.place, self.place + count
        if self.place > 8 * len(self.data):
            raise UserError("its brush mask is cut off")
        window = self.data[start >> 3 : (self.place + 7) >> 3]
        return (int.from_bytes(window) >> (-self.place % 8)) & ((1 << count) - 1)

    def take_bytes(self, count: int) -> np.ndarray:
        """The next bytes, which may begin within one."""
        start, self.place = self.place, self.place + 8 * count
        if self.place > 8 * len(self.data):
            raise UserError("its brush mask is cut off")
        window = np.frombuffer(self.data[start >> 3 : (self.place + 7) >> 3], np.uint8)
        shift = start % 8
        if not shift:
            return window
        pairs = window[:-1].astype(np.uint16) << 8 | window[1:]
        return (pairs >> (8 - shift)).astype(np.uint8)
