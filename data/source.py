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

from common import distributed
from common.errors import UserError
from common.text import counted, printable
from config import DataChoices, MaskReading
from data.census import Census
from data.classes import merged_classes, read_class_table
from data.facts import Facts, learn
from data.formats.annotated import Annotated
from data.formats.files import Folder
from data.formats.folders import FolderOfMasks
from data.images import is_image_name
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
from data.splits import VALID_SHARE

DIVIDED = "it does not say what is for validation: train.py sets a share of the pictures aside"
# Where it comes from how masks are read.
TRAINING, MODEL, PAINTED = "the training's masks", "the masks that the model learnt from", "shapes"


@dataclass(frozen=True)
class Source:
    """A data set that was opened.

    Args:
        root: the folder that holds it.
        reader: how its masks are read.
        found: what was matched in each split that was asked for, the files without a partner too.
        pairs: of each split those with one clear mask, sorted.
        divided: whether the data do not say what is for validation, so that "train" and "valid"
            are but all pairs in two parts; see `data.splits`.
        problems: file and sentence for each picture whose annotations cannot be used.
        facts: what was learnt of the pairs' files.
        decided_by: by what it was decided how masks are read: `TRAINING`, `MODEL` or `PAINTED`.
        unmerged: the reader before --merge and --ignore.
        untrainable: why train.py would refuse the whole, where a survey found such a reason.
    """

    root: Path
    reader: MaskReader
    found: dict[str, Matching]
    pairs: dict[str, list[Pair]]
    divided: bool = False
    problems: list[tuple[Path, str]] = field(default_factory=list)
    facts: Facts = field(default_factory=lambda: Facts({}, {}, 0))
    decided_by: str = TRAINING
    unmerged: MaskReader | None = None
    untrainable: str = ""

    def describe(self) -> str:
        """What the classes are and how masks are read, line by line."""
        return self.reader.describe(painted=self.decided_by == PAINTED)

    def fingerprint(self, splits: Iterable[list[Pair]]) -> str:
        """Hex digest of the files of some lists of pairs: whether a run resumes on the same."""
        return data_fingerprint(self.root, splits)

    @property
    def mask_reading(self) -> MaskReading | None:
        """What travels with a model; None where masks are painted here, which leaves no doubt."""
        return None if self.decided_by == PAINTED else self.reader.reading

    def refuse_other_readings(self) -> None:
        """Refuse a split whose masks, looked at by themselves, mean something else.

        Raises:
            UserError: names a mask, a value of it, and both meanings.
        """
        if self.decided_by == PAINTED:
            return
        deciding = {TRAINING: _learnt(self.divided)}.get(self.decided_by, ())
        for split, pairs in self.pairs.items():
            if split not in deciding:
                reader = self.unmerged or self.reader
                reader.refuse_other_reading(self.facts.censuses(pairs), self.decided_by)


def open_source(
    root: Path,
    splits: Iterable[str] | None = ("train", "valid"),
    *,
    skip_bad: bool = False,
    photographs: bool = True,
    choices: DataChoices | None = None,
    cache: bool = True,
    as_trained: MaskReading | None = None,
) -> Source:
    """Open a data set for some of its splits.

    Of several processes the main one looks into the files, once for all.

    Args:
        root: a folder, or one annotation file.
        splits: None for all that there are.
        skip_bad: leave out what cannot be used, with a line that names it.
        photographs: look into these too, not into masks alone.
        choices: what a person decided about annotations and classes.
        cache: take what is known of files from the user's cache, painted masks too, and keep what
            is new there.
        as_trained: how masks are read, as it travels with a model; None decides by the masks of
            the training split.

    Raises:
        UserError: no such data set or split, a picture whose mask cannot be had, or a split whose
            masks mean something else than those of the training.
    """
    wanted = None if splits is None else tuple(splits)

    def work() -> Source:
        look = (choices or DataChoices(), as_trained, photographs, cache)
        source = _open(Path(root), wanted, skip_bad, *look)
        source.refuse_other_readings()
        return source

    return distributed.on_main(work)


def survey_source(root: Path, *, choices: DataChoices | None = None, cache: bool = True) -> Source:
    """Open every split that a data set has, to tell a person what is wrong with it.

    Raises:
        UserError: no such data set, or none that could be read at all.
    """
    return _open(Path(root), None, None, choices or DataChoices(), None, True, cache)


def _open(
    root: Path,
    wanted: tuple[str, ...] | None,
    skip_bad: bool | None,
    choices: DataChoices,
    as_trained: MaskReading | None,
    photographs: bool,
    cache: bool,
) -> Source:
    """Match the files of some splits, learn what they are, and settle how masks are read.

    Args:
        skip_bad: as in `open_source`; None neither refuses nor lists what cannot be used.
    """
    layout, untrainable = _layout(root, choices, cache), ""
    if layout is None:
        names = wanted or [split for split in SPLITS if has_split(root, split)]
        found = {split: match_split(root, split) for split in names}
        divided = bool(split_remark(root))
    else:
        found, divided = _of_layout(layout, wanted, root, skip_bad)
        untrainable = _why_untrainable(layout, found, root) if wanted is None else ""
    pairs = {
        split: own.pairs if skip_bad is None else usable_pairs(own, skip_bad)
        for split, own in found.items()
    }
    if layout is None:
        classes, remarks, problems = read_class_table(root), split_remark(root), []
    else:
        root, classes, problems = layout.root, layout.classes, layout.problems
        remarks = divided * (DIVIDED,)
    everything = [pair for own in pairs.values() for pair in own]
    facts = learn(root, everything, classes, photographs=photographs, use_cache=cache)
    decided_by = TRAINING if as_trained is None else MODEL
    if isinstance(layout, Annotated):
        reader, decided_by = layout.reader(remarks), PAINTED
    elif as_trained is None:
        training, learnt = _training(pairs, divided, root, layout), facts
        if set(training) - set(everything):
            learnt = learn(root, training, classes, photographs=False, use_cache=cache)
        reader = MaskReader.decide(classes, _readable(training, learnt), remarks)
    else:
        reader = MaskReader(classes, as_trained, remarks)
    reader = dataclasses.replace(reader, known=facts.censuses(everything))
    merged = merged_classes(reader.classes, choices.merge, choices.ignore)
    own = dataclasses.replace(reader, classes=merged)
    look = (divided, problems, facts, decided_by, reader, untrainable)
    return Source(root, own, found, pairs, *look)


def _training(
    pairs: dict[str, list[Pair]], divided: bool, root: Path, layout: FolderOfMasks | None
) -> list[Pair]:
    """The pairs whose masks decide how all are read: the training's, or else the first split's."""
    wanted = _learnt(divided)
    if set(wanted) <= pairs.keys():
        return [pair for split in wanted for pair in pairs[split]]
    try:
        if layout is not None:
            own = layout.match(layout.splits() & {"train", None}).pairs
        else:
            own = [pair for split in wanted for pair in match_split(root, split).pairs]
    except UserError:  # a folder to measure on, without a training
        own = []
    return own or next(iter(pairs.values()))


def _learnt(divided: bool) -> tuple[str, ...]:
    """The splits that may be learnt: where the data do not say what is for validation, both."""
    return ("train", "valid") if divided else ("train",)


def _readable(pairs: list[Pair], facts: Facts) -> list[Census]:
    """What occurs in the masks that can be read.

    Raises:
        UserError: none can.
    """
    masks = [facts.masks[pair.mask] for pair in pairs]
    found = [census for census in masks if isinstance(census, Census)]
    if masks and not found:
        raise masks[0]
    return found


def _layout(root: Path, choices: DataChoices, cache: bool) -> Annotated | FolderOfMasks | None:
    """How a data set is laid out; None for this program's own layout and CVAT's masks.

    Raises:
        UserError: it is not there, or in no layout that is known.
    """
    if is_cvat(root) or any((root / f"{split}_images").is_dir() for split in SPLITS):
        return None
    if not root.is_file() or root.suffix.lower() not in (".json", ".xml", ".yaml", ".yml"):
        check_root(root)
    by_area = choices.overlap == "smaller"
    layout = Annotated.open(root, by_area, choices.polygons, cache)
    if layout is None and root.is_dir():
        layout = FolderOfMasks.open(root)
    if layout is None:
        photographs = root.is_dir() and any(map(is_image_name, Folder(root).files))
        where = "in the section Photographs of the page that `python app.py` opens"
        advice = f" Photographs alone can be painted {where}." if photographs else ""
        raise UserError(
            f"{printable(root)} holds no data set that is known: photographs in train_images and "
            "masks in train_masks, images and masks, or annotations of COCO, YOLO, LabelMe, Label "
            f"Studio or CVAT (see docs/data.md).{advice}"
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
            raise _lacking(layout, split, root)
    found = {
        split: layout.match(pools[split]) for split in wanted if split == "test" or not divided
    }
    whole = layout.match(training) if set(wanted) - set(found) else None
    if skip_bad is not None:
        layout.refuse_problems(skip_bad)
    if whole is not None:
        parts = (
            divide(whole, root) if splits is not None or len(whole.pairs) > 1 else {"train": whole}
        )
        found |= {split: parts[split] for split in wanted if split in parts}
    return found, divided and "valid" in found


def _why_untrainable(
    layout: Annotated | FolderOfMasks, found: dict[str, Matching], root: Path
) -> str:
    """What train.py would say of splits that are not there; "" where it has both that it needs."""
    if "train" not in found:
        return str(_lacking(layout, "train", root))
    return "" if "valid" in found else str(_too_few(found["train"], root))


def _lacking(layout: Annotated | FolderOfMasks, split: str, root: Path) -> UserError:
    names = " and ".join(sorted(name for name in layout.splits() if name)) or "none"
    return UserError(
        f"{printable(root)} has no pictures for the split {split} (it has {names})"
        f"{layout.hint}; put some there."
    )


def _too_few(matching: Matching, root: Path) -> UserError:
    many = counted(len(matching.pairs), "picture|pictures")
    return UserError(
        f"{printable(root)} has {many} that can be used; at least 2 are needed, one of them to "
        "validate."
    )


def divide(matching: Matching, root: Path) -> dict[str, Matching]:
    """Set some pictures aside to validate on, chosen by checksums: the same on every machine.

    Raises:
        UserError: too few pictures.
    """
    pairs = sorted(matching.pairs, key=lambda pair: zlib.crc32(os.fsencode(pair.image.name)))
    if len(pairs) < 2:
        raise _too_few(matching, root)
    count = max(1, round(VALID_SHARE * len(pairs)))
    valid = sorted(pairs[:count], key=lambda pair: pair.image)
    train = sorted(pairs[count:], key=lambda pair: pair.image)
    # Those without a mask all go to this part, so it tells how many of all photographs they are.
    rest = dataclasses.replace(matching, pairs=train)
    return {"train": rest, "valid": Matching(count, valid, [], [], [])}
