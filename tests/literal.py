"""The article's model and its training step, written out step by step: the oracle of the tests.

Nothing here is fast, and nothing comes from `segmentation_model`: the backbone is the authors'
package `fastervit`, the rest follows the article sentence by sentence.
"""

from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from fastervit.models import faster_vit_any_res as package
from torch import Tensor, nn

# The package keeps what it computes from the size in its state dict, and one convolution twice.
CACHES = (".relative_coords_table", ".relative_position_index", ".relative_bias")
SECOND_NAME = ".to_global_feature.pos."

# Small, but with every part: convolutional levels, carriers over several windows, a last level.
SMALL = {"dim": 16, "in_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
SMALL |= {"window_size": (7, 7, 7, 7), "ct_size": 2, "mlp_ratio": 4}


def learnt(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without caches and second names."""
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.endswith(CACHES) and SECOND_NAME not in name
    }


def package_variant(name: str, resolution: int) -> nn.Module:
    """A variant as the package builds it, with shapes but without values."""
    # Its constructor reads numbers from a linspace, which a tensor without values has not.
    linspace = partial(torch.linspace, device="cpu")
    with mock.patch.object(torch, "linspace", linspace), torch.device("meta"):
        return getattr(package, f"{name}_any_res")(resolution=[resolution, resolution])


def level_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What each level hands to the next, for the package's model and for ours."""
    maps = [_last(model.patch_embed(images))]
    for level in model.levels:
        maps.append(_last(level(maps[-1])))
    return maps[1:]


def _last(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Parts of ours return their intermediate maps, too; the package's return the last alone."""
    return result[-1] if isinstance(result, tuple) else result


def head_literally(
    head: nn.Sequential,
    maps: list[Tensor],
    size: tuple[int, int],
    upsample: nn.Module | None = None,
) -> Tensor:
    """Upsample to a quarter of the picture, concatenate, the 14 steps in their order.

    Args:
        upsample: what stands at index 12; None for the article's, bilinear to `size`.
    """
    quarter = tuple(-(-side // 4) for side in size)
    x = torch.cat([bilinear(x, quarter) for x in maps], dim=1)
    for step in head[:12]:
        x = step(x)
    x = bilinear(x, size) if upsample is None else upsample(x)
    return head[13](x)


def forward_literally(model: nn.Module, images: Tensor) -> Tensor:
    """The article's forward pass on the modules of a model."""
    first, second, third, fourth = level_maps(model, images)
    maps = [
        model.conv2d_block1(edge_repeated(first)),
        model.conv2d_block2(edge_repeated(second)),
        third,
        fourth,
    ]
    return head_literally(model.upsample_and_classify, maps, tuple(images.shape[-2:]))


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def edge_repeated(x: Tensor) -> Tensor:
    """At least three rows and columns, the last ones repeated."""
    height, width = x.shape[-2:]
    rows = torch.arange(max(height, 3)).clamp(max=height - 1)
    columns = torch.arange(max(width, 3)).clamp(max=width - 1)
    return x[:, :, rows][:, :, :, columns]


def make_head(in_channels: int, num_classes: int, widths: tuple[int, ...]) -> nn.Sequential:
    """The article's 14 steps at any widths."""
    steps = []
    for width in widths:
        steps.append(nn.Conv2d(in_channels, width, kernel_size=3, padding=1))
        steps.append(nn.GroupNorm(8, width))
        steps.append(nn.ReLU())
        in_channels = width
    steps.append(nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False))
    steps.append(nn.Conv2d(in_channels, num_classes, kernel_size=1))
    return nn.Sequential(*steps)


class ArticleModel(package.FasterViT):
    """The package's backbone, bound to one size, with the article's head."""

    def __init__(self, resolution: tuple[int, int], num_classes: int = 2, **settings):
        super().__init__(resolution=list(resolution), num_classes=1000, **settings)
        dim = settings["dim"]
        self.conv2d_block1 = nn.Conv2d(2 * dim, 512, kernel_size=3)
        self.conv2d_block2 = nn.Conv2d(4 * dim, 512, kernel_size=3)
        in_channels = 512 + 512 + 8 * dim + 8 * dim
        self.upsample_and_classify = make_head(in_channels, num_classes, (768, 1024, 768, 512))

    def forward(self, images: Tensor) -> Tensor:
        return forward_literally(self, images)


def training_step(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[float, dict]:
    """One step of the article's loop: its loss and the gradients by name."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    optimizer.zero_grad()
    loss = nn.CrossEntropyLoss()(model(images), targets)
    loss.backward()
    optimizer.step()
    return loss.item(), gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name; zeros where a parameter has no part in the loss."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics under which every part of the model shows in its output.

    Initial weights hide mistakes: position networks of 0.02, layer scales of 1e-5 and BatchNorms
    that do nothing leave the output as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in learnt(model).items():
            if not tensor.is_floating_point():
                tensor.zero_()  # the counter of BatchNorm
                continue
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif tensor.ndim > 1:
                values *= 1.5 / tensor[0].numel() ** 0.5
            elif name.endswith("weight"):
                values = 1 + 0.5 * values
            tensor.copy_(values)
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def assert_gradients_agree(actual: dict, expected: dict, tolerance: float) -> None:
    """Each within `tolerance` of its norm, those near zero of a share of the largest norm."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    assert largest > 0
    wrong = {
        name: ((actual[name] - gradient).norm() / (gradient.norm() + 1e-4 * largest)).item()
        for name, gradient in expected.items()
        if not (actual[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-4 * largest)
    }
    assert not wrong, f"gradients that differ by more than {tolerance}: {wrong}"
