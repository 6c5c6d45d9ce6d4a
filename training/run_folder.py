"""The folder of a training: who may write there, what lies in it, and what an epoch leaves."""

import csv
import gc
import json
import math
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from common import distributed
from common.errors import UserError
from common.files import lock_folder, replacing, without_nan, write_csv, write_text
from common.packages import install_command
from config import ClassTable, ModelConfig
from models.checkpoint import read_checkpoint, save_checkpoint
from training.run_files import BEST, FINAL, HISTORY, LAST, LOG, REPORT, checkpoints_of_folds
from training.state import best_epoch
from utils import plot_curves

CURVES = {"loss": "loss", "accuracy": "pixel_accuracy", "miou": "miou"}  # file, figure
TITLES = {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy"}
# What a run leaves in its folder beside the epochs' pictures and TensorBoard's files; --overwrite
# removes all of it.
PRODUCTS = (
    *BEST.values(),
    *(FINAL, LAST, HISTORY, LOG, REPORT),
    *(f"{name}.png" for name in CURVES),
)


class RunFolder:
    """The one place that knows a run's files by name and decides which of them may be replaced.

    All processes of a run make one; only the main one writes.

    Args:
        path: the folder, which need not be there before `lock`.
        out_dir: the --out-dir that leads to it, where it is a fold's.
    """

    def __init__(self, path: Path, out_dir: Path | None = None):
        self.path, self.out_dir = path, out_dir or path
        self.last, self.report = path / LAST, path / REPORT
        self.history = path / HISTORY
        self.best = {figure: path / name for figure, name in BEST.items()}
        self.board = None  # TensorBoard's writer, if there is one
        self._token = ""
        self._outdated: set[Path] = set()  # best checkpoints that any epoch replaces

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder while the block runs.

        Raises:
            UserError: another run holds it, or it is no folder.
        """
        with lock_folder(self.path, distributed.is_main()) as self._token:
            yield

    def check_shared(self, epochs_done: object) -> None:
        """See that all processes find the folder that the main one holds, and the same run in it.

        Args:
            epochs_done: how many epochs the checkpoint has had that this process goes on from.

        Raises:
            UserError: another machine has a folder of its own there, or an older view of it.
        """
        distributed.barrier()
        lock, token = self.path / ".lock", self._token
        if not distributed.is_main():
            token = lock.read_text(encoding="utf-8") if lock.is_file() else ""
        tokens, epochs = zip(*distributed.gather((token, str(epochs_done))), strict=True)
        if len(set(tokens)) > 1:
            raise UserError(
                f"{self.path} is not the same folder for all processes; machines that share a run "
                "need an --out-dir on a disk that they share."
            )
        if len(set(epochs)) > 1:
            raise UserError(
                f"The processes found different checkpoints to go on from (epochs "
                f"{', '.join(epochs)}): the shared disk lags. Start the same command again."
            )

    def is_finished(self, epochs: int) -> bool:
        """Whether a run of so many epochs has had them all and was measured."""
        if not self.report.is_file() or not self.history.is_file():
            return False
        return len(self.history.read_bytes().splitlines()) > epochs

    def refuse_if_used(self, begun_again: bool = False) -> None:
        """Never replace a run unasked.

        Args:
            begun_again: what is left of a run that was killed in its first epoch is no run.

        Raises:
            UserError: the folder holds one.
        """
        if begun_again and self._holds_only_a_beginning():
            return
        if any((self.path / name).exists() for name in PRODUCTS):
            resume = "pass --resume to go on, " if self.last.is_file() else "pass "
            raise UserError(
                f"{self.path}/ already holds a run ({self.describe()}): {resume}"
                "--overwrite to replace it, or another --out-dir."
            )

    def _holds_only_a_beginning(self) -> bool:
        """Whether all that lies here was written for a first epoch that was not finished."""
        longer = self.history.is_file() and self.history.read_bytes().count(b"\n") > 2
        if longer or self.last.exists() or self.report.exists():
            return False
        made = [path for path in (*self.best.values(), self.path / FINAL) if path.exists()]
        return all(_epoch_of(path) == 1 for path in made)

    def describe(self) -> str:
        """What the folder's run reached, for a message."""
        if not self.history.is_file():
            return "no epoch finished"
        try:
            with open(self.history, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            best = max((float(row["valid_miou"]) for row in rows), default=math.nan)
        except (KeyError, TypeError, ValueError, csv.Error):
            return "with a history.csv of another program"
        return f"epoch {len(rows)}, best mIoU {best:.4f}"

    def how_to_go_on(self, resumed: str | None) -> str:
        """What is safe after an interruption, and the command that goes on.

        Args:
            resumed: what --resume named, if it did.
        """
        if resumed == "auto":
            return "Start the same command again: it goes on after the last finished epoch."
        out_dir = shlex.quote(str(self.out_dir))
        safe = self.last if self.last.is_file() else next(checkpoints_of_folds(self.out_dir), None)
        if safe is not None:
            return (
                f"Every finished epoch is safe in {safe}; go on from there with: "
                f"python train.py --out-dir {out_dir} --resume"
            )
        resume = f"--resume {shlex.quote(resumed)} " if resumed else ""
        return f"No epoch was finished; start again with {resume}--out-dir {out_dir} --overwrite."

    def holds(self, checkpoint: Path | None) -> bool:
        """Whether a run that goes on from this checkpoint goes on in this folder."""
        return checkpoint is not None and checkpoint.parent.samefile(self.path)

    def open(self, resumed: Path | None, epochs_done: int, tensorboard: bool) -> None:
        """Make the folder ready, now that nothing but training itself can go wrong any more.

        An earlier run is cleared away; the best of one that goes on from elsewhere comes along.

        Args:
            resumed: the checkpoint that the run goes on from, if it does.
            epochs_done: how many epochs that checkpoint has had.
            tensorboard: whether to write its files.

        Raises:
            UserError: tensorboard is not installed.
        """
        if not distributed.is_main():
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                install = install_command("tensorboard")
                raise UserError(f"--tensorboard needs a package: {install}") from error
        if not self.holds(resumed):
            self.clear()
            if resumed is not None:
                self.bring_best(resumed.parent)
        if tensorboard:
            self.board = SummaryWriter(self.path / "tensorboard")
        self._outdated = {path for path in self.best.values() if _of_later(path, epochs_done)}

    def clear(self) -> None:
        """Remove an earlier run, and nothing that is not a run's."""
        for name in PRODUCTS:
            (self.path / name).unlink(missing_ok=True)
        for pattern in ("valid_preds/epoch_*.jpg", "tensorboard/events.out.tfevents.*"):
            for path in self.path.glob(pattern):
                path.unlink()

    def bring_best(self, source: Path) -> None:
        """Take the best checkpoints along when a run goes on in another folder."""
        for path in self.best.values():
            best = source / path.name
            if best.is_file():
                with replacing(path) as temporary:
                    shutil.copyfile(best, temporary)
            else:
                print(f"{best} is not there: the best of the epochs to come takes its place.")

    def save_epoch(
        self,
        model: nn.Module,
        config: ModelConfig,
        classes: ClassTable,
        history: list,
        record: dict,
    ) -> None:
        """Write the epoch's checkpoints, the best ones where it is the best so far, and the curves.

        `last.pth` is not among them: train.py writes it after everything else of an epoch.

        Args:
            history: the figures of all epochs, this one included.
            record: what every checkpoint holds beside its model.
        """
        for (figure, path), word in zip(self.best.items(), ("IoU", "loss"), strict=True):
            missing = path in self._outdated or not path.exists()
            if missing or best_epoch(history, figure) == len(history):
                print(f"\nBest validation {word}: {history[-1][f'valid_{figure}']:.4f}")
                print(f"\nSaving best model for epoch: {len(history)}\n")
                save_checkpoint(path, model, config, classes, **record)
        self._outdated.clear()
        save_checkpoint(self.path / FINAL, model, config, classes, **record)
        write_history(self.path, history, classes.names)

    def picture(self, epoch: int) -> Path:
        """Where an epoch shows what it makes of validation pictures."""
        return self.path / "valid_preds" / f"epoch_{epoch:03d}.jpg"

    def log_to_board(self, row: dict, sheet: np.ndarray) -> None:
        """Give TensorBoard, if it is asked for, an epoch's figures and picture (HWC uint8)."""
        if self.board is None:
            return
        for name, value in row.items():
            if isinstance(value, float):
                self.board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self.board.add_image("valid_preds", sheet, row["epoch"], dataformats="HWC")
        self.board.flush()


def _of_later(path: Path, epochs_done: int) -> bool:
    """Whether a best checkpoint is of an epoch that a run which goes on has not had yet.

    A crash before `last.pth` was written leaves one, or a run from whose middle this one goes on
    with other flags.
    """
    if not path.is_file():
        return False
    try:
        epoch = _epoch_of(path)
    except UserError as error:
        print(f"{error} The best of the epochs to come takes its place.")
        return True
    return epoch is None or epoch > epochs_done


def _epoch_of(path: Path) -> int | None:
    """The epoch that a checkpoint is of, where it says so."""
    epoch = read_checkpoint(path).get("epoch")
    return epoch if isinstance(epoch, int) else None


def write_history(folder: Path, history: list[dict], names: tuple[str, ...]) -> None:
    """history.csv holds figures only, so that equal runs have equal files; log.jsonl times too."""
    columns = ["epoch", "lr"]
    columns += [f"{s}_{f}" for s in ("train", "valid") for f in ("loss", "pixel_accuracy", "miou")]
    head = columns + [f"valid_iou_{name}" for name in names]
    rows = ([row[column] for column in columns] + row["valid_iou"] for row in history)
    write_csv(folder / HISTORY, head, rows)
    lines = (json.dumps(without_nan(row)) + "\n" for row in history)
    write_text(folder / LOG, "".join(lines))
    for name, figure in CURVES.items():
        train, valid = ([row[f"{s}_{figure}"] for row in history] for s in ("train", "valid"))
        plot_curves(folder / f"{name}.png", train, valid, TITLES.get(figure, figure))
    gc.collect()  # a figure is a knot of references: left alone, each epoch takes 3.5 MiB more
