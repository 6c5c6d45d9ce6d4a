"""Train or evaluate well-known models by this project's own scripts, to be compared with.

    python tools/run_peer.py train.py --model unet_resnet34 --recipe scratch --data ROOT
    python tools/run_peer.py evaluate.py --model outputs/model.pth --data ROOT

The models come from segmentation_models_pytorch (requirements-dev.txt) with random weights. Data,
augmentation, loss, optimizer, schedule and measurement are the same code as for FasterViT.
"""

import dataclasses
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import segmentation_models_pytorch as smp  # noqa: E402
import torch  # noqa: E402

import segmentation_model  # noqa: E402
from models.variants import VARIANTS  # noqa: E402

PEERS = {
    "unet_resnet34": lambda classes: smp.Unet("resnet34", encoder_weights=None, classes=classes),
    "segformer_b0": lambda classes: smp.Segformer("mit_b0", encoder_weights=None, classes=classes),
}


def add_peers() -> None:
    """Make each peer a variant like any other; it brings its own head."""
    build_ours = segmentation_model.build_model
    for name in PEERS:
        VARIANTS[name] = dataclasses.replace(VARIANTS["faster_vit_0"], file=f"{name}.none")

    def build_model(variant="faster_vit_0", head="pyramid", num_classes=2, *rest, **changes):
        if variant in PEERS:
            with torch.device("cpu"):  # also while a checkpoint is loaded: some read their tensors
                return PEERS[variant](num_classes)
        return build_ours(variant, head, num_classes, *rest, **changes)

    segmentation_model.build_model = build_model


if __name__ == "__main__":
    add_peers()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
