"""The one way to write a checkpoint and the one way to read it, whatever its origin.

A checkpoint holds tensors, numbers, strings and lists, never code, and rebuilds its own model:
`segmentation_model.load_model(path)` needs nothing else. The article's files, which hold a state
dict alone, and NVIDIA's are read, too.
"""

import argparse
import errno
import math
import pickle
import platform
import zipfile
from pathlib import Path

import torch
from torch import nn

from common.errors import UserError
from common.files import replacing
from common.text import printable
from config import ClassTable, DataChoices, MaskReading, ModelConfig, voc_color
from models.heads import HEADS
from models.timm_backbone import is_timm
from models.variants import VARIANTS

FORMAT = 1
# NVIDIA's files carry caches of the size that was trained at. They are computed, never learnt.
CACHES = (".relative_coords_table", ".relative_position_index", ".relative_bias")
# What weights are made of; a file may hold other kinds of tensors, which no layer of ours has.
PLAIN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PLAIN_TYPES += (torch.int32, torch.int64, torch.uint8, torch.bool)
# The carrier tokenizer's position convolution is stored there a second time under this name.
SECOND_NAME = ".to_global_feature.pos."


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
    _write(path, content)


def _write(path: Path, content: dict) -> None:
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # PyTorch's writer hides what the system said
            why = "cannot be written, most likely because the disk is full"
            raise OSError(errno.EIO, why, str(path)) from error


def add_to_checkpoint(path: Path, **more) -> None:
    """Write more plain values into a checkpoint of ours, whole or not at all.

    Raises:
        UserError: it was not written by train.py, or cannot be read.
    """
    content = read_checkpoint(path)
    if "model_state_dict" not in content or "model_config" not in content:
        raise UserError(
            f"{path} was not written by train.py, so it cannot carry more than weights."
        )
    _write(path, content | more)


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint's content as data.

    Raises:
        UserError: not there, damaged, or of a newer format than this code knows.
    """
    content = read_as_data(path)
    number = content.get("format", 0)
    if not isinstance(number, int) or number > FORMAT:
        number = number if isinstance(number, int) else type(number).__name__
        raise UserError(
            f"{path} has the checkpoint format {number!r}, and this version knows up to {FORMAT}; "
            "update the code."
        )
    return content


def read_as_data(path: Path) -> dict:
    """Read a file written by `torch.save` as plain data: tensors, numbers, strings, containers.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or it asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a checkpoint.")
    _refuse_inflated(path)
    try:
        # NVIDIA's files hold their training flags as a Namespace, a bare container of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file provokes has no common base but this
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds more than weights and is not loaded, because loading it could run "
                "a stranger's code; ask its author for the state dict alone."
            ) from error
        raise UserError(
            f"{path} is damaged or no checkpoint; copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint's dictionary.")
    return content


def _refuse_inflated(path: Path) -> None:
    """Refuse an archive that unpacks to more than its own size, before anything is allocated.

    `torch.save` never compresses, so only a forged file claims more than it holds.

    Raises:
        UserError: it does.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # what cannot be listed, PyTorch refuses
    if claimed > path.stat().st_size:
        raise UserError(
            f"{path} claims to unpack to {claimed / 2**20:.0f} MiB, more than it holds; it is "
            "damaged or forged, get another."
        )


def state_dict_of(content: dict, path: Path) -> dict[str, torch.Tensor]:
    """Find the state dict in a checkpoint of ours, of the article, of NVIDIA, or a bare one."""
    keys = ("model_state_dict", "state_dict", "model")
    state = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    state = {n.removeprefix("module."): v for n, v in state.items() if isinstance(n, str)}
    if not state or not all(is_plain(value) for value in state.values()):
        raise UserError(f"{path} holds no state dict (a name and a tensor each); is it a model?")
    return {n: v for n, v in state.items() if not n.endswith(CACHES) and SECOND_NAME not in n}


def is_plain(value: object) -> bool:
    """Whether a value is a tensor that holds all its numbers: not sparse, quantised or complex."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in PLAIN_TYPES
    )


def parse_description(content: dict, path: Path) -> tuple[ModelConfig, ClassTable]:
    """The configuration and the classes that a file of ours carries.

    Raises:
        UserError: they are incomplete, or describe what cannot be.
    """
    try:
        plain = content["model_config"]
        reading = plain.get("mask_reading")
        # Lists that hold each other have a text of any length.
        for text in (plain["variant"], plain["head"], *content["classes"]["names"]):
            if not isinstance(text, str):
                raise TypeError("a name is no text")
        config = ModelConfig(
            variant=plain["variant"],
            head=plain["head"],
            num_classes=int(plain["num_classes"]),
            input_size=tuple(int(side) for side in plain["input_size"]),
            mean=tuple(float(value) for value in plain["mean"]),
            std=tuple(float(value) for value in plain["std"]),
            weights_licence=plain.get("weights_licence"),
            mask_reading=reading and MaskReading.from_plain(reading),
            **{
                name: None if plain.get(name) is None else int(plain[name])
                for name in ("window", "crop_side", "photo_size")
            },
            choices=plain.get("choices") and DataChoices.from_plain(plain["choices"]),
        )
        classes = ClassTable.from_plain(content["classes"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} does not describe its model completely ({type(error).__name__}: {error}); it "
            "was not written by train.py."
        ) from error
    if not _can_be(config, classes):
        raise UserError(f"{path} describes a model that does not exist here: {config}.")
    return config, classes


def _can_be(config: ModelConfig, classes: ClassTable) -> bool:
    """Whether such a model exists here, its numbers in range."""
    colors = classes.colors + classes.vis_colors
    return (
        (config.variant in VARIANTS or is_timm(config.variant))
        and config.head in HEADS
        and 1 <= config.num_classes == len(classes) <= 254
        and len(config.input_size) == 2
        and all(32 <= side <= 16384 for side in config.input_size)
        and (config.window is None or 2 <= config.window <= 64)
        and 1 <= (config.crop_side or 1) <= 2**31
        and 32 <= (config.photo_size or 32) <= 16384
        and len(config.mean) == len(config.std) == 3
        and all(math.isfinite(value) for value in config.mean + config.std)
        and min(config.std) > 0
        and _is_short_text(config.weights_licence or "")
        and len(classes.colors) == len(classes.vis_colors) == len(classes)
        and all(0 <= value <= 255 for color in colors for value in color)
        and all(printable(name) == name for name in classes.names)
    )


def _is_short_text(value: object) -> bool:
    return isinstance(value, str) and printable(value) == value and len(value) <= 80


def infer_description(state: dict, path: Path) -> tuple[ModelConfig, ClassTable]:
    """What an article's checkpoint leaves unsaid: FasterViT-0 at 512x512, its classes counted.

    Raises:
        UserError: it has no classifier of the article's head.
    """
    classifier = state.get("upsample_and_classify.13.weight")
    if classifier is None:
        raise UserError(
            f"{path} holds no segmentation model; give a checkpoint that train.py wrote."
        )
    count = classifier.shape[0] if classifier.ndim == 4 else 0
    if not 1 <= count <= 254:
        shape = f"a classifier of the shape {tuple(classifier.shape)}"
        raise UserError(f"{path} has {shape}; it is no segmentation model.")
    classes = ClassTable.default()
    if count != len(classes):
        names = tuple(f"class {index}" for index in range(count))
        grey = tuple((value, value, value) for value in range(count))
        classes = ClassTable(names, grey, tuple(map(voc_color, range(count))))
    return ModelConfig(num_classes=count), classes
