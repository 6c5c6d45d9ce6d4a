"""Seconds and memory from the command to the first step of a training, by hand (not a test).

    python tools/bench_start.py outputs/many_pairs --pairs 20000
    python tools/bench_start.py outputs/many_polygons --pairs 5000 --coco

Draws that many pairs of small photographs and masks where there are none yet, and starts train.py
twice in processes of their own: once knowing no file, once knowing all from the first time. Each
ends after its first step. What is learnt of files goes to a temporary folder.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import numpy as np
from PIL import Image

from common import cli
from common.device import machine
from data.images import map_files

ROOT = Path(__file__).resolve().parents[1]
SIZE = (48, 64)  # of a picture
VALID = 10  # every tenth pair is for validation
FLAGS = """--head pyramid --imgsz 64 64 --batch 4 --epochs 1 --weights none --device cpu
    --workers 2 --overwrite"""


def draw_pairs(root: Path, count: int) -> None:
    """Draw pairs: noise with a bright rectangle, which the mask marks."""
    for split in ("train", "valid"):
        for part in ("images", "masks"):
            (root / f"{split}_{part}").mkdir(parents=True, exist_ok=True)

    def draw(index: int) -> None:
        rng = np.random.default_rng(index)
        split = "train" if index % VALID else "valid"
        image = rng.integers(0, 120, (*SIZE, 3), dtype=np.uint8)
        mask = np.zeros(SIZE, np.uint8)
        top, left = rng.integers(0, 24, 2)
        mask[top : top + 20, left : left + 30] = 1
        image[mask == 1] += 100
        Image.fromarray(image).save(root / f"{split}_images" / f"{index:06d}.jpg", quality=80)
        Image.fromarray(mask).save(root / f"{split}_masks" / f"{index:06d}.png")

    map_files(draw, list(range(count)), "Drawing pairs")


def draw_polygons(root: Path, count: int) -> None:
    """Draw photographs of noise, with seven polygons of two classes on each in one COCO file."""
    (root / "images").mkdir(parents=True)

    def draw(index: int) -> list[dict]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 120, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index:06d}.jpg", quality=80)
        angles = np.sort(rng.uniform(0, 2 * np.pi, (7, 20)))
        points = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * rng.uniform(3, 15, (7, 1, 1))
        points += rng.uniform(15, 40, (7, 1, 2))
        rings = points.round(2).reshape(7, -1).tolist()
        return [
            {"image_id": index, "category_id": 1 + number % 2, "segmentation": [ring]}
            for number, ring in enumerate(rings)
        ]

    drawn = map_files(draw, list(range(count)), "Drawing polygons")
    annotations = [one | {"id": i} for i, one in enumerate(one for own in drawn for one in own)]
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    images = [{"id": i, "file_name": f"{i:06d}.jpg"} | sizes for i in range(count)]
    classes = [{"id": 1, "name": "leaf"}, {"id": 2, "name": "spot"}]
    content = {"images": images, "categories": classes, "annotations": annotations}
    (root / "annotations.json").write_text(json.dumps(content))


def start_once(root: Path, out_dir: Path) -> None:
    """What a process of its own does: train.py up to the end of its first step."""
    import engine

    step = engine._step

    def last_step(*args, **options) -> None:
        step(*args, **options)
        os._exit(0)

    engine._step = last_step
    sys.argv = ["train.py", "--data", str(root), "--out-dir", str(out_dir), *FLAGS.split()]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def seconds_to_first_step(root: Path, folder: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds of a start, and the largest memory of its process in MiB."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, __file__, str(root), "--start", str(folder / "run")]
    began = time.perf_counter()
    process = os.spawnve(os.P_NOWAIT, sys.executable, command, environment)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        sys.exit("train.py did not come to its first step")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--pairs", type=cli.positive_int, default=20_000)
    parser.add_argument("--coco", action="store_true", help="polygons in place of masks")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start_once(args.root, args.start)
        return
    if not args.root.exists():
        (draw_polygons if args.coco else draw_pairs)(args.root, args.pairs)
        time.sleep(3)  # what is as new as this is not remembered
    print(f"{machine()}\n{args.pairs} pairs of {SIZE[1]}x{SIZE[0]} px")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            wall, cpu, memory = seconds_to_first_step(args.root, Path(folder))
            seconds = f"{wall:.1f} s to the first step ({cpu:.1f} s of CPU)"
            print(f"{name} start: {seconds}, {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
