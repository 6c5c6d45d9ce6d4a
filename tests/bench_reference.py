"""The backbone alone against the `fastervit` package, in turns, by hand (not part of the tests).

    python tests/bench_reference.py [--size 512] [--repeats 7] [--compile]

Both hold the same weights and give the same four features; the ratio is that of the medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from fastervit.models.faster_vit_any_res import faster_vit_0_any_res

from common.device import machine
from segmentation_model import build_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="measure both compiled, too")
    parser.add_argument("--cpu-seconds", action="store_true", help="for a machine others load")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    reference = faster_vit_0_any_res(resolution=[args.size] * 2).eval()
    ours = build_model("faster_vit_0", "article").eval()
    learnt = ours.state_dict()
    weights = {
        name: tensor
        for name, tensor in reference.state_dict().items()
        if name in learnt and learnt[name].shape == tensor.shape
    }
    ours.load_state_dict(weights, strict=False)

    images = torch.randn(1, 3, args.size, args.size)
    runs = {"ours": ours.forward_features, "fastervit": reference.forward_features}
    last = {name: run(images) for name, run in runs.items()}
    last = {name: out[0] if isinstance(out, tuple) else out for name, out in last.items()}
    print(machine())
    if last["ours"].shape == last["fastervit"].shape:
        error = (last["ours"] - last["fastervit"]).norm() / last["fastervit"].norm()
        print(f"{len(weights)} tensors shared; relative difference of the last map {error:.1e}")
    if args.compile:
        runs |= {f"{name} compiled": torch.compile(run) for name, run in runs.items()}
        for name in ("ours compiled", "fastervit compiled"):
            runs[name](images)
    times = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            start = clock()
            run(images)
            times[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:20} {value * 1e3:8.1f} ms")
    print(f"fastervit / ours: {medians['fastervit'] / medians['ours']:.2f}")
    if args.compile:
        print(f"fastervit / ours compiled: {medians['fastervit'] / medians['ours compiled']:.2f}")
        ratio = medians["fastervit compiled"] / medians["ours compiled"]
        print(f"fastervit compiled / ours compiled: {ratio:.2f}")


if __name__ == "__main__":
    main()
