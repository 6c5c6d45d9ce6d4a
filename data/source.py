"""A data set as the scripts open it: one object for all that is below --data, whatever its layout.

Nobody else asks how a folder is laid out. Whoever trains, measures or checks gets pairs of
photograph and mask by split, and the one reader that knows what the masks mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.masks import MaskReader
from data.pairs import (
    SPLITS,
    Matching,
    Pair,
    data_fingerprint,
    has_split,
    match_split,
    split_remark,
    usable_pairs,
)


@dataclass(frozen=True)
class Source:
    """A data set that was opened.

    Args:
        root: what --data names.
        reader: how its masks are read.
        found: what was matched in each split that was asked for, the files without a partner too.
        pairs: of each split those that can be used, sorted; not decoded yet.
        divided: whether the data do not say what is for validation, so that "train" and "valid"
            are but all pairs in two parts; see `data.splits`.
    """

    root: Path
    reader: MaskReader
    found: dict[str, Matching]
    pairs: dict[str, list[Pair]]
    divided: bool = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of how the data are read; `reader.describe` prints it."""
        return self.reader.remarks

    def fingerprint(self, splits: Iterable[list[Pair]]) -> str:
        """Hex digest of the files of some lists of pairs: whether a run resumes on the same."""
        return data_fingerprint(self.root, splits)


def open_source(
    root: Path, splits: Iterable[str] = ("train", "valid"), *, skip_bad: bool = False
) -> Source:
    """Open a data set for some of its splits.

    Args:
        skip_bad: leave out photographs without one clear mask, with a line that names them.

    Raises:
        UserError: no such data set or split, or a photograph without one clear mask.
    """
    reader = MaskReader.for_data(root)
    found = {split: match_split(root, split) for split in splits}
    pairs = {split: usable_pairs(matching, skip_bad) for split, matching in found.items()}
    return Source(Path(root), reader, found, pairs, bool(split_remark(root)))


def survey_source(root: Path) -> Source:
    """Open every split that a data set has, to tell a person what is wrong with it.

    Raises:
        UserError: no such data set, or none that could be read at all.
    """
    reader = MaskReader.for_data(root)
    found = {split: match_split(root, split) for split in SPLITS if has_split(root, split)}
    return Source(Path(root), reader, found, {split: it.pairs for split, it in found.items()})
