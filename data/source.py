"""A data set as the scripts open it: one object for all that is below --data, whatever its layout.

Nobody else asks how a folder is laid out or in which format it is annotated. Whoever trains,
measures or checks gets pairs of photograph and mask by split, and the one reader that knows what
the masks mean. Polygons and the like are painted to masks here, once, and kept in the cache.
"""

import dataclasses
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.text import printable
from data.formats.annotated import Annotated
from data.formats.folders import FolderOfMasks
from data.masks import MaskReader
from data.pairs import (
    SPLITS,
    Matching,
    Pair,
    check_root,
    data_fingerprint,
    has_split,
    is_cvat,
    match_split,
    split_remark,
    usable_pairs,
)

# Of a source without a split of its own to validate on, this share of the pictures is set aside.
VALID_SHARE = 0.2
DIVIDED = "it does not say what is for validation: train.py sets a share of the pictures aside"


@dataclass(frozen=True)
class Reading:
    """What a person decides about annotations; travels in the checkpoint as plain types.

    Args:
        overlap: where shapes overlap and the format does not say which one lies on top: the
            "smaller" one, or the later one in the "file".
        polygons: YOLO's lines of four corners are outlines, not turned boxes.
    """

    overlap: str = "smaller"
    polygons: bool = False


@dataclass(frozen=True)
class Source:
    """A data set that was opened.

    Args:
        root: the folder that holds it.
        reader: how its masks are read.
        found: what was matched in each split that was asked for, the files without a partner too.
        pairs: of each split those that can be used, sorted; not decoded yet.
        divided: whether the data do not say what is for validation, so that "train" and "valid"
            are but all pairs in two parts; see `data.splits`.
        problems: file and sentence for each picture whose annotations cannot be used.
    """

    root: Path
    reader: MaskReader
    found: dict[str, Matching]
    pairs: dict[str, list[Pair]]
    divided: bool = False
    problems: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of how the data are read; `reader.describe` prints it."""
        return self.reader.remarks

    def fingerprint(self, splits: Iterable[list[Pair]]) -> str:
        """Hex digest of the files of some lists of pairs: whether a run resumes on the same."""
        return data_fingerprint(self.root, splits)


def open_source(
    root: Path,
    splits: Iterable[str] = ("train", "valid"),
    *,
    skip_bad: bool = False,
    reading: Reading | None = None,
    cache: bool = True,
) -> Source:
    """Open a data set for some of its splits.

    Args:
        root: a folder, or one annotation file.
        skip_bad: leave out what cannot be used, with a line that names it.
        reading: what was decided about annotations.
        cache: keep painted masks for the next start.

    Raises:
        UserError: no such data set or split, or a picture whose mask cannot be had.
    """
    root, splits = Path(root), tuple(splits)
    layout = _layout(root, reading or Reading(), cache)
    if layout is None:
        reader = MaskReader.for_data(root)
        found = {split: match_split(root, split) for split in splits}
        divided, problems = bool(split_remark(root)), []
    else:
        found, divided = _of_layout(layout, splits, root, skip_bad)
        reader, problems = layout.reader(divided * (DIVIDED,)), layout.problems
        root = layout.root
    pairs = {split: usable_pairs(matching, skip_bad) for split, matching in found.items()}
    return Source(root, reader, found, pairs, divided, problems)


def survey_source(root: Path, *, reading: Reading | None = None, cache: bool = True) -> Source:
    """Open every split that a data set has, to tell a person what is wrong with it.

    Raises:
        UserError: no such data set, or none that could be read at all.
    """
    root = Path(root)
    layout = _layout(root, reading or Reading(), cache)
    if layout is None:
        reader, divided, problems = MaskReader.for_data(root), bool(split_remark(root)), []
        found = {split: match_split(root, split) for split in SPLITS if has_split(root, split)}
    else:
        found, divided = _of_layout(layout, None, root, None)
        reader, problems = layout.reader(divided * (DIVIDED,)), layout.problems
        root = layout.root
    pairs = {split: matching.pairs for split, matching in found.items()}
    return Source(root, reader, found, pairs, divided, problems)


def _layout(root: Path, reading: Reading, cache: bool) -> Annotated | FolderOfMasks | None:
    """How a data set is laid out; None for this program's own layout and CVAT's masks.

    Raises:
        UserError: it is not there, or in no layout that is known.
    """
    if is_cvat(root) or any((root / f"{split}_images").is_dir() for split in SPLITS):
        return None
    if not root.is_file() or root.suffix.lower() not in (".json", ".xml", ".yaml", ".yml"):
        check_root(root)
    by_area = reading.overlap == "smaller"
    layout = Annotated.open(root, by_area, reading.polygons, cache)
    if layout is None and root.is_dir():
        layout = FolderOfMasks.open(root)
    if layout is None:
        raise UserError(
            f"{printable(root)} holds no data set that is known: photographs in train_images and "
            "masks in train_masks, images and masks, or annotations of COCO, YOLO, LabelMe, Label "
            "Studio or CVAT (see docs/data.md)."
        )
    return layout


def _of_layout(
    layout: Annotated | FolderOfMasks, splits: tuple | None, root: Path, skip_bad: bool | None
) -> tuple[dict[str, Matching], bool]:
    """The pictures of each split, and whether the splits were made here.

    Pictures in no split belong to the training. Where none are set aside to validate on, some of
    the training's are.

    Args:
        splits: None for all that there are.
        skip_bad: as in `open_source`; None neither refuses nor lists what cannot be used.
    """
    own = layout.splits()
    training, divided = own & {"train", None}, "valid" not in own
    pools = {"train": training, "valid": training if divided else {"valid"}}
    pools["test"] = own & {"test"}
    wanted = [split for split, pool in pools.items() if pool] if splits is None else splits
    if skip_bad is False and not all(pools[split] for split in wanted):
        layout.refuse_problems(skip_bad)  # which may be why
    for split in wanted:
        if not pools[split]:
            names = " and ".join(sorted(name for name in own if name)) or "none"
            raise UserError(
                f"{printable(root)} has no pictures for the split {split} (it has {names})"
                f"{layout.hint}; put some there."
            )
    found = {
        split: layout.match(pools[split]) for split in wanted if split == "test" or not divided
    }
    whole = layout.match(training) if set(wanted) - set(found) else None
    if skip_bad is not None:
        layout.refuse_problems(skip_bad)
    if whole is not None:
        parts = divide(whole, root) if splits or len(whole.pairs) > 1 else {"train": whole}
        found |= {split: parts[split] for split in wanted if split in parts}
    return found, divided and "valid" in found


def divide(matching: Matching, root: Path) -> dict[str, Matching]:
    """Set some pictures aside to validate on, chosen by checksums: the same on every machine.

    Raises:
        UserError: too few pictures.
    """
    pairs = sorted(matching.pairs, key=lambda pair: zlib.crc32(os.fsencode(pair.image.name)))
    if len(pairs) < 2:
        raise UserError(
            f"{printable(root)} has {len(pairs)} pictures that can be used; at least 2 are needed, "
            "one of them to validate."
        )
    count = max(1, round(VALID_SHARE * len(pairs)))
    valid = sorted(pairs[:count], key=lambda pair: pair.image)
    train = sorted(pairs[count:], key=lambda pair: pair.image)
    rest = dataclasses.replace(matching, images=matching.images - count, pairs=train)
    return {"train": rest, "valid": Matching(count, valid, [], [], [])}
