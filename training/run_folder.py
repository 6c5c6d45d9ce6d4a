"""The folder of a training: who may write there, and what an epoch leaves.

`last.pth` is not among it: train.py writes it after everything else of an epoch.
"""

import csv
import json
import math
import shutil
from pathlib import Path

from torch import nn

from common import distributed
from common.errors import UserError
from common.files import replacing, without_nan, write_csv, write_text
from config import ClassTable, ModelConfig
from models.checkpoint import read_checkpoint, save_checkpoint
from training.state import best_epoch
from utils import plot_curves

BEST = {"miou": "best_model_iou.pth", "loss": "best_model_loss.pth"}
# What a run leaves in its folder beside the epochs' pictures and TensorBoard's files; --overwrite
# removes all of it.
PRODUCTS = (*BEST.values(), "model.pth", "last.pth", "history.csv",
            "log.jsonl", "loss.png", "accuracy.png", "miou.png", "report.html")  # fmt: skip


def refuse_used_folder(out_dir: Path) -> None:
    """Never replace a run unasked.

    Raises:
        UserError: the folder holds one.
    """
    if any((out_dir / name).exists() for name in PRODUCTS):
        resume = "pass --resume to go on, " if (out_dir / "last.pth").is_file() else "pass "
        raise UserError(
            f"{out_dir}/ already holds a run ({describe_run(out_dir)}): {resume}"
            "--overwrite to replace it, or another --out-dir."
        )


def describe_run(out_dir: Path) -> str:
    """What a folder's run reached, for a message."""
    history = out_dir / "history.csv"
    if not history.is_file():
        return "no epoch finished"
    try:
        with open(history, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        best = max((float(row["valid_miou"]) for row in rows), default=math.nan)
    except (KeyError, TypeError, ValueError, csv.Error):
        return "with a history.csv of another program"
    return f"epoch {len(rows)}, best mIoU {best:.4f}"


def check_shared_disk(out_dir: Path, token: str) -> None:
    """See that all processes find the folder that the main one holds.

    Raises:
        UserError: another machine has a folder of its own there.
    """
    distributed.barrier()
    lock = out_dir / ".lock"
    if not distributed.is_main():
        token = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    if len(set(distributed.gather(token))) > 1:
        raise UserError(
            f"{out_dir} is not the same folder for all processes; machines that share a run need "
            "an --out-dir on a disk that they share."
        )


def clear_folder(out_dir: Path) -> None:
    """Remove an earlier run; called when nothing but training itself can go wrong any more."""
    for path in [out_dir / name for name in PRODUCTS]:
        path.unlink(missing_ok=True)
    for pattern in ("valid_preds/epoch_*.jpg", "tensorboard/events.out.tfevents.*"):
        for path in out_dir.glob(pattern):
            path.unlink()


def bring_best(source: Path, out_dir: Path) -> None:
    """Take the best checkpoints along when a run goes on in another folder."""
    for name in BEST.values():
        if not (source / name).is_file():
            print(f"{source / name} is not there: the best of the epochs to come takes its place.")
            continue
        with replacing(out_dir / name) as temporary:
            shutil.copyfile(source / name, temporary)


def best_of_other_epochs(out_dir: Path, done: int) -> set[str]:
    """The best checkpoints of epochs that a run which goes on after `done` of them has not had.

    They are left by a crash before `last.pth` was written, or by a run from whose middle this one
    goes on with other flags.
    """
    others = set()
    for name in BEST.values():
        if not (out_dir / name).is_file():
            continue
        try:
            epoch = read_checkpoint(out_dir / name).get("epoch")
        except UserError as error:
            print(f"{error} The best of the epochs to come takes its place.")
            epoch = None
        if not isinstance(epoch, int) or epoch > done:
            others.add(name)
    return others


def save_epoch(out_dir: Path, model: nn.Module, config: ModelConfig, classes: ClassTable,
               history: list[dict], common: dict, replaced: set[str]) -> None:  # fmt: skip
    """Write the epoch's checkpoints, the best ones where it is the best so far, and the curves.

    Args:
        common: what every checkpoint holds beside its model.
        replaced: names of best checkpoints to replace by any epoch; those that were are taken out.
    """
    for (figure, file), word in zip(BEST.items(), ("IoU", "loss"), strict=True):
        missing = file in replaced or not (out_dir / file).exists()
        if missing or best_epoch(history, figure) == len(history):
            replaced.discard(file)
            print(f"\nBest validation {word}: {history[-1][f'valid_{figure}']}")
            print(f"\nSaving best model for epoch: {len(history)}\n")
            save_checkpoint(out_dir / file, model, config, classes, **common)
    save_checkpoint(out_dir / "model.pth", model, config, classes, **common)
    write_history(out_dir, history, classes.names)


def write_history(out_dir: Path, history: list[dict], names: tuple[str, ...]) -> None:
    """history.csv holds figures only, so that equal runs have equal files; log.jsonl times too."""
    columns = ["epoch", "lr"]
    columns += [f"{s}_{f}" for s in ("train", "valid") for f in ("loss", "pixel_accuracy", "miou")]
    head = columns + [f"valid_iou_{name}" for name in names]
    rows = ([row[column] for column in columns] + row["valid_iou"] for row in history)
    write_csv(out_dir / "history.csv", head, rows)
    lines = (json.dumps(without_nan(row)) + "\n" for row in history)
    write_text(out_dir / "log.jsonl", "".join(lines))
    for name, figure, title in (("loss.png", "loss", "loss"), ("miou.png", "miou", "mean IoU"),
                                ("accuracy.png", "pixel_accuracy", "pixel accuracy")):  # fmt: skip
        train, valid = (
            [row[f"{split}_{figure}"] for row in history] for split in ("train", "valid")
        )
        plot_curves(out_dir / name, train, valid, title)
