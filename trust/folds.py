"""Cross-validation: which photographs each fold leaves out, and what it says of them.

A folder of folds holds folds.csv and a run in fold_0, fold_1 and so on. Together they are a model
(see `inference.predictor`). Apart they measure it on all photographs, each by the one fold that has
not seen it: the out-of-fold prediction (Stone 1974).
"""

import math
import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import distributed
from common.distributed import say
from common.errors import UserError
from common.text import agreed, counted
from data.checks import span
from data.pairs import Pair
from data.source import Source
from data.splits import FOLDS_FILE, Division, make_folds, name_of
from inference.predictor import Predictor
from metrics import ClassAreas
from training.run_files import BEST, checkpoints_of_folds, fold_folder
from training.run_folder import RunFolder

# Number of the fold, or None, its predictor, and the pairs that this one has not seen.
Part = tuple[int | None, Predictor, list[Pair]]


def settle_folds(
    out_dir: Path,
    pairs: Sequence[Pair],
    source: Source,
    count: int,
    groups: str | None,
    seed: int,
    given: Path | None = None,
    *,
    goes_on: bool = False,
    anew: bool = False,
) -> list[int]:
    """Decide the fold of each pair and write folds.csv, before anything is learnt.

    Several machines that train a fold each decide the same.

    Args:
        groups: as `data.splits.group_pairs` takes it.
        given: a folds.csv to take.
        goes_on: keep to the folder's own folds.csv.
        anew: clear away all that the folder's folds hold.

    Raises:
        UserError: the folds do not fit the pairs, or contradict those of the folder.
    """
    path = out_dir / FOLDS_FILE
    own = Division.read(path, "fold") if path.is_file() and not anew else None
    if goes_on and own is None and any(checkpoints_of_folds(out_dir)):
        raise UserError(f"{path} is not there any more, and the run depends on it; put it back.")
    if own and goes_on:
        division, remark = own, f"They are those of {path}."
    elif given:
        division, remark = Division.read(given, "fold"), f"They are those of {given}."
    else:
        division, remark = make_folds(pairs, source.root, source.reader, count, groups, seed)
    folds = [int(part) for part in division.part_of(pairs, source.root, given or path)]
    if own and (own.count != count or own.parts != division.parts):
        raise UserError(
            f"{path} has {own.count} other folds; give the --folds, --groups and --seed that they "
            "were made with, pass --overwrite to replace all, or take another --out-dir."
        )
    sizes = [folds.count(number) for number in range(count)]
    say(f"{count} folds of {span(sizes)} {agreed(max(sizes), 'photograph|photographs')}. {remark}")
    distributed.barrier()  # all have looked at the folder
    if distributed.is_main() and own is None:
        if anew:
            _clear_folds(out_dir)
        division.write(path)
    return folds


def _clear_folds(out_dir: Path) -> None:
    """Remove what earlier folds left, and nothing that is not a run's."""
    for folder in map(RunFolder, sorted(out_dir.glob("fold_*"))):
        with folder.lock():
            folder.clear()


def next_step(out_dir: Path, count: int, root: Path) -> str:
    """What a person does after some folds are trained."""
    paths = [fold_folder(out_dir, number) / BEST["miou"] for number in range(count)]
    missing = [str(number) for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        return f"Folds still to train: {', '.join(missing)}"
    words = "python", "evaluate.py", "--model", str(out_dir), "--data", str(root)
    return f"All folds are trained; measure them: {shlex.join(words)}"


def folds_of(models: Sequence[Path]) -> Path | None:
    """The folds.csv of what --model names, if that is a folder of folds."""
    path = models[0] / FOLDS_FILE
    return path if len(models) == 1 and path.is_file() else None


def warn_of_seen(folds: Path, pairs: Sequence[Pair], root: Path) -> None:
    """Say so where pictures that an ensemble is measured on are those that it was trained on."""
    known = Division.read(folds, "fold").parts
    seen = sum(name_of(pair.image, root) in known for pair in pairs)
    if seen:
        many, have = counted(len(pairs), "photograph|photographs"), agreed(seen, "has|have")
        print(
            f"{seen} of {many} {have} a name that {folds} divides: if they are the same, all folds "
            "but one have learnt them, and these figures are too good. Leave --split out to "
            "measure each by the fold that has not seen it."
        )


def each_fold(
    predictor: Predictor, folds: Path, pairs: Sequence[Pair], root: Path
) -> Iterator[Part]:
    """Each fold's own predictor with the pairs that it has not seen.

    Args:
        predictor: of the folder that `folds`, a folds.csv, lies in.
        pairs: of the data set below `root` that the folds were made of, or some of them.

    Yields:
        the fold's number, its predictor, and its pairs, which may be none.

    Raises:
        UserError: a pair is not in folds.csv.
    """
    parts = Division.read(folds, "fold").part_of(pairs, root, folds)
    for number, member in enumerate(predictor.members):
        own = [pair for pair, part in zip(pairs, parts, strict=True) if part == str(number)]
        yield number, member, own


def fold_figures(records: Sequence[dict]) -> tuple[dict, str]:
    """What cross-validation adds to the figures of all pictures: those of the folds apart.

    The spread is the standard deviation of the folds' mIoU (with n - 1). Folds share most of what
    they are trained on, so it is no standard error of the mean (Bengio and Grandvalet 2004).

    Args:
        records: one a picture, each with its `fold`.

    Returns:
        figures for the metrics, and a sentence.
    """
    numbers = sorted({record["fold"] for record in records})
    parts = ([r["areas"] for r in records if r["fold"] == number] for number in numbers)
    mious = [ClassAreas(sum(part)).miou() for part in parts]
    low, mid, high = min(mious), statistics.fmean(mious), max(mious)
    spread = statistics.stdev(mious) if len(mious) > 1 else math.nan
    figures = {"miou_mean_of_folds": mid, "miou_spread_of_folds": spread, "fold_miou": mious}
    return figures, (
        f"Each picture was measured by the one of {len(mious)} folds that has not seen it. mIoU of "
        f"the folds: mean {mid:.4f}, standard deviation {spread:.4f}, {low:.4f} to {high:.4f}."
    )
