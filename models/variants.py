"""The paper's variants of FasterViT and a narrow one of ours as numbers, and their weights."""

from dataclasses import dataclass
from pathlib import Path

from config import DEFAULT_WEIGHTS_DIR, IMAGENET_MEAN, IMAGENET_STD
from models.timm_backbone import published

RGB_SHARES = tuple[float, float, float]
WEIGHTS_URL = "https://huggingface.co/ahatamiz/FasterViT/resolve/main/"


@dataclass(frozen=True)
class Variant:
    """One row of the paper's table 10, and the file that NVIDIA published for it, if it did."""

    dim: int
    in_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    drop_path_rate: float
    file: str | None
    window_size: tuple[int, ...] = (7, 7, 7, 7)
    layer_scale: float | None = None
    do_propagation: bool = False
    hat: tuple[bool, ...] = (False, False, True, False)
    resolution: int = 512
    ct_size: int = 2
    mlp_ratio: float = 4


def _large(dim: int, depths: tuple[int, ...], file: str, **changes) -> Variant:
    heads = (2, 4, 8, 16) if dim == 128 else (4, 8, 16, 32)
    rate = changes.pop("drop_path_rate", 0.3)
    changes |= {"layer_scale": 1e-5, "do_propagation": True}
    return Variant(dim, 64, depths, heads, rate, file, **changes)


def _local(size: int, window: int) -> Variant:
    """FasterViT-4 pretrained on ImageNet-21k: windows alone, without carrier tokens."""
    file, windows = f"fastervit_4_21k_{size}_w{window}.pth.tar", (7, 7, window, window // 2)
    return _large(196, (3, 3, 12, 5), file, hat=(False,) * 4, window_size=windows, resolution=size)


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
    # Ours, not the paper's: three eighths of FasterViT-0's width, to be trained from scratch.
    "faster_vit_tiny": Variant(24, 24, (2, 3, 6, 5), (1, 2, 4, 8), 0.2, None),
}


def normalisation(variant: str) -> tuple[RGB_SHARES, RGB_SHARES]:
    """Mean and std of RGB in [0, 1] that a backbone's published weights were trained with."""
    if variant in VARIANTS:
        return IMAGENET_MEAN, IMAGENET_STD
    weights = published(variant)
    return tuple(weights.mean), tuple(weights.std)


def weights_path(variant: str) -> Path:
    """Where a variant's ImageNet weights lie, under the name that the article gave them."""
    return DEFAULT_WEIGHTS_DIR / f"{variant}.pth.tar"


def weights_url(variant: str) -> str | None:
    """NVIDIA's address of a variant's ImageNet weights (non-commercial licence), if it has any."""
    file = VARIANTS[variant].file
    return file and WEIGHTS_URL + file
