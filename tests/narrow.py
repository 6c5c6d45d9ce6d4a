"""Small models with every part of the large ones, for tests that compute with them."""

import re

import torch
from literal import SMALL, learnt, make_head, randomise
from torch import Tensor, nn

from models.heads import is_head
from segmentation_model import FasterViT

NO_CARRIERS = {"hat": (False,) * 4}
EVERYTHING = {"layer_scale": 1e-5, "layer_scale_conv": 1e-5, "do_propagation": True}


def narrowed(model: nn.Module, num_classes: int = 3) -> nn.Module:
    """Give a model of the sizes `SMALL` a narrow head of the article's structure."""
    model.conv2d_block1 = nn.Conv2d(32, 24, kernel_size=3)
    model.conv2d_block2 = nn.Conv2d(64, 24, kernel_size=3)
    model.upsample_and_classify = make_head(24 + 24 + 128 + 128, num_classes, (24, 32, 24, 16))
    return model


def narrow_model(num_classes: int = 3, seed: int = 0, **changes) -> FasterViT:
    """A small model with random weights and a narrow head."""
    settings = SMALL | {"drop_path_rate": 0.0, "num_classes": num_classes} | changes
    with torch.device("meta"):
        model = narrowed(FasterViT(**settings), num_classes)
    return randomise(model.to_empty(device="cpu"), seed).eval()


def narrow_head() -> nn.Sequential:
    return randomise(make_head(24 + 24 + 128 + 128, 3, (24, 32, 24, 16)))


def maps_for(size: tuple[int, int], batch: int = 1) -> list[Tensor]:
    """Random maps for `narrow_head`, of the sizes that a picture of `size` has."""
    sides = [tuple(-(-side // stride) for side in size) for stride in (8, 16, 32, 32)]
    sides[:2] = [tuple(max(side, 3) - 2 for side in pair) for pair in sides[:2]]
    return [
        torch.randn(batch, width, *side)
        for width, side in zip((24, 24, 128, 128), sides, strict=True)
    ]


def shallow_model(**changes) -> FasterViT:
    """One block a level: compiling takes its time a block."""
    return narrow_model(depths=(1, 1, 1, 1), **EVERYTHING, **changes)


def same_weights(model: FasterViT, reference: nn.Module) -> FasterViT:
    """Copy all that the package's model learnt.

    Built for a single window, it lacks the carriers' weights; in ours they rest.
    """
    result = model.load_state_dict(learnt(reference), strict=False)
    assert not result.unexpected_keys
    carriers = re.compile(r"\.hat_|\.gamma[12]$")
    missing = [name for name in result.missing_keys if not is_head(name)]
    assert all(carriers.search(name) for name in missing), missing
    return model
