"""One folder of photographs and mask pictures without the names that this program gives splits."""

import re
import unicodedata
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

from config import ClassTable
from data.classes import has_class_table, read_class_table
from data.formats.files import Folder, split_of_word
from data.images import is_image_name
from data.pairs import Matching, Pair

PHOTO_FOLDERS = {"images", "image", "imgs", "img", "photos", "jpegimages", "rgb", "inputs", "input"}
MASK_FOLDERS = {
    "masks",
    "mask",
    "targets",
    "target",
    "labels",
    "label",
    "annotations",
    "annotation",
    "gt",
    "ground_truth",
    "groundtruth",
    "segmentation",
    "segmentations",
}
MASK_ENDING = re.compile(r"[-_. ](mask|masks|gt|label|labels|seg|segmentation|target|truth)$", re.I)
MASK_BEGINNING = re.compile(r"^(mask|gt|label|seg|target|truth)[-_. ]", re.I)
PHOTO_AFFIX = re.compile(r"^(image|img|photo)[-_. ]|[-_. ](image|img|photo)$", re.I)


class FolderOfMasks:
    """Photographs and masks that are told apart by their folders or by the masks' names.

    Args:
        folder: the files of the data set.
        matchings: what belongs together, by split; None where there are no splits.
    """

    problems: tuple = ()
    hint = ""

    def __init__(self, folder: Folder, matchings: dict[str | None, Matching]):
        self.root, self.matchings = folder.root, matchings

    @classmethod
    def open(cls, root: Path) -> "FolderOfMasks | None":
        """Look at a folder; None where it holds no photograph with a mask."""
        folder = Folder(root)
        matchings = _match(folder, *_divided(folder))
        return cls(folder, matchings) if any(it.pairs for it in matchings.values()) else None

    def splits(self) -> set[str | None]:
        """The splits that the folders' names give."""
        return set(self.matchings)

    def match(self, splits: set[str | None]) -> Matching:
        """What was matched in some of the splits together."""
        return joined([self.matchings[split] for split in self.matchings if split in splits])

    def refuse_problems(self, skip_bad: bool) -> None:
        """Every problem of masks is one of matching."""

    @property
    def classes(self) -> ClassTable:
        """The class table beside the masks, or above them."""
        masks = [pair.mask for it in self.matchings.values() for pair in it.pairs]
        home = masks[0].parent
        named = [place for place in (self.root, home, home.parent) if has_class_table(place)]
        return read_class_table(named[0] if named else self.root)


def joined(matchings: list[Matching]) -> Matching:
    """Several matchings as one."""
    total = Matching(0, [], [], [], [])
    for one in matchings:
        total = Matching(
            *(getattr(total, name.name) + getattr(one, name.name) for name in fields(Matching))
        )
    return replace(total, pairs=sorted(total.pairs, key=lambda pair: pair.image))


def _match(folder: Folder, photos: list[Path], masks: list[Path]) -> dict[str | None, Matching]:
    """Photographs and masks by split.

    A photograph belongs to the mask of the same place and name, else to the only one of its name
    without additions such as `_mask`.
    """
    exact: dict[tuple, list[Path]] = defaultdict(list)
    loose: dict[tuple, list[Path]] = defaultdict(list)
    for mask in masks:
        for key in _keys(mask, folder.root, MASK_FOLDERS, (MASK_ENDING, MASK_BEGINNING)):
            exact[key].append(mask)
            loose[key[-1:]].append(mask)
    found: dict[str | None, Matching] = {}
    taken: dict[Path, Path] = {}
    for photo in photos if masks else ():
        keys = _keys(photo, folder.root, PHOTO_FOLDERS, (PHOTO_AFFIX,))
        tries = [exact[key] for key in keys if key in exact]
        tries += [loose[key[-1:]] for key in keys if key[-1:] in loose]
        matching = found.setdefault(_split(photo, folder.root), Matching(0, [], [], [], []))
        own = tries[0] if tries else []
        if not own:
            matching.without_mask.append((photo, masks[0].parent / f"{photo.stem}.png"))
        elif len(own) > 1 or own[0] in taken:
            matching.ambiguous.append((own[0], own[1]) if len(own) > 1 else (photo, taken[own[0]]))
        else:
            taken[own[0]] = photo
            matching.pairs.append(Pair(photo, own[0], photo.stem))
    for split, one in found.items():
        left = [mask for mask in masks if mask not in taken and _split(mask, folder.root) == split]
        count = len(one.pairs) + len(one.without_mask) + len(one.ambiguous)
        found[split] = replace(one, images=count, without_image=left)
    return found


def _divided(folder: Folder) -> tuple[list[Path], list[Path]]:
    """Photographs and masks, told apart by their folders, else by the masks' names."""
    pictures = [path for path in folder.files if is_image_name(path)]
    kinds = {path: _kind(path, folder.root) for path in pictures}
    masks = [path for path in pictures if kinds[path] == "mask"]
    photos = [path for path in pictures if kinds[path] == "photograph"]
    if masks and not photos:
        photos = [path for path in pictures if kinds[path] is None]
    if not masks:
        masks = [path for path in pictures if MASK_ENDING.search(path.stem)]
        named = set(masks)
        photos = [path for path in pictures if path not in named]
    return sorted(photos), sorted(masks)


def _kind(path: Path, root: Path) -> str | None:
    """What the nearest telling folder says of a picture."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.lower() in MASK_FOLDERS:
            return "mask"
        if part.lower() in PHOTO_FOLDERS:
            return "photograph"
    return None


def _keys(path: Path, root: Path, words: set[str], affixes: tuple) -> list[tuple]:
    """The names under which a file may be found: its place without the telling folder, its stem."""
    place = [part for part in path.relative_to(root).parts[:-1] if part.lower() not in words]
    stem = unicodedata.normalize("NFC", path.stem)
    stems = [stem]
    for affix in affixes:
        shorter = affix.sub("", stem)
        if shorter and shorter not in stems:
            stems.append(shorter)
    return [(*place, name) for name in stems]


def _split(path: Path, root: Path) -> str | None:
    parts = path.relative_to(root).parts[:-1]
    return next((split for split in map(split_of_word, reversed(parts)) if split), None)
