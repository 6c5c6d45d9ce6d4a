"""What the memory order of pictures costs on the CPU, in turns, by hand (not part of the tests).

    OMP_NUM_THREADS=1 python tools/bench_order.py [--imgsz 384 384] [--repeats 9]

For each backbone under the pyramid head: CPU seconds of a picture and of a training step of two,
channels first and channels last, and the frozen backbone's step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import torch

from common import cli
from common.device import machine
from engine import frozen_modules
from models.deploy import fold_batchnorm
from segmentation_model import build_model
from training.optimisation import freeze_backbone

ORDERS = {"first": torch.contiguous_format, "last": torch.channels_last}
BACKBONES = "faster_vit_0 timm/tf_efficientnet_lite0 timm/mobilenetv4_conv_small timm/resnet18"


def cpu_seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def steps_of(variant: str, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """What is timed, by its column."""
    steps = {}
    for name, order in ORDERS.items():
        model = build_model(variant, "pyramid", 2).train()
        merged = fold_batchnorm(model).to(memory_format=order)
        image = torch.randn(1, 3, *size).to(memory_format=order)
        pair = torch.randn(2, 3, *size).to(memory_format=order)
        steps[f"picture {name}"] = torch.inference_mode()(lambda m=merged, x=image: m(x))
        steps[f"step {name}"] = lambda m=model, x=pair: m(x).mean().backward()
    frozen = build_model(variant, "pyramid", 2).train()
    freeze_backbone(frozen)
    for module in frozen_modules(frozen):
        module.eval()
    steps["step last, frozen"] = lambda m=frozen, x=pair: m(x).mean().backward()
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_shared(parser, "--imgsz", default=(384, 384))
    parser.add_argument("--repeats", type=cli.positive_int, default=9)
    args = parser.parse_args()
    print(machine())
    for variant in BACKBONES.split():
        steps = steps_of(variant, args.imgsz)
        turns = [
            {name: cpu_seconds(step) for name, step in steps.items()}
            for _ in range(args.repeats + 1)
        ]
        medians = {name: statistics.median(turn[name] for turn in turns[1:]) for name in steps}
        print(variant, *(f"{name} {seconds:.3f}" for name, seconds in medians.items()), sep="  ")


if __name__ == "__main__":
    main()
