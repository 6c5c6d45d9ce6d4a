"""A data set of shapes, as a source of pairs: its masks are painted here."""

import atexit
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.files import replacing
from common.text import counted, first_few, first_of, printable
from config import ClassTable
from data.cache import cache_folder
from data.formats.detect import read_annotations
from data.formats.paint import class_table, painted_pairs
from data.formats.records import Annotations
from data.masks import MaskReader
from data.pairs import SKIP_BAD, Matching


@dataclass(frozen=True)
class Annotated:
    """A data set in one of the annotation formats.

    Args:
        root: the folder that holds it.
        found: what its files say.
        classes: of the masks.
        by_area: whether the smaller shape lies on top.
        place: the folder for painted masks.
    """

    root: Path
    found: Annotations
    classes: ClassTable
    by_area: bool
    place: Path

    @classmethod
    def open(cls, root: Path, by_area: bool, polygons: bool, cache: bool) -> "Annotated | None":
        """Read a folder or file; None where it is in no annotation format.

        Args:
            by_area: the smaller shape on top, in formats that leave it open.
            polygons: see `yolo.read`.
            cache: keep masks in the user's cache; else for as long as the program runs.

        Raises:
            UserError: the files cannot be read, or nothing in them can be used.
        """
        place = _place(root, cache)

        def keep(photograph: bytes, name: str) -> Path:
            """Store a photograph that lies within an annotation."""
            mark = hashlib.blake2b(photograph, digest_size=16).hexdigest()
            path = place / mark / name
            if not path.is_file() or path.stat().st_size != len(photograph):
                with replacing(path) as temporary:
                    temporary.write_bytes(photograph)
            return path

        found = read_annotations(root, polygons=polygons, keep=keep)
        if found is None:
            return None
        if not found.pictures and found.problems:
            texts = [text for _, text in found.problems]
            raise UserError(
                first_of(texts, "no other can be used either" if len(texts) > 1 else "")
            )
        if not found.pictures and found.boxes_only:
            raise UserError(
                f"{printable(root)} holds boxes only ({found.format}), which do not say which "
                "pixels are meant; outline the objects, or paint masks."
            )
        if not found.pictures:
            raise UserError(f"{printable(root)} has no annotated picture ({found.format}).")
        home = root.parent if root.is_file() else root
        return cls(home, found, class_table(found, home), by_area and not found.ordered, place)

    @property
    def problems(self) -> list[tuple[Path, str]]:
        """File and sentence for each picture that cannot be used."""
        return self.found.problems

    @property
    def hint(self) -> str:
        """What may explain that a split has no pictures."""
        boxes = len(self.found.boxes_only)
        return f", besides {boxes} with boxes only, which say nothing about pixels" * bool(boxes)

    def splits(self) -> set[str | None]:
        """The splits that the files give; None for pictures in none."""
        return {picture.split for picture in self.found.pictures}

    def match(self, splits: set[str | None]) -> Matching:
        """The pictures of some splits together, each with its painted mask."""
        pictures = [picture for picture in self.found.pictures if picture.split in splits]
        pairs = painted_pairs(self.found, pictures, self.classes, self.by_area, self.place)
        return Matching(len(pairs), pairs, [], [], [])

    def refuse_problems(self, skip_bad: bool) -> None:
        """Stop at pictures that cannot be used, or list the first of them.

        Raises:
            UserError: there are some.
        """
        texts = [text for _, text in self.problems]
        if texts and not skip_bad:
            raise UserError(first_of(texts, SKIP_BAD))
        if texts:
            tqdm.write(counted(len(texts), "picture|pictures is|are left out:"))
            for text in first_few(texts):
                tqdm.write(f"  {printable(text)}")

    def reader(self, remarks: tuple[str, ...]) -> MaskReader:
        """How the painted masks are read, with what a person should know of them."""
        found, boxes = self.found, self.found.boxes_only
        told = [
            *found.remarks,
            *(counted(count, what) for what, count in found.counts.items() if count),
        ]
        if boxes:
            first = printable(boxes[0].path.name)
            words = "picture|pictures with boxes only is|are left out, such as"
            told.append(f"{counted(len(boxes), words)} {first}")
        return MaskReader(self.classes, remarks=(*told, *remarks))


def _place(root: Path, cache: bool) -> Path:
    """The folder for the masks of a data set: in the user's cache, or a passing one."""
    folder = cache_folder() if cache else None
    if folder is None:
        temporary = Path(tempfile.mkdtemp(prefix="masks-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return temporary
    name = os.fsencode(os.path.realpath(root))
    return folder / "masks" / hashlib.blake2b(name, digest_size=16).hexdigest()
