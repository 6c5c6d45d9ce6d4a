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
from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common import cli
from common.errors import UserError
from config import DEFAULT_WEIGHTS_DIR, IMAGENET_MEAN, IMAGENET_STD, ClassTable, ModelConfig, Size
from models import pretrained
from models.backbone import AttentionLevel, ConvBlock, ConvLevel, PatchEmbed, PositionTable
from models.checkpoint import article_described, described, read_checkpoint
from models.heads import (
    HEAD_PREFIXES,
    HEADS,
    PyramidHead,
    article_head,
    at_least_3x3,
    is_head,
    resize,
    run_article_head,
)
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


def load_backbone(model: FasterViT, path: Path) -> str:
    """Load the backbone's weights from NVIDIA's file, the article's or one of ours.

    The segmentation head is taken along where its shapes agree; a classifier for another number of
    classes starts anew.

    Returns:
        one line that says what was loaded.

    Raises:
        UserError: the file is unreadable, or a learnt tensor is missing or of the wrong shape.
    """
    content = pretrained.read_checkpoint_file(path)
    state = pretrained.state_dict_of(content, path)
    _check_window(model, content, path)
    head = tuple(name for name in state if is_head(name))
    # A pyramid checkpoint has no classifier of ImageNet; every other file must have it.
    optional = HEAD_PREFIXES + (("norm.", "head.") if head and "head.weight" not in state else ())
    pretrained.load_exactly(model, state, path, optional)
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


@dataclass
class Loaded:
    """A model that a checkpoint rebuilt, in evaluation mode, and what travelled with it."""

    model: FasterViT
    config: ModelConfig
    classes: ClassTable
    content: dict


def load_model(path: Path) -> Loaded:
    """Rebuild the model of a checkpoint on the CPU.

    Raises:
        UserError: the file is unusable, says so and why.
    """
    content = read_checkpoint(path)
    state = pretrained.state_dict_of(content, path)
    if "model_config" in content:
        config, classes = described(content, path)
    else:
        config, classes = article_described(state, path)
    # Weights come from the file: to draw random ones first would only cost time.
    with torch.device("meta"):
        model = build_model(config.variant, config.head, config.num_classes, config.window)
    model = model.to_empty(device="cpu")
    pretrained.load_exactly(model, state, path)
    return Loaded(model.eval(), config, classes, content)


def load_weights(model: FasterViT, variant: str, weights: str | None) -> str:
    """Give a new model the weights to start from.

    Args:
        weights: None for the variant's ImageNet file, downloaded where it is not there yet;
            "none" for random ones; else the path of a file, a checkpoint of ours included.

    Returns:
        one line that says what was loaded, with the file's SHA-256.

    Raises:
        UserError: the file cannot be had, or does not fit.
    """
    if weights == "none":
        return "No weights loaded: training starts from random ones."
    path = weights_path(variant) if weights is None else Path(weights)
    if weights is None and not path.is_file():
        DEFAULT_WEIGHTS_DIR.mkdir(exist_ok=True)
        pretrained.fetch(weights_url(variant), path)
    line = load_backbone(model, path)
    return f"{line} (SHA-256 {pretrained.recorded_digest(path)})"


def _any_res(variant: str):
    """Make the article's entry point of a variant."""

    def create(pretrained: bool = False, **kwargs) -> FasterViT:
        path = Path(kwargs.pop("model_path", weights_path(variant)))
        model = build_model(variant, **({"num_classes": 1000} | kwargs))
        if pretrained:
            if not path.is_file():
                pretrained.fetch(weights_url(variant), path)
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
