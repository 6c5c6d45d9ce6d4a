"""Measure a trained model on a split, at each mask's own size.

    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves
    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves --split test
    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves --tile 512 --tta
    torchrun --nproc_per_node=4 evaluate.py --model outputs/best_model_iou.pth --data ROOT

Writes report.html to look at, metrics.json, per_image.csv, severity.csv, confusion_matrix.png and
run.json to --out-dir.
"""

import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import cli, distributed
from common.errors import UserError
from common.files import lock_folder, without_nan, write_csv, write_text
from config import DEFAULT_DATA, ClassTable
from data.source import open_source
from inference.evaluation import evaluate_pairs, example_pictures, format_table, split_metrics
from inference.predictor import Predictor
from metrics import ConfusionMatrix
from models.checkpoint import versions
from reporting.report import write_report
from reporting.samples import Sample
from trust.agreement import describe, figures, severity_agreement, write_severities
from utils import save_figure


def parse_args():
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--model")
    cli.add_shared(parser, "--data", default=DEFAULT_DATA)
    parser.add_argument("--split", choices=("train", "valid", "test"), default="valid", help="part")
    cli.add_shared(parser, "--out-dir", default=Path("outputs/evaluation"))
    cli.add_prediction_flags(parser)
    return parser.parse_args()


def write_per_image(path: Path, records: list[dict], classes: ClassTable) -> None:
    """One line a picture: its mean IoU and each class's."""
    rows = []
    for record in records:
        matrix = ConfusionMatrix.of(record["counts"])
        values = [matrix.miou(), *matrix.iou()]
        rows.append([record["file"], *(f"{v:.6f}" if v == v else "" for v in values)])
    write_csv(path, ["file", "miou", *(f"iou_{name}" for name in classes.names)], rows)


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
    options = cli.prediction_options(args)
    predictor = Predictor.load(args.model, args.imgsz, args.device, **options)
    predictor.to(distributed.init(predictor.device))
    source = open_source(args.data, (args.split,))
    reader, pairs = source.reader, source.pairs[args.split]
    if reader.classes.names != predictor.classes.names:
        raise UserError(
            f"{args.model} knows the classes {', '.join(predictor.classes.names)}, and {args.data} "
            f"has {', '.join(reader.classes.names)}; evaluate with the data's own model."
        )
    if distributed.is_main():
        print(reader.describe())
    with lock_folder(args.out_dir, distributed.is_main()):
        started = time.time()
        records = evaluate_pairs(predictor, pairs, reader)
        if distributed.is_main():
            facts = {
                "model": str(args.model),
                "data": str(args.data),
                "split": args.split,
                "input_width_height": list(predictor.size[::-1]),
                **options,
                "device": str(predictor.device),
                "processes": distributed.world_size(),
                "machine": platform.machine(),
                "weights_licence": predictor.config.weights_licence,
                "seconds": round(time.time() - started, 2),
                **versions(),
            }
            pictures = example_pictures(predictor, pairs, reader, records)
            write_results(args.out_dir, records, predictor.classes, pictures, facts)
    distributed.shutdown()
    return 0


def write_results(
    out_dir: Path,
    records: list[dict],
    classes: ClassTable,
    pictures: Iterator[Sample],
    facts: dict[str, object],
) -> None:
    """Print the figures of a split and write all files about them."""
    metrics = split_metrics(records, classes)
    severity = severity_agreement(records, classes)
    print(format_table(metrics), *map(describe, severity), sep="\n")
    summary = metrics | {"severity_agreement": [without_nan(figures(one)) for one in severity]}
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
        classes=classes,
        samples=pictures,
        facts=facts,
    )
    print(f"Results are in {out_dir}/")


if __name__ == "__main__":
    cli.run(main)
