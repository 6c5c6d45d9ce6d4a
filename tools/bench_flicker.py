"""How much masks flicker on a still scene with a camera's noise, by hand (not part of the tests).

    python tools/bench_flicker.py --model outputs/model.pth --image leaf.jpg [--noise 12]

Prints the share of pixels that change their class from one frame to the next, for several --smooth.
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

import common.environment  # noqa: F401 - first, to say what is not installed

import numpy as np
from tqdm import tqdm

from data.images import read_image
from inference.frames import Scored, Smoother, thumbnail
from inference.predictor import Predictor
from video.reader import Frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=12, help="standard deviation, of 255")
    parser.add_argument("--frames", type=int, default=40)
    args = parser.parse_args()
    predictor, still = Predictor.load(args.model), read_image(args.image)
    rng, seen = np.random.default_rng(0), []
    for _ in tqdm(range(args.frames)):
        noise = rng.normal(0, args.noise, still.shape)
        image = np.clip(still + noise, 0, 255).astype(np.uint8)
        seen.append((predictor.frame_scores([image])[0], thumbnail(image)))
    for amount in (0.0, 0.5, 0.8, 0.9):
        smoother = Smoother(amount)
        masks = []
        for scores, small in seen:
            frame = Frame(0, Fraction(0), Fraction(0), None)
            masks.append(predictor.mask(smoother(Scored(frame, scores, small)), still.shape[:2]))
        changed = [(a != b).mean() for a, b in itertools.pairwise(masks)]
        print(f"--smooth {amount}: {np.mean(changed[5:]):.4%} of the pixels change a frame")


if __name__ == "__main__":
    main()
