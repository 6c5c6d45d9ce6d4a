"""Weights to start from: fetched whole, known by their digest, loaded completely or not at all."""

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing
from common.text import printable
from config import DEFAULT_WEIGHTS_DIR
from models.backbone import PositionTable
from models.checkpoint import read_as_data, state_dict_of
from models.digests import recorded_digest
from models.heads import HEAD_PREFIXES, is_head
from models.licences import NVIDIA, sentence
from models.timm_backbone import is_timm, published
from models.timm_weights import load_timm_weights, without_download
from models.variants import weights_path, weights_url

NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


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
    except NETWORK_ERRORS as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            f"The ImageNet weights could not be downloaded ({reason}): fetch {url} yourself and "
            f"place it at {path}, or {without_download()}."
        ) from error
    return path


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
        elif name.startswith(optional):
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


def load_backbone(model: nn.Module, path: Path) -> str:
    """Load the backbone's weights from NVIDIA's file, the article's or one of ours.

    The segmentation head is taken along where its shapes agree; a classifier for another number of
    classes starts anew.

    Returns:
        one line that says what was loaded.

    Raises:
        UserError: the file is unreadable, or a learnt tensor is missing or of the wrong shape.
    """
    content = read_as_data(path)
    state = state_dict_of(content, path)
    _check_window(model, content, path)
    head = tuple(name for name in state if is_head(name))
    # A pyramid checkpoint has no classifier of ImageNet; every other file must have it.
    optional = HEAD_PREFIXES + (("norm.", "head.") if head and "head.weight" not in state else ())
    load_exactly(model, state, path, optional)
    learnt = {name: parameter.shape for name, parameter in model.named_parameters()}
    of_head = sum(name in head and state[name].shape == shape for name, shape in learnt.items())
    expected = sum(not name.startswith(optional) for name in learnt)
    count = sum(name in state for name in learnt if not name.startswith(optional))
    kind = f"backbone tensors of {path} loaded" if head else "ImageNet tensors loaded"
    line = f"{count} of {expected} {kind}"
    tables = sum(isinstance(module, PositionTable) for module in model.modules())
    if tables:
        height, width = model.resolution
        line += f", {tables} position tables recomputed for {height}x{width}"
    return line + (f", {of_head} tensors of the segmentation head" if of_head else "")


def _check_window(model: nn.Module, content: dict, path: Path) -> None:
    """Refuse weights for other attention windows: they fit in shape, and mean something else."""
    config = content.get("model_config")
    trained = config.get("window") if isinstance(config, dict) else None
    if trained != model.window:
        own = "windows of the variant's own size"
        theirs, ours = (f"--window {side}" if side else own for side in (trained, model.window))
        remedy = "leave --window out, or start from random weights with --weights none"
        remedy = f"pass --window {trained}" if trained else remedy
        raise UserError(f"{path} was trained with {theirs}, not {ours}; {remedy}.")


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Args:
        line: what was loaded, for people.
        licence: of the weights, as their publisher names it; None for random ones, whose model is
            its owner's alone.
    """

    line: str
    licence: str | None = None


def load_weights(model: nn.Module, variant: str, weights: str | None) -> Start:
    """Give a new model the weights to start from.

    Args:
        weights: None for the variant's published ones, fetched where they are not here yet; "none"
            for random ones; else the path of a file, a checkpoint of ours included.

    Raises:
        UserError: the file cannot be had, or does not fit.
    """
    if weights == "none":
        return Start("No weights loaded: training starts from random ones.")
    own = weights is not None and not weights.endswith(".safetensors")
    content = read_as_data(Path(weights)) if own else {}
    if "model_config" in content:  # train.py wrote it, so it says itself what it is
        path, licence = Path(weights), licence_of(content)
        line = load_backbone(model, path)
    elif is_timm(variant):
        path, line = load_timm_weights(model.backbone, variant, weights)
        licence = published(variant).license or "none stated"
    else:
        path, licence = weights_path(variant) if weights is None else Path(weights), NVIDIA
        if weights is None and not path.is_file():
            if weights_url(variant) is None:
                what = "use --recipe scratch or --weights none."
                raise UserError(f"Nobody published weights of {variant}; {what}")
            DEFAULT_WEIGHTS_DIR.mkdir(exist_ok=True)
            fetch(weights_url(variant), path)
        line = load_backbone(model, path)
    line = f"{line} (SHA-256 {recorded_digest(path)})"
    return Start(f"{line}. {sentence(licence)}" if licence else line, licence)


def licence_of(content: dict) -> str | None:
    """The licence that a checkpoint of ours inherited from the weights it started from."""
    config = content.get("model_config")
    licence = config.get("weights_licence") if isinstance(config, dict) else None
    return licence if isinstance(licence, str) and printable(licence) == licence[:80] else None
