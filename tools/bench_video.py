"""How well the stages of a video overlap, by hand (not part of the tests).

    python tools/bench_video.py [--frames 200] [--repeats 5]
    OMP_NUM_THREADS=1 python tools/bench_video.py --model timm/tf_efficientnet_lite0 --imgsz 512 512

No pipeline is faster than its slowest stage alone, nor than the CPU seconds of all its stages
shared out over the cores. The wall time of the whole is printed over the larger of the two, and
beside it the rate of the whole over that of the model alone, which is measured before the whole
and after it, since a machine gets slower and faster. Without --model none is computed.
"""

# ruff: noqa: E402

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import common.environment  # noqa: F401 - first, to say what is not installed

import cv2
import numpy as np
import torch
from tiny_video import write_video
from torch import nn

from common import cli
from common.device import machine, spare_cores
from config import ClassTable, ModelConfig, Size
from inference.frames import Scored, draw, fit, score, segmented_frames
from inference.predictor import Predictor
from models.deploy import fold_batchnorm
from segmentation_model import build_model
from video.pipeline import keep_memory
from video.reader import VideoReader
from video.tinting import Turn
from video.writer import VideoWriter

SIZE = (1080, 1920)  # of the video, height first
ENCODER = "libx264", 20


class Free(nn.Module):
    """A model that takes no time: a disc of the second class."""

    def __init__(self, size: Size):
        super().__init__()
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
        self.scores = torch.stack([y**2 + x**2, torch.full_like(x, 0.3)])[None]

    def forward(self, images):
        return self.scores.expand(len(images), -1, -1, -1)


def scene(index: int, height: int, width: int) -> np.ndarray:
    """A textured ground over which a disc moves: HWC uint8."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    picture = cv2.resize(noise, (width, height))
    return cv2.circle(picture, (width // 4 + 4 * index, height // 2), 150, (200, 60, 40), -1)


def measured(work) -> tuple[float, float, object]:
    """Wall seconds, CPU seconds of all threads, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def stages_alone(source: str, predictor: Predictor, batch: int, folder: Path) -> dict[str, tuple]:
    """Wall and CPU seconds of each stage with its input ready."""
    threads = spare_cores(predictor.device)
    with VideoReader(source, threads) as reader:
        turn = Turn(reader.matrix)
        *decode, batches = measured(lambda: list(fit(reader.batches(batch), predictor, False)))
        *model, last = measured(lambda: deque(score(batches, predictor), 1).pop())
        # Each frame gets the last one's scores: keeping all of them would cost the model time.
        scored = [Scored(item.frame, last.scores, None) for own in batches for item in own]
        *tint, drawn = measured(lambda: list(draw(scored, predictor, turn, 0.0)))

        def encode():
            with VideoWriter(folder / "alone.mp4", reader, *ENCODER, threads) as writer:
                for item in drawn:
                    writer.write(item.frame)

        *written, _ = measured(encode)
    return {"decode": decode, "model": model, "draw": tint, "encode": written}


def together(source: str, predictor: Predictor, batch: int, folder: Path) -> float:
    """Wall seconds of the whole pipeline."""
    threads = spare_cores(predictor.device)
    with VideoReader(source, threads) as reader:

        def work():
            with (
                segmented_frames(reader, predictor, threading.Event(), batch) as items,
                VideoWriter(folder / "together.mp4", reader, *ENCODER, threads) as writer,
            ):
                for item in items:
                    writer.write(item.frame)

        return measured(work)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--model", help="a backbone as train.py names it, random weights")
    cli.add_shared(parser, "--imgsz", default=(144, 256))
    args = parser.parse_args()
    model = Free(args.imgsz)
    if args.model:
        model = fold_batchnorm(build_model(args.model, "pyramid"))
        model = model.to(memory_format=torch.channels_last)
    predictor = Predictor(model, ModelConfig(), ClassTable.default(), args.imgsz)
    print(machine())
    keep_memory()  # as the whole does; else the first turn's stages alone would be slower
    ratios, shares = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"preset": "veryfast"}
        path = write_video(folder / "source.mp4", args.frames, SIZE, draw=scene, options=options)
        source = str(path)
        for _ in range(args.repeats):
            stages = stages_alone(source, predictor, args.batch, folder)
            wall = together(source, predictor, args.batch, folder)
            slowest = max(wall for wall, _ in stages.values())
            shared = sum(cpu for _, cpu in stages.values()) / os.cpu_count()
            ratios.append(wall / max(slowest, shared))
            after = stages_alone(source, predictor, args.batch, folder)["model"][0]
            shares.append((stages["model"][0] + after) / 2 / wall)
            parts = ", ".join(f"{n} {w:.2f} s ({c:.2f} CPU)" for n, (w, c) in stages.items())
            print(f"{parts}; all CPU over {os.cpu_count()} cores {shared:.2f} s")
            print(f"together {wall:.2f} s, {args.frames / wall:.1f} frames/s: {ratios[-1]:.2f}")
    print(f"medians of {args.repeats}: wall time over the bound {statistics.median(ratios):.2f}")
    low, middle, high = min(shares), statistics.median(shares), max(shares)
    print(f"rate over that of the model alone {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
