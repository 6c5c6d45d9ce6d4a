"""What was painted: a data set of its own, which the data check accepts and a training takes.

A correction is a photograph and a mask, both written whole or not at all, under a name made of the
photograph's content: the second correction of one picture takes the place of the first, wherever
the picture was opened from. It is in the split that its photograph had, and stays there.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import replacing, write_text
from config import ClassTable
from data.checks import survey
from data.classes import format_class_table, read_class_table
from data.images import list_images, read_mask_raw, write_mask
from data.masks import MaskReader
from data.pairs import SPLITS, Pair
from data.source import Source

OWN = re.compile(r"-[0-9a-f]{16}$")  # ends a copy's stem: the digest of what it holds
EVERY = 5  # of pictures that belong to no split the second, and then each fifth, validates


class Corrections:
    """The folders of corrections, one for each class table.

    Args:
        root: the folder that holds them.
    """

    def __init__(self, root: Path):
        self.root = root

    def folder(self, classes: ClassTable) -> Path:
        """The data set of a class table; it need not be there yet."""
        words = re.sub(r"[^\w]+", "-", "-".join(classes.names))[:40].strip("-")
        table = format_class_table(classes).encode()
        return self.root / f"{words}-{hashlib.blake2b(table, digest_size=4).hexdigest()}"

    def copies(self, classes: ClassTable) -> dict[int, list[tuple[str, Path]]]:
        """What was corrected: by the photograph's size in bytes, its digest and its mask."""
        found: dict[int, list[tuple[str, Path]]] = {}
        for copy in self.folder(classes).glob("*_images/*"):
            mask = copy.parent.with_name(copy.parent.name.replace("_images", "_masks"))
            mask = mask / f"{copy.stem}.png"
            entry = (copy.stem.rpartition("-")[2], mask)
            if mask.is_file():
                found.setdefault(copy.stat().st_size, []).append(entry)
        return found

    def find(
        self, photograph: Path, classes: ClassTable, copies: dict | None = None
    ) -> Path | None:
        """The mask that was painted for a photograph, if one was.

        Args:
            copies: of `copies`, where many are looked for.
        """
        copies = self.copies(classes) if copies is None else copies
        # Few photographs have as many bytes as a corrected one: only they are read.
        alike = copies.get(photograph.stat().st_size, ()) if photograph.is_file() else ()
        return next((mask for name, mask in alike if name == content_digest(photograph)), None)

    def save(self, photograph: Path, mask: np.ndarray, classes: ClassTable, split: str) -> Path:
        """Keep a mask (H, W) uint8 of a photograph's upright size.

        Args:
            split: the photograph's in its data set, or "" if it has none.

        Returns:
            the mask's path.
        """
        folder, path = self.folder(classes), self.find(photograph, classes)
        if path is None:
            split = split or self._next_split(folder)
            stem = re.sub(r"[^\w-]+", "_", photograph.stem)[:80] or "picture"
            name = f"{stem}-{content_digest(photograph)}"
            path = folder / f"{split}_masks" / f"{name}.png"
            if not (folder / "labelmap.txt").is_file():
                write_text(folder / "labelmap.txt", format_class_table(classes))
            _copy(photograph, folder / f"{split}_images" / f"{name}{photograph.suffix.lower()}")
        write_mask(path, mask, classes.colors)
        return path

    def sets(self) -> list[tuple[Path, tuple[str, ...], int]]:
        """The data sets that hold a correction, the one painted on last first.

        Returns:
            of each the folder, the classes and how many pictures it has.
        """
        found = []
        for table in self.root.glob("[!.]*/labelmap.txt"):
            with suppress(UserError, OSError):  # one that is damaged, or goes meanwhile
                masks = table.parent.glob("*_masks/[!.]*.png")
                times = [mask.stat().st_mtime_ns for mask in masks]
                if times:
                    names = read_class_table(table.parent).names
                    found.append((max(times), table.parent, names, len(times)))
        return [entry[1:] for entry in sorted(found, reverse=True)]

    def table_of(self, names: tuple[str, ...]) -> ClassTable | None:
        """The table of these names with which a picture was painted last, None if none was."""
        folders = (folder for folder, own, _ in self.sets() if own == names)
        return next(map(read_class_table, folders), None)

    def fitting(self, classes: ClassTable | None) -> Path:
        """The data set that a training takes: one of these classes, or any; the last painted on.

        Raises:
            UserError: there is none.
        """
        if classes and any(self.copies(classes)):
            return self.folder(classes)
        for folder, names, _ in self.sets():
            if classes is None or names == classes.names:
                return folder
        which = f" with the classes {', '.join(classes.names)}" if classes else ""
        what = f"Nothing is corrected yet{which}; correct a picture, or train without."
        raise UserError(what)

    def tidy(self) -> None:
        """Remove what a killed server left: halves, and own copies of photographs without masks."""
        for half in self.root.glob("*/*_*/.tmp-*"):
            half.unlink()
        for copy in self.root.glob("*/*_images/*"):
            masks = copy.parent.with_name(copy.parent.name.replace("_images", "_masks"))
            own = OWN.search(copy.stem) and copy.is_file()
            if own and not (masks / f"{copy.stem}.png").is_file():
                copy.unlink()

    def count(self, classes: ClassTable) -> dict[str, int]:
        """How many pictures were corrected, by split."""
        folder = self.folder(classes)
        counts = {split: len(list(folder.glob(f"{split}_masks/*.png"))) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    def _next_split(self, folder: Path) -> str:
        """Where a picture without a split goes: enough to validate with, as early as can be."""
        number = 1 + sum(len(list(folder.glob(f"{split}_masks/*.png"))) for split in SPLITS)
        has_valid = any(folder.glob("valid_masks/*.png"))
        return "valid" if number % EVERY == 2 or (number > 2 and not has_valid) else "train"


def training_folder(root: Path | None, corrections: Path | None, target: Path) -> Path:
    """The folder to train on: a data set, the corrections, or both as they are now.

    Both together, and corrections, which may change while the training runs, become a data set of
    their own at `target`: photographs as second names of the same files where the disk can do so,
    masks as indices. Where a picture is in both, the correction counts, in the data set's split.

    Raises:
        UserError: the classes differ, or a split stays empty.
    """
    if corrections is None:
        return root
    painted = _open(corrections)
    own = survey(root) if root is not None else None
    if own and own.reader.classes.names != painted.reader.classes.names:
        raise UserError(
            f"The corrections have the classes {', '.join(painted.reader.classes.names)}, the "
            f"data {', '.join(own.reader.classes.names)}; train on one of them alone."
        )
    classes = (own or painted).reader.classes  # of equal names, but colours may differ
    write_text(target / "labelmap.txt", format_class_table(classes))
    known = {path: split for split, path in _same(own, painted)} if own else {}
    taken = set()
    for split, pair in _pairs(painted):
        twin = known.get(pair.image)
        _add(painted, pair, twin[0] if twin else split, pair.stem, target, classes)
        taken.add(twin and twin[1])
    for split, pair in _pairs(own) if own else ():
        if pair.image not in taken:
            _add(own, pair, split, f"{pair.stem}-{_short(pair.image)}", target, classes)
    for split in ("train", "valid"):
        if not any(target.glob(f"{split}_masks/*")):
            raise UserError(
                "Two corrected pictures are the least to train on, one of them to validate with; "
                "correct more, or choose a data set as well."
            )
    return target


def _open(folder: Path) -> Source:
    """The corrections, whose layout is known, also before each split has a picture."""
    pairs: dict[str, list[Pair]] = {}
    for split in SPLITS:
        images = folder / f"{split}_images"
        found = list_images(images) if images.is_dir() else []
        masks = folder / f"{split}_masks"
        pairs[split] = [Pair(image, masks / f"{image.stem}.png", image.stem) for image in found]
    if not any(pairs.values()):
        raise UserError("Nothing is corrected yet; correct a picture, or train without.")
    return Source(folder, MaskReader(read_class_table(folder)), {}, pairs)


def _pairs(source: Source) -> Iterator[tuple[str, Pair]]:
    for split, pairs in source.pairs.items():
        for pair in pairs:
            yield split, pair


def _same(own: Source, painted: Source) -> Iterator[tuple[tuple[str, Path], Path]]:
    """Corrected photographs that a data set holds too: its split and path, and the copy's path."""
    sizes: dict[int, list[tuple[str, Path]]] = {}
    for split, pair in _pairs(own):
        sizes.setdefault(pair.image.stat().st_size, []).append((split, pair.image))
    for _, pair in _pairs(painted):
        for split, path in sizes.get(pair.image.stat().st_size, ()):
            if content_digest(path) == content_digest(pair.image):
                yield (split, path), pair.image
                break


def _add(
    source: Source, pair: Pair, split: str, name: str, target: Path, classes: ClassTable
) -> None:
    labels = source.reader.read(pair)
    _copy(pair.image, target / f"{split}_images" / f"{name}{pair.image.suffix.lower()}", link=True)
    write_mask(target / f"{split}_masks" / f"{name}.png", labels, classes.colors)


def _copy(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file whole or not at all, or give it a second name where that is enough."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        with suppress(OSError):  # another disk, or one without second names
            os.link(source.resolve(), target)
            return
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def content_digest(path: Path) -> str:
    """What a file holds, in 16 hex digits."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    return digest.hexdigest()


def _short(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()


def read_labels(path: Path) -> np.ndarray:
    """Class indices (H, W) uint8 of a mask that the page or a segmentation wrote."""
    return read_mask_raw(path).values
