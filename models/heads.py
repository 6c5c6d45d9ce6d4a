"""The decode heads: the article's, in an exact and faster order of its work, and the pyramid.

The fast order needs no other weights: `article_head` has the article's layers under its names, and
`run_article_head` computes what they would.
"""

import copy
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import Size

HEADS = ("article", "pyramid")
# Names that only the segmentation heads have: no ImageNet file holds them.
HEAD_PREFIXES = ("upsample_and_classify.", "conv2d_block", "pyramid_head.", "simple_pyramid.")


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the segmentation head rather than to the backbone."""
    return name.startswith(HEAD_PREFIXES)


def interpolation_matrix(n_in: int, n_out: int, shift: int, like: Tensor) -> Tensor:
    """Bilinear resizing of one axis, then a shift with zeros moving in: (n_out, n_in)."""
    identity = torch.eye(n_in, dtype=like.dtype, device=like.device)
    matrix = F.interpolate(identity[None], size=n_out, mode="linear", align_corners=False)[0].T
    return F.pad(matrix, (0, 0, -shift, shift))


def conv3x3_of_upsampled(sources: list[Tensor], weight: Tensor, bias: Tensor, size: Size) -> Tensor:
    """A 3x3 convolution over upsampled, concatenated maps, without making any of them.

    Upsampling is linear and leaves channels apart, so each of the nine taps may be applied to the
    small map, and the upsampled results shifted and added: exact, zero padding included. Rows and
    columns separate, so upsampling and shifting are one matrix product along each axis.

    Args:
        sources: maps (B, C_i, h_i, w_i) that bilinear upsampling would bring to `size`.
        weight, bias: of the convolution, (O, sum of C_i, 3, 3) and (O,), padding 1.
        size: (H, W) of the upsampled maps and of the result.

    Returns:
        (B, O, H, W).
    """
    (H, W), O = size, weight.shape[0]  # noqa: E741
    total = None
    for x, part in zip(sources, weight.split([x.shape[1] for x in sources], dim=1), strict=True):
        B, C, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(B * h * w, C)
        across = torch.stack([interpolation_matrix(w, W, k - 1, part) for k in range(3)], dim=2)
        across = across.view(W, w * 3)
        rows = []
        for k in range(3):  # the kernel's rows
            taps = part[:, :, k].permute(2, 0, 1).reshape(3 * O, C)  # its columns, side by side
            products = F.linear(pixels, taps)
            # The interpolation stays in full precision under autocast: rounding its weights would
            # cost more accuracy than the literal order loses.
            with torch.autocast(x.device.type, enabled=False):
                products = products.to(part.dtype).view(B * h, w * 3, O)
                rows.append((across @ products).view(B, h, W * O))
        with torch.autocast(x.device.type, enabled=False):
            down = torch.cat([interpolation_matrix(h, H, k - 1, part) for k in range(3)], dim=1)
            result = (down @ torch.cat(rows, dim=1)).view(B, H, W, O)
            total = result + bias if total is None else total + result
    total = total.permute(0, 3, 1, 2)
    # On the CPU, the next convolution's weight gradient takes half the time from this layout.
    return total.contiguous() if total.requires_grad and total.device.type == "cpu" else total


def resize(x: Tensor, size: Size) -> Tensor:
    """Bilinear resizing as in the article, pixel centres aligned: (B, C, h, w) to (B, C, *size)."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def at_least_3x3(x: Tensor) -> Tensor:
    """Repeat the lower and right edge until a 3x3 convolution without padding fits."""
    missing = [max(0, 3 - side) for side in x.shape[-2:]]
    return F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x


def article_head(num_classes: int, in_channels: int = 2048) -> nn.Sequential:
    """The article's decode head under its indices 0 to 13; `run_article_head` runs it."""
    widths = (in_channels, 768, 1024, 768, 512)
    steps: list[nn.Module] = []
    for C, O in itertools.pairwise(widths):  # noqa: E741
        steps += [nn.Conv2d(C, O, 3, padding=1), nn.GroupNorm(8, O), nn.ReLU()]
    steps.append(nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False))
    return nn.Sequential(*steps, nn.Conv2d(512, num_classes, 1))


def run_article_head(head: nn.Module, features: list[Tensor], size: Size) -> Tensor:
    """Logits of the article's head in an order that costs a fraction of the literal one.

    The order of the article is: upsample the four levels to a quarter of the picture, concatenate
    them, four 3x3 convolutions, upsample to the picture, classify. Here the first convolution works
    on the levels as they are (`conv3x3_of_upsampled`), and the classifier, being 1x1, comes before
    the last upsampling, with which it commutes since bilinear weights sum to one. Outputs and
    gradients are the same but for rounding. Where a module was exchanged for another kind or
    carries hooks, all of them run in the article's order.

    Args:
        head: of `article_head`, it or any of its modules exchanged by the user.
        features: maps (B, C_i, h_i, w_i) whose widths sum up to what the head takes.
        size: (H, W) of the picture.

    Returns:
        (B, K, H, W).
    """
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    if not _may_be_reordered(head):
        return _run_literally(head, torch.cat([resize(x, grid) for x in features], dim=1), size)
    first, *between, _, classifier = head
    x = conv3x3_of_upsampled(features, first.weight, first.bias, grid)
    return resize(run_sparingly([*between, classifier], x), size)


def _may_be_reordered(head: nn.Module) -> bool:
    """Whether a head has the article's kinds of modules, of any width, and nobody listens."""
    kinds = [nn.Sequential, *[nn.Conv2d, nn.GroupNorm, nn.ReLU] * 4, nn.Upsample, nn.Conv2d]
    return (
        [type(module) for module in head.modules()] == kinds
        and not any(_has_hooks(module) for module in head.modules())
        and _is_plain_conv(head[0], kernel=3, padding=1)
        and _is_plain_upsampling(head[12])
        and _is_plain_conv(head[13], kernel=1, padding=0)
    )


def _run_literally(head: nn.Module, x: Tensor, size: Size) -> Tensor:
    """The modules one by one as the user left them, but the article's upsampling ends at `size`.

    Four times a quarter, rounded up, may be too much.
    """
    steps = dict(head.named_children())
    if "12" in steps and _is_plain_upsampling(steps["12"]):
        # Copies, which share weights and hooks, so that the user's modules stay as they are.
        head, upsample = copy.copy(head), copy.copy(steps["12"])
        upsample.size, upsample.scale_factor = size, None
        head._modules = steps | {"12": upsample}
    return resize(head(x), size)


def run_sparingly(steps: list[nn.Module], x: Tensor) -> Tensor:
    """Run norm, ReLU, convolution, norm, ReLU, convolution ..., keeping only the norms' inputs.

    A convolution's gradient needs its input, the ReLU's output, which is as large as what the norm
    keeps anyway. Made again from that when the gradient asks for it (Chen et al. 2016), it costs a
    thousandth of a convolution and half of the head's memory. The convolution is not run again:
    checkpointing stops as soon as it has what was left out. The result keeps every bit.
    """
    recompute = _may_recompute()
    for index in range(0, len(steps), 3):
        norm, relu, conv = steps[index : index + 3]
        x = _norm_relu_conv(x, norm, conv) if recompute else conv(relu(norm(x)))
    return x


def _may_recompute() -> bool:
    """Whether gradients are wanted, and by nobody who decides for himself what to keep."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def _norm_relu_conv(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """The three in one step that keeps its input and makes the rest again for the gradient."""
    weights = (norm.weight, norm.bias, conv.weight, conv.bias)
    versions = [None if w is None or w.is_inference() else w._version for w in weights]

    def run(x, *weights):
        for weight, version in zip(weights, versions, strict=True):
            if version is not None and weight._version != version:
                raise RuntimeError("a weight of the head was changed between forward and backward")
        x = F.group_norm(x, norm.num_groups, *weights[:2], norm.eps)
        return conv._conv_forward(F.relu(x), *weights[2:])

    # The weights are handed over, so that the second run has those of the first.
    return checkpoint(run, x, *weights, use_reentrant=False, preserve_rng_state=False)


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") for kind in kinds)


def _is_plain_upsampling(module: nn.Module) -> bool:
    """Whether a module is the article's upsampling to the picture's size."""
    return (
        type(module) is nn.Upsample
        and module.mode == "bilinear"
        and not module.align_corners
        and module.scale_factor == 4
    )


def _is_plain_conv(conv: nn.Conv2d, kernel: int, padding: int) -> bool:
    return (
        conv.kernel_size == (kernel, kernel)
        and conv.padding == (padding, padding)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.bias is not None
    )


class PyramidHead(nn.Module):
    """Score every pixel by refining the picture's features from coarse to fine.

    Coarse levels know what is there, fine levels know where: each is projected, added to its
    upsampled coarser neighbour (feature pyramid, Lin et al. 2017, section 3) and refined by a 3x3
    convolution. It reads the levels before their downsampling and goes on to the stem's first map,
    half the picture, where thin borders and small spots still exist; the fine levels are narrow,
    so that this costs little.

    Args:
        in_channels, strides: of each map, finest first.
        num_classes: K, scores per pixel.
        embed_dim: width from stride 8 on; at stride 4 it is half of that, at 2 a quarter.

    Shape:
        features: list of (B, C_i, H/s_i, W/s_i), finest first, any number of them.
        returns: (B, K, H/s_0, W/s_0) raw logits.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        embed_dim: int = 128,
        strides: Sequence[float] = (2, 4, 8, 16, 32),
    ):
        super().__init__()
        widths = [int(embed_dim * min(1, max(2, stride) / 8)) for stride in strides]
        self.lateral = nn.ModuleList(
            nn.Conv2d(C, width, 1) for C, width in zip(in_channels, widths, strict=True)
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, finer, 3, padding=1, bias=False), nn.BatchNorm2d(finer), nn.ReLU()
            )
            for width, finer in zip(widths, [widths[0], *widths[:-1]], strict=True)
        )
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.smooth[-1](self.lateral[-1](features[-1]))
        for index in range(len(features) - 2, -1, -1):
            x = self.lateral[index](features[index]) + resize(x, features[index].shape[-2:])
            x = self.smooth[index](x)
        return self.classifier(x)
