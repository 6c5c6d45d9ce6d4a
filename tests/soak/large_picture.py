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
    out_dir = picture.with_suffix("")
    command = [sys.executable, str(ROOT / "inference_image.py"), "--model", str(model),
               "--input", str(picture), "--device", "cpu", "--out-dir", str(out_dir),
               *flags]  # fmt: skip
    watched = [sys.executable, "-c", WATCH, *command]
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
        save_checkpoint(folder / "model.pth", model, ModelConfig(head="pyramid"),
                        ClassTable.default())  # fmt: skip
        write_image(folder / "small.jpg", cv2.resize(noise, (640, 480)))
        write_image(folder / "large.jpg", cv2.resize(noise, (12_000, 9_000)))
        small = peak_mebibytes(folder / "model.pth", folder / "small.jpg", "--imgsz", "64", "64")
        large = peak_mebibytes(folder / "model.pth", folder / "large.jpg", "--tile", args.tile,
                               "--overlap", args.overlap)  # fmt: skip
    print(f"640x480 at 64x64: {small:.0f} MiB; 12,000x9,000 in tiles of {args.tile}: {large:.0f} "
          f"MiB, {large - small:+.0f} MiB; {time.monotonic() - started:.0f} s")  # fmt: skip
    return int(large - small > LIMIT)


if __name__ == "__main__":
    cli.run(main)
