"""LabelMe JSON, versions 3 to 5: one file beside each photograph, which may hold it as well."""

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.text import printable
from data.decoding import MAX_PIXELS
from data.formats.files import Folder, NotFollowed, number_of, size_of, split_of_folder
from data.formats.records import Annotations, Picture, Shape, annotation
from data.formats.regions import Bitmap, Region, box, ellipse, outline
from data.images import is_image_name

NAME = "LabelMe JSON"
NO_AREAS = ("point", "points", "line", "linestrip")
# What the first bytes of an embedded photograph say about its format.
ENDINGS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
Keep = Callable[[bytes, str], Path]


def fits(content: object) -> bool:
    """Whether a JSON file is LabelMe's."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and ("imagePath" in content or "imageData" in content)
    )


def read(folder: Folder, files: list[Path], keep: Keep) -> Annotations:
    """All pictures with their shapes, painted in the files' order.

    Args:
        keep: stores the bytes of an embedded photograph under a name, and returns its path.
    """
    found = Annotations(NAME, ordered=True)
    taken: dict[Path, Path] = {}
    for path in files:
        with found.picture(path, printable(path)):
            content = folder.json(path)
            folder.forget(path)
            if not fits(content):
                raise UserError(f"{printable(path)} is no file of LabelMe; remove it.")
            photo = _photograph(folder, path, content, keep, found)
            if photo in taken:
                raise UserError(
                    f"{printable(path)} and {printable(taken[photo].name)} belong to the same "
                    f"photograph {printable(photo.name)}; remove one of them."
                )
            taken[photo] = path
            picture = Picture(photo, path, split=split_of_folder(path.parent, folder.root))
            if content.get("imageHeight") and content.get("imageWidth"):
                picture.size = size_of(content["imageHeight"], content["imageWidth"])
            other = _add_shapes(picture, content["shapes"])
            found.add_names(shape.label for shape in picture.shapes)
            found.add_picture(picture, other=other)
    found.names.sort()  # the order of files means nothing
    named = {path.with_suffix("") for path in files} | {photo.with_suffix("") for photo in taken}
    places = {path.parent for path in named}
    found.counts["photograph|photographs without an annotation file (left out)"] = sum(
        is_image_name(path) and path.parent in places and path.with_suffix("") not in named
        for path in folder.files
    )
    return found


def _photograph(folder: Folder, path: Path, content: dict, keep: Keep, found: Annotations) -> Path:
    """The photograph that was annotated: the one within the file, if it is another than beside it.

    Raises:
        UserError: there is none, or the embedded one is damaged.
    """
    problem = None
    try:
        name = content.get("imagePath") or path.name
        if str(name).lower().endswith(".json"):  # some versions name the annotation itself
            raise UserError(f"{printable(path)} names no photograph")
        photo = folder.find_picture(name, path.parent)
    except NotFollowed:
        raise
    except UserError as error:
        # A name that leads nowhere or out of the folder: what lies beside the file is taken.
        beside = [
            other
            for other in folder.files
            if other.parent == path.parent and other.stem == path.stem and is_image_name(other)
        ]
        if len(beside) > 1:
            names = f"{printable(beside[0])} or {printable(beside[1])}"
            raise UserError(f"the photograph may be {names}; remove one of them") from error
        photo, problem = (beside[0] if beside else None), error
    data = content.get("imageData")
    if not data:
        if photo is None:
            raise problem
        return photo
    try:
        embedded = base64.b64decode(data, validate=False)
    except (ValueError, TypeError, binascii.Error) as error:
        raise UserError("its imageData is damaged; set it to null") from error
    if photo is not None and _same(photo, embedded):
        return photo
    ending = next((e for mark, e in ENDINGS.items() if embedded.startswith(mark)), None)
    if ending is None:
        raise UserError("its imageData is no photograph in a known format; set it to null")
    what = "photograph|photographs taken from imageData (no file that is the same)"
    found.counts[what] += 1
    return keep(embedded, f"{path.stem}{ending}")


def _same(photo: Path, embedded: bytes) -> bool:
    try:
        return photo.stat().st_size == len(embedded) and photo.read_bytes() == embedded
    except OSError:
        return False


def _add_shapes(picture: Picture, shapes: list) -> int:
    """Add a file's areas; returns how many of its shapes are none."""
    other = 0
    for number, item in enumerate(shapes):
        where = f"shape {number}"
        with annotation(where):
            if not isinstance(item, dict) or not isinstance(item.get("points"), list):
                raise UserError("it has no points")
            label = str(item.get("label") or "").strip()
            kind = item.get("shape_type") or "polygon"
            if kind in NO_AREAS:
                other += 1
                continue
            if not label:
                raise UserError("it has no label")
            region = _region(str(kind), item)
            if region is None:
                other += 1
            else:
                picture.shapes.append(Shape(label, region, where))
    return other


def _region(kind: str, item: dict) -> Region | None:
    """The area of a shape; None for a polygon of one or two points."""
    points = outline(item["points"]).rings[0]
    if kind == "polygon" or (kind in ("rectangle", "oriented_rectangle") and len(points) == 4):
        return outline(points) if len(points) >= 3 else None
    if len(points) != 2:
        raise UserError(f"its kind {printable(kind)} has {len(points)} points, not 2")
    if kind == "rectangle":
        return box(*points.ravel())
    if kind == "circle":
        centre, edge = points
        radius = float(((edge - centre) ** 2).sum() ** 0.5)
        return ellipse(*centre, radius, radius)
    if kind == "mask":
        return _bitmap(points, item.get("mask"))
    raise UserError(f"its kind {printable(kind)} is not known")


def _bitmap(points, text: object) -> Bitmap:
    """A mask between two corners, both of which belong to it."""
    left, top, right, bottom = (int(number_of(value, "a corner")) for value in points.ravel())
    if not isinstance(text, str) or right < left or bottom < top:
        raise UserError("its mask is missing, or its corners are in disorder")
    try:
        png = base64.b64decode(text)
    except (ValueError, binascii.Error) as error:
        raise UserError("its mask is damaged") from error
    size = bottom - top + 1, right - left + 1
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"its mask claims {size[1]}x{size[0]} px")
    return Bitmap(png, (top, left), size)
