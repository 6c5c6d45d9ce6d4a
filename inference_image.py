"""Segment pictures with a trained model.

    python inference_image.py --input input/my_leaves/valid_images --model outputs/model.pth
    python inference_image.py --imgsz 512 512 --input a.jpg "more/*.png" --model outputs/model.pth

For each picture NAME: NAME_overlay.jpg, the photograph with its classes tinted, and NAME_mask.png,
the class index of each pixel, both of the picture's own size; results.csv for all, and legend.png.
"""

import csv
import io
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from images import list_images, read_image, write_image, write_mask
from tqdm import tqdm

import cli
from config import ClassTable
from errors import UserError
from files import lock_folder, write_text
from predictor import Predictor
from utils import draw_legend, overlay


def parse_args():
    parser = cli.Parser(__doc__)
    parser.add_device()
    parser.add_argument("--input", nargs="+", required=True, help="pictures, folders or patterns")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of train.py")
    parser.add_imgsz(None, "network's input; the training's if not given")
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("outputs/inference_results_image"),
        help="folder for results",
    )
    parser.add_argument("--batch", type=cli.positive_int, default=1, help="pictures a pass")
    parser.add_argument(
        "--workers", type=cli.positive_int, default=2, help="threads that read and write pictures"
    )
    return parser.parse_args()  # fmt: skip


def find_inputs(inputs: list[str]) -> dict[str, Path]:
    """The pictures that the user means, by the name that their results will bear.

    Raises:
        UserError: an input is not there or holds no picture.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            pictures = list_images(path)
        elif path.exists() or not any(sign in text for sign in "*?["):
            pictures = [path] if path.exists() else []
        else:
            pictures = sorted(
                p for p in Path(path.anchor or ".").glob(text.removeprefix(path.anchor))
            )
        if not pictures:
            raise UserError(f"--input {text}: there is no picture; give a file, folder or pattern.")
        found += pictures
    named: dict[str, Path] = {}
    for path in dict.fromkeys(found):
        # Two inputs never write one output: a second `leaf` becomes `leaf_jpg`, then `leaf_jpg_2`.
        names = [path.stem, path.name.replace(".", "_")]
        names += [f"{names[1]}_{number}" for number in range(2, len(found) + 2)]
        named[next(name for name in names if name not in named)] = path
    return named


def measure(mask: np.ndarray, classes: ClassTable) -> list[float]:
    """Per class: pixels, share of the picture, share of all but the first class."""
    pixels = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    foreground = pixels[1:].sum()
    row = []
    for index, count in enumerate(pixels):
        of_foreground = count / foreground if index and foreground else 0.0
        row += [int(count), round(count / mask.size, 6), round(of_foreground, 6)]
    return row


def write_results(out_dir: Path, name: str, image: np.ndarray, mask: np.ndarray,
                  classes: ClassTable) -> list:  # fmt: skip
    """Write one picture's overlay and mask; returns its line of results.csv."""
    write_image(out_dir / f"{name}_overlay.jpg", overlay(image, mask, classes))
    write_mask(out_dir / f"{name}_mask.png", mask, classes.colors)
    return [image.shape[1], image.shape[0], *measure(mask, classes)]


def batches(named: dict[str, Path], size: int, pool: ThreadPoolExecutor) -> Iterator[list]:
    """Groups of (name, path, picture to come); a few pictures are read ahead, never all."""
    waiting: list = []
    items = iter(named.items())
    while True:
        for name, path in islice(items, 2 * size + 2 - len(waiting)):
            waiting.append((name, path, pool.submit(read_image, path)))
        if not waiting:
            return
        yield waiting[:size]
        waiting = waiting[size:]


def main() -> int:
    args = parse_args()
    named = find_inputs(args.input)
    imgsz = (args.imgsz[1], args.imgsz[0]) if args.imgsz else None
    predictor = Predictor.load(args.model, imgsz, args.device)
    classes = predictor.classes
    bad: list[str] = []
    rows: list[tuple[str, Future]] = []
    with (
        lock_folder(args.out_dir),
        ThreadPoolExecutor(args.workers) as pool,
        tqdm(total=len(named), desc="Segmenting", unit="picture", dynamic_ncols=True) as bar,
    ):
        for group in batches(named, args.batch, pool):
            read = []
            for name, path, future in group:
                try:
                    read.append((name, path, future.result()))
                except UserError as error:
                    bad.append(str(error))
            masks = predictor.masks([image for _, _, image in read]) if read else []
            for (name, path, image), mask in zip(read, masks, strict=True):
                job = pool.submit(write_results, args.out_dir, name, image, mask, classes)
                rows.append((str(path), job))
            if len(rows) > 4 * args.workers:  # memory stays bounded when writing is the slowest
                rows[-4 * args.workers][1].result()
            bar.update(len(group))
        write_csv(args.out_dir / "results.csv", rows, classes)
        write_image(args.out_dir / "legend.png", legend(classes))
    print(f"{len(rows)} pictures segmented; results are in {args.out_dir}/")
    if bad:
        print(f"{len(bad)} pictures were skipped:", *bad, sep="\n  ", file=sys.stderr)
    return 1 if bad else 0


def write_csv(path: Path, rows: list[tuple[str, Future]], classes: ClassTable) -> None:
    """One line a picture, written whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("pixels", "share", "share_of_foreground")
    columns = [f"{figure}_{name}" for name in classes.names for figure in figures]
    writer.writerow(["file", "width", "height", *columns])
    writer.writerows([file, *job.result()] for file, job in rows)
    write_text(path, text.getvalue())


def legend(classes: ClassTable) -> np.ndarray:
    """A picture of the classes' names and colours."""
    return draw_legend(np.full((60 + 40 * len(classes), 480, 3), 60, np.uint8), classes)


if __name__ == "__main__":
    cli.run(main)
