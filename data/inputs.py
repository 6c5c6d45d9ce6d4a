"""Which pictures a person means by --input, and under which names their results are written."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

from common.errors import UserError
from common.text import printable, read_text
from data.images import list_images, read_header

LONGEST_ENDING = "_overlay.jpg"  # names that differ with it differ with all others


def find_inputs(inputs: list[str], recursive: bool, out_dir: Path | None = None) -> dict[str, Path]:
    """The pictures that the user means, by the name that their results will bear.

    A name is the picture's path below the folder that was given, without its ending. A folder of
    results within that folder is not searched: they are no photographs.

    Raises:
        UserError: an input is not there or holds no picture.
    """
    found: dict[str, tuple[Path, Path]] = {}  # by the full path: picture, its path below the input
    real = cache(os.path.realpath)  # of folders, which are few, as pictures need not be
    for text in inputs:
        pictures = list(_pictures(Path(text), text, recursive))
        if out_dir is not None:
            pictures = [pair for pair in pictures if not _is_result(*pair, out_dir, real)]
        if not pictures:
            raise UserError(
                f"--input {printable(text)} holds no picture; give a file, a folder or a pattern."
            )
        for path, below in pictures:
            found.setdefault(_place(path, real), (path, below))
    named: dict[str, Path] = {}
    taken, tries = set(), Counter()
    for path, below in found.values():
        # Two inputs never write one output: a second `leaf` becomes `leaf_jpg`, then `leaf_jpg_2`.
        named[_free_name(below, taken, tries)] = path
    return named


def _free_name(below: Path, taken: set[str], tries: Counter) -> str:
    """A name that no other picture's results bear: `leaf`, else `leaf_jpg`, else `leaf_jpg_2`.

    It is noted in `taken`, without regard to case, as some file systems see it.
    """
    other = below.with_name(below.name.replace(".", "_"))
    names = iter((str(below.with_suffix("")), str(other)))
    # A name too long for the file system is cut at its end, so its number stands in front.
    long = len(other.name.encode(errors="backslashreplace")) > 200
    pattern = "{1}_{0}" if long else "{0}_{1}"
    while True:
        name = next(names, None)
        if name is None:
            tries[other] += 1
            name = str(other.with_name(pattern.format(other.name, tries[other] + 1)))
        key = unicodedata.normalize(
            "NFC", str(result_path(Path(), name, LONGEST_ENDING))
        ).casefold()
        if key not in taken:
            taken.add(key)
            return name


def _place(path: Path, real: Callable[[str], str]) -> str:
    """One text for all the ways to write a picture's path."""
    folder, name = os.path.split(path)
    try:
        return os.path.join(real(folder), name)
    except (OSError, ValueError):  # no path at all, as lists may hold
        return str(path)


def _is_result(path: Path, below: Path, out_dir: Path, real: Callable[[str], str]) -> bool:
    """Whether a search led to a picture in a folder of results within the one searched."""
    if len(below.parts) == 1:
        return False
    results = Path(real(str(out_dir)))
    searched = Path(real(str(path.parents[len(below.parts) - 1])))
    within = results != searched and results.is_relative_to(searched)
    return within and Path(real(str(path.parent))).is_relative_to(results)


def _pictures(path: Path, text: str, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Each picture of one input, with its path below it."""
    if path.is_dir():
        for picture in list_images(path, recursive):
            yield picture, picture.relative_to(path)
    elif path.is_file() and path.suffix.lower() == ".txt":
        if _is_picture(path):
            raise UserError(f"{printable(path)} is a picture and no list; give it its own ending.")
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            yield Path(line), Path(Path(line).name or "unnamed")
    elif path.exists() or path.is_symlink():
        yield path, Path(path.name)
    elif any(sign in text for sign in "*?["):
        root = Path(path.anchor or ".")
        try:
            matches = sorted(root.glob(str(path.relative_to(path.anchor))))
        except ValueError as error:
            raise UserError(f"--input {printable(text)} is no pattern ({error}).") from error
        parts = path.relative_to(path.anchor).parts
        fixed = list(takewhile(lambda part: not set(part) & set("*?["), parts))
        for picture in matches:
            if picture.is_file():
                yield picture, picture.relative_to(root.joinpath(*fixed))
    else:
        raise UserError(f"--input {printable(text)} is not there; check the path.")


def _is_picture(path: Path) -> bool:
    try:
        read_header(path)
    except (UserError, OSError):
        return False
    return True


def result_path(out_dir: Path, name: str, ending: str) -> Path:
    """Where a picture's result goes; a name too long for the file system is cut before `ending`."""
    path = Path(name)
    stem = path.name.encode(errors="backslashreplace")[: 250 - len(ending)].decode(errors="ignore")
    return out_dir / path.parent / f"{stem}{ending}"
