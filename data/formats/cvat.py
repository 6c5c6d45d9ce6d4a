"""CVAT for images 1.1: one XML file for a task or a project."""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from common.errors import UserError
from common.text import printable
from config import RGB
from data.formats.files import Folder, number_of, read_xml, size_of, split_of, split_of_word
from data.formats.records import Annotations, Picture, Shape, annotation
from data.formats.regions import Region, Runs, box, ellipse, outline, rotated

NAME = "CVAT for images XML"
AREAS = ("polygon", "box", "ellipse", "mask")
NO_AREAS = ("polyline", "points", "tag", "skeleton", "cuboid")


def fits(root: Element) -> bool:
    """Whether an XML file is CVAT's."""
    return root.tag == "annotations" and any(
        root.find(tag) is not None for tag in ("image", "track")
    )


def read(folder: Folder, files: list[Path]) -> Annotations:
    """All pictures with their shapes, painted by `z_order`, then in the file's order.

    Raises:
        UserError: the annotation of a video, or a shape of a class that the file does not name.
    """
    found = Annotations(NAME, ordered=True)
    for path in files:
        root = read_xml(path)
        if root.find("track") is not None:
            raise UserError(
                f"{printable(path)} annotates a video (tracks); export it from CVAT as 'CVAT for "
                "images 1.1' with its frames."
            )
        _add_labels(found, root)
        for image in root.iter("image"):
            _add_image(found, folder, path, image)
        for shape in (shape for picture in found.pictures for shape in picture.shapes):
            found.add_names([shape.label])
    return found


def _add_labels(found: Annotations, root: Element) -> None:
    """The classes, except skeletons and their points, with their colours."""
    for label in root.iterfind(".//labels/label"):
        name, kind = (label.findtext("name") or "").strip(), label.findtext("type")
        if not name or kind == "skeleton" or label.find("parent") is not None:
            continue
        found.add_names([name])
        if color := _color(label.findtext("color")):
            found.colors[name] = color


def _color(text: str | None) -> RGB | None:
    """#rrggbb as RGB; none where it is not written so."""
    try:
        red, green, blue = bytes.fromhex((text or "").strip().removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def _add_image(found: Annotations, folder: Folder, path: Path, image: Element) -> None:
    name = image.get("name")
    where = f"{printable(path)}, picture {printable(name)}"
    with found.picture(path, where):
        split = split_of_word(image.get("subset") or "") or split_of(path, folder.root)
        photo = folder.find_picture(name, path.parent, split)
        size = size_of(image.get("height"), image.get("width"))
        picture = Picture(photo, path, size=size, split=split)
        drawn, other = [], 0
        for number, item in enumerate(image):
            other += item.tag in NO_AREAS
            if item.tag not in AREAS:
                continue
            place = f"{item.tag} {number}"
            with annotation(place):
                label = (item.get("label") or "").strip()
                if not label:
                    raise UserError("it has no label")
                level = number_of(item.get("z_order", 0), "its z_order", -1e9, 1e9)
                drawn.append((level, Shape(label, _region(item), place)))
        picture.shapes += [shape for _, shape in sorted(drawn, key=lambda one: one[0])]
        found.add_picture(picture, other=other)


def _region(item: Element) -> Region:
    def value(key: str, default: object = None) -> float:
        return number_of(item.get(key, default), f"its {key}")

    if item.tag == "polygon":
        texts = (item.get("points") or "").replace(",", ";").split(";")
        region = outline(texts)
        if len(region.rings[0]) < 3:
            raise UserError("it has fewer than three points")
        return region
    if item.tag == "mask":
        return _runs(item)
    if item.tag == "box":
        corners = [value(key) for key in ("xtl", "ytl", "xbr", "ybr")]
        region, center = box(*corners), (corners[0] + corners[2], corners[1] + corners[3])
        center = center[0] / 2, center[1] / 2
    else:
        center = value("cx"), value("cy")
        region = ellipse(*center, value("rx"), value("ry"))
    return rotated(region, value("rotation", 0), center)


def _runs(item: Element) -> Runs:
    """A mask by rows within its box, zeros first."""
    top, left, height, width = (
        number_of(item.get(key), f"its {key}") for key in ("top", "left", "height", "width")
    )
    try:
        counts = np.array((item.get("rle") or "").split(","), np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError("its run lengths are no whole numbers") from error
    return Runs(counts, (int(height), int(width)), (int(top), int(left)))
