"""What an epoch changes, so that a stopped training goes on as if it had not been stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from common import distributed
from common.errors import UserError
from config import ClassTable, MaskReading, ModelConfig
from models.pretrained import load_exactly
from training.precision import Precision


@contextmanager
def damage_explained() -> Iterator[None]:
    """Say in a sentence what is raised by a checkpoint that a stranger, or a disk, changed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"The run cannot go on, because its checkpoint is incomplete or damaged "
            f"({type(error).__name__}); start a new one, its best_model_iou.pth can serve as "
            "--weights."
        ) from error


@dataclass
class TrainingState:
    """What an epoch changes, and `last.pth` therefore holds.

    Args:
        model: the bare module, with the weights that are trained.
        precision: with the gradient scaler that fp16 needs.
        ema: a moving average of the model's weights, where there is one.
        history: the figures of the epochs that are done.
        started_from: where the first weights came from, in words.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: ModelEmaV3 | None = None
    history: list[dict] = field(default_factory=list)
    started_from: str = ""

    @property
    def eval_model(self) -> nn.Module:
        """The weights that are measured and saved."""
        return self.model if self.ema is None else self.ema.module

    def to_plain(self) -> dict:
        """What `restore` needs, as plain types: the tensors themselves, so write it at once.

        All processes call it, for the states of their random numbers.
        """
        return {
            "live_model_state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "history": self.history,
            "random_states": random_states(),
        }

    def restore(self, saved: dict) -> None:
        """Go back to where `to_plain` was called; learning rates and decay stay those of now.

        Raises:
            UserError: the checkpoint is incomplete or damaged.
        """
        keys = ("base_lr", "weight_decay")
        flags = [{key: group[key] for key in keys} for group in self.optimizer.param_groups]
        with damage_explained():
            load_exactly(self.model, saved["live_model_state_dict"], Path("the run's checkpoint"))
            self.optimizer.load_state_dict(saved["optimizer"])
            if saved["scaler"] and self.precision.scaler.is_enabled():
                self.precision.scaler.load_state_dict(saved["scaler"])
            if self.ema is not None:  # one that is new begins with the run's weights
                average = saved["ema"] or saved["live_model_state_dict"]
                load_exactly(self.ema.module, average, Path("the run's checkpoint"))
            restore_random_states(saved["random_states"])
            self.history = saved["history"]
            best_epoch(self.history, "miou")
            self.started_from = str(saved.get("started_from", "not recorded"))
        for group, typed in zip(self.optimizer.param_groups, flags, strict=True):
            group |= typed


def check_same_run(
    saved: dict, config: ModelConfig, classes: ClassTable, flags: dict, fingerprint: str
) -> None:
    """Refuse to go on with what is not the same run.

    Args:
        saved: the content of a last.pth.
        flags: those of today that must be the same, text or None by name.
        fingerprint: of the data's files.

    Raises:
        UserError: names the first difference, or the checkpoint is incomplete or damaged.
    """
    with damage_explained():
        then, names = saved["model_config"], saved["classes"]
        read_now = config.mask_reading and _words(config.mask_reading)
        read_then = then.get("mask_reading")
        read_then = _words(MaskReading.from_plain(read_then)) if read_then else read_now
        typed = {name: saved["train_args"].get(name) for name in flags}
        # Lists that hold each other have a text of any length.
        if not all(isinstance(value, str | None) for value in typed.values()):
            raise TypeError("a flag is no text")
        compared = [
            ("--model", then["variant"], config.variant),
            ("--head", then["head"], config.head),
            ("--window", then.get("window"), config.window),
            ("--imgsz", list(then["input_size"])[::-1], list(config.input_size)[::-1]),
            ("--crop", then.get("crop_side") is not None, config.crop_side is not None),
            ("--photo-size", then.get("photo_size"), config.photo_size),
            ("classes", names["names"], list(classes.names)),
            ("class colours", names["colors"], [list(color) for color in classes.colors]),
            # Of the data's files the fingerprint knows names and sizes, not what is in them.
            ("masks with", read_then, read_now),
            *((f"--{name}", typed[name], now) for name, now in flags.items()),
            ("data files", saved["data_fingerprint"][:12], fingerprint[:12]),
        ]
        differences = [row for row in compared if row[1] != row[2]]
    for what, before, now in differences[:1]:
        raise UserError(
            f"The run to resume had {what} {before}, not {now}; give the same, or start a new "
            "run in another --out-dir (its weights can serve as --weights)."
        )


def _words(reading: MaskReading) -> str:
    """How masks are read, as a message says it."""
    return f"grey levels as {reading.grey}, palettes as {reading.palette}, JPEGs as {reading.jpeg}"


def best_epoch(history: list[dict], figure: str) -> int:
    """The first epoch with the highest mIoU or the lowest loss; a NaN is never the best."""
    sign = -1 if figure == "loss" else 1
    values = [sign * row[f"valid_{figure}"] for row in history]
    return 1 + max(range(len(values)), key=lambda i: (values[i] == values[i], values[i], -i))


def random_states() -> list[dict]:
    """The state of every generator that each process uses, as plain types."""
    kind, keys, *rest = np.random.get_state()
    own = {
        "torch": torch.get_rng_state(),
        # Of the GPU in use alone: another would be opened by the question.
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
        "numpy": [kind, keys.tolist(), *rest],
    }
    return distributed.gather(own)


def restore_random_states(states: list[dict]) -> None:
    """Put every generator back where `random_states` saw it."""
    if len(states) != distributed.world_size():
        return  # another number of processes draws other numbers anyway
    own = states[distributed.rank()]
    torch.set_rng_state(own["torch"])
    if own["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(own["cuda"][0])
    kind, keys, *rest = own["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
