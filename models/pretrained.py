"""Weights from outside: read as data, fetched whole, loaded completely or not at all.

`segmentation_model` uses this room for `pretrained=True` and `checkpoint` for `--weights`; it knows
modules and tensors, not which model they belong to.
"""

import argparse
import hashlib
import http.client
import pickle
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing
from config import DEFAULT_WEIGHTS_DIR

# NVIDIA's files carry caches of the size that was trained at. They are computed, never learnt.
CACHES = (".relative_coords_table", ".relative_position_index", ".relative_bias")
# What weights are made of; a file may hold other kinds of tensors, which no layer of ours has.
PLAIN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32,
               torch.int64, torch.uint8, torch.bool)  # fmt: skip
# The carrier tokenizer's position convolution is stored there a second time under this name.
SECOND_NAME = ".to_global_feature.pos."


def read_checkpoint_file(path: Path) -> dict:
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
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds more than weights and is not loaded, because loading it could run "
                "a stranger's code; ask its author for the state dict alone."
            ) from error
        raise UserError(
            f"{path} is damaged or no checkpoint; copy or download it again."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError,
            IndexError, AssertionError, OverflowError, MemoryError,
            zipfile.BadZipFile) as error:  # fmt: skip
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


def fetch(url: str, path: Path) -> Path:
    """Download `url` to `path` with a bar; a broken download leaves nothing behind.

    Raises:
        UserError: the address cannot be reached or the transfer broke off.
    """
    path = Path(path)
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, replacing(path) as temporary:
            if url.startswith("https:") and not answer.url.startswith("https:"):
                raise http.client.HTTPException(f"it was sent on to {answer.url}, without HTTPS")
            size = int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name)
            with bar, open(temporary, "wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
            if size and temporary.stat().st_size != size:
                raise http.client.HTTPException(
                    f"only {temporary.stat().st_size} of {size} bytes came"
                )
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            f"The ImageNet weights could not be downloaded ({reason}): fetch {url} yourself and "
            f"place it at {path}, or pass --weights none to train from scratch."
        ) from error
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file, by which two people know that they have the same weights."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_digest(path: Path) -> str:
    """The file's SHA-256, kept beside it from its first use on, so that a change is noticed.

    Raises:
        UserError: the file is not the one that was used first.
    """
    digest, record = sha256(path), path.with_name(path.name + ".sha256")
    if record.is_file():
        first = record.read_text(encoding="utf-8", errors="replace").split()[:1]
        if first != [digest]:
            raise UserError(
                f"{path} is not the file that was first used: its SHA-256 is {digest[:16]}…, and "
                f"{record} says {first}; delete {record} if you changed the file yourself."
            )
    elif path.parent.resolve() == DEFAULT_WEIGHTS_DIR.resolve():
        try:
            with replacing(record) as temporary:
                temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
        except OSError as error:  # a folder that many share may be closed to writing
            print(f"{record} cannot be written ({error.strerror}): a change of the file would not "
                  "be noticed.")  # fmt: skip
    return digest


def state_dict_of(content: dict, path: Path) -> dict[str, torch.Tensor]:
    """Find the state dict in a checkpoint of ours, of the article, of NVIDIA, or a bare one."""
    state = content
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content.get(key), dict):
            state = content[key]
            break
    state = {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(name, str)
    }
    if not state or not all(_is_plain(value) for value in state.values()):
        raise UserError(f"{path} holds no state dict (a name and a tensor each); is it a model?")
    return {
        name: value
        for name, value in state.items()
        if not name.endswith(CACHES) and SECOND_NAME not in name
    }


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that holds all its numbers: not sparse, quantised or complex."""
    return (
        isinstance(value, torch.Tensor) and value.layout == torch.strided
        and value.device.type == "cpu" and value.dtype in PLAIN_TYPES
    )  # fmt: skip


def load_exactly(
    model: nn.Module, state: dict[str, torch.Tensor], path: Path, optional: tuple[str, ...] = ()
) -> int:
    """Copy `state` into `model`: every tensor of the model must be there, in its shape.

    Args:
        optional: prefixes of names that keep their initial values where the file has none
            or another shape (the segmentation head, when the weights come from ImageNet).

    Returns:
        the number of tensors copied. Names that the model does not know are left out.

    Raises:
        UserError: a tensor is missing, has another shape, or is not finite.
    """
    own = model.state_dict()
    fits = {}
    for name, tensor in own.items():
        given = state.get(name)
        same_kind = given is not None and given.is_floating_point() == tensor.is_floating_point()
        if same_kind and given.shape == tensor.shape:
            fits[name] = given
        elif name.startswith(optional) if optional else False:
            continue
        elif given is None and name.endswith("num_batches_tracked"):
            fits[name] = torch.zeros_like(tensor, device="cpu")  # a counter; older files lack it
        else:
            found = f"has the shape {tuple(given.shape)}" if same_kind else "is missing"
            raise UserError(
                f"{path} does not fit this model: {name} {found}, expected {tuple(tensor.shape)}; "
                "check the variant, the head and the number of classes."
            )
    for name, tensor in fits.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path} has values that are not finite in {name}; it is unusable.")
    with torch.no_grad():
        model.load_state_dict(fits, strict=False)
    return len(fits)
