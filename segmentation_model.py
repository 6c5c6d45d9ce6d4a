"""FasterViT for semantic segmentation, at any height and width.

The backbone follows "FasterViT: Fast Vision Transformers with Hierarchical Attention" (Hatamizadeh
et al., arXiv 2306.06189): two convolutional levels, then two levels of attention within windows,
which carrier tokens join across the whole map. One set of weights serves every size, square or
not: whatever depends on the size is computed from the size that comes.

    python segmentation_model.py        # prints the model, its parameters and an output's shape
"""

import copy
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import cli
import pretrained as weights
from config import DEFAULT_WEIGHTS_DIR, IMAGENET_MEAN, IMAGENET_STD
from errors import UserError

Size = tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """One row of the paper's table 10, and the file that NVIDIA published for it."""

    dim: int
    in_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    drop_path_rate: float
    file: str
    window_size: tuple[int, ...] = (7, 7, 7, 7)
    layer_scale: float | None = None
    do_propagation: bool = False
    hat: tuple[bool, ...] = (False, False, True, False)
    resolution: int = 512


def _large(dim: int, depths: tuple[int, ...], file: str, **changes) -> Variant:
    heads = (2, 4, 8, 16) if dim == 128 else (4, 8, 16, 32)
    rate = changes.pop("drop_path_rate", 0.3)
    changes |= {"layer_scale": 1e-5, "do_propagation": True}
    return Variant(dim, 64, depths, heads, rate, file, **changes)


def _local(size: int, window: int) -> Variant:
    """FasterViT-4 pretrained on ImageNet-21k: windows alone, without carrier tokens."""
    return _large(196, (3, 3, 12, 5), f"fastervit_4_21k_{size}_w{window}.pth.tar", hat=(False,) * 4,
                  window_size=(7, 7, window, window // 2), resolution=size)  # fmt: skip


VARIANTS = {
    "faster_vit_0": Variant(64, 64, (2, 3, 6, 5), (2, 4, 8, 16), 0.2, "fastervit_0_224_1k.pth.tar"),
    "faster_vit_1": Variant(80, 32, (1, 3, 8, 5), (2, 4, 8, 16), 0.2, "fastervit_1_224_1k.pth.tar"),
    "faster_vit_2": Variant(96, 64, (3, 3, 8, 5), (2, 4, 8, 16), 0.2, "fastervit_2_224_1k.pth.tar"),
    "faster_vit_3": _large(128, (3, 3, 12, 5), "fastervit_3_224_1k.pth.tar"),
    "faster_vit_4": _large(196, (3, 3, 12, 5), "fastervit_4_224_1k.pth.tar"),
    "faster_vit_5": _large(320, (3, 3, 12, 5), "fastervit_5_224_1k.pth.tar"),
    "faster_vit_6": _large(320, (3, 3, 16, 8), "fastervit_6_224_1k.pth.tar", drop_path_rate=0.5),
    "faster_vit_4_21k_224": _local(224, 14),
    "faster_vit_4_21k_384": _local(384, 24),
    "faster_vit_4_21k_512": _local(512, 32),
    "faster_vit_4_21k_768": _local(768, 48),
}
HEADS = ("article", "pyramid")

# --- Position tables: small networks from coordinates to biases, so that any size has one ---------


class PositionTable(nn.Module):
    """A function of the size alone: computed in training, remembered per size in evaluation.

    What is remembered is dropped when training resumes, when a weight changes (by its version
    counter, which in-place operations and `load_state_dict` advance, but edits of `.data` do not)
    and when the module moves.
    It is neither copied nor pickled. Under autocast the table stays in the weights' precision.
    """

    REMEMBERED_SIZES = 16

    def __init__(self, out_features: int):
        super().__init__()
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, out_features, bias=False)
        )
        self._remembered: dict = {}
        self._weights_seen: tuple = ()

    def forward(self, height: int, width: int) -> Tensor:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            if not torch.compiler.is_compiling():
                self._remembered.clear()
            return self._table(height, width)
        # Tensors made under inference_mode have no version counter: nothing is remembered then.
        if any(weight.is_inference() for weight in self.cpb_mlp.parameters()):
            return self._table(height, width)
        weights_now = tuple(
            (weight.data_ptr(), weight._version, weight.dtype, weight.device)
            for weight in self.cpb_mlp.parameters()
        )
        if weights_now != self._weights_seen or len(self._remembered) >= self.REMEMBERED_SIZES:
            self._remembered.clear()
            self._weights_seen = weights_now
        if (height, width) not in self._remembered:
            self._remembered[height, width] = self._table(height, width)
        return self._remembered[height, width]

    def _table(self, height: int, width: int) -> Tensor:
        weight = self.cpb_mlp[0].weight
        with torch.autocast(weight.device.type, enabled=False):
            return self.compute(height, width)

    def compute(self, height: int, width: int) -> Tensor:
        raise NotImplementedError

    def train(self, mode: bool = True) -> "PositionTable":
        self._remembered.clear()
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_remembered": {}, "_weights_seen": ()}


class AbsolutePosition(PositionTable):
    """One embedding a token, from its coordinates scaled to about [-1, 1].

    Shape:
        returns: (1, height * width, embed_dim).
    """

    def compute(self, height: int, width: int) -> Tensor:
        like = self.cpb_mlp[0].weight
        rows, columns = (
            (torch.arange(n, dtype=like.dtype, device=like.device) - n // 2) / max(n // 2, 1)
            for n in (height, width)
        )
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        return self.cpb_mlp(grid.reshape(1, height * width, 2))


class RelativePosition(PositionTable):
    """One bias a head and pair of tokens, from their log-spaced distance (Swin V2, section 3.3).

    Shape:
        returns: (num_heads, N, N) with N = height * width; values in (0, 16).
    """

    def compute(self, height: int, width: int) -> Tensor:
        like = self.cpb_mlp[0].weight
        rows, columns = (
            torch.arange(1 - n, n, dtype=like.dtype, device=like.device) / max(n - 1, 1) * 8
            for n in (height, width)
        )
        distances = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        distances = distances.sign() * torch.log2(distances.abs() + 1) / math.log2(8)
        biases = self.cpb_mlp(distances).flatten(0, 1)  # (2h-1)(2w-1), heads

        y, x = (
            torch.arange(height, device=like.device).repeat_interleave(width),
            torch.arange(width, device=like.device).repeat(height),
        )
        row_of_pair = y[:, None] - y[None, :] + height - 1
        column_of_pair = x[:, None] - x[None, :] + width - 1
        pairs = row_of_pair * (2 * width - 1) + column_of_pair  # N, N
        return 16 * torch.sigmoid(biases[pairs]).permute(2, 0, 1)


# --- Backbone -------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """Two strided convolutions: (B, 3, H, W) to (B, in_dim, H/2, W/2) and (B, dim, H/4, W/4).

    Sizes round up. Both maps are returned: the first is the finest that a head can read.
    """

    def __init__(self, in_chans: int, in_dim: int, dim: int):
        super().__init__()
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, in_dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(in_dim, eps=1e-4),
            nn.ReLU(),
            nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(dim, eps=1e-4),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        half = self.conv_down[:3](images)
        return half, self.conv_down[3:](half)


class ConvBlock(nn.Module):
    """The residual block of the convolutional levels; keeps its input's shape (B, dim, h, w)."""

    def __init__(self, dim: int, drop_path: float, layer_scale: float | None):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.gelu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        if self.gamma is not None:
            branch = branch * self.gamma[:, None, None]
        return x + self.drop_path(branch)


class Downsample(nn.Module):
    """Halve the map and double the channels: (B, C, h, w) to (B, 2C, ceil(h/2), ceil(w/2))."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.reduction = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x))


class WindowAttention(nn.Module):
    """Attention among the tokens of one window, biased by their relative positions.

    Carrier tokens may stand before the window's own; towards and from them the bias is zero.

    Shape:
        tokens: (B, c + height * width, dim), c carriers first.
        returns: the same.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None,
                 attn_drop: float, drop: float):  # fmt: skip
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)
        self.pos_emb_funct = RelativePosition(num_heads)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        B, N, C = tokens.shape
        q, k, v = self.qkv(tokens).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.pos_emb_funct(height, width)
        carriers = N - height * width
        if carriers:
            bias = F.pad(bias, (carriers, 0, carriers, 0))
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias[None].to(q.dtype), scale=self.scale,
            dropout_p=self.attn_drop if self.training else 0.0,
        )  # fmt: skip
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))


def to_windows(grid: Tensor, window: Size) -> Tensor:
    """(B, H, W, C) to (B * windows, h * w, C), windows and tokens in reading order."""
    B, H, W, C = grid.shape
    h, w = window
    x = grid.view(B, H // h, h, W // w, w, C).transpose(2, 3)
    return x.reshape(-1, h * w, C)


def from_windows(tokens: Tensor, window: Size, size: Size) -> Tensor:
    """The inverse of `to_windows`: (B * windows, h * w, C) to (B, H, W, C)."""
    (h, w), (H, W) = window, size
    x = tokens.view(-1, H // h, W // w, h, w, tokens.shape[-1]).transpose(2, 3)
    return x.reshape(-1, H, W, tokens.shape[-1])


class HierarchicalBlock(nn.Module):
    """Attention within windows, after the carrier tokens of all windows spoke (paper, section 3.2).

    Carrier tokens sum up their windows: c x c of them a window. First all carriers of a picture
    attend to each other, then each window's tokens and its own carriers do.

    Shape:
        tokens: (B * windows, w * w, dim).
        carriers: (B, rows, columns, dim), a map of its own, or None where they rest.
    """

    def __init__(self, dim: int, num_heads: int, window: int, ct_size: int, mlp_ratio: float,
                 qkv_bias: bool, qk_scale: float | None, drop: float, attn_drop: float,
                 drop_path: float, layer_scale: float | None, hat: bool,
                 propagate: bool):  # fmt: skip
        super().__init__()
        self.window, self.ct_size, self.propagate = window, ct_size, propagate
        attention = (dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        hidden = int(dim * mlp_ratio)

        self.pos_embed = AbsolutePosition(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(*attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, drop=drop)
        self.drop_path = DropPath(drop_path)
        if hat:
            self.hat_pos_embed = AbsolutePosition(dim)
            self.hat_norm1 = nn.LayerNorm(dim)
            self.hat_attn = WindowAttention(*attention)
            self.hat_norm2 = nn.LayerNorm(dim)
            self.hat_mlp = Mlp(dim, hidden, drop=drop)
        for number, wanted in ((1, hat), (2, hat), (3, True), (4, True)):
            scale = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale else 1.0
            if wanted:
                setattr(self, f"gamma{number}", scale)

    def forward(self, tokens: Tensor, carriers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        tokens = tokens + self.pos_embed(self.window, self.window)
        if carriers is None:
            return self._attend(tokens), None
        B, rows, columns, C = carriers.shape
        c = (self.ct_size, self.ct_size)
        x = carriers.view(B, rows * columns, C) + self.hat_pos_embed(rows, columns)
        x = x + self.drop_path(self.gamma1 * self.hat_attn(self.hat_norm1(x), rows, columns))
        x = x + self.drop_path(self.gamma2 * self.hat_mlp(self.hat_norm2(x)))

        own = to_windows(x.view(B, rows, columns, C), c)  # B * windows, c * c, C
        both = self._attend(torch.cat([own, tokens], dim=1))
        own, tokens = both.split([own.shape[1], tokens.shape[1]], dim=1)
        if self.propagate:
            spread = own.transpose(1, 2).reshape(-1, C, *c)
            spread = F.interpolate(spread, size=(self.window, self.window), mode="nearest")
            tokens = tokens + self.gamma1 * spread.flatten(2).transpose(1, 2)
        return tokens, from_windows(own, c, (rows, columns))

    def _attend(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma3 * self.attn(self.norm1(x), self.window, self.window))
        return x + self.drop_path(self.gamma4 * self.mlp(self.norm2(x)))


class CarrierTokenizer(nn.Module):
    """The first carrier tokens: a depthwise convolution, then averages over overlapping fields.

    Shape:
        x: (B, dim, H, W), padded to whole windows.
        returns: (B, rows, columns, dim), ct_size of them along each side of a window.
    """

    def __init__(self, dim: int, ct_size: int, window: int):
        super().__init__()
        self.ct_size, self.window = ct_size, window
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        grid = [side // self.window * self.ct_size for side in x.shape[-2:]]
        stride = [side // n for side, n in zip(x.shape[-2:], grid, strict=True)]
        field = [
            side - (n - 1) * step for side, n, step in zip(x.shape[-2:], grid, stride, strict=True)
        ]
        return F.avg_pool2d(self.pos_embed(x), field, stride).permute(0, 2, 3, 1)


class ConvLevel(nn.Module):
    """A level of convolutional blocks; see `AttentionLevel` for what it returns."""

    def __init__(self, dim: int, drop_path: list[float], layer_scale: float | None):
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(dim, rate, layer_scale) for rate in drop_path)
        self.downsample = Downsample(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        return x, self.downsample(x)


class AttentionLevel(nn.Module):
    """A level of window attention, with carrier tokens where the map has more than one window.

    The map is padded with zeros, right and below, to whole windows; the padding takes part in the
    attention, as it did when the published weights were trained.

    Shape:
        x: (B, dim, h, w), any h and w.
        returns: the map before its downsampling (B, dim, h, w), and after it
            (B, 2 * dim, ceil(h/2), ceil(w/2)); twice the same at the last level.
    """

    def __init__(self, dim: int, window: int, ct_size: int, hat: bool, downsample: bool,
                 drop_path: list[float], do_propagation: bool, **block):  # fmt: skip
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            HierarchicalBlock(
                dim, window=window, ct_size=ct_size, hat=hat, drop_path=rate,
                propagate=do_propagation and index == len(drop_path) - 1, **block,
            )
            for index, rate in enumerate(drop_path)
        )  # fmt: skip
        self.downsample = Downsample(dim) if downsample else None
        self.global_tokenizer = CarrierTokenizer(dim, ct_size, window) if hat else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, w = x.shape[-2:]
        window = (self.window, self.window)
        x = F.pad(x, (0, -w % self.window, 0, -h % self.window))
        H, W = x.shape[-2:]
        one_window = H == W == self.window
        carriers = None
        if self.global_tokenizer is not None and not one_window:
            carriers = self.global_tokenizer(x)
        tokens = to_windows(x.permute(0, 2, 3, 1), window)
        for block in self.blocks:
            tokens, carriers = block(tokens, carriers)
        x = from_windows(tokens, window, (H, W)).permute(0, 3, 1, 2)[:, :, :h, :w]
        return x, x if self.downsample is None else self.downsample(x)


# --- The article's head ---------------------------------------------------------------------------


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


def run_article_head(head: nn.Sequential, features: list[Tensor], size: Size) -> Tensor:
    """Logits of the article's head in an order that costs a fraction of the literal one.

    The order of the article is: upsample the four levels to a quarter of the picture, concatenate
    them, four 3x3 convolutions, upsample to the picture, classify. Here the first convolution works
    on the levels as they are (`conv3x3_of_upsampled`), and the classifier, being 1x1, comes before
    the last upsampling, with which it commutes since bilinear weights sum to one. Outputs and
    gradients are the same but for rounding. Where a module was exchanged for another kind or
    carries hooks, its step runs literally.

    Args:
        head: of `article_head`, it or any of its modules exchanged by the user.
        features: maps (B, C_i, h_i, w_i) whose widths sum up to what the head takes.
        size: (H, W) of the picture.

    Returns:
        (B, K, H, W).
    """
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    if type(head) is not nn.Sequential or len(head) != 14 or _has_hooks(head):
        return resize(head(torch.cat([resize(x, grid) for x in features], dim=1)), size)
    first, *between, upsample, classifier = head
    if _is_plain_conv(first, kernel=3, padding=1):
        x = conv3x3_of_upsampled(features, first.weight, first.bias, grid)
    else:
        x = first(torch.cat([resize(feature, grid) for feature in features], dim=1))
    if (_is_plain_upsampling(upsample, size) and not _has_hooks(upsample)
            and _is_plain_conv(classifier, kernel=1, padding=0)):  # fmt: skip
        return resize(run_sparingly([*between, classifier], x), size)
    x = run_sparingly(between, x)
    if not _is_plain_upsampling(upsample, size):
        return classifier(upsample(x))
    if not _has_hooks(upsample):
        return classifier(resize(x, size))
    before = upsample.size, upsample.scale_factor
    upsample.size, upsample.scale_factor = size, None  # four times the grid may be too much
    try:
        return classifier(upsample(x))
    finally:
        upsample.size, upsample.scale_factor = before


def run_sparingly(steps: list[nn.Module], x: Tensor) -> Tensor:
    """Run norm, ReLU, convolution, norm, ReLU, convolution ..., keeping only the norms' inputs.

    A convolution's gradient needs its input, the ReLU's output, which is as large as what the norm
    keeps anyway. Made again from that when the gradient asks for it (Chen et al. 2016), it costs a
    thousandth of a convolution and half of the head's memory. The convolution is not run again:
    checkpointing stops as soon as it has what was left out. The result keeps every bit.
    """
    for index in range(0, len(steps), 3):
        group = steps[index : index + 3]
        plain = tuple(map(type, group)) == (nn.GroupNorm, nn.ReLU, nn.Conv2d)
        if plain and _may_recompute() and not any(map(_has_hooks, group)):
            x = _norm_relu_conv(x, *group)
            continue
        for step in group:
            x = step(x)
    return x


def _may_recompute() -> bool:
    """Whether gradients are wanted, and by nobody who decides for himself what to keep."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def _norm_relu_conv(x: Tensor, norm: nn.GroupNorm, relu: nn.ReLU, conv: nn.Conv2d) -> Tensor:
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
    return bool(module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks)  # fmt: skip


def _is_plain_upsampling(module: nn.Module, size: Size) -> bool:
    """Whether a module does what the article's upsampling to the picture's size does."""
    return (
        type(module) is nn.Upsample
        and module.mode == "bilinear"
        and not module.align_corners
        and (module.scale_factor == 4 or module.size in (size, list(size)))
    )


def _is_plain_conv(module: nn.Module, kernel: int, padding: int) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (kernel, kernel)
        and module.padding in ((padding, padding), padding)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.bias is not None
        and not _has_hooks(module)
    )


# --- The pyramid head -----------------------------------------------------------------------------


class PyramidHead(nn.Module):
    """Score every pixel by refining the picture's features from coarse to fine.

    Coarse levels know what is there, fine levels know where: each is projected, added to its
    upsampled coarser neighbour (feature pyramid, Lin et al. 2017, section 3) and refined by a 3x3
    convolution. It reads the levels before their downsampling and goes on to the stem's first map,
    half the picture, where thin borders and small spots still exist; the fine levels are narrow,
    so that this costs little.

    Args:
        in_channels: width of each map, finest first.
        num_classes: K, scores per pixel.
        embed_dim: width of the three coarsest maps; the next finer ones have 1/2 and 1/4 of it.

    Shape:
        features: list of (B, C_i, H/s_i, W/s_i) with strides 2, 4, 8, 16, 32.
        returns: (B, K, H/2, W/2) raw logits.
    """

    def __init__(self, in_channels: list[int], num_classes: int, embed_dim: int = 128):
        super().__init__()
        widths = [embed_dim // 4, embed_dim // 2, embed_dim, embed_dim, embed_dim]
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


# --- The whole model ------------------------------------------------------------------------------


class FasterViT(nn.Module):
    """FasterViT with a segmentation head; takes any height and width from 32 up at run time.

    Args:
        dim, in_dim: width of the first level and of the stem.
        depths, num_heads, window_size, hat: one value a level; `hat` says where carriers work.
        ct_size: carrier tokens along the side of a window.
        resolution: kept for the article's readers; the size is free at run time.
        num_classes: K of the segmentation classifier.
        segmentation_head: "article" (names and numbers of the article) or "pyramid".
        layer_scale, layer_scale_conv: initial residual scale, None for none.
        layer_norm_last: normalise the last map of `forward_features` by LayerNorm.
        do_propagation: let the last block of a level add its carriers to their windows.

    Shape:
        images: (B, 3, H, W), normalised RGB.
        returns: (B, K, H, W) raw logits.
    """

    window: int | None = None  # of `build_model`, None for the variant's own

    def __init__(
        self,
        dim: int,
        in_dim: int,
        depths: tuple[int, ...],
        window_size: tuple[int, ...],
        ct_size: int,
        mlp_ratio: float,
        num_heads: tuple[int, ...],
        resolution: int | list[int] = 512,
        drop_path_rate: float = 0.2,
        in_chans: int = 3,
        num_classes: int = 1000,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        layer_scale: float | None = None,
        layer_scale_conv: float | None = None,
        layer_norm_last: bool = False,
        hat: tuple[bool, ...] | None = (False, False, True, False),
        do_propagation: bool = False,
        segmentation_head: str = "article",
    ):
        super().__init__()
        self.num_classes = num_classes
        self.resolution = (resolution,) * 2 if isinstance(resolution, int) else tuple(resolution)
        hat = (True,) * len(depths) if hat is None else hat
        self.patch_embed = PatchEmbed(in_chans, in_dim, dim)
        blocks = sum(depths)  # stochastic depth grows linearly from 0 to its rate
        rates = iter([drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)])
        self.levels = nn.ModuleList()
        for index, depth in enumerate(depths):
            width, drop_path = dim * 2**index, [next(rates) for _ in range(depth)]
            if index < 2:
                self.levels.append(ConvLevel(width, drop_path, layer_scale_conv))
                continue
            self.levels.append(
                AttentionLevel(
                    width, window_size[index], ct_size, hat[index], index < len(depths) - 1,
                    drop_path, do_propagation, num_heads=num_heads[index], mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias, qk_scale=qk_scale, drop=drop_rate,
                    attn_drop=attn_drop_rate, layer_scale=layer_scale,
                )
            )  # fmt: skip
        self.apply(_init_weights)

        self.segmentation_head = segmentation_head
        if segmentation_head == "pyramid":
            channels = [in_dim, *(dim * 2**i for i in range(len(depths)))]
            self.pyramid_head = PyramidHead(channels, num_classes)
        else:
            last = dim * 2 ** (len(depths) - 1)
            # ImageNet's classifier: without a part in segmentation, but its parameters count in
            # the article's numbers, and published checkpoints bring them.
            self.norm = LayerNorm2d(last) if layer_norm_last else nn.BatchNorm2d(last)
            self.head = nn.Linear(last, 1000)
            _init_weights(self.head)
            self.conv2d_block1 = nn.Conv2d(2 * dim, 512, 3)
            self.conv2d_block2 = nn.Conv2d(4 * dim, 512, 3)
            self.upsample_and_classify = article_head(num_classes, 1024 + 2 * last)

    def forward_levels(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The stem's map at half the size, and each level's before and after its downsampling."""
        half, x = self.patch_embed(images)
        maps = []
        for level in self.levels:
            before, x = level(x)
            maps.append((before, x))
        return half, maps

    def forward_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The normalised last map, and the four maps of the article (strides 8, 16, 32, 32)."""
        conv_features = [after for _, after in self.forward_levels(x)[1]]
        last = conv_features[-1]
        return (self.norm(last) if hasattr(self, "norm") else last), conv_features

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        half, maps = self.forward_levels(x)
        if self.segmentation_head == "pyramid":
            return resize(self.pyramid_head([half, *(before for before, _ in maps)]), size)
        features = [after for _, after in maps]
        features[0] = self.conv2d_block1(at_least_3x3(features[0]))
        features[1] = self.conv2d_block2(at_least_3x3(features[1]))
        return run_article_head(self.upsample_and_classify, features, size)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fold_batchnorm(model: FasterViT) -> FasterViT:
    """A copy for inference whose BatchNorms are part of the convolutions before them.

    In evaluation both are affine, so one convolution does the work of the two; the copy gives the
    same logits up to rounding, and cannot be trained.
    """
    model = copy.deepcopy(model).eval()
    for parent in model.modules():
        if not isinstance(parent, nn.Sequential | ConvBlock):
            continue
        for (name, conv), (next_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, nn.Identity())
    return model


# Names that only the segmentation heads have: no ImageNet file holds them.
HEAD_PREFIXES = ("upsample_and_classify.", "conv2d_block", "pyramid_head.")


def load_backbone(model: FasterViT, path: Path) -> str:
    """Load the backbone's weights from NVIDIA's file, the article's or one of ours.

    The segmentation head is taken along where its shapes agree; a classifier for another number of
    classes starts anew.

    Returns:
        one line that says what was loaded.

    Raises:
        UserError: the file is unreadable, or a learnt tensor is missing or of the wrong shape.
    """
    content = weights.read_checkpoint_file(path)
    state = weights.state_dict_of(content, path)
    _check_window(model, content, path)
    head = tuple(name for name in state if name.startswith(HEAD_PREFIXES))
    # A pyramid checkpoint has no classifier of ImageNet; every other file must have it.
    optional = HEAD_PREFIXES + (("norm.", "head.") if head and "head.weight" not in state else ())
    weights.load_exactly(model, state, path, optional)
    learnt = {name: parameter.shape for name, parameter in model.named_parameters()}
    of_head = sum(name in head and state[name].shape == shape for name, shape in learnt.items())
    tables = sum(isinstance(module, PositionTable) for module in model.modules())
    expected = sum(not name.startswith(optional) for name in learnt)
    count = sum(name in state for name in learnt if not name.startswith(optional))
    kind = f"backbone tensors of {path} loaded" if head else "ImageNet tensors loaded"
    line = f"{count} of {expected} {kind}, {tables} position tables recomputed"
    line += " for {}x{}".format(*model.resolution)
    return line + (f", {of_head} tensors of the segmentation head" if of_head else "")


def window_without_padding(size: Size) -> int:
    """The side of attention windows, 5 to 10, that pads the maps of an input `size` least.

    Padding takes part in the attention and costs as much as the picture: windows of 7 add 47 % to
    the third level's tokens at 320x160, and 96 % to the last one's.
    """

    def padded(window: int) -> float:
        maps = [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (16, 32)]
        return sum(
            math.ceil(h / window) * math.ceil(w / window) * window**2 / (h * w) for h, w in maps
        )

    return min(range(5, 11), key=lambda window: (round(padded(window), 6), abs(window - 7)))


def _check_window(model: FasterViT, content: dict, path: Path) -> None:
    """Refuse weights for other attention windows: they fit in shape, and mean something else."""
    config = content.get("model_config")
    trained = config.get("window") if isinstance(config, dict) else None
    if trained != model.window:
        names = ["windows of the variant's own size" if side is None else f"--window {side}"
                 for side in (trained, model.window)]  # fmt: skip
        raise UserError(
            f"{path} was trained with {names[0]}, not {names[1]}; "
            + (f"pass --window {trained}." if trained else "leave --window out, or start from "
               "random weights with --weights none.")
        )  # fmt: skip


def weights_path(variant: str) -> Path:
    """Where a variant's ImageNet weights lie, under the name that the article gave them."""
    return DEFAULT_WEIGHTS_DIR / f"{variant}.pth.tar"


def weights_url(variant: str) -> str:
    """NVIDIA's address of a variant's ImageNet weights (non-commercial licence)."""
    return weights.WEIGHTS_URL + VARIANTS[variant].file


def build_model(variant: str = "faster_vit_0", head: str = "article", num_classes: int = 2,
                window: int | None = None, **changes) -> FasterViT:  # fmt: skip
    """Build a variant with random weights.

    Args:
        variant: a name of `VARIANTS`.
        head: a name of `HEADS`.
        num_classes: K, scores per pixel.
        window: side of the attention windows of both attention levels, None for the variant's.
            Weights mean what they meant with the windows that they were trained with.
        changes: keywords of `FasterViT` that differ from the variant's.

    Raises:
        UserError: no such variant or head.
    """
    if variant not in VARIANTS:
        raise UserError(f"There is no model {variant!r}; choose one of {', '.join(VARIANTS)}.")
    if head not in HEADS:
        raise UserError(f"There is no head {head!r}; choose one of {', '.join(HEADS)}.")
    spec = VARIANTS[variant]
    windows = spec.window_size if window is None else (7, 7, window, window)
    settings = {
        "dim": spec.dim, "in_dim": spec.in_dim, "depths": spec.depths, "ct_size": 2,
        "num_heads": spec.num_heads, "window_size": windows, "mlp_ratio": 4,
        "resolution": spec.resolution, "drop_path_rate": spec.drop_path_rate, "hat": spec.hat,
        "layer_scale": spec.layer_scale, "do_propagation": spec.do_propagation,
    }  # fmt: skip
    model = FasterViT(
        **(settings | {"num_classes": num_classes, "segmentation_head": head} | changes)
    )
    model.window = window
    model.default_cfg = model.pretrained_cfg = {
        "url": weights_url(variant), "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
    }  # fmt: skip
    return model


def _any_res(variant: str):
    """Make the article's entry point of a variant."""

    def create(pretrained: bool = False, **kwargs) -> FasterViT:
        path = Path(kwargs.pop("model_path", weights_path(variant)))
        model = build_model(variant, **({"num_classes": 1000} | kwargs))
        if pretrained:
            if not path.is_file():
                weights.fetch(weights_url(variant), path)
            print(load_backbone(model, path))
        return model

    create.__name__ = f"{variant}_any_res"
    create.__doc__ = f"{variant} with the article's keywords; `pretrained` loads `model_path`."
    return create


faster_vit_0_any_res = _any_res("faster_vit_0")
faster_vit_1_any_res = _any_res("faster_vit_1")
faster_vit_2_any_res = _any_res("faster_vit_2")
faster_vit_3_any_res = _any_res("faster_vit_3")
faster_vit_4_any_res = _any_res("faster_vit_4")
faster_vit_5_any_res = _any_res("faster_vit_5")
faster_vit_6_any_res = _any_res("faster_vit_6")
faster_vit_4_21k_224_any_res = _any_res("faster_vit_4_21k_224")
faster_vit_4_21k_384_any_res = _any_res("faster_vit_4_21k_384")
faster_vit_4_21k_512_any_res = _any_res("faster_vit_4_21k_512")
faster_vit_4_21k_768_any_res = _any_res("faster_vit_4_21k_768")


def main() -> None:
    resolution = [512, 512]
    path = weights_path("faster_vit_0")
    if not path.is_file():
        print(f"No ImageNet weights at {path}: the weights are random.")
    model = faster_vit_0_any_res(pretrained=path.is_file(), resolution=resolution)
    model.upsample_and_classify[13] = nn.Conv2d(512, 2, kernel_size=(1, 1), stride=(1, 1))
    print(model)
    print(f"{sum(p.numel() for p in model.parameters()):,} total parameters.")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trainable:,} training parameters.")
    model.eval()
    with torch.inference_mode():
        print(model(torch.randn(1, 3, *resolution)).shape)


if __name__ == "__main__":
    cli.run(main)
