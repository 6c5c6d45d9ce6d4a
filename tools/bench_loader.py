"""Pictures a second of the loader alone, by hand (not part of the tests).

    python tools/bench_loader.py ROOT [--imgsz 512 512] [--augment article]

Decoding and augmentation must not starve the model: compare with the pictures a second that
`benchmark.py` prints for a training step.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

from common import cli
from common.device import machine
from config import IMAGENET_MEAN
from data.source import open_source
from datasets import SegmentationDataset, make_loader


def pictures_a_second(dataset: SegmentationDataset, workers: int, epochs: int) -> float:
    """The median over epochs, the first one, in which workers start, left out."""
    loader = make_loader(dataset, 4, workers, train=True, seed=0)
    rates = []
    for epoch in range(epochs + 1):
        loader.batch_sampler.set_epoch(epoch)
        start = time.perf_counter()
        seen = sum(len(indices) for _, _, indices in loader)
        rates.append(seen / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT")
    cli.add_shared(parser, "--imgsz", default=(512, 512))
    parser.add_argument("--augment", default="article")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    height, width = args.imgsz
    source = open_source(args.root, ("train",))
    reader, pairs = source.reader, source.pairs["train"]
    print(
        f"{machine()}\n{len(pairs)} pictures of {args.root.name}, {width}x{height}, {args.augment}"
    )
    for cache in ("none", "ram"):
        fed = args.imgsz, IMAGENET_MEAN
        dataset = SegmentationDataset(pairs, reader, *fed, augment=args.augment, cache=cache)
        for workers in (1, 2):
            rate = pictures_a_second(dataset, workers, args.epochs)
            print(f"--cache {cache} --workers {workers}: {rate:.1f} pictures/s", flush=True)


if __name__ == "__main__":
    main()
