"""COCO JSON: instances with polygons or run-length masks, in one file or one for each split."""

from pathlib import Path

import numpy as np

from common.errors import UserError
from common.text import printable
from config import Size
from data.formats.files import Folder, number_of, size_of, split_of
from data.formats.records import Annotations, Picture, Shape, annotation
from data.formats.regions import Outline, Region, Runs, box, outline

NAME = "COCO JSON"


def fits(content: object) -> bool:
    """Whether a JSON file holds COCO's instances (not key points, captions or panoptic masks)."""
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return False
    lists = content.get("annotations"), content.get("categories")
    if not all(isinstance(part, list) for part in lists):
        return False
    marked = [(item, "keypoints") for item in content["categories"]]
    marked += [(item, "segments_info") for item in content["annotations"][:1]]
    return not any(isinstance(item, dict) and key in item for item, key in marked)


def read(folder: Folder, files: list[Path]) -> Annotations:
    """All pictures of one or several files with their shapes.

    The list of polygons of an annotation are parts of one thing: their union. `iscrowd` says how
    detectors are evaluated and nothing about the area. An annotation without a segmentation is a
    box, which does not say which of its pixels are meant.
    """
    found = Annotations(NAME, ordered=False)
    used: set[str] = set()
    spare: set[str] = set()
    for path in files:
        content = folder.json(path)
        names = _category_names(content["categories"], path)
        before, problems = len(found.pictures) + len(found.boxes_only), len(found.problems)
        used |= _read_file(found, folder, path, content, names)
        here = len(found.pictures) + len(found.boxes_only) > before
        if not here and len(files) > 1 and content["images"]:
            del found.problems[problems:]
            found.remarks.append(f"{printable(path)} is not used: none of its photographs is here")
            continue
        spare |= _placeholders(content["categories"])
        found.add_names(names.values())
        folder.forget(path)
    # Roboflow's first category stands for the project and is no class, unless somebody uses it.
    found.names = [name for name in found.names if name in used or name not in spare]
    return found


def _category_names(categories: list, path: Path) -> dict[str, str]:
    """Names by id; ids are compared as texts, since some tools write them so."""
    names = {}
    for item in categories:
        if not isinstance(item, dict) or "id" not in item or not str(item.get("name", "")).strip():
            raise UserError(
                f"{printable(path)} has a category without id or name: "
                f"{printable(repr(item)[:80])}; correct it."
            )
        names[str(item["id"])] = str(item["name"]).strip()
    if not names:
        raise UserError(f"{printable(path)} has no categories; export it again with classes.")
    return names


def _placeholders(categories: list) -> set[str]:
    """Names of categories that only serve as the others' parent."""
    parents = {str(item.get("supercategory", "")) for item in categories}
    return {
        str(item["name"]).strip()
        for item in categories
        if str(item["name"]) in parents and str(item["id"]) == "0" and len(categories) > 1
    }


def _read_file(
    found: Annotations, folder: Folder, path: Path, content: dict, names: dict[str, str]
) -> set[str]:
    """Add a file's pictures; returns the names of the classes that occur."""
    of_image: dict[str, list[tuple[int, dict]]] = {}
    for number, item in enumerate(content["annotations"]):
        if not isinstance(item, dict):
            raise UserError(
                f"{printable(path)}: annotation {number} is no object; export it again."
            )
        of_image.setdefault(str(item.get("image_id")), []).append((number, item))
    split, used = split_of(path, folder.root), set()
    for index, image in enumerate(content["images"]):
        if not isinstance(image, dict):
            raise UserError(f"{printable(path)}: image {index} is no object; export it again.")
        where = f"{printable(path)}, picture {printable(image.get('file_name'))}"
        items = of_image.pop(str(image.get("id")), [])
        with found.picture(path, where):
            photo = folder.find_picture(image.get("file_name"), path.parent, split)
            size = size_of(image.get("height"), image.get("width")) if "height" in image else None
            picture = Picture(photo, path, size=size, split=split)
            _add_shapes(picture, items, names)
            used.update(shape.label for shape in picture.shapes)
            found.add_picture(picture)
    if of_image:
        count = sum(map(len, of_image.values()))
        found.counts["annotation|annotations of pictures that the file does not list"] += count
    return used


def _add_shapes(picture: Picture, items: list[tuple[int, dict]], names: dict[str, str]) -> None:
    """Add what was drawn on a picture, and the boxes of what has no outline."""
    for number, item in items:
        where = f"annotation {printable(item.get('id', number))}"
        with annotation(where):
            label = names.get(str(item.get("category_id")))
            if label is None:
                raise UserError(f"its category {printable(item.get('category_id'))} is not listed")
            region = _region(item.get("segmentation"), picture.size)
            if region is None:
                picture.boxes.append(_box(item.get("bbox")))
            else:
                picture.shapes.append(Shape(label, region, where))


def _box(values: object) -> Region:
    """The area of a box by left, top, width and height; none at all where the file has no box."""
    if not values:
        return box(0, 0, 0, 0)
    if not isinstance(values, list) or len(values) != 4:
        raise UserError(f"its bbox is {printable(repr(values)[:60])}, not four numbers")
    left, top, width, height = (number_of(value, "a number of its bbox") for value in values)
    return box(left, top, left + width, top + height)


def _region(segmentation: object, size: Size | None) -> Region | None:
    """The area of an annotation, None for one that has a box alone."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _runs(segmentation, size)
    if not isinstance(segmentation, list):
        raise UserError(f"its segmentation is {printable(repr(segmentation)[:60])}")
    if not isinstance(segmentation[0], (list, dict)):  # a single part, not within a list
        segmentation = [segmentation]
    if isinstance(segmentation[0], dict):
        raise UserError("its segmentation is a list of run-length masks, which COCO does not have")
    rings = [ring for ring in outline(*segmentation).rings if len(ring) >= 3]
    return Outline(tuple(rings)) if rings else None


def _runs(segmentation: dict, size: Size | None) -> Runs:
    """A run-length mask: by columns, zeros first, over the whole picture."""
    shape, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(shape, list) or len(shape) != 2:
        raise UserError("its run-length mask has no size")
    window = size_of(*shape, "its mask's size")
    if size is not None and window != size:
        raise UserError(
            f"its mask is {window[1]}x{window[0]} px and the picture {size[1]}x{size[0]}"
        )
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise UserError("its run lengths are no list of whole numbers")
    try:
        return Runs(np.array(counts, np.int64), window, by_columns=True)
    except OverflowError as error:
        raise UserError("a run length is far too large") from error


def decode_counts(text: str) -> list[int]:
    """COCO's compressed run lengths.

    Each number is written in characters from '0' on that carry 5 bits, low ones first; 32 says that
    more follow, 16 in the last one that it is negative. From the fourth on it is the difference
    to the number before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 55:
            raise UserError("its compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("its compressed run lengths are cut off")
    return counts
