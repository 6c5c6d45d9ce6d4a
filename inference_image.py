"""Segment pictures with a trained model.

    python inference_image.py --input input/my_leaves/valid_images --model outputs/model.pth
    python inference_image.py --imgsz 512 512 --input a.jpg "more/*.png" --model outputs/model.pth
    python inference_image.py --input drone.tif --model outputs/model.pth --tile 512 --save mask

For each picture NAME, by --save:
    overlay   NAME_overlay.jpg, the photograph with its classes tinted
    mask      NAME_mask.png, the class index of each pixel, a palette PNG for CVAT and GIS programs
    colour    NAME_colour.png, the classes' colours of the label map
    prob      NAME_prob.npz, the probability of each class, float16 (K, H, W)
    cvat      all masks as one cvat.zip, to be corrected in CVAT and trained on again

All have the picture's own size. results.csv holds the numbers, summary.html shows all at a glance.
"""

import argparse
import csv
import io
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from common import cli, distributed
from common.errors import UserError
from common.files import lock_folder, replacing, write_text
from common.text import printable, read_text
from config import ClassTable
from data.images import encode_jpeg, list_images, read_image, write_image, write_mask
from inference.predictor import Predictor
from reporting.report import GalleryRow, write_gallery
from utils import colour_mask, draw_legend, overlay, shrink

KINDS = ("overlay", "mask", "colour", "prob", "cvat")
MAX_JPEG_SIDE = 65_500  # pixels; the overlay of a longer picture is a smaller view of it
ENDINGS = {"overlay": ".jpg", "mask": ".png", "colour": ".png", "prob": ".npz"}


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--model")
    what = "pictures, folders, patterns, or .txt lists with a path a line"
    parser.add_argument("--input", nargs="+", required=True, metavar="INPUT", help=what)
    parser.add_argument("--recursive", action="store_true", help="look into folders of folders")
    cli.add_shared(parser, "--out-dir", default=Path("outputs/inference_results_image"))
    parser.add_argument(
        "--save",
        nargs="+",
        choices=KINDS,
        default=["overlay", "mask"],
        metavar="KIND",
        help=f"what to write: {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--mm-per-pixel",
        type=cli.number(float, 0, 1e6, open_low=True),
        metavar="MM",
        help="scale of the photographs, adds areas in square millimetres",
    )
    network = parser.add_argument_group("network")
    cli.add_shared(network, "--imgsz", "--batch")
    network.add_argument("--keep-aspect", action="store_true", help="pad rather than stretch")
    network.add_argument(
        "--tile",
        type=cli.number(int, 32, 8192),
        metavar="SIZE",
        help="cut larger pictures into tiles of SIZE pixels, at full resolution",
    )
    network.add_argument(
        "--overlap",
        type=cli.number(float, 0, 0.9),
        default=0.5,
        help="share of a tile that it shares with the next",
    )
    network.add_argument(
        "--tta", action="store_true", help="average over mirror images: slower, a little better"
    )
    cli.add_shared(network, "--workers", help="threads that read and write pictures")
    return parser.parse_args()


# --- What to read, and under which names to write -------------------------------------------------


def find_inputs(inputs: list[str], recursive: bool, out_dir: Path | None = None) -> dict[str, Path]:
    """The pictures that the user means, by the name that their results will bear.

    A name is the picture's path below the folder that was given, without its ending. A folder of
    results within that folder is not searched: they are no photographs.

    Raises:
        UserError: an input is not there or holds no picture.
    """
    found: dict[str, tuple[Path, Path]] = {}  # by the full path: picture, its path below the input
    for text in inputs:
        pictures = list(_pictures(Path(text), text, recursive))
        if out_dir is not None:
            pictures = [pair for pair in pictures if not _is_result(*pair, out_dir)]
        if not pictures:
            raise UserError(
                f"--input {printable(text)} holds no picture; give a file, a folder or a pattern."
            )
        for path, below in pictures:
            found.setdefault(_place(path), (path, below))
    named: dict[str, Path] = {}
    taken, tries = set(), Counter()
    for path, below in found.values():
        # Two inputs never write one output: a second `leaf` becomes `leaf_jpg`, then `leaf_jpg_2`.
        named[_free_name(below, taken, tries)] = path
    return named


def _free_name(below: Path, taken: set[str], tries: Counter) -> str:
    """A name that no other picture's results bear: `leaf`, else `leaf_jpg`, else `leaf_jpg_2`.

    It is noted in `taken`, without regard to case, as some file systems see it.
    """
    other = below.with_name(below.name.replace(".", "_"))
    names = iter((str(below.with_suffix("")), str(other)))
    # A name too long for the file system is cut at its end, so its number stands in front.
    long = len(other.name.encode(errors="backslashreplace")) > 200
    pattern = "{1}_{0}" if long else "{0}_{1}"
    while True:
        name = next(names, None)
        if name is None:
            tries[other] += 1
            name = str(other.with_name(pattern.format(other.name, tries[other] + 1)))
        key = unicodedata.normalize("NFC", str(output(Path(), name, "overlay"))).casefold()
        if key not in taken:
            taken.add(key)
            return name


def _place(path: Path) -> str:
    """One text for all the ways to write a picture's path."""
    try:
        return str(path.parent.resolve() / path.name)
    except (OSError, RuntimeError, ValueError):  # no path at all, as lists may hold
        return str(path)


def _is_result(path: Path, below: Path, out_dir: Path) -> bool:
    """Whether a search led to a picture in a folder of results within the one searched."""
    if len(below.parts) == 1:
        return False
    searched = path.parents[len(below.parts) - 1].resolve()
    within = out_dir.resolve() != searched and out_dir.resolve().is_relative_to(searched)
    return within and path.parent.resolve().is_relative_to(out_dir.resolve())


def _pictures(path: Path, text: str, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Each picture of one input, with its path below it."""
    if path.is_dir():
        for picture in list_images(path, recursive):
            yield picture, picture.relative_to(path)
    elif path.is_file() and path.suffix.lower() == ".txt":
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            yield Path(line), Path(Path(line).name or "unnamed")
    elif path.exists() or path.is_symlink():
        yield path, Path(path.name)
    elif any(sign in text for sign in "*?["):
        root = Path(path.anchor or ".")
        try:
            matches = sorted(root.glob(str(path.relative_to(path.anchor))))
        except ValueError as error:
            raise UserError(f"--input {printable(text)} is no pattern ({error}).") from error
        parts = path.relative_to(path.anchor).parts
        fixed = list(takewhile(lambda part: not set(part) & set("*?["), parts))
        for picture in matches:
            if picture.is_file():
                yield picture, picture.relative_to(root.joinpath(*fixed))
    else:
        raise UserError(f"--input {printable(text)} is not there; check the path.")


# --- What to measure and write --------------------------------------------------------------------


@dataclass
class Result:
    """One picture's numbers and its small view for the gallery."""

    name: str
    file: str
    row: list
    severity: float
    shares: list[float]
    thumbnail: bytes


def columns(classes: ClassTable, mm_per_pixel: float | None) -> list[str]:
    """The head of results.csv."""
    figures = ["pixels", "share", "share_of_foreground", "regions", "largest_region"]
    figures += ["mm2"] if mm_per_pixel else []
    names = [f"{figure}_{name}" for name in classes.names for figure in figures]
    return ["file", "width", "height", "severity", *names]


def measure(mask: np.ndarray, classes: ClassTable, mm_per_pixel: float | None) -> tuple:
    """Count a mask (H, W).

    Returns:
        the severity: the last class's share of all but the first class (with three classes,
        symptom over leaf and symptom), of the whole picture where there are but two classes;
        each class's share of the picture; the figures of `columns`, class after class.
    """
    pixels = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    foreground = int(pixels[1:].sum())
    row: list = []
    for index, count in enumerate(pixels.tolist()):
        regions, largest = 0, 0
        if count:
            areas = cv2.connectedComponentsWithStats((mask == index).view(np.uint8))[2][1:, -1]
            regions, largest = len(areas), int(areas.max())
        of_foreground = count / foreground if index and foreground else 0.0
        row += [count, round(count / mask.size, 6), round(of_foreground, 6), regions, largest]
        row += [float(f"{count * mm_per_pixel**2:.6g}")] if mm_per_pixel else []
    whole = foreground if len(classes) > 2 else mask.size
    severity = round(int(pixels[-1]) / whole, 6) if whole else 0.0
    return severity, (pixels / mask.size).tolist(), row


def write_results(args, name: str, path: Path, image: np.ndarray, mask: np.ndarray,
                  probabilities: np.ndarray | None, classes: ClassTable) -> Result:  # fmt: skip
    """Write what --save asks for of one picture, and count it."""
    targets = {kind: output(args.out_dir, name, kind) for kind in ENDINGS}
    tinted = overlay(image, mask, classes)
    if "overlay" in args.save:
        write_image(targets["overlay"], shrink(tinted, MAX_JPEG_SIDE))
    if "mask" in args.save or "cvat" in args.save:
        write_mask(targets["mask"], mask, classes.colors)
    if "colour" in args.save:
        write_image(targets["colour"], colour_mask(mask, classes.colors))
    if probabilities is not None:
        with replacing(targets["prob"]) as temporary:
            np.savez_compressed(temporary, probabilities=probabilities, classes=classes.names)
    severity, shares, figures = measure(mask, classes, args.mm_per_pixel)
    row = [str(path), image.shape[1], image.shape[0], severity, *figures]
    small = encode_jpeg(shrink(tinted, 320), quality=70)
    return Result(name, str(path), row, severity, shares, small)


def output(out_dir: Path, name: str, kind: str) -> Path:
    """Where a result goes; names too long for the file system with their ending are cut."""
    path = Path(name)
    ending = f"_{kind}{ENDINGS[kind]}"
    stem = path.name.encode(errors="backslashreplace")[: 250 - len(ending)].decode(errors="ignore")
    return out_dir / path.parent / f"{stem}{ending}"


def refuse_to_replace_neighbours(args, named: dict[str, Path]) -> None:
    """A result must not take the place of the user's own mask beside a photograph.

    Raises:
        UserError: it would.
    """
    for name, path in named.items():
        for kind in set(args.save) & set(ENDINGS):
            target = output(args.out_dir, name, kind)
            if target.exists() and target.parent.resolve() == path.parent.resolve():
                raise UserError(
                    f"{printable(target)} lies beside its photograph and may be your own; choose "
                    "another --out-dir."
                )


def write_csv(path: Path, results: list[Result], head: list[str]) -> None:
    """One line a picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(result.row for result in results)
    write_text(path, text.getvalue())


def write_cvat(path: Path, out_dir: Path, results: list[Result], classes: ClassTable) -> None:
    """All masks in the layout of CVAT's "Segmentation mask 1.1"."""
    lines = ["# label:color_rgb:parts:actions"]
    for label, color in zip(classes.names, classes.colors, strict=True):
        lines.append(f"{label}:{','.join(map(str, color))}::")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("labelmap.txt", "\n".join(lines) + "\n")
        names = "".join(f"{printable(result.name)}\n" for result in results)
        archive.writestr("ImageSets/Segmentation/default.txt", names)
        for result in results:
            mask = output(out_dir, result.name, "mask")
            archive.write(mask, f"SegmentationClass/{printable(result.name)}.png")


# --- The run --------------------------------------------------------------------------------------


def read_ahead(
    named: list[tuple[str, Path]], size: int, pool: ThreadPoolExecutor
) -> Iterator[list]:
    """Groups of (name, path, picture to come); a few pictures are read ahead, never all."""
    items, waiting = iter(named), []
    while True:
        for name, path in islice(items, size + 1 - len(waiting)):
            waiting.append((name, path, pool.submit(read_image, path)))
        if not waiting:
            return
        yield waiting[:size]
        waiting = waiting[size:]


def segment(args, predictor: Predictor, named: list[tuple[str, Path]]) -> tuple[list, list[str]]:
    """Read, segment, write and count pictures; what cannot be read is listed, not lost.

    Returns:
        the results in the order of the inputs, and a sentence for each picture left out.
    """
    jobs: list[Future] = []
    bad: list[str] = []
    hidden = not distributed.is_main()
    with (
        ThreadPoolExecutor(args.workers) as pool,
        tqdm(total=len(named), desc="Segmenting", unit="picture", disable=hidden) as bar,
    ):
        for group in read_ahead(named, args.batch, pool):
            read = []
            for name, path, future in group:
                try:
                    read.append((name, path, future.result()))
                except UserError as error:
                    bad.append(" ".join(str(error).split()))
            images = [image for _, _, image in read]
            masks = predictor.segment(images, "prob" in args.save)
            for (name, path, image), (mask, prob) in zip(read, masks, strict=True):
                jobs.append(
                    pool.submit(
                        write_results, args, name, path, image, mask, prob, predictor.classes
                    )
                )
            if len(jobs) > 2 * args.workers:  # memory stays bounded where writing is the slowest
                jobs[-2 * args.workers].exception()
            bar.update(len(group))
        results = []
        for job in jobs:
            try:
                results.append(job.result())
            except UserError as error:
                bad.append(" ".join(str(error).split()))
        return results, bad


def main() -> int:
    args = parse_args()
    named = list(find_inputs(args.input, args.recursive, args.out_dir).items())
    predictor = Predictor.load(
        args.model, args.imgsz, args.device,
        keep_aspect=args.keep_aspect, tile=args.tile, overlap=args.overlap, flips=args.tta,
        batch=args.batch,
    )  # fmt: skip
    fixed = getattr(predictor.model, "size", None)  # of an export
    if args.tile and fixed not in (None, (args.tile, args.tile)):
        raise UserError(
            f"{args.model} takes {fixed[1]}x{fixed[0]} pixels, so it cannot take tiles of "
            f"{args.tile}; export it with --imgsz {args.tile} {args.tile}, or leave --tile out."
        )
    refuse_to_replace_neighbours(args, dict(named))
    predictor.to(distributed.init(predictor.device))
    mine = named[distributed.rank() :: distributed.world_size()]
    with lock_folder(args.out_dir, distributed.is_main()):
        distributed.barrier()  # nobody writes before the main process holds the folder
        parts = distributed.gather(segment(args, predictor, mine))
        results = [result for part, _ in parts for result in part]
        bad = [sentence for _, part in parts for sentence in part]
        if distributed.is_main():
            summarise(args, predictor.classes, results, bad, [name for name, _ in named])
    distributed.shutdown()
    return 1 if bad else 0


def summarise(args, classes: ClassTable, results: list[Result], bad: list[str],
              order: list[str]) -> None:  # fmt: skip
    """Write what covers all pictures, and say what was done."""
    rank = {name: index for index, name in enumerate(order)}
    results = sorted(results, key=lambda result: rank[result.name])
    write_csv(args.out_dir / "results.csv", results, columns(classes, args.mm_per_pixel))
    canvas = np.full((40 + 36 * len(classes), 480, 3), 60, np.uint8)
    write_image(args.out_dir / "legend.png", draw_legend(canvas, classes))
    if "cvat" in args.save:
        write_cvat(args.out_dir / "cvat.zip", args.out_dir, results, classes)
    rows = [
        GalleryRow(
            printable(result.name), result.severity, result.shares, result.thumbnail,
            str(output(Path(), result.name, "overlay")) if "overlay" in args.save else None,
        )
        for result in results
    ]  # fmt: skip
    whole = "the foreground" if len(classes) > 2 else "the picture"
    write_gallery(
        args.out_dir / "summary.html", title="Segmented pictures", classes=classes, rows=rows,
        out_dir=args.out_dir, note=f"Severity is the share of {classes.names[-1]} in {whole}.",
    )  # fmt: skip
    print(f"{len(results)} pictures segmented; results are in {args.out_dir}/, see summary.html")
    if bad:
        write_text(args.out_dir / "skipped.txt", "".join(f"{line}\n" for line in bad))
        print(f"{len(bad)} pictures were skipped, listed in skipped.txt:", file=sys.stderr)
        print(*bad[:20], sep="\n", file=sys.stderr)
    else:
        (args.out_dir / "skipped.txt").unlink(missing_ok=True)


if __name__ == "__main__":
    cli.run(main)
