"""Any of timm's backbones as maps, finest first, at any size of picture."""

import difflib
import re
from contextlib import suppress

import timm
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from common.errors import UserError
from config import Size

PREFIX = "timm/"
# A head that begins coarser than this has lost the small spots and thin borders it is for.
COARSEST_START = 8


def is_timm(variant: str) -> bool:
    """Whether a model's name is one that timm knows, written as its Hub does: `timm/NAME[.TAG]`.

    timm's own parser of names would also follow addresses; what is no plain name never reaches it.
    """
    name = variant.removeprefix(PREFIX)
    plain = variant.startswith(PREFIX) and re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII)
    return bool(plain) and timm.is_model(name.partition(".")[0])


def similar_names(text: str) -> list[str]:
    """timm's models, written as `timm/NAME`, whose names are most like what somebody typed."""
    name = text.removeprefix(PREFIX).partition(".")[0]
    return [PREFIX + found for found in difflib.get_close_matches(name, timm.list_models(), 2)]


def published(variant: str) -> timm.models.PretrainedCfg:
    """What timm says of a model's published weights: mean, std, licence, where they lie.

    Raises:
        UserError: timm has no weights of that tag.
    """
    name, _, tag = variant.removeprefix(PREFIX).partition(".")
    try:
        found = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name, allow_unregistered=False)
    except RuntimeError:
        found = None
    if found is None:
        tags = ", ".join(timm.list_pretrained(f"{name}.*")) or "none at all"
        raise UserError(f"timm has no weights {tag!r} of {name}; it has {tags}.")
    return found


class TimmBackbone(nn.Module):
    """One of timm's models without its classifier.

    Models round strides up or down, and some take whole windows or patches only; the picture is
    therefore padded on the right and below, with zeros, which are the mean colour.

    Args:
        variant: `timm/NAME[.TAG]`.
        drop_path_rate: stochastic depth of the last block, None for the model's own.

    Attributes:
        channels, strides: of each map, finest first.
        multiple: pixels that both sides are padded to a multiple of.
        fixed_size: (height, width) that the model alone can take, None where any will do.

    Shape:
        images: (B, 3, H, W), normalised RGB.
        returns: list of (B, C_i, h / s_i, w / s_i) where (h, w) is `padded((H, W))`.

    Raises:
        UserError: no such model, or its maps begin too coarse for a segmentation.
    """

    def __init__(self, variant: str, drop_path_rate: float | None = None):
        super().__init__()
        if not is_timm(variant):
            raise UserError(f"timm has no model {variant.removeprefix(PREFIX)!r}; check its name.")
        self.net, any_size = create_net(variant, drop_path_rate)
        info = self.net.feature_info
        self.plain = len(set(info.reduction())) == 1  # a plain ViT: one stride throughout
        used = [i for i, s in enumerate(info.reduction()) if s > 1][-1 if self.plain else 0 :]
        self.first = used[0]
        self.channels = info.channels()[self.first :]
        self.strides = info.reduction()[self.first :]
        if not self.plain and self.strides[0] > COARSEST_START:
            raise UserError(
                f"{variant} begins at stride {self.strides[0]}, too coarse for borders and spots; "
                f"choose a model that begins at stride {COARSEST_START} or finer."
            )
        self.multiple = max(self.strides)
        cfg = self.net.pretrained_cfg
        fixed = cfg.get("fixed_input_size") and not any_size
        self.fixed_size = tuple(cfg["input_size"][-2:]) if fixed else None
        # Transformers of windows hand out (B, h, w, C).
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")

    def padded(self, size: Size) -> Size:
        """The size that a picture of `size` has when the network sees it.

        Raises:
            UserError: the model has a fixed size, and the picture is larger.
        """
        if self.fixed_size is None:
            return tuple(side + -side % self.multiple for side in size)
        if size[0] > self.fixed_size[0] or size[1] > self.fixed_size[1]:
            height, width = self.fixed_size
            raise UserError(
                f"This backbone takes pictures up to {width}x{height} and not {size[1]}x{size[0]}; "
                f"pass --imgsz {width} {height}, or choose another."
            )
        return self.fixed_size

    def forward(self, images: Tensor) -> list[Tensor]:
        H, W = images.shape[-2:]
        height, width = self.padded((H, W))
        maps = self.net(F.pad(images, (0, width - W, 0, height - H)))[self.first :]
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def create_net(
    variant: str, drop_path_rate: float | None = None, **settings
) -> tuple[nn.Module, bool]:
    """timm's feature extractor, and whether it was asked to take any size.

    Args:
        settings: what else `timm.create_model` is to be told.
    """
    name = variant.removeprefix(PREFIX)
    settings |= {"features_only": True, "drop_path_rate": drop_path_rate}
    with suppress(TypeError):  # no table says which models know the flag
        return timm.create_model(name, dynamic_img_size=True, **settings), True
    return timm.create_model(name, **settings), False


class SimplePyramid(nn.Module):
    """Four maps from the last one of a plain ViT (ViTDet, Li et al. 2022, section 3).

    Args:
        channels: C of the map.
        stride: s of the map, its patch's side.

    Attributes:
        channels, strides: of the four maps, finest first: C/4, C/2, C, C at s/4, s/2, s, 2s.

    Shape:
        x: (B, C, h, w).
        returns: (B, C/4, 4h, 4w), (B, C/2, 2h, 2w), (B, C, h, w), (B, C, ceil(h/2), ceil(w/2)).
    """

    def __init__(self, channels: int, stride: int):
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.channels = [quarter, half, channels, channels]
        self.strides = [stride / 4, stride / 2, stride, stride * 2]
        self.twice = nn.ConvTranspose2d(channels, half, 2, stride=2)
        self.four_times = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        coarse = F.max_pool2d(x, kernel_size=2, ceil_mode=True)
        return [self.four_times(x), self.twice(x), x, coarse]
