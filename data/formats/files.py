"""The files of an annotated folder: listed once, read within bounds, looked for by name.

All of them come from strangers. Nothing outside the data's folder is opened, whatever a name says;
no address is fetched; a file that is too large, too deep or damaged is one sentence.
"""

import json
import os
import re
import unicodedata
from collections import defaultdict
from itertools import takewhile
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.parsers import expat

import yaml

from common.errors import UserError
from common.text import printable, read_text
from data.images import is_image_name

# The largest annotation file that is read. COCO's own, of 118,000 photographs, has 449 MB.
MAX_BYTES = 512 * 2**20
# Files that a folder may hold, and folders within folders.
MAX_FILES, MAX_DEPTH = 1_000_000, 12

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}


class NotFollowed(UserError):
    """A photograph is an address or a link out of the data's folder: another is no substitute."""


class Folder:
    """The files below a folder, without hidden ones, and without what links lead to elsewhere.

    Args:
        root: the data set.

    Raises:
        UserError: it cannot be listed, or holds too much.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.files: list[Path] = []
        self.outside: list[Path] = []  # links that lead out of the folder; nobody follows them
        self._walk()
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            if is_image_name(path):
                self._by_name[_key(path.name)].append(path)
        self._parsed: dict[Path, object] = {}

    def _walk(self) -> None:
        home = os.path.realpath(self.root)
        for place, folders, names in os.walk(self.root, onerror=_refuse):
            here = Path(place)
            depth = len(here.relative_to(self.root).parts)
            kept = []
            for name in sorted(folders):
                if (here / name).is_symlink():  # os.walk does not enter it
                    self.outside += [here / name] * (not _leads_into(here / name, home))
                elif not name.startswith((".", "__MACOSX")) and depth < MAX_DEPTH:
                    kept.append(name)
            folders[:] = kept
            for name in sorted(names):
                path = here / name
                if name.startswith("."):
                    continue
                if path.is_symlink() and not _leads_into(path, home):
                    self.outside.append(path)
                    continue
                self.files.append(path)
            if len(self.files) > MAX_FILES:
                raise UserError(
                    f"{printable(self.root)} holds more than {MAX_FILES:,} files; give the folder "
                    "of one data set."
                )

    def with_ending(self, *endings: str) -> list[Path]:
        """The files with these endings, the least deep first."""
        found = [path for path in self.files if path.suffix.lower() in endings]
        return sorted(found, key=lambda path: (len(path.parts), path))

    def json(self, path: Path) -> object:
        """The content of a JSON file, read once; see `read_json`."""
        if path not in self._parsed:
            self._parsed[path] = read_json(path)
        return self._parsed[path]

    def forget(self, path: Path) -> None:
        """Let go of a file's content, which may be large."""
        self._parsed.pop(path, None)

    def find_picture(self, name: object, near: Path, split: str | None = None) -> Path:
        """The photograph that a file calls `name`.

        Names are paths on the machine of whoever annotated, so the photograph is looked for: where
        the name leads from the file's folder or the data's, else anywhere below, by the longest
        end of the path that fits, then the split's folder, then the place nearest to the file.

        Args:
            name: with slashes or backslashes.
            near: the folder of the file that has the name.
            split: "train", "valid" or "test", where the file belongs to one.

        Raises:
            UserError: no such photograph, several, or the name leads out of the data's folder.
        """
        parts = self._parts(name, near)
        direct = [base.joinpath(*parts) for base in (near, self.root)]
        candidates = self._by_name.get(_key(parts[-1]), [])
        for path in direct:
            if path in candidates:
                return path
        if not candidates:
            linked = next((link for link in self.outside if link.name in parts), None)
            if linked is not None:
                raise NotFollowed(
                    f"{printable(linked)} is a link that leads out of the data's folder; put the "
                    "photographs themselves there"
                )
            raise UserError(
                f"the photograph {printable(name)} is not there; put it into {printable(self.root)}"
            )

        def fit(path: Path) -> tuple:
            below = path.relative_to(self.root).parts
            pairs = zip(reversed(below), reversed(parts), strict=False)
            same = sum(1 for _ in takewhile(lambda pair: _key(pair[0]) == _key(pair[1]), pairs))
            of_split = split is not None and split in map(split_of_word, below[:-1])
            return same, of_split, len(os.path.commonpath([path.parent, near]))

        best = max(map(fit, candidates))
        chosen = [path for path in candidates if fit(path) == best]
        if len(chosen) > 1:
            raise UserError(
                f"the photograph {printable(name)} may be {printable(chosen[0])} or "
                f"{printable(chosen[1])}"
            )
        return chosen[0]

    def _parts(self, name: object, near: Path) -> list[str]:
        """The parts of a name below the data's folder.

        Raises:
            UserError: it is no name, an address, or leads out of the folder.
        """
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise UserError(f"{printable(repr(name)[:60])} is no file name")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
            raise NotFollowed(
                f"the photograph is the address {printable(name[:100])}, and none is fetched; put "
                "the file into the data's folder and name it"
            )
        text = name.replace("\\", "/")
        absolute = text.startswith("/") or re.match(r"[A-Za-z]:/", text)
        if absolute:
            inside = os.path.relpath(text, os.path.abspath(self.root))
        else:
            start = os.path.relpath(near, self.root)
            inside = os.path.normpath(os.path.join(start, text))
        if inside.startswith("..") or os.path.isabs(inside):
            raise UserError(
                f"the photograph {printable(name)} lies outside the data's folder; put it there, "
                "beside its annotations"
            )
        if ".." in text.split("/") or absolute:
            return list(PurePosixPath(inside).parts)
        return [part for part in text.split("/") if part not in ("", ".")]


def _key(name: str) -> str:
    """A name as Windows and macOS compare it, where the annotations may come from."""
    return unicodedata.normalize("NFC", name).casefold()


def _refuse(error: OSError) -> None:
    raise UserError(
        f"{printable(error.filename)} cannot be listed ({error.strerror}); check its permissions."
    ) from error


def _leads_into(link: Path, home: str) -> bool:
    target = os.path.realpath(link)
    return target.startswith(home + os.sep) and os.path.exists(target)


def split_of_word(word: str) -> str | None:
    """The split that a folder's name, or a word of a file's, stands for."""
    return SPLIT_WORDS.get(re.sub(r"\d+$", "", word.lower()))


def split_of(path: Path, root: Path) -> str | None:
    """The split that a file of many pictures belongs to, by its own name, then by its folders'."""
    words = map(split_of_word, re.split(r"[^A-Za-z0-9]+", path.stem))
    return next(filter(None, words), None) or split_of_folder(path.parent, root)


def split_of_folder(folder: Path, root: Path) -> str | None:
    """The split that what lies in a folder belongs to, by the nearest name that is one.

    That is all there is where each picture has a file: `test plant 3.json` is of no split.
    """
    words = map(split_of_word, reversed(folder.relative_to(root).parts))
    return next(filter(None, words), None)


def _read(path: Path) -> bytes:
    """The bytes of a regular file of bounded size.

    Raises:
        UserError: it is none, or cannot be read.
    """
    name = printable(path)
    try:
        if not path.is_file():
            raise UserError(f"{name} is no regular file; replace it.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"{name} has {size / 2**20:,.0f} MiB, more than the {MAX_BYTES / 2**20:,.0f} MiB "
                "that are read; divide it into several files."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); check it.") from error
    except MemoryError as error:
        raise UserError(f"{name} does not fit into the memory; divide it.") from error


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        UserError: too large, too deep, not JSON, or it cannot be read.
    """
    content = _read(path)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"{printable(path)} is nested too deep; export it again.") from error
    except MemoryError as error:
        raise UserError(f"{printable(path)} does not fit into the memory; divide it.") from error
    except ValueError as error:
        raise UserError(
            f"{printable(path)} is no whole JSON file ({printable(str(error)[:80])}); export it "
            "again."
        ) from error


def read_yaml(path: Path) -> object:
    """The content of a small YAML file, plain types only.

    Raises:
        UserError: not YAML, or it cannot be read.
    """
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        reason = printable(" ".join(str(error).split())[:80])
        raise UserError(
            f"{printable(path)} is no valid YAML file ({reason}); correct it."
        ) from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file that declares no document type: entities could mean anything.

    Raises:
        UserError: too large, not XML, with a document type, or it cannot be read.
    """
    content = _read(path)

    def refuse(*_) -> None:
        raise UserError(
            f"{printable(path)} declares a document type (DOCTYPE), which no annotation needs; "
            "export it again."
        )

    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise UserError(
            f"{printable(path)} is no whole XML file ({printable(str(error)[:80])}); export it "
            "again."
        ) from error


def number_of(value: object, what: str, low: float = -1e6, high: float = 1e6) -> float:
    """A number out of a file, which may be written as a text.

    Raises:
        UserError: it is none, or out of range.
    """
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not low <= number <= high:
        raise UserError(f"{what} is {printable(repr(value)[:60])}, no usable number")
    return number


def size_of(height: object, width: object, what: str = "the picture's size") -> tuple[int, int]:
    """A picture's (height, width) out of a file.

    Raises:
        UserError: no whole numbers of pixels that a picture can have.
    """
    return int(number_of(height, what, 1)), int(number_of(width, what, 1))
