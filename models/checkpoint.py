"""The one way to write a checkpoint and the one way to read it; weights to start from.

A checkpoint holds tensors, numbers, strings and lists, never code, and rebuilds its own model:
`load_model(path)` needs nothing else. The article's files, which hold a state dict alone, load too.
"""

import errno
import math
import platform
from pathlib import Path

import torch
from torch import nn

from common.errors import UserError
from common.files import replacing
from common.text import printable
from config import ClassTable, ModelConfig
from models import pretrained
from models.heads import HEADS
from models.variants import VARIANTS

FORMAT = 1


def versions() -> dict[str, str]:
    """What a run's figures depend on beside the code."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def save_checkpoint(
    path: Path, model: nn.Module, config: ModelConfig, classes: ClassTable, **rest
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        model: the bare module, not wrapped.
        rest: `epoch`, `metrics`, `train_args`, and what only a resumable one holds; plain types.
    """
    content = {
        "format": FORMAT,
        "model_state_dict": model.state_dict(),
        "model_config": config.to_plain(),
        "classes": classes.to_plain(),
        "versions": versions(),
        **rest,
    }
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # PyTorch's writer hides what the system said
            why = "cannot be written, most likely because the disk is full"
            raise OSError(errno.EIO, why, str(path)) from error


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint's content as data.

    Raises:
        UserError: not there, damaged, or of a newer format than this code knows.
    """
    content = pretrained.read_checkpoint_file(path)
    number = content.get("format", 0)
    if not isinstance(number, int) or number > FORMAT:
        number = number if isinstance(number, int) else type(number).__name__
        raise UserError(
            f"{path} has the checkpoint format {number!r}, and this version knows up to {FORMAT}; "
            "update the code."
        )
    return content


def described(content: dict, path: Path) -> tuple[ModelConfig, ClassTable]:
    """The configuration and the classes that a checkpoint of ours carries, checked."""
    try:
        plain = content["model_config"]
        # Lists that hold each other have a text of any length.
        for text in (plain["variant"], plain["head"], *content["classes"]["names"]):
            if not isinstance(text, str):
                raise TypeError("a name is no text")
        config = ModelConfig(
            variant=str(plain["variant"]),
            head=str(plain["head"]),
            num_classes=int(plain["num_classes"]),
            input_size=tuple(int(side) for side in plain["input_size"]),
            mean=tuple(float(value) for value in plain["mean"]),
            std=tuple(float(value) for value in plain["std"]),
            window=None if plain.get("window") is None else int(plain["window"]),
        )
        classes = ClassTable.from_plain(content["classes"])
        in_order = (
            config.variant in VARIANTS and config.head in HEADS
            and 1 <= config.num_classes == len(classes) <= 254
            and len(config.input_size) == 2
            and all(32 <= side <= 16384 for side in config.input_size)
            and (config.window is None or 2 <= config.window <= 64)
            and len(config.mean) == len(config.std) == 3 and all(value > 0 for value in config.std)
            and all(math.isfinite(value) for value in config.mean + config.std)
            and len(classes.colors) == len(classes.vis_colors) == len(classes)
            and all(0 <= value <= 255 for value in sum(classes.colors + classes.vis_colors, ()))
            and all(printable(name) == name for name in classes.names)
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} does not describe its model completely ({type(error).__name__}: {error}); it "
            "was not written by train.py."
        ) from error
    if not in_order:
        raise UserError(f"{path} describes a model that does not exist here: {config}.")
    return config, classes


def article_described(state: dict, path: Path) -> tuple[ModelConfig, ClassTable]:
    """What an article's checkpoint leaves unsaid: FasterViT-0 at 512x512, its classes counted."""
    classifier = state.get("upsample_and_classify.13.weight")
    if classifier is None:
        raise UserError(
            f"{path} holds no segmentation model; give a checkpoint that train.py wrote."
        )
    count = classifier.shape[0] if classifier.ndim == 4 else 0
    if not 1 <= count <= 254:
        raise UserError(f"{path} has a classifier of the shape {tuple(classifier.shape)}; it is "
                        "no segmentation model.")  # fmt: skip
    classes = ClassTable.default()
    if count != len(classes):
        names = tuple(f"class {index}" for index in range(count))
        grey = tuple((value, value, value) for value in range(count))
        colours = ((0, 0, 0), *(_distinct(index) for index in range(1, count)))
        classes = ClassTable(names, grey, colours)
    return ModelConfig(num_classes=count), classes


def _distinct(index: int) -> tuple[int, int, int]:
    """The Pascal VOC colour of a class index: its bits spread over red, green and blue."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]
