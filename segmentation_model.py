"""FasterViT for semantic segmentation, at any height and width.

The backbone follows "FasterViT: Fast Vision Transformers with Hierarchical Attention" (Hatamizadeh
et al., arXiv 2306.06189): two convolutional levels, then two levels of attention within windows,
which carrier tokens join across the whole map. One set of weights serves every size, square or
not: whatever depends on the size is computed from the size that comes.

    python segmentation_model.py        # prints the model, its parameters and an output's shape
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from common import cli
from common.errors import UserError
from config import IMAGENET_MEAN, IMAGENET_STD, ClassTable, ModelConfig
from models.backbone import AttentionLevel, BlockSettings, ConvLevel, PatchEmbed
from models.checkpoint import infer_description, parse_description, read_checkpoint, state_dict_of
from models.heads import HEADS, PyramidHead, article_head, at_least_3x3, resize, run_article_head
from models.pretrained import fetch, load_backbone, load_exactly
from models.timm_backbone import PREFIX, SimplePyramid, TimmBackbone
from models.variants import VARIANTS, weights_path, weights_url


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
        window: side of the windows of both attention levels, None for `window_size`.

    Shape:
        images: (B, 3, H, W), normalised RGB.
        returns: (B, K, H, W) raw logits.
    """

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
        window: int | None = None,
    ):
        super().__init__()
        self.num_classes, self.window = num_classes, window
        self.resolution = (resolution,) * 2 if isinstance(resolution, int) else tuple(resolution)
        self.patch_embed = PatchEmbed(in_chans, in_dim, dim)
        same = {"ct_size": ct_size, "mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias}
        same |= {"qk_scale": qk_scale, "drop": drop_rate, "attn_drop": attn_drop_rate}
        self.levels = nn.ModuleList()
        widths = [dim * 2**index for index in range(len(depths))]
        for index, drop_path in enumerate(_drop_paths(drop_path_rate, depths)):
            if index < 2:
                self.levels.append(ConvLevel(widths[index], drop_path, layer_scale_conv))
                continue
            own = {"num_heads": num_heads[index], "hat": hat is None or hat[index]}
            own["window"] = window_size[index] if window is None else window
            settings = BlockSettings(**own, **same, layer_scale=layer_scale)
            downsample = index < len(depths) - 1
            more = (settings, drop_path, downsample, do_propagation)
            self.levels.append(AttentionLevel(widths[index], *more))
        self.apply(_init_weights)
        self._add_head(segmentation_head, [in_dim, *widths], layer_norm_last)

    def _add_head(self, name: str, channels: list[int], layer_norm_last: bool) -> None:
        """The head over maps of these widths: the stem's and those of the levels."""
        self.segmentation_head = name
        if name == "pyramid":
            self.pyramid_head = PyramidHead(channels, self.num_classes)
            return
        # ImageNet's classifier: without a part in segmentation, but its parameters count in the
        # article's numbers, and published checkpoints bring them.
        last = channels[-1]
        self.norm = LayerNorm2d(last) if layer_norm_last else nn.BatchNorm2d(last)
        self.head = nn.Linear(last, 1000)
        _init_weights(self.head)
        self.conv2d_block1 = nn.Conv2d(channels[2], 512, 3)
        self.conv2d_block2 = nn.Conv2d(channels[3], 512, 3)
        self.upsample_and_classify = article_head(self.num_classes, 1024 + 2 * last)

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

    def backbone_maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps of all levels, before their downsampling, finest first."""
        return [before for before, _ in self.forward_levels(images)[1]]

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        half, maps = self.forward_levels(x)
        if self.segmentation_head == "pyramid":
            return resize(self.pyramid_head([half, *(before for before, _ in maps)]), size)
        features = [after for _, after in maps]
        features[0] = self.conv2d_block1(at_least_3x3(features[0]))
        features[1] = self.conv2d_block2(at_least_3x3(features[1]))
        return run_article_head(self.upsample_and_classify, features, size)


def _drop_paths(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The stochastic depth of each level's blocks, which grows linearly from 0 to the rate."""
    blocks = sum(depths)
    rates = iter([rate * index / max(blocks - 1, 1) for index in range(blocks)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class BackboneWithPyramid(nn.Module):
    """Any of timm's backbones under the pyramid head; takes any height and width.

    Args:
        variant: `timm/NAME[.TAG]`.
        num_classes: K, scores per pixel.
        drop_path_rate: stochastic depth of the last block, None for the backbone's own.

    Shape:
        images: (B, 3, H, W), normalised RGB.
        returns: (B, K, H, W) raw logits.
    """

    window = None  # of attention; only FasterViT's can be chosen

    def __init__(self, variant: str, num_classes: int, drop_path_rate: float | None = None):
        super().__init__()
        self.backbone = TimmBackbone(variant, drop_path_rate)
        maps = self.backbone
        if self.backbone.plain:
            self.simple_pyramid = SimplePyramid(maps.channels[0], maps.strides[0])
            maps = self.simple_pyramid
        self.pyramid_head = PyramidHead(maps.channels, num_classes, strides=maps.strides)

    def backbone_maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps of all levels, finest first."""
        return self.backbone(images)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        maps = self.backbone(x)
        if self.backbone.plain:
            maps = self.simple_pyramid(maps[-1])
        # Resized to what the backbone saw, its padding included, and cut: the grids then agree.
        return resize(self.pyramid_head(maps), self.backbone.padded((H, W)))[..., :H, :W]


def build_model(
    variant: str = "faster_vit_0",
    head: str = "article",
    num_classes: int = 2,
    window: int | None = None,
    **changes,
) -> nn.Module:
    """Build a model with random weights.

    Args:
        variant: a name of `VARIANTS`, or `timm/NAME[.TAG]` for one of timm's backbones.
        head: a name of `HEADS`; timm's backbones have the pyramid's.
        num_classes: K, scores per pixel.
        window: side of the attention windows of both attention levels, None for the variant's.
            Weights mean what they meant with the windows that they were trained with.
        changes: keywords of `FasterViT` that differ from the variant's; of them timm's backbones
            know `drop_path_rate`.

    Raises:
        UserError: no such variant or head.
    """
    if head not in HEADS:
        raise UserError(f"There is no head {head!r}; choose one of {', '.join(HEADS)}.")
    if variant.startswith(PREFIX):
        if head != "pyramid" or window is not None:
            raise UserError(f"{variant} takes --head pyramid and no --window; leave them out.")
        return BackboneWithPyramid(variant, num_classes, changes.get("drop_path_rate"))
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"There is no model {variant!r}; choose timm/NAME or one of {known}.")
    settings = asdict(VARIANTS[variant])
    del settings["file"]
    settings |= {"num_classes": num_classes, "segmentation_head": head, "window": window} | changes
    model = FasterViT(**settings)
    published = {"url": weights_url(variant), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    model.default_cfg = model.pretrained_cfg = published
    return model


def build_empty(config: ModelConfig) -> nn.Module:
    """The model of a configuration, whose weights are to be filled and therefore not drawn.

    Raises:
        UserError: as `build_model`.
    """
    description = config.variant, config.head, config.num_classes, config.window
    with torch.device("meta"):
        model = build_model(*description)
    if dict(model.named_buffers()).keys() - model.state_dict().keys():
        return build_model(*description)  # some of its tables are computed when it is built
    return model.to_empty(device="cpu")


@dataclass
class Loaded:
    """A model that a checkpoint rebuilt, in evaluation mode, and what travelled with it."""

    model: nn.Module
    config: ModelConfig
    classes: ClassTable
    content: dict


def load_model(path: Path) -> Loaded:
    """Rebuild the model of a checkpoint on the CPU.

    Raises:
        UserError: the file is unusable, says so and why.
    """
    content = read_checkpoint(path)
    state = state_dict_of(content, path)
    if "model_config" in content:
        config, classes = parse_description(content, path)
    else:
        config, classes = infer_description(state, path)
    model = build_empty(config)
    load_exactly(model, state, path)
    return Loaded(model.eval(), config, classes, content)


def _any_res(variant: str):
    """Make the article's entry point of a variant."""

    def create(pretrained: bool = False, **kwargs) -> FasterViT:
        path = Path(kwargs.pop("model_path", weights_path(variant)))
        model = build_model(variant, **({"num_classes": 1000} | kwargs))
        if pretrained:
            if not path.is_file():
                fetch(weights_url(variant), path)
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
