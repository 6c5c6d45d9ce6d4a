"""A map of 20,000 x 20,000 pixels is segmented, outlined and measured within 1.5 GiB in all.

python tests/soak/large_map.py
"""

# ruff: noqa: E402

import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "soak")]

import cv2
import numpy as np
import rasterio
from large_picture import WATCH
from tiny_model import save_tiny

from common import cli

LIMIT = 1.5 * 1024  # MiB
STRIP = 500


def write_map(path: Path, side: int) -> None:
    """Blobs of a few thousand pixels, strip by strip."""
    coarse = np.random.default_rng(0).integers(0, 255, (side // 50 + 2, side // 50, 3), np.uint8)
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8"}
    profile |= {"tiled": True, "compress": "jpeg", "photometric": "ycbcr", "crs": "EPSG:32617"}
    transform = rasterio.Affine(0.02, 0, 404_000, 0, -0.02, 3_285_000)
    with rasterio.open(path, "w", transform=transform, **profile) as target:
        for top in range(0, side, STRIP):
            first = top // 50
            rows = coarse[first : first + STRIP // 50 + 1]
            strip = cv2.resize(rows, (side, STRIP), interpolation=cv2.INTER_CUBIC)
            window = rasterio.windows.Window(0, top, side, len(strip))
            target.write(np.moveaxis(strip, 2, 0), window=window)


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--side", type=cli.positive_int, default=20_000, help="of the map")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_tiny(folder / "model.pth", (512, 512))
        write_map(folder / "field.tif", args.side)
        started = time.monotonic()
        script = [TESTS / "run_tiny.py", "inference_image.py", "--model", model, "--device", "cpu"]
        script += ["--input", folder / "field.tif", "--out-dir", folder / "out", "--overlap", "0.1"]
        watched = [sys.executable, "-c", WATCH, sys.executable, *script]
        done = subprocess.run(watched, check=True, stdout=subprocess.PIPE)
        peak = int(done.stdout) / 1024
        sizes = {
            path.name: f"{path.stat().st_size / 2**20:.1f} MiB"
            for path in sorted((folder / "out").iterdir())
        }
        polygons = (folder / "out/field_classes.geojson").read_text().count("\n") - 2
    print(f"{args.side}x{args.side}: {peak:.0f} MiB, {time.monotonic() - started:.0f} s, {sizes}")
    print(f"{polygons} polygons")
    return int(peak > LIMIT)


if __name__ == "__main__":
    cli.run(main)
