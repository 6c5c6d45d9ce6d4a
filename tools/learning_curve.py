"""What would twice the photographs bring? Trains on shares of them, and draws the curve on.

    python tools/learning_curve.py --data input/my_leaves --recipe light

Takes all flags of train.py that describe a training. An eighth, a quarter, a half and all of the
training photographs are learnt, all but the last --repeats times, and measured on the validation
photographs. Started again with the same flags it goes on where it was stopped. Writes
learning_curve.png and learning_curve.csv to --out-dir, beside the trainings.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import cli
from common.errors import UserError
from common.files import lock_folder, write_csv, write_text
from common.text import counted
from config import DataChoices
from data.checks import check_pairs
from data.source import Source, open_source
from data.splits import settle_split
from inference.evaluation import evaluate_pairs
from inference.predictor import Predictor
from metrics import SeverityTable
from tools.convert import write_data
from training import flags
from training.run_files import BEST
from training.run_folder import RunFolder
from trust.growth import CANNOT_KNOW, COVERAGE, Outlook, miou_errors, severity_errors
from utils import save_figure

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
PARTS = (8, 4, 2, 1)  # of the training photographs an eighth, a quarter, a half, all
UNFIT = ("resume", "overwrite", "folds", "fold", "folds_file")
# What is decided once, for all shares; the shares' own data sets know it already.
DECIDED = ("groups", "merge", "ignore", "polygons", "valid_share", "recipe", "skip_bad")


def main() -> int:
    args = parse_args()
    with lock_folder(args.out_dir):
        source, pairs = open_pairs(args)
        counts = [round(len(pairs["train"]) / part) for part in PARTS]
        check_plan(args, source.fingerprint(pairs.values()))
        whole = args.out_dir / "data"
        if not (whole / "labelmap.txt").is_file():  # the last that is written
            write_data(whole, pairs, source.reader)
        areas = [
            [learn(args, count, repeat) for repeat in range(1 if part == 1 else args.repeats)]
            for part, count in zip(PARTS, counts, strict=True)
        ]
        report(args.out_dir, counts, areas, source.reader.classes.names)
    return 0


def parse_args() -> argparse.Namespace:
    parser = flags.apply_recipe(flags.make_parser(__doc__), sys.argv[1:])
    what = "trainings on each share but the whole; how far they differ is how far to trust any"
    parser.add_argument("--repeats", type=cli.number(int, 2, 20), default=2, metavar="N", help=what)
    parser.set_defaults(out_dir=Path("outputs/learning_curve"))
    args = parser.parse_args()
    for name in UNFIT:
        if getattr(args, name) not in (None, False):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is of single trainings; leave it out.")
    return args


def open_pairs(args: argparse.Namespace) -> tuple[Source, dict[str, list]]:
    """The pairs to train and to validate on, and what the recipe leaves to their sizes."""
    look = {"choices": DataChoices(**cli.data_choices(args)), "cache": not args.no_file_cache}
    source = open_source(args.data, skip_bad=args.skip_bad, **look)
    pairs = check_pairs(source, args.skip_bad)
    if source.divided:
        everything = sorted(pairs["train"] + pairs["valid"], key=lambda pair: pair.image)
        look = (source.root, source.reader, args.valid_share, args.groups, args.seed)
        pairs, _ = settle_split(args.out_dir, everything, *look, args.split_file)
    if len(pairs["train"]) < 2 * PARTS[0]:
        few = counted(len(pairs["train"]), "training photograph|photographs")
        raise UserError(f"{args.data} has {few}; a curve needs {2 * PARTS[0]} at least.")
    flags.settle_recipe(args, [source.facts.size_of(pair) for pair in pairs["train"]])
    return source, pairs


def check_plan(args: argparse.Namespace, fingerprint: str) -> None:
    """See that all trainings of the folder belong together: --repeats alone may change.

    Raises:
        UserError: the folder's trainings had other data or other flags.
    """
    path = args.out_dir / "plan.json"
    typed = flags.as_flags(flags.plain_args(args))
    own = [flag for flag in typed if not flag.startswith("--data=")]
    plan = json.dumps({"flags": own, "data": fingerprint}, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != plan:
        raise UserError(
            f"{args.out_dir}/ holds a curve of other flags or data, see plan.json; repeat them, or "
            "choose another --out-dir."
        )
    write_text(path, plan)


def learn(args: argparse.Namespace, count: int, repeat: int) -> np.ndarray:
    """Train on so many photographs, if that is not done yet, and measure.

    Returns:
        (P, 3, K) areas of the validation photographs, as `trust.growth` takes them.
    """
    data, run = (args.out_dir / f"{count}_{repeat}" / part for part in ("data", "run"))
    own = argparse.Namespace(**vars(args))
    for name in DECIDED:
        setattr(own, name, None)
    own.data, own.seed = data, args.seed + repeat
    if not RunFolder(run).is_finished(args.epochs):
        many = counted(count, "photograph|photographs")
        print(f"{many}, training {repeat + 1}", flush=True)
        link_share(args.out_dir / "data", data, share_order(args, repeat)[:count])
        call = ["--out-dir", run, "--device", args.device, "--workers", args.workers]
        train([*flags.as_flags(flags.plain_args(own)), *map(str, call), "--resume", "auto"])
    source = open_source(data, ("valid",), photographs=False)
    predictor = Predictor.load([run / BEST["miou"]], device=args.device)
    records, _ = evaluate_pairs(predictor, source.pairs["valid"], source.reader)
    return np.stack([record["areas"] for record in records])


def share_order(args: argparse.Namespace, repeat: int) -> list[str]:
    """The training photographs in a repeat's order, of which each share is the beginning.

    Shares nest within a repeat. Two repeats go through one order from its two ends: up to half of
    the photographs they have none in common, so how far they differ is how far photographs differ.
    """
    names = sorted(path.stem for path in (args.out_dir / "data" / "train_masks").iterdir())
    order = np.random.default_rng(args.seed + repeat // 2).permutation(names).tolist()
    return order[::-1] if repeat % 2 else order


def link_share(whole: Path, data: Path, chosen: list[str]) -> None:
    """Make a data set of the chosen training photographs."""

    def left_out(folder: str, files: list[str]) -> list[str]:
        learnt = Path(folder).name.startswith("train")
        return [name for name in files if learnt and Path(name).stem not in chosen]

    if data.is_dir():
        shutil.rmtree(data)
    shutil.copytree(whole, data, ignore=left_out, copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk that knows no links
        shutil.copyfile(source, target)


def train(words: list[str]) -> None:
    """Run train.py, which tells by itself what it does and what is wrong."""
    code = subprocess.run([sys.executable, str(TRAIN), *words]).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError("A training has failed, see above; then start the same command again.")


def report(out_dir: Path, counts: list[int], areas: list[list], names: tuple[str, ...]) -> None:
    """Say, draw and write what the curves of both errors foretell."""
    figure, rows = Figure(figsize=(12, 5)), []
    measures = {"1 - mIoU": miou_errors}
    for index in SeverityTable.of(names).symptoms[-1:]:
        measures[f"severity error of {names[index]}"] = lambda *of: severity_errors(*of, names)
    (plots,) = figure.subplots(1, len(measures), squeeze=False)
    for axes, (name, measure) in zip(plots, measures.items(), strict=True):
        outlook = Outlook.of(counts, areas, measure)
        print(f"{name}: {outlook.describe()}")
        rows += [[name, *row] for row in outlook.rows()]
        draw(axes, outlook)
        axes.set(xlabel="training photographs", ylabel=name.replace("$", r"\$"), ylim=(0, None))
    save_figure(out_dir / "learning_curve.png", figure)
    head = ["figure", "photographs", "kind", "error", "low", "high"]
    write_csv(out_dir / "learning_curve.csv", head, rows)
    print(CANNOT_KNOW, f"The curves are in {out_dir}/learning_curve.png", sep="\n")


def draw(axes: Axes, outlook: Outlook) -> None:
    """The trainings as points, the curves up to twice the photographs as a band."""
    now = outlook.counts[-1]
    sizes = np.geomspace(outlook.counts[0], 2 * now, 60)
    likely, low, high = np.array([outlook.growth.expected(size) for size in sizes]).T
    axes.fill_between(sizes, low, high, alpha=0.2, label=f"{COVERAGE:.0%} of the curves")
    axes.plot(sizes, likely, label="the likely curve")
    axes.plot(*np.array(outlook.points()).T, "k.", label="trainings")
    likely, low, high = outlook.growth.measured(2 * now)
    off = [[likely - low], [high - likely]]
    axes.errorbar([2 * now], [likely], off, fmt="o", capsize=4, label="one training with twice")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := [*outlook.counts, 2 * now], list(map(str, ticks)))
    axes.legend()


if __name__ == "__main__":
    cli.run(main)
