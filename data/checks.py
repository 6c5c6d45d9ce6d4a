"""What is wrong with a data set, found before a training run is spoilt by it.

`check_pairs` is the quick part that stops a training; `check_data_set` is all of it, printed for a
person.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import distributed
from common.errors import UserError
from common.files import write_text
from common.text import agreed, counted, first_few, first_of, listed, printable
from config import IGNORE_INDEX, ClassTable, DataChoices, Size
from data.census import Census
from data.classes import line_targets, table_lines
from data.decoding import Header
from data.facts import Photo
from data.masks import MaskReader, is_turned
from data.pairs import SKIP_BAD, Matching, Pair, explain_ambiguous
from data.source import Source, survey_source
from data.splits import everything_of, usual_split

# What spoils a training, or what is learnt from it; words as `common.text.agreed` takes them.
PROBLEMS = {
    "unreadable": "file|files that cannot be read",
    "annotations": "picture|pictures whose annotations cannot be used",
    "no_mask": "image|images without a mask",
    "no_image": "mask|masks without an image",
    "ambiguous": "name|names that is|are not clear",
    "values": "mask|masks with values outside the class table",
    "sizes": "mask|masks whose proportions differ from the image's",
    "smoothed": "mask|masks that looks|look like JPEG, or resized with smoothing",
    "leak": "picture|pictures that another split has, too",
    "untrainable": "reason|reasons why train.py would refuse the whole",
}
# What a person should know.
NOTES = {
    "absent": "class|classes that not every split shows",
    "empty": "mask|masks with nothing but the first class",
    "twins": "picture|pictures that the same split has twice",
    "resized": "mask|masks of another size than the image (resized when read)",
    "exif": "photograph|photographs that EXIF rotates",
}


def check_pairs(source: Source, skip_bad: bool = False) -> dict[str, list[Pair]]:
    """The pairs of each split that can be used, by what was learnt of their files.

    Args:
        skip_bad: leave out what cannot be used and print the first of it, rather than raise.

    Raises:
        UserError: the first problem, or that no pair of a split is left.
    """
    found = {split: [problem_of(p, source) for p in own] for split, own in source.pairs.items()}
    everything = [error for own in found.values() for error in own if error]
    if everything and not skip_bad:
        some_left = all(None in own for own in found.values())
        raise UserError(first_of(everything, SKIP_BAD if some_left else "")) from everything[0]
    usable = {}
    for split, pairs in source.pairs.items():
        problems = found[split]
        bad = [error for error in problems if error]
        if bad and distributed.is_main():
            many = counted(len(pairs), "pair|pairs")
            tqdm.write(f"{len(bad)} of {many} {agreed(len(bad), 'is|are')} left out:")
            for text in first_few([str(error) for error in bad]):
                tqdm.write(f"  {text}")
        good = [pair for pair, error in zip(pairs, problems, strict=True) if not error]
        if not good:
            raise bad[0] if bad else UserError("There are no pairs; check the data folder.")
        usable[split] = good
    return usable


def unlearnt(pairs: dict[str, list[Pair]], reader: MaskReader) -> str:
    """A sentence on classes that only masks to validate on show; "" where there are none.

    Args:
        pairs: of "train" and "valid".
    """
    learnt, measured = (sum(map(reader.class_pixels, pairs[s])) for s in ("train", "valid"))
    names = [reader.classes.names[i] for i in np.flatnonzero((measured > 0) & (learnt == 0))]
    if not names:
        return ""
    return (
        f"No mask to learn from shows {listed(names)}, but those to validate on do: what is never "
        "learnt has an IoU of 0. Add such photographs to the training."
    )


def problem_of(pair: Pair, source: Source) -> UserError | None:
    """Why a pair cannot be used, if it cannot."""
    photo, census = source.facts.photos[pair.image], source.facts.masks[pair.mask]
    for fact in (photo, census):
        if isinstance(fact, UserError):
            return fact
    if text := source.reader.problem(census, pair.mask):
        return UserError(text)
    try:
        is_turned(census.size, photo.header, pair)
    except UserError as error:
        return error
    return None


@dataclass(frozen=True)
class Finding:
    """One thing to tell about a file: a key of PROBLEMS or NOTES, and a sentence."""

    kind: str
    path: Path
    text: str


@dataclass
class Record:
    """What is known of one pair.

    Args:
        size: (height, width) of the photograph as displayed.
        format: of the photograph, in Pillow's name.
        pixels: (256,) of each class in the mask, 255 = ignored.
        digest: of the photograph's pixels.
    """

    pair: Pair
    size: Size | None = None
    format: str = ""
    pixels: np.ndarray | None = None
    digest: str = ""
    findings: list[Finding] = field(default_factory=list)

    def note(self, kind: str, path: Path, text: object) -> None:
        self.findings.append(Finding(kind, path, str(text)))


def survey(root: Path, *, choices: DataChoices | None = None, cache: bool = True) -> Source:
    """Open all of a data set to tell a person about it, in the parts that train.py makes of it.

    Raises:
        UserError: no such data set, or none that could be read at all.
    """
    source = survey_source(root, choices=choices, cache=cache)
    if not source.divided:
        return source
    everything, good, bad = everything_of(source.pairs), [], []
    for pair in everything:
        (bad if problem_of(pair, source) else good).append(pair)
    try:
        usable = {"train": good, "valid": []}
        split, remark = usual_split(usable, source.root, source.reader)
    except UserError as error:
        whole = source.pairs | {"train": everything, "valid": []}
        return replace(source, pairs=whole, untrainable=str(error))
    split["train"] = sorted(split["train"] + bad, key=lambda pair: pair.image)
    split = source.pairs | split
    told = f"shown is what it does without a flag. {remark}"
    reader, unmerged = (
        replace(reader, remarks=(*reader.remarks, told.removesuffix(".")))
        for reader in (source.reader, source.unmerged)
    )
    return replace(source, pairs=split, reader=reader, unmerged=unmerged)


def examine(pair: Pair, source: Source) -> Record:
    """All that is to be said of one pair."""
    record, reader = Record(pair), source.reader
    photo, census = source.facts.photos[pair.image], source.facts.masks[pair.mask]
    if isinstance(photo, Photo):
        record.size, record.format = photo.header.size, photo.header.format
        record.digest = photo.digest
    else:
        record.note("unreadable", pair.image, photo)
    if isinstance(census, UserError):
        record.note("unreadable", pair.mask_source, census)
        return record
    smoothed = looks_smoothed(census, reader.classes)
    if text := reader.problem(census, pair.mask):
        hint = " It looks resized with smoothing, or saved as JPEG on its way." if smoothed else ""
        record.note("values", pair.mask_source, f"{text}{hint}")
        return record
    if smoothed:
        why = "is a JPEG" if census.lossy else "has rare values along its edges"
        remedy = "save it as PNG, resized by nearest neighbour only."
        record.note("smoothed", pair.mask_source, f"{pair.mask_name} {why}; {remedy}")
    record.pixels = reader.pixels_of(census)
    if not record.pixels[1:IGNORE_INDEX].any():
        record.note("empty", pair.mask_source, pair.mask_name)
    if isinstance(photo, Photo):
        compare_sizes(record, census.size, photo.header)
    return record


def looks_smoothed(census: Census, classes: ClassTable) -> bool:
    """Whether a mask holds many values that are rare: between two classes, along their edges."""
    expected = len(table_lines(classes)) + 1  # and 255
    rare = np.sort(census.counts)[::-1][expected:]
    pixels = rare.sum() + census.left_out
    return census.lossy or (len(rare) >= 3 and pixels < 0.1 * math.prod(census.size))


def compare_sizes(record: Record, size: Size, header: Header) -> None:
    """Note where mask and photograph differ in size, or may differ in orientation.

    Args:
        size: (height, width) of the mask.
        header: of the photograph.
    """
    pair = record.pair
    try:
        turned = is_turned(size, header, pair)
    except UserError as error:
        record.note("sizes", pair.mask_source, error)
        return
    (h, w), (height, width) = size, header.size
    name = pair.mask_name
    if not turned and (h, w) != (height, width):
        text = f"{name} is {w}x{h} px, its image {width}x{height}"
        record.note("resized", pair.mask_source, text)
    if turned:
        where = "was painted on the photograph as stored; it is turned like the photograph"
        record.note("exif", pair.image, f"{name} {where}")
    elif header.orientation > 1 and header.size == header.stored_size:
        doubt = "its mask's size does not tell whether it was painted before or after; look at it"
        text = f"{printable(pair.image)} has orientation {header.orientation}, and {doubt}"
        record.note("exif", pair.image, text)


def find_twins(records: dict[str, list[Record]]) -> list[Finding]:
    """Photographs whose pixels are the same, in two splits (leakage) or in one."""
    first: dict[str, tuple[str, Path, str]] = {}
    found = []
    for split, members in records.items():
        for record in members:
            if not record.digest:
                continue
            own = split, record.pair.image, record.pair.image_name
            other, path, name = first.setdefault(record.digest, own)
            if path != record.pair.image or other != split:
                text = f"{record.pair.image_name} is the same picture as {name}"
                found.append(
                    Finding("twins" if other == split else "leak", record.pair.image, text)
                )
    return found


def find_unpaired(matching: Matching) -> list[Finding]:
    """Files without a partner, or with two."""
    found = []
    for image, expected in matching.without_mask:
        text = f"{printable(image)} (expected {printable(expected)})"
        found.append(Finding("no_mask", image, text))
    found += [Finding("no_image", mask, printable(mask)) for mask in matching.without_image]
    for pair in matching.ambiguous:
        found.append(Finding("ambiguous", pair[0], explain_ambiguous(*pair)))
    return found


def examine_source(source: Source) -> tuple[dict[str, list[Record]], list[Finding]]:
    """All that is known of a data set: a record of each pair by split, and what is to be told."""
    records = {
        split: [examine(pair, source) for pair in pairs] for split, pairs in source.pairs.items()
    }
    findings = [finding for found in source.found.values() for finding in find_unpaired(found)]
    findings += [Finding("annotations", path, text) for path, text in source.problems]
    findings += [f for members in records.values() for record in members for f in record.findings]
    findings += find_twins(records)
    findings += find_absent(records, source.reader.classes)
    if source.untrainable:
        findings.append(Finding("untrainable", source.root, source.untrainable))
    try:
        source.refuse_other_readings()
    except UserError as error:
        findings.append(Finding("values", source.root, str(error)))
    return records, findings


def check_data_set(
    root: Path, fix_list: Path | None = None, cache: bool = True, choices: DataChoices | None = None
) -> int:
    """Print all that is known of a data set; returns the number of problems.

    Args:
        cache: take what is known of files from the user's cache, and keep what is new there.
        choices: what was decided about annotations and classes; shown before and after.
        fix_list: a file to write the names of the files with problems to, one a line.

    Raises:
        UserError: no such data set, or a class table that cannot be read.
    """
    root = Path(root)
    source = survey(root, choices=choices, cache=cache)
    merged, reader = source.reader.classes, source.unmerged
    records, findings = examine_source(replace(source, reader=reader))

    print(f"\n{printable(root)}\n\n{source.describe()}\n{source.facts.describe()}\n")
    print_splits(records)
    print_classes(records, reader.classes)
    if merged != reader.classes:
        print("After --merge and --ignore:")
        print_classes(remapped(records, reader.classes, merged), merged)
    problems = print_findings("Problems", PROBLEMS, findings)
    print_findings("To know", NOTES, findings)
    # What is wrong with the data set as a whole is no file to be put right or left out.
    offenders = [f.path for f in findings if f.kind in PROBLEMS and f.path != source.root]
    where = counted(len(set(offenders)), "file|files")
    many = counted(problems, "problem|problems")
    print((f"{many} in {where}." if offenders else f"{many}.") if problems else "No problems.")
    if fix_list is not None:
        names = dict.fromkeys(_below(path, source.root) for path in offenders)
        write_text(fix_list, "".join(f"{name}\n" for name in names))
        print(f"{counted(len(names), 'name|names is|are')} in {printable(fix_list)}")
    return problems


def remapped(
    records: dict[str, list[Record]], classes: ClassTable, merged: ClassTable
) -> dict[str, list[Record]]:
    """The records with their pixels by the classes that are left."""
    after, table = line_targets(merged), np.arange(256)
    for line, index in line_targets(classes).items():
        table[index] = after[line]

    def moved(one: Record) -> Record:
        if one.pixels is None:
            return one
        return replace(one, pixels=np.bincount(table, one.pixels, 256).astype(np.int64))

    return {split: [moved(one) for one in members] for split, members in records.items()}


def _below(path: Path, root: Path) -> str:
    """A file's name below the data set, or its own where it lies elsewhere."""
    return printable(path.relative_to(root) if path.is_relative_to(root) else path.name)


def find_absent(records: dict[str, list[Record]], classes: ClassTable) -> list[Finding]:
    """Classes that no mask of a split has, first those that are measured and cannot be learnt."""
    totals = {split: total_pixels(members) for split, members in records.items()}
    totals = {split: pixels for split, pixels in totals.items() if pixels.any()}
    unlearnt, others = [], []
    for index, name in enumerate(classes.names):
        lacking = [split for split, pixels in totals.items() if not pixels[index]]
        if not lacking:
            continue
        where = f" in {listed(lacking)}" if len(lacking) < len(totals) else ""
        text = f"{printable(name)} does not occur{where}"
        if "train" in lacking and "valid" in totals.keys() - lacking:
            text += ", but in valid: it cannot be learnt, and its IoU will be 0"
            unlearnt.append(Finding("absent", Path(name), text))
        else:
            others.append(Finding("absent", Path(name), text))
    return unlearnt + others


def total_pixels(records: Iterable[Record]) -> np.ndarray:
    """Pixels of each class over all masks that were read, (256,)."""
    return sum((r.pixels for r in records if r.pixels is not None), np.zeros(256, np.int64))


def print_splits(records: dict[str, list[Record]]) -> None:
    """A line a split: pairs, range of sizes, formats."""
    rows = [("split", "pairs", "width", "height", "formats")]
    for split, members in records.items():
        sizes = [record.size for record in members if record.size]
        formats = Counter(record.format for record in members if record.format)
        heights, widths = ([size[axis] for size in sizes] for axis in (0, 1))
        listed = ", ".join(f"{count} {name}" for name, count in formats.most_common())
        rows.append((split, str(len(members)), span(widths), span(heights), listed))
    print_table(rows)


def span(values: list[int]) -> str:
    """The range of some numbers."""
    low, high = min(values, default=0), max(values, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def print_classes(records: dict[str, list[Record]], classes: ClassTable) -> None:
    """A line a class: colour, and its share of each split's pixels."""
    rows = [("class", "colour", *records)]
    totals = [total_pixels(members) for members in records.values()]
    lines = [
        *enumerate(zip(classes.names, classes.colors, strict=True)),
        (IGNORE_INDEX, ("ignored", "")),
    ]
    for index, (name, color) in lines:
        if index == IGNORE_INDEX and not any(total[index] for total in totals):
            continue
        shares = [f"{total[index] / max(1, total.sum()):.2%}" for total in totals]
        rows.append((name, " ".join(map(str, color)), *shares))
    print_table(rows)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be, a line below the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    for row in rows:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())
    print()


def print_findings(title: str, kinds: dict[str, str], findings: list[Finding]) -> int:
    """The findings of some kinds, the first few of each; returns how many there are."""
    total = 0
    for kind, what in kinds.items():
        texts = [finding.text for finding in findings if finding.kind == kind]
        if not texts:
            continue
        if not total:
            print(title)
        total += len(texts)
        print(f"  {counted(len(texts), what)}")
        for text in first_few(texts):
            print(f"    {text}")
    if total:
        print()
    return total
