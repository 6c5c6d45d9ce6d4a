"""The page's folder: which photographs there are, under which ids, and where results lie.

The browser knows photographs by ids alone. A path is made here, out of names that are cleaned or
of folders that the person at this machine named, and what lies outside is not found.
"""

import csv
import hashlib
import json
import re
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import write_text
from common.text import printable
from config import RGB, ClassTable
from data.checks import survey
from data.classes import format_class_table, read_class_table
from data.images import is_image_name
from data.inputs import find_inputs
from data.source import Source, survey_source

FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')  # by Windows, in names of files
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
LOOK_FIRST = "look_first.json"  # of a collection
# Of new classes: those of what is called the leaf, and those that are seen on it.
GREENS = [(0, 200, 120), (160, 220, 60), (0, 220, 220)]
SEEN = [(255, 40, 90), (255, 200, 0), (150, 80, 255), (0, 160, 255), (255, 110, 0), (230, 120, 255)]


@dataclass(frozen=True)
class Photograph:
    """A photograph of a collection.

    Args:
        id: what the browser calls it.
        name: what its results are called.
        split: of a data set, or "" where it belongs to none.
    """

    id: str
    name: str
    path: Path
    split: str = ""


@dataclass
class Collection:
    """Photographs that belong together: dropped ones, a folder, or a data set.

    Args:
        home: the folder of what the page keeps of it.
        kind: "dropped", "folder" or "data".
        root: the folder that holds the photographs.
        classes: what is painted and predicted; None as long as nobody has said.
    """

    id: str
    title: str
    kind: str
    root: Path
    home: Path
    classes: ClassTable | None = None
    model: str = ""
    photographs: dict[str, Photograph] = field(default_factory=dict)
    source: Source | None = None

    @property
    def results(self) -> Path:
        return self.home / "results"

    def save(self) -> None:
        """Write what a restart needs."""
        plain = {"title": self.title, "kind": self.kind, "root": str(self.root)}
        plain |= {"classes": self.classes and self.classes.to_plain(), "model": self.model}
        if self.kind == "data":
            # Opening it again would read its masks, and nobody may ask for them.
            entries = self.photographs.values()
            plain["photographs"] = [[e.name, str(e.path), e.split] for e in entries]
        write_text(self.home / "collection.json", json.dumps(plain, indent=1) + "\n")

    def find(self) -> None:
        """Look which photographs there are.

        Raises:
            UserError: the folder or the data set cannot be read.
        """
        if self.kind == "data":
            self.source = survey(self.root)
            self.classes = self.source.reader.classes
            found = [
                (f"{split}/{number:05d}_{pair.stem}", pair.image, split)
                for split, pairs in self.source.pairs.items()
                for number, pair in enumerate(pairs, start=1)
            ]
        elif self.kind == "dropped" and not any(map(is_image_name, self.root.iterdir())):
            found = []
        else:
            root = self.root.resolve()
            named = find_inputs([str(root)], self.kind == "folder", self.results)
            # No link leads out of the folder.
            named = {n: path for n, path in named.items() if path.resolve().is_relative_to(root)}
            found = [(name, path, "") for name, path in named.items()]
        self.fill(found)

    def fill(self, found: list[tuple[str, Path, str]]) -> None:
        """Take photographs over: each its name, its path and its split."""
        entries = (Photograph(_digest(f"{self.id}/{name}"), name, *rest) for name, *rest in found)
        self.photographs = {entry.id: entry for entry in entries}

    def add(self, path: Path) -> Photograph:
        """Take over a photograph that was dropped; no other has its stem."""
        entry = Photograph(_digest(f"{self.id}/{path.stem}"), path.stem, path)
        self.photographs[entry.id] = entry
        return entry

    def read(self, photograph: Photograph) -> np.ndarray:
        """The data set's own mask of a photograph, (H, W) uint8.

        Raises:
            UserError: it cannot be read.
        """
        self.source = source = self.source or survey_source(self.root)
        pairs = chain.from_iterable(source.pairs.values())
        return source.reader.read(next(p for p in pairs if p.image == photograph.path))

    def figures(self) -> dict[str, dict[str, str]]:
        """The lines of results.csv by the photographs' ids."""
        path = self.results / "results.csv"
        if not path.is_file():
            return {}
        entries = list(self.photographs.values())
        # As a table is written: a name that is not Unicode stands there in other letters.
        by_path = {_encodable(str(entry.path)): entry.id for entry in entries}
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("file") in by_path]
        return {by_path[row["file"]]: row for row in rows}

    def look_first(self) -> list[str]:
        """The photographs' names, the one first that is worth the most to look at.

        Whoever segments them decides it (see `page.segmenting`); empty before.
        """
        with suppress(OSError, ValueError):
            names = json.loads((self.home / LOOK_FIRST).read_text(encoding="utf-8"))
            return names if isinstance(names, list) else []
        return []


class Workspace:
    """All that the page keeps, below one folder.

    Args:
        roots: the only places where folders may be named; None allows any on this machine, which
            is the one of the person who sits at it.
    """

    def __init__(self, path: Path, roots: list[Path] | None = None):
        self.path, self.roots = path.resolve(), roots
        self.collections: dict[str, Collection] = {}
        self.lock = threading.RLock()
        (self.path / "collections").mkdir(parents=True, exist_ok=True)
        self._tidy()
        files = (self.path / "collections").glob("*/collection.json")
        for file in sorted(files, key=lambda path: path.stat().st_mtime):
            self._load(file)

    def _tidy(self) -> None:
        """Remove what was on its way here when a server was killed."""
        for place in ("collections/*/photographs", "data", "videos"):
            for path in self.path.glob(f"{place}/.tmp-*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _load(self, file: Path) -> None:
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            classes = plain["classes"] and ClassTable.from_plain(plain["classes"])
            text = {name: str(plain[name]) for name in ("title", "kind", "model")}
            collection = Collection(
                file.parent.name,
                root=Path(plain["root"]),
                home=file.parent,
                classes=classes,
                **text,
            )
            if collection.kind == "data":
                listed = plain["photographs"]
                collection.fill([(str(n), Path(path), str(split)) for n, path, split in listed])
            else:
                collection.find()
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return  # its folder is gone or damaged: what was made of it stays on the disk
        self.collections[collection.id] = collection

    def create(self, title: str) -> Collection:
        """A collection for photographs that will be dropped."""
        name = secrets.token_hex(8)
        home = self.path / "collections" / name
        root = home / "photographs"
        root.mkdir(parents=True)
        return self._add(Collection(name, printable(title)[:80], "dropped", root, home))

    def open(self, folder: Path, kind: str) -> Collection:
        """The collection of a folder, "folder" or "data"; the same folder is the same one."""
        name = _digest(f"{kind}:{folder}")[:16]
        home = self.path / "collections" / name
        title = printable(folder.name or str(folder))
        return self._add(Collection(name, title, kind, folder, home))

    def _add(self, collection: Collection) -> Collection:
        with self.lock:
            old = self.collections.get(collection.id)
            if old is not None:
                collection.classes, collection.model = old.classes, old.model
            collection.find()
            collection.save()
            self.collections[collection.id] = collection
        return collection

    def named_folder(self, text: str, data: bool = False) -> Path:
        """The folder that a person named.

        Args:
            data: a file of annotations is as good, since it stands for a data set.

        Raises:
            UserError: it is not there, or not to be named by whoever asks.
        """
        parts = Path(text).parts
        if not text.strip() or text.startswith(("\\\\", "//")) or "\0" in text or ".." in parts:
            raise UserError(f"{printable(text)[:200]!r} is no folder of this machine; check it.")
        try:
            folder = Path(text.strip()).expanduser().resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            folder = None
        fits = folder is not None and (folder.is_dir() or (data and _annotates(folder)))
        if not fits or not self._may_name(folder):
            raise UserError(f"{printable(text)[:200]} is no folder here; check how it is written.")
        return folder

    def _may_name(self, folder: Path) -> bool:
        places = [*(root.resolve() for root in self.roots or ()), self.path]
        return self.roots is None or any(folder.is_relative_to(place) for place in places)

    def offered(self) -> list[str]:
        """Folders that a person is likely to mean: those below input/ and what was unpacked."""
        places = [Path("input"), self.path / "data", self.path / "sample"]
        found = [entry for place in places if place.is_dir() for entry in [place, *place.iterdir()]]
        folders = (entry for entry in found if entry.is_dir() and not entry.name.startswith("."))
        return sorted(str(folder.resolve()) for folder in folders if _holds_pictures(folder))


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _annotates(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".json", ".xml", ".yaml", ".yml")


def _holds_pictures(folder: Path) -> bool:
    entries = list(folder.iterdir())
    names = {entry.name for entry in entries}
    known = {"train_images", "images", "SegmentationClass"}
    return bool(names & known) or any(map(is_image_name, entries))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def clean_name(text: str) -> str:
    """A file's name as the browser tells it, made one that every system takes, without a path."""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", text)[-1])
    name = FORBIDDEN.sub("_", name).strip(" .")
    stem, dot, ending = name.rpartition(".") if "." in name else (name, "", "")
    stem = stem.encode(errors="replace")[:120].decode(errors="ignore").strip(" .") or "picture"
    name = f"{stem}{dot}{ending[:12]}" if dot else stem
    return f"_{name}" if RESERVED.fullmatch(name) else name


def free_name(folder: Path, name: str, taken: Container[str] = ()) -> Path:
    """A path in a folder that no file has: `a.jpg`, else `a_2.jpg`.

    Args:
        taken: stems in small letters that are not free either.
    """
    path, number = folder / name, 1
    while path.exists() or path.stem.casefold() in taken:
        number += 1
        path = folder / f"{Path(name).stem}_{number}{Path(name).suffix}"
    return path


def classes_of(names: list[str], home: Path) -> ClassTable:
    """A class table of names that a person typed, the background first.

    Raises:
        UserError: a name twice, none, or one that a class table cannot hold.
    """
    cleaned = [" ".join(str(name).split()) for name in names]
    if any(not name or ":" in name or name.startswith("#") or len(name) > 60 for name in cleaned):
        raise UserError("A class needs a name of at most 60 letters, without a colon or a #.")
    most = 1 + len(GREENS) + len(SEEN)
    if not 2 <= len(cleaned) <= most:
        raise UserError(f"Give 2 to {most} classes, the background among them.")
    colors = _colors_of(tuple(cleaned))
    text = format_class_table(ClassTable(tuple(cleaned), colors, colors))
    write_text(home / "labelmap.txt", text)
    return read_class_table(home)


def legend(classes: ClassTable) -> list[dict]:
    """Each class with the colour that it is painted in, plain types."""
    pairs = zip(classes.names, classes.vis_colors, strict=True)
    return [{"name": name, "color": list(color)} for name, color in pairs]


def _colors_of(names: tuple[str, ...]) -> tuple[RGB, ...]:
    """Colours of new classes: leaves are green, and no symptom is as long as others are left."""
    from metrics import SeverityTable  # it brings PyTorch, which the page's start need not

    colors: list[RGB] = [(0, 0, 0)]
    symptoms = SeverityTable.of(names).symptoms
    for index in range(1, len(names)):
        order = SEEN + GREENS if index in symptoms else GREENS + SEEN
        colors.append(next(color for color in order if color not in colors))
    return tuple(colors)
