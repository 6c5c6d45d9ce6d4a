"""Measure a trained model on a split, at each mask's own size.

    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves
    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves --split test
    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves --tile 512 --tta
    python evaluate.py --model outputs/cv --data input/my_leaves    # each picture out of its fold
    python evaluate.py --model outputs/cv --data input/my_leaves --calibrate --find-label-errors
    torchrun --nproc_per_node=4 evaluate.py --model outputs/best_model_iou.pth --data ROOT

Writes report.html to look at, metrics.json, per_image.csv, severity.csv, confusion_matrix.png and
run.json to --out-dir, with --find-label-errors suspects.html and suspects.csv, too.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import common.environment  # noqa: F401 - first, to say what is not installed

import numpy as np
from matplotlib.figure import Figure

from common import cli, distributed
from common.device import compute_repeatably
from common.errors import UserError
from common.files import lock_folder, without_nan, write_csv, write_text
from common.text import counted, printable, read_text
from config import DEFAULT_DATA, ClassTable
from data.masks import MaskReader
from data.pairs import SPLITS, Pair
from data.source import Source, open_source
from data.splits import SPLIT_FILE, Division, choose_part, group_pairs
from inference.evaluation import (
    evaluate_pairs,
    example_pictures,
    format_table,
    least_sure,
    split_metrics,
)
from inference.predictor import Predictor
from metrics import ClassAreas
from models.checkpoint import versions
from reporting.report import write_report
from reporting.samples import Sample
from reporting.suspects import write_suspects_page
from trust.agreement import describe_all, figures, severity_agreement, unmeasured, write_severities
from trust.calibration import (
    Calibration,
    carry,
    describe_calibration,
    read_calibration,
    reliability_figures,
)
from trust.folds import Part, each_fold, fold_figures, folds_of, warn_of_seen
from trust.label_errors import Suspect, find_suspects, suspect_views, write_suspects
from utils import save_figure


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--deterministic", "--model")
    cli.add_shared(parser, "--data", default=DEFAULT_DATA)
    what = "part; valid if not given, and of a folder of folds all that it was trained on, each "
    what += "picture measured by the fold that has not seen it"
    parser.add_argument("--split", choices=("train", "valid", "test", "all"), help=what)
    what = "split.csv that train.py wrote; the one beside the model if not given"
    cli.add_shared(parser, "--split-file", help=what)
    what = (
        'pictures of one plant or scene, a pattern on names such as "(.*)_\\d+" or a CSV file with '
    )
    what += "file and group: the concordance's interval draws them together; those of folds.csv"
    cli.add_shared(parser, "--groups", help=what)
    cli.add_shared(parser, "--out-dir", default=Path("outputs/evaluation"))
    cli.add_shared(parser, "--no-file-cache")
    cli.add_shared(parser, "--skip-bad")
    what = "learn from these pictures how far the model errs, and keep it in the model: severities "
    what += "then have an interval. For pictures that the model was not trained on"
    parser.add_argument("--calibrate", action="store_true", help=what)
    what = "list and show the masks that contradict what the model sees: of a folder of folds, or "
    what += "of pictures that the model was not trained on"
    parser.add_argument("--find-label-errors", action="store_true", help=what)
    cli.add_prediction_flags(parser)
    return parser.parse_args()


def write_per_image(path: Path, records: list[dict], classes: ClassTable) -> None:
    """One line a picture: its confidence, its mean IoU and each class's, its fold if it has one."""
    rows = []
    folds = ["fold"] if "fold" in records[0] else []
    for record in records:
        areas = ClassAreas(record["areas"])
        values = [record["soft"].confidence(), areas.miou(), *areas.iou()]
        figures = (f"{v:.6f}" if v == v else "" for v in values)
        rows.append([record["file"], *(record[column] for column in folds), *figures])
    head = ["file", *folds, "confidence", "miou", *(f"iou_{name}" for name in classes.names)]
    write_csv(path, head, rows)


def draw_confusion(path: Path, metrics: dict) -> None:
    """The confusion matrix as a picture, each row as shares of the true class."""
    counts = np.array(metrics["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [name.replace("$", r"\$") for name in metrics["classes"]]  # no mathematics in names
    side = min(30, 3 + 0.7 * len(names))
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.1%}", ha="center", va="center", color=color)
    save_figure(path, figure)


def main() -> int:
    args = parse_args()
    if args.deterministic:
        compute_repeatably()
    options, shown = cli.prediction_options(args), ", ".join(map(str, args.model))
    predictor = Predictor.load(args.model, args.imgsz, args.device, **options)
    distributed.init(predictor.device)
    table = folds_of(args.model)
    folds = table if args.split is None else None
    split = "out of fold" if folds else args.split or "valid"
    look = {"as_trained": predictor.config.mask_reading, "choices": predictor.config.choices}
    look |= {"skip_bad": args.skip_bad, "cache": not args.no_file_cache}
    refuse_to_learn_from_seen(args, table is not None)
    source, pairs = open_pairs(args.data, split, args.model[0], args.split_file, look)
    reader = source.reader
    if reader.classes.names != predictor.classes.names:
        raise UserError(
            f"{shown} knows the classes {', '.join(predictor.classes.names)}, and {args.data} "
            f"has {', '.join(reader.classes.names)}; evaluate with the data's own model."
        )
    of_all = [(None, predictor, pairs)]
    parts = list(each_fold(predictor, folds, pairs, source.root)) if folds else of_all
    groups = groups_of(parts, args.groups, folds, source.root)
    if distributed.is_main():
        print(reader.describe(), source.facts.describe(), sep="\n")
        if table and not folds:
            warn_of_seen(table, pairs, source.root)
    with lock_folder(args.out_dir, distributed.is_main()):
        say_what_is_replaced(args.out_dir)
        started = time.time()
        records, confusion, pictures = measure_parts(parts, groups, reader)
        seconds = time.time() - started
        suspects = find_suspects(parts, reader) if args.find_label_errors else None
        if distributed.is_main():
            facts = facts_of(args, predictor, options | {"split": split}, seconds)
            known = read_calibration(args.model)
            if args.calibrate:
                known = Calibration.of(records, predictor, bool(folds))
                print(describe_calibration(known, carry(args.model, known)))
            measured = records, confusion, predictor.classes
            write_results(args.out_dir, *measured, pictures, facts, known)
            if suspects is not None:
                report_suspects(args.out_dir, suspects, parts, reader)
    distributed.shutdown()
    return 0


def facts_of(
    args: argparse.Namespace, predictor: Predictor, options: dict, seconds: float
) -> dict[str, object]:
    """What the figures depend on, for run.json and the report."""
    return {
        "model": ", ".join(map(str, args.model)),
        "data": str(args.data),
        "input_width_height": list(predictor.size[::-1]),
        **options,
        "device": str(predictor.device),
        "processes": distributed.world_size(),
        "machine": platform.machine(),
        "weights_licence": predictor.config.weights_licence,
        "seconds": round(seconds, 2),
        **versions(),
    }


def say_what_is_replaced(out_dir: Path) -> None:
    """A line on the evaluation that this one replaces, if there is one: it can be had again."""
    path = out_dir / "run.json"
    try:
        facts = json.loads(read_text(path))
        model, data = (printable(facts[name])[:200] for name in ("model", "data"))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    distributed.say(
        f"{out_dir}/ holds the evaluation of {model} on {data} of {when}: it is replaced."
    )


def refuse_to_learn_from_seen(args: argparse.Namespace, has_folds: bool) -> None:
    """Errors on pictures that a model was trained on say nothing of others.

    Raises:
        UserError: --calibrate or --find-label-errors was asked for on such pictures.
    """
    seen = ("train", "valid", "all") if has_folds else ("train", "all")
    if (args.calibrate or args.find_label_errors) and args.split in seen:
        flag = "--calibrate" if args.calibrate else "--find-label-errors"
        raise UserError(
            f"{flag} --split {args.split} would learn from pictures that the model has been "
            f"trained on; {'leave --split out' if has_folds else 'use --split valid or test'}."
        )


def open_pairs(
    root: Path, split: str, model: Path, table: Path | None, look: dict
) -> tuple[Source, list[Pair]]:
    """Open a data set, and choose the pairs that are measured.

    Args:
        split: "train", "valid" or "test"; anything else is all of training and validation.
        model: beside which train.py has left the split.csv of data without splits.
        table: another split.csv.
        look: how `open_source` looks at the data.

    Raises:
        UserError: there is no such split, or nothing says which pictures are in it.
    """
    both = "train", "valid"
    source = open_source(root, (split,) if split in SPLITS else both, photographs=False, **look)
    if split in both and (table or source.divided):
        table = table or (model if model.is_dir() else model.parent) / SPLIT_FILE
        if not table.is_file():
            raise UserError(
                f"{root} does not say which photographs are for validation, and {table} is not "
                "there; name the training's with --split-file, or measure all with --split all."
            )
        source = open_source(root, both, photographs=False, **look)
        pairs = source.pairs["train"] + source.pairs["valid"]
        return source, choose_part(pairs, source.root, table, split)
    return source, [pair for own in source.pairs.values() for pair in own]


def measure_parts(
    parts: list[Part], groups: list[str], reader: MaskReader
) -> tuple[list[dict], np.ndarray, Iterator[Sample]]:
    """Measure every pair by the predictor of its part.

    Args:
        groups: of `groups_of`.

    Returns:
        a record a picture, with its fold and its group where there are any; the (K, K) confusion
        of all; and a few of the pictures.
    """
    records, confusion, pairs, predictors = [], 0, [], []
    for number, predictor, own in parts:
        fold = {} if number is None else {"fold": number}
        measured, counts = evaluate_pairs(predictor, own, reader)
        records += [record | fold for record in measured]
        confusion = confusion + counts
        pairs += own
        predictors += [predictor] * len(own)
    for record, group in zip(records, groups, strict=bool(groups)):
        record["group"] = group
    return records, confusion, example_pictures(predictors, pairs, reader, records)


def groups_of(parts: list[Part], groups: str | None, folds: Path | None, root: Path) -> list[str]:
    """The group of each record to come; none where nothing says what belongs together.

    Args:
        groups: as `data.splits.group_pairs` takes it, or None for those of `folds`, a folds.csv.
    """
    pairs = [pair for _, _, own in parts for pair in own]
    if groups:
        return group_pairs(pairs, root, groups)[0]
    return Division.read(folds, "fold").group_of(pairs, root) if folds else []


def report_suspects(
    out_dir: Path, suspects: list[Suspect], parts: list[Part], reader: MaskReader
) -> None:
    """Write suspects.csv and suspects.html, the worst mask first."""
    write_suspects(out_dir / "suspects.csv", suspects, reader.classes.names)
    views = suspect_views(suspects, parts, reader)
    title = f"Masks of {counted(len(suspects), 'picture|pictures')}"
    write_suspects_page(out_dir / "suspects.html", title, reader.classes, views)
    print(f"Masks to look at again are in {out_dir}/suspects.html")


def write_results(
    out_dir: Path,
    records: list[dict],
    confusion: np.ndarray,
    classes: ClassTable,
    pictures: Iterator[Sample],
    facts: dict[str, object],
    known: Calibration | None,
) -> None:
    """Print the figures of a split and write all files about them."""
    reliability = reliability_figures(records, classes, known and known.temperature)
    metrics = split_metrics(records, confusion, classes)
    severity = severity_agreement(records, classes)
    print(format_table(metrics), describe_all(severity, classes), sep="\n")
    if "fold" in records[0]:
        of_folds, sentence = fold_figures(records)
        metrics |= of_folds
        print(sentence)
    summary = metrics | {"severity_agreement": [without_nan(figures(one)) for one in severity]}
    summary["reliability"] = reliability
    write_text(out_dir / "metrics.json", json.dumps(without_nan(summary), indent=1) + "\n")
    write_per_image(out_dir / "per_image.csv", records, classes)
    write_severities(out_dir / "severity.csv", severity)
    draw_confusion(out_dir / "confusion_matrix.png", metrics)
    write_text(out_dir / "run.json", json.dumps(facts, indent=1) + "\n")
    write_report(
        out_dir / "report.html",
        title=f"Evaluation of {facts['model']}",
        metrics=metrics,
        severity=severity,
        severity_note=unmeasured(severity, classes),
        reliability=reliability,
        doubtful=least_sure(records),
        classes=classes,
        samples=pictures,
        facts=facts,
    )
    print(f"Results are in {out_dir}/")


if __name__ == "__main__":
    cli.run(main)
