"""Which annotation format a folder or file is in, told by what its files hold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.errors import UserError
from common.text import printable
from data.formats import coco, cvat, labelme, labelstudio, yolo
from data.formats.files import Folder, read_yaml
from data.formats.records import Annotations
from data.images import is_image_name

JSON_FORMATS = {module.NAME: module for module in (coco, labelstudio, labelme)}
# The first bytes in which CVAT's root element must stand.
HEAD = 4096


@dataclass(frozen=True)
class Candidate:
    """A format that fits.

    Args:
        name: of the format.
        files: that it is told by, the least deep first.
        read: reads all of it.
    """

    name: str
    files: list[Path]
    read: Callable[[], Annotations]


def read_annotations(root: Path, *, polygons: bool, keep: labelme.Keep) -> Annotations | None:
    """Read a data set in whatever annotation format it is; None where none fits.

    Args:
        root: a folder, or one annotation file whose photographs lie beside or below it.
        polygons: see `yolo.read`.
        keep: see `labelme.read`.

    Raises:
        UserError: the file or folder cannot be read, or holds nothing that can be used.
    """
    folder, only = (_around(root), root) if root.is_file() else (Folder(root), None)
    candidates, damage = _candidates(folder, only, polygons, keep)
    if not candidates:
        if damage:
            raise damage[0]
        return None
    # What lies nearest to the root describes the whole of it.
    candidates.sort(key=lambda candidate: len(candidate.files[0].parts))
    chosen, *others = candidates
    found = chosen.read()
    if others:
        names = ", ".join(f"{other.name} ({printable(other.files[0])})" for other in others)
        found.remarks.append(f"also there and not read: {names}")
    found.remarks.insert(0, f"{chosen.name} from {_listed(chosen.files)}")
    return found


def _listed(files: list[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{printable(files[0])}{more}"


def _around(file: Path) -> Folder:
    """The folder of a single file; the one above where it holds no photographs itself."""
    folder = Folder(file.parent)
    if any(is_image_name(path) for path in folder.files):
        return folder
    return Folder(file.parent.parent)


def _candidates(
    folder: Folder, only: Path | None, polygons: bool, keep: labelme.Keep
) -> tuple[list[Candidate], list[UserError]]:
    """The formats that fit, and what is wrong with files that could have told of one."""
    damage: list[UserError] = []
    found = []

    def chosen(*endings: str) -> list[Path]:
        return [path for path in folder.with_ending(*endings) if only in (None, path)]

    for path in chosen(".yaml", ".yml"):
        try:
            if yolo.fits(read_yaml(path)):
                found.append(
                    Candidate(yolo.NAME, [path], partial(yolo.read, folder, path, polygons))
                )
        except UserError as error:
            damage.append(error)
    for name, files in _json_files(folder, chosen(".json"), damage).items():
        module = JSON_FORMATS[name]
        more = {"keep": keep} if module is labelme else {}
        found.append(Candidate(name, files, partial(module.read, folder, files, **more)))
    files = [path for path in chosen(".xml") if _may_be_cvat(path)]
    if files:
        found.append(Candidate(cvat.NAME, files, partial(cvat.read, folder, files)))
    if only is None and not any(candidate.name == yolo.NAME for candidate in found):
        labels = yolo.find_bare(folder)
        if labels:
            found.append(Candidate(yolo.NAME, labels, partial(yolo.read, folder, None, polygons)))
    return found, damage


def _json_files(
    folder: Folder, paths: list[Path], damage: list[UserError]
) -> dict[str, list[Path]]:
    """The JSON files by format."""
    found: dict[str, list[Path]] = {}
    stems = {path.with_suffix("") for path in folder.files if is_image_name(path)}
    for path in paths:
        if labelme.NAME in found and path.with_suffix("") in stems:
            found[labelme.NAME].append(path)  # of many files with embedded pictures one is enough
            continue
        try:
            content = folder.json(path)
        except UserError as error:
            damage.append(error)
            continue
        name = next((name for name, it in JSON_FORMATS.items() if it.fits(content)), None)
        if name in (None, labelme.NAME):
            folder.forget(path)
        if name is not None:
            found.setdefault(name, []).append(path)
    return found


def _may_be_cvat(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return b"<annotations" in head or (b"<!DOCTYPE" in head and b"annotations" in head)
