"""Time of a training step and of a picture, for the peers and for our models, in turns.

    python tools/bench_peers.py [--imgsz 320 160] [--batch 4] [--rounds 7]

The steps are those of benchmark.py: random pictures, three classes, fp32, Adam. A picture is one
inference, without reading and drawing, of the model as the scripts run each: norms merged into
convolutions, channels last.
"""

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common.environment  # noqa: E402, F401 - first, to say what is not installed

import torch  # noqa: E402
from torch import nn  # noqa: E402

from common import cli  # noqa: E402
from models.backbone import window_without_padding  # noqa: E402
from segmentation_model import build_model  # noqa: E402
from tools.benchmark import Case, make_step, seconds, wrap  # noqa: E402
from tools.run_peer import LITE0, PEERS  # noqa: E402

CPU = torch.device("cpu")


def medians(
    models: dict[str, nn.Module], size: tuple[int, int], batch: int, mode: str, rounds: int
) -> dict[str, float]:
    """Seconds that each model takes for a step, after one that does not count."""
    steps = {}
    for name, model in models.items():
        case = Case("eager", name, "pyramid", 3, size, batch, mode, "cpu", "off")
        steps[name] = make_step(model if mode == "train" else wrap(model, "merged"), case)
        steps[name]()
    times = [{name: seconds(step, CPU) for name, step in steps.items()} for _ in range(rounds)]
    return {name: statistics.median(turn[name] for turn in times) for name in models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_shared(parser, "--imgsz", default=(160, 320))
    cli.add_shared(parser, "--batch", default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    size = args.imgsz
    window = window_without_padding(size)
    models = {"FasterViT-0, pyramid": build_model("faster_vit_0", "pyramid", 3, window)}
    models["MobileNetV4-small, pyramid"] = build_model("timm/mobilenetv4_conv_small", "pyramid", 3)
    models["light: Lite0, pyramid"] = build_model(LITE0, "pyramid", 3)
    models |= {name: make(3) for name, make in PEERS.items()}
    # Pictures first, as a script that only predicts sees them: large steps leave memory in pieces.
    pictures = medians(models, size, 1, "inference", 5 * args.rounds)
    steps = medians(models, size, args.batch, "train", args.rounds)
    light = pictures["light: Lite0, pyramid"]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| model | parameters | training step | a picture | light is faster by |")
    print("|---|---|---|---|---|")
    for name, model in models.items():
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        step, one, ratio = steps[name], 1000 * pictures[name], pictures[name] / light
        print(f"| {name} | {weights:.1f} M | {step:.2f} s | {one:.1f} ms | {ratio:.2f} |")


if __name__ == "__main__":
    main()
