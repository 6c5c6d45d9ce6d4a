"""Time of a training step and of a picture, for the peers and for FasterViT-0, in turns.

    python tests/peers/bench_peers.py [--imgsz 320 160] [--batch 4] [--rounds 7]

As `train.py --recipe scratch` trains them: fp32, AdamW, three classes.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from run_peer import PEERS  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from segmentation_model import build_model, window_without_padding  # noqa: E402


def seconds_of_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor,
                    masks: Tensor) -> float:  # fmt: skip
    """Forward, backward and update of one batch."""
    model.train()
    started = time.perf_counter()
    F.cross_entropy(model(images), masks).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


@torch.inference_mode()
def seconds_of_picture(model: nn.Module, images: Tensor) -> float:
    """One picture, without reading and drawing it."""
    model.eval()
    started = time.perf_counter()
    model(images[:1])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imgsz", nargs=2, type=int, default=[320, 160])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    size = tuple(args.imgsz[::-1])
    window = window_without_padding(size)
    models = {"FasterViT-0, pyramid": build_model("faster_vit_0", "pyramid", 3, window)}
    models |= {name: make(3) for name, make in PEERS.items()}
    images = torch.randn(args.batch, 3, *size)
    masks = torch.randint(0, 3, (args.batch, *size))
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        for name, model in models.items()
    }
    steps, pictures = {name: [] for name in models}, {name: [] for name in models}
    for _ in range(args.rounds + 1):
        for name, model in models.items():
            steps[name].append(seconds_of_step(model, optimizers[name], images, masks))
            pictures[name].append(seconds_of_picture(model, images))
    base = statistics.median(steps["FasterViT-0, pyramid"][1:])
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        "| model | parameters | training step | against ours | pictures a second |\n|" + "---|" * 5
    )
    for name, model in models.items():
        step = statistics.median(steps[name][1:])
        picture = statistics.median(pictures[name][1:])
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(
            f"| {name} | {weights:.1f} M | {step:.2f} s | {step / base:.2f} | {1 / picture:.1f} |"
        )


if __name__ == "__main__":
    main()
