"""YOLO segmentation: a text file beside each photograph, a line for each outline."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.text import printable, read_text
from data.formats.files import Folder, read_yaml, split_of_folder
from data.formats.records import Annotations, Picture, Shape, annotation
from data.formats.regions import box, outline
from data.images import image_size, is_image_name, map_files

NAME = "YOLO segmentation"
SPLIT_KEYS = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
# Numbers in a line: the class and a box; the class and four corners, which may be a turned box.
BOX, CORNERS = 5, 9
NAME_FILES = ("classes.txt", "obj.names", "names.txt")


@dataclass(frozen=True)
class Line:
    """A line of a label file: its place, the class's number, and x, y by turns in [0, 1]."""

    number: int
    label: int
    values: np.ndarray


def fits(content: object) -> bool:
    """Whether a YAML file describes a YOLO data set."""
    if not isinstance(content, dict) or not any(key in content for key in SPLIT_KEYS):
        return False
    return isinstance(content.get("names"), list | dict) or "nc" in content


def find_bare(folder: Folder) -> list[Path]:
    """The label files of a data set without a YAML file: each bears a photograph's name."""
    texts = [path for path in folder.with_ending(".txt") if path.name not in NAME_FILES]
    stems = {path.with_suffix("").name for path in folder.files if is_image_name(path)}
    labels = [path for path in texts if path.stem in stems]
    for path in labels[:20]:
        try:
            lines = [line for line in read_text(path).splitlines() if line.strip()]
            if lines and len(_line(1, lines[0]).values) >= 4:
                return labels
        except UserError:
            return []
    return []


def read(folder: Folder, description: Path | None, polygons: bool = False) -> Annotations:
    """All pictures of a data set with their outlines.

    Args:
        description: the YAML file; None where there is none.
        polygons: lines of four corners are polygons, also where nothing else tells.
    """
    found = Annotations(NAME, ordered=False)
    content = read_yaml(description) if description else {}
    if "kpt_shape" in content:
        raise UserError(f"{printable(description)} describes key points (a pose), no outlines.")
    names = _names(content.get("names"), folder, description)
    photos = _photographs(folder, content, description)
    if not photos:
        raise UserError(f"{printable(description or folder.root)} leads to no photographs here.")
    labels = {photo: _label_file(photo, folder.root) for photo in photos}
    read_lines = {}
    for photo, path in labels.items():
        with found.picture(path or photo, printable(path or photo)):
            read_lines[photo] = _lines(path) if path else []
    lengths = {len(line.values) + 1 for lines in read_lines.values() for line in lines}
    if CORNERS in lengths and not polygons and lengths <= {BOX, CORNERS}:
        raise UserError(
            f"The labels of {printable(description or folder.root)} may be oriented boxes: every "
            "line has four corners. If they are outlines, pass --polygons."
        )
    sizes = dict(zip(photos, map_files(_size, photos, "Reading sizes"), strict=True))
    for photo, lines in read_lines.items():
        path = labels[photo]
        with found.picture(path or photo, printable(path or photo)):
            if isinstance(sizes[photo], UserError):
                raise sizes[photo]
            picture = Picture(photo, path or photo, size=sizes[photo], split=photos[photo])
            found.counts["picture|pictures without a label file or with an empty one"] += not lines
            _add_shapes(picture, lines, names)
            found.add_picture(picture)
    found.add_names(names[index] for index in sorted(names))
    return found


def _size(photo: Path):
    try:
        return image_size(photo)
    except UserError as error:
        return error


def _add_shapes(picture: Picture, lines: list[Line], names: dict[int, str]) -> None:
    """Add the outlines and the boxes of a label file."""
    height, width = picture.size
    for line in lines:
        with annotation(f"line {line.number}"):
            if line.label not in names:
                known = f"0 to {max(names)}" if names else "none"
                raise UserError(f"its class is {line.label}, and the data set names {known}")
            if len(line.values) == BOX - 1:
                x, y, w, h = line.values * (width, height, width, height)
                picture.boxes.append(box(x - w / 2, y - h / 2, x + w / 2, y + h / 2))
                continue
            region = outline(line.values.reshape(-1, 2) * (width, height))
            picture.shapes.append(Shape(names[line.label], region, f"line {line.number}"))


def _names(names: object, folder: Folder, description: Path | None) -> dict[int, str]:
    """The classes' names by number, from the YAML file or from a list of names."""
    if names is None:
        lists = [path for path in folder.with_ending(".txt", ".names") if path.name in NAME_FILES]
        if not lists:
            return _Numbered()
        names = [line.strip() for line in read_text(lists[0]).splitlines() if line.strip()]
    pairs = list(names.items() if isinstance(names, dict) else enumerate(names))
    try:
        return {int(number): str(name).strip() or f"class {number}" for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{printable(description)} has names that are no list; write names: [a, b]."
        ) from error


class _Numbered(dict):
    """Names for classes that nobody named; those that occur are remembered."""

    def __contains__(self, number: object) -> bool:
        if isinstance(number, int) and 0 <= number < 254:
            self.setdefault(number, f"class {number}")
        return super().__contains__(number)


def _photographs(folder: Folder, content: dict, description: Path | None) -> dict[Path, str | None]:
    """The photographs, each with its split (None where the data set has no splits)."""
    if description is None:
        return {
            path: split_of_folder(path.parent, folder.root)
            for path in folder.files
            if is_image_name(path) and not _in_folder(path, folder.root, "labels")
        }
    base, found = description.parent, {}
    for key, split in SPLIT_KEYS.items():
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str) or not entry.strip():
                continue
            for photo in _listed(folder, base, content.get("path"), entry):
                # One folder as training and validation is no division.
                found[photo] = None if found.get(photo, split) != split else split
    return found


def _in_folder(path: Path, root: Path, name: str) -> bool:
    return name in path.relative_to(root).parts[:-1]


def _listed(folder: Folder, base: Path, home: object, entry: str) -> list[Path]:
    """The photographs that a split of the YAML file names: a folder, or a list of names.

    The path may be one of another machine, or lead up from a place that nobody has: of all its
    ends the longest is taken that is here, beside the file.
    """
    home = home if isinstance(home, str) else ""
    for text in (f"{home}/{entry}", entry):
        parts = [p for p in text.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        parts = parts[1:] if parts and parts[0].endswith(":") else parts
        for start in range(len(parts)):
            place = base.joinpath(*parts[start:])
            if place.suffix.lower() == ".txt" and place in folder.files:
                return _named_in(folder, place)
            below = [
                path for path in folder.files if is_image_name(path) and path.is_relative_to(place)
            ]
            if below:
                return below
    return []


def _named_in(folder: Folder, path: Path) -> list[Path]:
    """The photographs in a list of names, one a line."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return [folder.find_picture(name, path.parent) for name in names]


def _label_file(photo: Path, root: Path) -> Path | None:
    """The text file of a photograph: in `labels/` for `images/`, or beside it."""
    parts = list(photo.relative_to(root).parts)
    places = [photo.with_suffix(".txt")]
    for index in reversed([i for i, part in enumerate(parts[:-1]) if part == "images"]):
        swapped = root.joinpath(*parts[:index], "labels", *parts[index + 1 :])
        places.insert(0, swapped.with_suffix(".txt"))
    return next((place for place in places if place.is_file()), None)


def _lines(path: Path) -> list[Line]:
    """The lines of a label file.

    Raises:
        UserError: a line that is neither a box nor an outline.
    """
    return [
        _line(number, text)
        for number, text in enumerate(read_text(path).splitlines(), start=1)
        if text.strip()
    ]


def _line(number: int, text: str) -> Line:
    try:
        label, *values = (float(word) for word in text.split())
        numbers = np.array(values)
    except ValueError as error:
        raise UserError(
            f"line {number} is {printable(text[:40])!r}, which is no line of numbers; correct it."
        ) from error
    if label != int(label if abs(label) < 1e9 else 0) or label < 0:
        raise UserError(f"line {number} has the class {label:g}; classes are 0, 1, 2.")
    if len(numbers) != BOX - 1 and (len(numbers) < 6 or len(numbers) % 2):
        raise UserError(
            f"line {number} has {len(numbers) + 1} numbers; an outline has the class and at least "
            "three points."
        )
    return Line(number, int(label), numbers)
