"""A folder of pictures, one in twenty of them broken: all others are segmented, in constant memory.

python tests/soak/pictures.py --count 2000
"""

# ruff: noqa: E402

import csv
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[up]) for up in (1, 2)]

import numpy as np
import psutil
import torch
from PIL import Image
from tiny_model import save_tiny

import inference_image
from common import cli


def encode(image: np.ndarray, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def giant(png: bytes) -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    return png[:16] + (60_000).to_bytes(4, "big") * 2 + png[24:]


# Damaged bytes, made of a JPEG and a PNG of the same picture.
DAMAGED: list[tuple[str, Callable[[bytes, bytes], bytes]]] = [
    (".jpg", lambda jpg, png: jpg[: len(jpg) // 2]),
    (".jpg", lambda jpg, png: jpg[:-2]),
    (".jpg", lambda jpg, png: b""),
    (".jpg", lambda jpg, png: png),  # mislabelled
    (".jpg", lambda jpg, png: b"not a picture, though it says so"),
    (".png", lambda jpg, png: png[: len(png) // 2]),
    (".png", lambda jpg, png: png[:-12]),
    (".png", lambda jpg, png: png[:60] + bytes(200) + png[260:]),
    (".png", lambda jpg, png: giant(png)),
    (".png", lambda jpg, png: bytes(5000)),
]
# Things that bear a picture's name and are no file that can be read.
NO_FILE: list[Callable[[Path], None]] = [
    os.mkfifo,
    lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("gone.png"),
    lambda path: path.symlink_to("/dev/zero"),
]
if os.geteuid():  # nothing is forbidden to root
    NO_FILE.append(lambda path: path.touch(mode=0))
# Names of good pictures; a result's name is cut where the system would not take it.
HARD_NAMES = (
    "-{}",
    "--help {}",
    "blätter 叶 {}",
    "two\nlines {}",
    "'\"; $({}) `",
    "a" * 240 + "{}",
)


def fill(folder: Path, count: int) -> int:
    """Write `count` pictures; returns how many of them are broken."""
    rng, broken = np.random.default_rng(0), 0
    for number in range(count):
        size = (int(rng.integers(60, 400)), int(rng.integers(60, 400)))
        blocks = rng.integers(0, 255, (size[0] // 20 + 1, size[1] // 20 + 1, 3), dtype=np.uint8)
        image = np.kron(blocks, np.ones((20, 20, 1), np.uint8))[: size[0], : size[1]]
        jpg, png = encode(image, "JPEG"), encode(image, "PNG")
        name = HARD_NAMES[number // 20 % len(HARD_NAMES)] if number % 20 == 3 else "picture {}"
        path = folder / f"{name.format(f'{number:05d}')}{'.jpg' if number % 2 else '.png'}"
        if number % 20 != 7:
            path.write_bytes(jpg if number % 2 else png)
            continue
        kind = broken % (len(DAMAGED) + len(NO_FILE))
        if kind < len(DAMAGED):
            ending, damage = DAMAGED[kind]
            path.with_suffix(ending).write_bytes(damage(jpg, png))
        else:
            NO_FILE[kind - len(DAMAGED)](path)
        broken += 1
    return broken


class Watch(threading.Thread):
    """Notes this process's memory and open files four times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.mebibytes: list[float] = []
        self.files: list[int] = []
        self.done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self.done.wait(0.25):
            self.mebibytes.append(process.memory_info().rss / 2**20)
            self.files.append(process.num_fds())

    def growth(self) -> float:
        """MiB between the second quarter of the run and its end."""
        quarter = max(1, len(self.mebibytes) // 4)
        return max(self.mebibytes[-quarter:]) - max(self.mebibytes[quarter : 2 * quarter])


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--count", type=cli.positive_int, default=2000, help="pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        broken = fill(folder / "in", args.count)
        model = save_tiny(folder / "m.pth", size=(64, 64))
        sys.argv = ["inference_image.py", "--device", "cpu", "--model", str(model)]
        sys.argv += ["--input", f"{folder}/in", "--out-dir", f"{folder}/out"]
        watch, started = Watch(), time.monotonic()
        watch.start()
        code = inference_image.main()
        watch.done.set()
        watch.join()
        with open(folder / "out/results.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        reasons = (folder / "out/skipped.txt").read_text(encoding="utf-8").splitlines()
        masks = len(list((folder / "out").glob("*_mask.png")))
        shutil.rmtree(folder / "in")
    good = args.count - broken
    print(
        f"{args.count} pictures, {broken} broken: {len(rows)} results, {masks} masks, "
        f"{len(reasons)} reasons, exit code {code}, {time.monotonic() - started:.0f} s; memory "
        f"at most {max(watch.mebibytes):.0f} MiB, {watch.growth():+.0f} MiB from the second "
        f"quarter to the last; open files at most {max(watch.files)}"
    )
    whole = (len(rows), masks, len(reasons), code) == (good, good, broken, 1)
    return int(not whole or watch.growth() > 60)


if __name__ == "__main__":
    cli.run(main)
