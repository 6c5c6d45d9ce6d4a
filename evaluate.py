"""Measure a trained model on a split, at each mask's own size.

    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves
    python evaluate.py --model outputs/best_model_iou.pth --data input/my_leaves --split test
    torchrun --nproc_per_node=4 evaluate.py --model outputs/best_model_iou.pth --data ROOT

Writes report.html to look at, metrics.json, per_image.csv, confusion_matrix.png and run.json to
--out-dir.
"""

import csv
import io
import json
import platform
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from common import cli, distributed
from common.errors import UserError
from common.files import lock_folder, replacing, without_nan, write_text
from config import DEFAULT_DATA, ClassTable
from data.masks import MaskReader
from data.pairs import find_pairs
from inference.evaluation import evaluate_pairs, samples, summarise, table
from inference.predictor import Predictor
from metrics import ConfusionMatrix
from models.checkpoint import versions
from reporting.report import write_report


def parse_args():
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--model", "--imgsz")
    cli.add_shared(parser, "--data", default=DEFAULT_DATA)
    parser.add_argument("--split", choices=("train", "valid", "test"), default="valid", help="part")
    cli.add_shared(parser, "--out-dir", default=Path("outputs/evaluation"))
    return parser.parse_args()


def write_per_image(path: Path, records: list[dict], classes: ClassTable) -> None:
    """One line a picture: its mean IoU and each class's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "miou", *(f"iou_{name}" for name in classes.names)])
    for record in records:
        matrix = ConfusionMatrix(len(classes))
        matrix.counts += torch.from_numpy(record["counts"])
        values = [matrix.miou(), *matrix.iou()]
        writer.writerow([record["file"], *(f"{v:.6f}" if v == v else "" for v in values)])
    write_text(path, text.getvalue())


def draw_confusion(path: Path, metrics: dict) -> None:
    """The confusion matrix as a picture, each row as shares of the true class."""
    counts = np.array(metrics["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [name.replace("$", r"\$") for name in metrics["classes"]]  # no mathematics in names
    side = min(30, 3 + 0.7 * len(names))
    figure, axes = plt.subplots(figsize=(side + 1, side))
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.1%}", ha="center", va="center", color=color)
    figure.tight_layout()
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        plt.close(figure)


def main() -> int:
    args = parse_args()
    predictor = Predictor.load(args.model, args.imgsz, args.device)
    predictor.to(distributed.init(predictor.device))
    reader = MaskReader.for_data(args.data)
    if reader.classes.names != predictor.classes.names:
        raise UserError(
            f"{args.model} knows the classes {', '.join(predictor.classes.names)}, and {args.data} "
            f"has {', '.join(reader.classes.names)}; evaluate with the data's own model."
        )
    pairs = find_pairs(args.data, args.split)
    if distributed.is_main():
        print(reader.describe())
    with lock_folder(args.out_dir, distributed.is_main()):
        started = time.time()
        records = evaluate_pairs(predictor, pairs, reader)
        if distributed.is_main():
            metrics = summarise(records, predictor.classes)
            print(table(metrics))
            write_text(
                args.out_dir / "metrics.json", json.dumps(without_nan(metrics), indent=1) + "\n"
            )
            write_per_image(args.out_dir / "per_image.csv", records, predictor.classes)
            draw_confusion(args.out_dir / "confusion_matrix.png", metrics)
            facts = {
                "model": str(args.model), "data": str(args.data), "split": args.split,
                "input_width_height": list(predictor.size[::-1]), "device": str(predictor.device),
                "processes": distributed.world_size(), "machine": platform.machine(),
                "seconds": round(time.time() - started, 2), **versions(),
            }  # fmt: skip
            write_text(args.out_dir / "run.json", json.dumps(facts, indent=1) + "\n")
            write_report(
                args.out_dir / "report.html", title=f"Evaluation of {args.model}", metrics=metrics,
                classes=predictor.classes, samples=samples(predictor, pairs, reader, records),
                facts=facts,
            )  # fmt: skip
            print(f"Results are in {args.out_dir}/")
    distributed.shutdown()
    return 0


if __name__ == "__main__":
    cli.run(main)
