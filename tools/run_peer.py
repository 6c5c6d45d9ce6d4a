"""Train or evaluate well-known models by this project's own scripts, to be compared with.

    python tools/run_peer.py train.py --model unet_resnet34 --recipe scratch --data ROOT
    python tools/run_peer.py evaluate.py --model outputs/model.pth --data ROOT

The models come from segmentation_models_pytorch (requirements-dev.txt), with random weights but for
`unet_lite0`, whose encoder has the ImageNet weights that `--recipe light` starts from. Data,
augmentation, loss, optimizer, schedule and measurement are the same code as for our models.
"""

import dataclasses
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common.environment  # noqa: E402, F401 - first, to say what is not installed

import segmentation_models_pytorch as smp  # noqa: E402
import torch  # noqa: E402

import segmentation_model  # noqa: E402
from models import variants  # noqa: E402
from models.timm_backbone import TimmBackbone  # noqa: E402
from models.timm_weights import load_timm_weights  # noqa: E402

LITE0 = "timm/tf_efficientnet_lite0"


def unet_lite0(classes: int) -> smp.Unet:
    """A Unet over the backbone of `--recipe light`, with the same weights."""
    net = smp.Unet(LITE0.replace("timm/", "tu-"), encoder_weights=None, classes=classes)
    ours = TimmBackbone(LITE0)
    load_timm_weights(ours, LITE0)
    net.encoder.model.load_state_dict(ours.net.state_dict())
    return net


PEERS = {
    "unet_resnet34": lambda classes: smp.Unet("resnet34", encoder_weights=None, classes=classes),
    "segformer_b0": lambda classes: smp.Segformer("mit_b0", encoder_weights=None, classes=classes),
    "unet_lite0": unet_lite0,
}


def add_peers() -> None:
    """Make each peer a variant like any other; it brings its own head."""
    build_ours, normalise_ours = segmentation_model.build_model, variants.normalisation
    for name in PEERS:
        any_other = variants.VARIANTS["faster_vit_0"]
        variants.VARIANTS[name] = dataclasses.replace(any_other, file=f"{name}.none")

    def normalisation(variant):
        return normalise_ours(LITE0 if variant == "unet_lite0" else variant)

    def build_model(variant="faster_vit_0", head="pyramid", num_classes=2, *rest, **changes):
        if variant in PEERS:
            with torch.device("cpu"):  # also while a checkpoint is loaded: some read their tensors
                return PEERS[variant](num_classes)
        return build_ours(variant, head, num_classes, *rest, **changes)

    segmentation_model.build_model, variants.normalisation = build_model, normalisation


if __name__ == "__main__":
    add_peers()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
