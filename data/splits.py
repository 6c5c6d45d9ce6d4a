"""Which photographs are learnt and which are measured, divided so that the figures can be believed.

Photographs of one plant, scene or burst resemble each other. Where some of them are learnt and
others measured, the figures are too good. So whole groups go to one side, and every class to both.
What was decided is written as a table, one line a photograph, before anything is learnt.
"""

import csv
import io
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from common import distributed
from common.errors import UserError
from common.files import write_csv
from common.text import agreed, counted, printable, read_text
from data.images import map_files
from data.masks import MaskReader
from data.pairs import Pair
from data.twins import alike

FOLDS_FILE, SPLIT_FILE = "folds.csv", "split.csv"
MAX_FOLDS = 100
# What train.py takes where nobody says otherwise, and whoever shows or writes its division too.
VALID_SHARE, SEED = 0.2, 42


def name_of(image: Path, root: Path) -> str:
    """A photograph's name in these tables: its path below the data set, the same everywhere."""
    below = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
    return printable(unicodedata.normalize("NFC", below.as_posix()))


@dataclass(frozen=True)
class Division:
    """Where each photograph of a data set belongs.

    Args:
        kind: "fold", whose parts are "0", "1" and so on, or "split", whose parts are "train" and
            "valid"; also the table's column.
        parts: the part of each photograph, by `name_of`.
        groups: what stays together, likewise.
    """

    kind: str
    parts: dict[str, str]
    groups: dict[str, str]

    @property
    def count(self) -> int:
        """How many parts there are."""
        return len(set(self.parts.values()))

    def write(self, path: Path) -> None:
        """Write the table whole or not at all."""
        rows = ((name, self.groups[name], part) for name, part in self.parts.items())
        write_csv(path, ["file", "group", self.kind], rows)

    @classmethod
    def read(cls, path: Path, kind: str) -> "Division":
        """Read a table that was written here, or by hand; `group` may be left out.

        Raises:
            UserError: it is no such table, names a file twice, or parts a group.
        """
        table = _read_table(path, kind)
        parts = {name: row[kind] for name, row in table.items()}
        groups = {name: row.get("group") or name for name, row in table.items()}
        found = set(parts.values())
        if kind == "fold":
            expected = {str(number) for number in range(len(found))}
            fits, what = 2 <= len(found) <= MAX_FOLDS and found == expected, "0, 1, 2 and so on"
        else:
            fits, what = found <= {"train", "valid"}, "train or valid"
        if not fits:
            odd = printable(", ".join(sorted(found)))[:80]
            raise UserError(f"{printable(path)} has the {kind}s {odd}; they must be {what}.")
        homes: dict[str, str] = {}
        for name, group in groups.items():
            if homes.setdefault(group, parts[name]) != parts[name]:
                raise UserError(
                    f"{printable(path)} puts the group {printable(group)} into {kind} "
                    f"{homes[group]} and, by {name}, into {parts[name]}; pictures of one group "
                    "must stay together."
                )
        return cls(kind, parts, groups)

    def part_of(self, pairs: Sequence[Pair], root: Path, path: Path) -> list[str]:
        """The part of each pair.

        Args:
            path: the table's own, for a message.

        Raises:
            UserError: a photograph is not in the table.
        """
        names = [name_of(pair.image, root) for pair in pairs]
        missing = [name for name in names if name not in self.parts]
        if missing:
            many = counted(len(names), "photograph|photographs")
            raise UserError(
                f"{printable(path)} does not place {len(missing)} of {many}; "
                f"the first is {missing[0]}. Add them, or take the data that it was made for."
            )
        return [self.parts[name] for name in names]

    def group_of(self, pairs: Sequence[Pair], root: Path) -> list[str]:
        """The group of each pair, all of which are in the table."""
        return [self.groups[name_of(pair.image, root)] for pair in pairs]


def _read_table(path: Path, column: str) -> dict[str, dict[str, str]]:
    """The rows of a table by their `file`, each with that column.

    Raises:
        UserError: it is no such table, or names a file twice.
    """
    if not path.is_file():
        raise UserError(f"{printable(path)} is not there; give a table with file and {column}.")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise UserError(f"{printable(path)} is no table ({error}).") from error
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        if not row.get("file") or not row.get(column):
            raise UserError(
                f"{printable(path)} needs the columns file and {column}, filled in every line."
            )
        name = printable(unicodedata.normalize("NFC", row["file"].replace("\\", "/")))
        if name in table:
            raise UserError(f"{printable(path)} names {name} twice; remove one of the lines.")
        table[name] = {key: value for key, value in row.items() if isinstance(value, str)}
    if not table:
        raise UserError(f"{printable(path)} has no lines; give a table with file and {column}.")
    return table


# --- Dividing -------------------------------------------------------------------------------------


def make_folds(
    pairs: Sequence[Pair], root: Path, reader: MaskReader, count: int, groups: str | None, seed: int
) -> tuple[Division, str]:
    """Divide all pairs into folds for cross-validation.

    Args:
        groups: as `group_pairs` takes it.

    Returns:
        the folds, and a sentence on what stayed together.

    Raises:
        UserError: there are fewer groups than folds, or groups that cannot be made.
    """
    names = [name_of(pair.image, root) for pair in pairs]
    own, remark = group_pairs(pairs, root, groups)
    folds = _spread(_rarest_classes(pairs, reader), own, count, seed)
    parts = dict(zip(names, map(str, folds), strict=True))
    return Division("fold", parts, dict(zip(names, own, strict=True))), remark


def hold_out(
    pairs: Sequence[Pair],
    root: Path,
    reader: MaskReader,
    share: float,
    groups: str | None,
    seed: int,
    earlier: Division | None = None,
) -> tuple[Division, str]:
    """Set a share of the pairs aside for validation.

    Args:
        share: in (0, 1); groups are not parted, so few of them meet it roughly.
        groups: as `group_pairs` takes it.
        earlier: a split whose photographs stay where they were; new ones join their group there,
            and only the others are divided.

    Returns:
        the split, and a sentence on what stayed together.

    Raises:
        UserError: there is but one group, or groups that cannot be made.
    """
    names = [name_of(pair.image, root) for pair in pairs]
    own, remark = group_pairs(pairs, root, groups)
    parts = dict(earlier.parts) if earlier else {}
    homes = {group: parts[name] for name, group in zip(names, own, strict=True) if name in parts}
    for name, group in zip(names, own, strict=True):
        if name not in parts and group in homes:
            parts[name] = homes[group]
    rest = [index for index, name in enumerate(names) if name not in parts]
    if rest:
        classes = _rarest_classes([pairs[index] for index in rest], reader)
        chosen = _choose(classes, [own[index] for index in rest], share, seed, bool(parts))
        for index, valid in zip(rest, chosen, strict=True):
            parts[names[index]] = "valid" if valid else "train"
    together = dict(earlier.groups) if earlier else {}
    together |= {n: g for n, g in zip(names, own, strict=True) if n not in together}
    return Division("split", parts, together), remark


def _choose(
    classes: list[int], groups: list[str], share: float, seed: int, may_be_none: bool
) -> list[bool]:
    """Which pictures are for validation: those of some folds of many."""
    distinct = len(set(groups))
    if distinct < 2:
        if may_be_none:  # a single new group: it is learnt
            return [False] * len(groups)
        raise UserError(
            f"All {len(groups)} photographs are one group, so none can be set aside to validate; "
            "add photographs, or say with --groups what belongs together."
        )
    wanted = Fraction(share).limit_denominator(min(20, distinct))
    wanted = min(max(wanted, Fraction(1, min(20, distinct))), Fraction(distinct - 1, distinct))
    folds = _spread(classes, groups, wanted.denominator, seed)
    return [fold < wanted.numerator for fold in folds]


def _spread(classes: list[int], groups: list[str], count: int, seed: int) -> list[int]:
    """Folds of equal size and equal shares of classes, no group in two: scikit-learn's.

    Args:
        classes: one label a picture.

    Raises:
        UserError: there are too few groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

    distinct = len(set(groups))
    if distinct < count:
        many = counted(distinct, "group|groups")
        raise UserError(
            f"{len(groups)} photographs in {many} are too few for {count} parts; give more "
            "photographs, fewer --folds, or other --groups."
        )
    if max(Counter(classes).values()) < count:
        classes = [0] * len(classes)  # each label is too rare to be in every fold
    folds = np.zeros(len(groups), int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class is rarer than there are folds
        for number, (_, own) in enumerate(splitter.split(classes, classes, groups)):
            folds[own] = number
    if len(set(folds.tolist())) < count:
        largest = max(Counter(groups).values())
        raise UserError(
            f"One group holds {largest} of {len(groups)} photographs, too many for {count} parts; "
            "give other --groups or fewer --folds."
        )
    return folds.tolist()


def _rarest_classes(pairs: Sequence[Pair], reader: MaskReader) -> list[int]:
    """For each pair the class in its mask that the fewest masks hold; -1 where all is ignored."""

    def classes_of(pair: Pair) -> list[int]:
        return np.flatnonzero(reader.class_pixels(pair)).tolist()

    held = map_files(classes_of, list(pairs), "Looking which classes pictures hold")
    masks = Counter(chain.from_iterable(held))
    return [min(own, key=lambda index: (masks[index], -index), default=-1) for own in held]


def settle_split(
    out_dir: Path,
    pairs: Sequence[Pair],
    root: Path,
    reader: MaskReader,
    share: float,
    groups: str | None,
    seed: int,
    earlier: Path | None = None,
    *,
    goes_on: bool = False,
) -> tuple[dict[str, list[Pair]], str]:
    """Divide pairs for a training and write split.csv, before anything is learnt.

    Args:
        out_dir: of the training; an earlier split.csv there is gone on from.
        earlier: a split.csv to go on from instead.
        goes_on: take that as it is, for a run that is resumed.

    Returns:
        the pairs of "train" and "valid", and a sentence on how they were divided.

    Raises:
        UserError: they cannot be divided, or one of both has none.
    """
    path = out_dir / SPLIT_FILE
    earlier = earlier or (path if path.is_file() else None)
    known = Division.read(earlier, "split") if earlier else None
    news = [pair for pair in pairs if known and name_of(pair.image, root) not in known.parts]
    if known and earlier == path and len(news) == len(pairs):
        known = None  # it is of other data
    if known and (goes_on or not news):
        division, remark = known, f"They are those of {printable(earlier)}."
    else:
        division, remark = hold_out(pairs, root, reader, share, groups, seed, known)
        if known:
            remark += f" Those of {printable(earlier)} stay; {counted(len(news), 'is|are')} new."
    split = by_part(pairs, division.part_of(pairs, root, earlier or path))
    for name, own in split.items():
        if not own:
            raise UserError(f"{printable(earlier)} says {name} of no photograph; add some.")
    if distributed.is_main():
        division.write(path)
    return split, remark


def by_part(pairs: Sequence[Pair], parts: Sequence[str]) -> dict[str, list[Pair]]:
    """The pairs of "train" and those of "valid", by the part that each belongs to."""
    split: dict[str, list[Pair]] = {"train": [], "valid": []}
    for pair, part in zip(pairs, parts, strict=True):
        split[part].append(pair)
    return split


def everything_of(pairs: dict[str, list[Pair]]) -> list[Pair]:
    """The pairs of both splits in an order that does not depend on which is in which."""
    return sorted(pairs["train"] + pairs["valid"], key=lambda pair: pair.image)


def usual_split(
    pairs: dict[str, list[Pair]], root: Path, reader: MaskReader
) -> tuple[dict[str, list[Pair]], str]:
    """The pairs as train.py divides them without a flag, whatever parts they came in.

    Returns:
        the pairs with "train" and "valid" divided anew, and a sentence on what stayed together.

    Raises:
        UserError: they cannot be divided.
    """
    everything = everything_of(pairs)
    division, remark = hold_out(everything, root, reader, VALID_SHARE, None, SEED)
    return pairs | by_part(everything, division.part_of(everything, root, root)), remark


def choose_part(pairs: Sequence[Pair], root: Path, table: Path, part: str) -> list[Pair]:
    """The pairs that a split.csv puts into "train" or "valid".

    Raises:
        UserError: it is no split.csv, does not place a photograph, or puts none there.
    """
    own = by_part(pairs, Division.read(table, "split").part_of(pairs, root, table))
    if not own[part]:
        raise UserError(f"{printable(table)} puts none of these photographs into {part}.")
    return own[part]


# --- What stays together --------------------------------------------------------------------------


def group_pairs(pairs: Sequence[Pair], root: Path, groups: str | None) -> tuple[list[str], str]:
    """The group of each pair, and a sentence on how they were found.

    Args:
        groups: the name of a CSV file with the columns file and group; or a regular expression
            with one group in brackets that a photograph's whole name, without its ending, fits,
            such as "(.*)_\\d+"; or None to keep photographs together that show the same.

    Raises:
        UserError: the table or the expression does not fit the photographs.
    """
    if groups is None:
        firsts = alike([pair.image for pair in pairs])
        own = [name_of(pairs[first].image, root) for first in firsts]
        twins = sum(count for count in Counter(own).values() if count > 1)
        found = f"{twins} that look alike stay together" if twins else "No two look alike"
        return own, f"{found}; say with --groups what else belongs together."
    if groups.lower().endswith(".csv"):
        return _groups_of_table(pairs, root, Path(groups))
    return _groups_of_names(pairs, root, groups)


def _groups_of_table(pairs: Sequence[Pair], root: Path, path: Path) -> tuple[list[str], str]:
    table = {name: row["group"] for name, row in _read_table(path, "group").items()}
    own = []
    for pair in pairs:
        name = name_of(pair.image, root)
        known = (key for key in (name, Path(name).name, pair.stem) if key in table)
        key = next(known, None)
        if key is None:
            raise UserError(f"{printable(path)} says no group for {name}; add a line for it.")
        own.append(printable(table[key]))
    count = len(set(own))
    stay = agreed(count, "stays|stay")
    return own, f"{counted(count, 'group|groups')} of {printable(path)} {stay} together."


def _groups_of_names(pairs: Sequence[Pair], root: Path, pattern: str) -> tuple[list[str], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--groups {printable(pattern)} is no pattern ({error}).") from error
    if expression.groups != 1:
        raise UserError(
            f"--groups {printable(pattern)} has {expression.groups} pairs of brackets instead of "
            r'one; write it like "(.*)_\d+", or name a .csv file with file and group.'
        )
    found = [expression.fullmatch(pair.stem) for pair in pairs]
    if not any(found):
        raise UserError(
            f"--groups {printable(pattern)} fits no photograph's name, such as "
            f"{printable(pairs[0].stem)}; it must fit the whole name without its ending."
        )
    own = [
        printable(match[1] or "") if match else name_of(pair.image, root)
        for match, pair in zip(found, pairs, strict=True)
    ]
    alone, fit = found.count(None), "name|names that does|do not fit is|are on its|their own"
    line = counted(len(set(own)), "group|groups of --groups stays|stay together")
    return own, line + (f"; {counted(alone, fit)}." if alone else ".")
