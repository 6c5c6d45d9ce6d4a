"""FasterViT's backbone: convolutional blocks, window attention with carrier tokens, any size.

Hatamizadeh et al., arXiv 2306.06189, section 3. The parameters have the names and shapes of
NVIDIA's published weights; whatever depends on the size is computed from the size that comes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn

from config import Size


class PositionTable(nn.Module):
    """Biases as a function of the size, in the weights' precision under autocast, too."""

    def __init__(self, out_features: int):
        super().__init__()
        layers = nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, out_features, bias=False)
        self.cpb_mlp = nn.Sequential(*layers)

    def forward(self, height: int, width: int) -> Tensor:
        with torch.autocast(self.cpb_mlp[0].weight.device.type, enabled=False):
            return self.compute(height, width)

    def compute(self, height: int, width: int) -> Tensor:
        raise NotImplementedError


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

        y = torch.arange(height, device=like.device).repeat_interleave(width)
        x = torch.arange(width, device=like.device).repeat(height)
        row_of_pair = y[:, None] - y[None, :] + height - 1
        column_of_pair = x[:, None] - x[None, :] + width - 1
        pairs = row_of_pair * (2 * width - 1) + column_of_pair  # N, N
        return 16 * torch.sigmoid(biases[pairs]).permute(2, 0, 1)


class FixedPositions(nn.Module):
    """A position table whose values for some sizes are kept, for weights that change no more."""

    def __init__(self, table: PositionTable, sizes: Iterable[Size]):
        super().__init__()
        self.table = table
        for height, width in sizes:
            self.register_buffer(f"at_{height}x{width}", table(height, width).detach())

    def forward(self, height: int, width: int) -> Tensor:
        kept = getattr(self, f"at_{height}x{width}", None)
        return self.table(height, width) if kept is None else kept


class PatchEmbed(nn.Module):
    """Two strided convolutions: (B, 3, H, W) to (B, in_dim, H/2, W/2) and (B, dim, H/4, W/4).

    Sizes round up. Both maps are returned: the first is the finest that a head can read.
    """

    def __init__(self, in_chans: int, in_dim: int, dim: int):
        super().__init__()
        layers = []
        for before, after in ((in_chans, in_dim), (in_dim, dim)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after, eps=1e-4), nn.ReLU()]
        self.conv_down = nn.Sequential(*layers)

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
        self.reduction = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x))


@dataclass(frozen=True)
class BlockSettings:
    """What the blocks of an attention level have in common.

    Args:
        window: tokens along the side of a window.
        ct_size: carrier tokens along the side of a window.
        hat: whether there are carrier tokens at all.
        layer_scale: initial residual scale, None for none.
    """

    num_heads: int
    window: int
    ct_size: int
    hat: bool
    mlp_ratio: float
    qkv_bias: bool
    qk_scale: float | None
    drop: float
    attn_drop: float
    layer_scale: float | None


class WindowAttention(nn.Module):
    """Attention among the tokens of one window, biased by their relative positions.

    Carrier tokens may stand before the window's own; towards and from them the bias is zero.

    Shape:
        tokens: (B, c + height * width, dim), c carriers first.
        returns: the same.
    """

    def __init__(self, dim: int, settings: BlockSettings):
        super().__init__()
        self.num_heads = settings.num_heads
        self.scale = settings.qk_scale or (dim // settings.num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=settings.qkv_bias)
        self.attn_drop = settings.attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(settings.drop)
        self.pos_emb_funct = RelativePosition(settings.num_heads)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        B, N, C = tokens.shape
        q, k, v = self.qkv(tokens).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.pos_emb_funct(height, width)
        carriers = N - height * width
        if carriers:
            bias = F.pad(bias, (carriers, 0, carriers, 0))
        bias, dropout = bias[None].to(q.dtype), self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=self.scale)
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

    def __init__(self, dim: int, settings: BlockSettings, drop_path: float, propagate: bool):
        super().__init__()
        self.window, self.ct_size, self.propagate = settings.window, settings.ct_size, propagate
        hidden, drop = int(dim * settings.mlp_ratio), settings.drop

        self.pos_embed = AbsolutePosition(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, settings)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, drop=drop)
        self.drop_path = DropPath(drop_path)
        if settings.hat:
            self.hat_pos_embed = AbsolutePosition(dim)
            self.hat_norm1 = nn.LayerNorm(dim)
            self.hat_attn = WindowAttention(dim, settings)
            self.hat_norm2 = nn.LayerNorm(dim)
            self.hat_mlp = Mlp(dim, hidden, drop=drop)
        scale = settings.layer_scale
        for number in (1, 2, 3, 4) if settings.hat else (3, 4):
            gamma = nn.Parameter(torch.full((dim,), float(scale))) if scale else 1.0
            setattr(self, f"gamma{number}", gamma)

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

    def __init__(self, dim: int, settings: BlockSettings):
        super().__init__()
        self.ct_size, self.window = settings.ct_size, settings.window
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def grid(self, height: int, width: int) -> Size:
        """Rows and columns of the carriers of a map, padded or not yet."""
        rows, columns = (-(-side // self.window) * self.ct_size for side in (height, width))
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        (H, W), (rows, columns) = x.shape[-2:], self.grid(*x.shape[-2:])
        stride = H // rows, W // columns
        field = H - (rows - 1) * stride[0], W - (columns - 1) * stride[1]
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

    def __init__(
        self,
        dim: int,
        settings: BlockSettings,
        drop_path: list[float],
        downsample: bool,
        do_propagation: bool,
    ):
        super().__init__()
        self.window = settings.window
        last = len(drop_path) - 1
        self.blocks = nn.ModuleList(
            HierarchicalBlock(dim, settings, rate, do_propagation and index == last)
            for index, rate in enumerate(drop_path)
        )
        self.downsample = Downsample(dim) if downsample else None
        self.global_tokenizer = CarrierTokenizer(dim, settings) if settings.hat else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, w = x.shape[-2:]
        window = (self.window, self.window)
        x = F.pad(x, (0, -w % self.window, 0, -h % self.window))
        H, W = x.shape[-2:]
        carried = self.global_tokenizer is not None and window != (H, W)
        carriers = self.global_tokenizer(x) if carried else None
        tokens = to_windows(x.permute(0, 2, 3, 1), window)
        for block in self.blocks:
            tokens, carriers = block(tokens, carriers)
        x = from_windows(tokens, window, (H, W)).permute(0, 3, 1, 2)[:, :, :h, :w]
        return x, x if self.downsample is None else self.downsample(x)


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
