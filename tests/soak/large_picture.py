"""A photograph of 12,000 x 9,000 pixels is segmented in tiles within 3 GiB beside the model.

python tests/soak/large_picture.py
"""

# ruff: noqa: E402

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
from torch import nn

from common import cli
from config import ClassTable, ModelConfig
from data.images import write_image
from models.checkpoint import save_checkpoint
from segmentation_model import build_model

LIMIT = 3 * 1024  # MiB
# A process begins with the size of the one that started it, so a small one stands in between.
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_mebibytes(model: Path, picture: Path, *flags: str) -> float:
    """The largest resident size of a process that segments a picture."""
    script = [sys.executable, ROOT / "inference_image.py", "--device", "cpu", *flags]
    places = ["--model", model, "--input", picture, "--out-dir", picture.with_suffix("")]
    watched = [sys.executable, "-c", WATCH, *script, *places]
    done = subprocess.run(watched, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return int(done.stdout) / 1024


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--tile", default="512", help="side of the tiles")
    parser.add_argument("--overlap", default="0.1", help="of the tiles")
    args = parser.parse_args()
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        model = build_model("faster_vit_0", "pyramid", 2)
        nn.init.normal_(model.pyramid_head.classifier.weight, std=5.0)  # both classes occur
        config, path = ModelConfig(head="pyramid"), folder / "model.pth"
        save_checkpoint(path, model, config, ClassTable.default())
        write_image(folder / "small.jpg", cv2.resize(noise, (640, 480)))
        write_image(folder / "large.jpg", cv2.resize(noise, (12_000, 9_000)))
        small = peak_mebibytes(path, folder / "small.jpg", "--imgsz", "64", "64")
        tiles = ["--tile", args.tile, "--overlap", args.overlap]
        large = peak_mebibytes(path, folder / "large.jpg", *tiles)
    print(
        f"640x480 at 64x64: {small:.0f} MiB; 12,000x9,000 in tiles of {args.tile}: {large:.0f} "
        f"MiB, {large - small:+.0f} MiB; {time.monotonic() - started:.0f} s"
    )
    return int(large - small > LIMIT)


if __name__ == "__main__":
    cli.run(main)
