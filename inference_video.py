"""Segment videos, a camera or a stream: the same video with its classes tinted, and the numbers.

    python inference_video.py --model outputs/best_model_iou.pth --input walk.mp4
    python inference_video.py --model outputs/best_model_iou.pth --input a.mp4 b.mov --smooth 0.8
    python inference_video.py --model outputs/best_model_iou.pth --input 0 --show

For each VIDEO: VIDEO.mp4 with size, rotation, frame times and sound of the original, and
VIDEO_per_frame.csv with each class's share of every frame. Ctrl-C closes a file that plays.
"""

import argparse
import sys
from pathlib import Path

import common.environment  # noqa: F401 - first, to say what is not installed

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from common import cli
from common.device import compute_repeatably, spare_cores
from common.errors import UserError
from common.files import lock_folder
from common.text import counted, printable
from config import ClassTable
from inference.clips import segmented_clip, table_of
from inference.predictor import Predictor
from utils import save_figure
from video.pipeline import stopped_by_interrupt
from video.reader import VideoReader
from video.sources import is_live, output_stem, shown_name
from video.tinting import Turn
from video.window import Window, check_window
from video.writer import QUALITY_OPTION

INTERRUPTED = 130


def segment_video(source: str, predictor: Predictor, args: argparse.Namespace) -> int:
    """Segment one video. Returns the exit code: 0, 1 if it is damaged, 130 if interrupted.

    Raises:
        UserError: it cannot be read at all.
    """
    target = args.out_dir / f"{output_stem(source)}.mp4"
    table = table_of(target)
    options = {"batch": args.batch, "smooth": args.smooth, "codec": args.codec, "crf": args.crf}
    with (
        VideoReader(source, spare_cores(predictor.device)) as reader,
        stopped_by_interrupt() as stop,
    ):
        window = Window(reader.name, Turn(reader.matrix)) if args.show else None
        frames, seconds = 0, 0.0
        with (
            segmented_clip(reader, predictor, target, stop, **options) as written,
            tqdm(total=reader.expected_frames, unit=" frames", desc=reader.name) as bar,
        ):
            for frame in written:
                frames, seconds = frames + 1, float(frame.time + frame.duration)
                bar.update()
                if window and not window.show(frame):
                    stop.set()
            stopped = stop.is_set()
            if frames == 0:
                raise KeyboardInterrupt  # nothing to keep
    if args.plot:
        plot_shares(table, target.with_name(f"{target.stem}_per_frame.png"), predictor.classes)
    name, many = printable(target), counted(frames, "frame|frames")
    print(f"{name}: {many}, {seconds:.2f} s; shares in {printable(table.name)}")
    return explain_end(reader, name, frames, seconds, stopped)


def explain_end(reader: VideoReader, name: str, frames: int, seconds: float, stopped: bool) -> int:
    """Say so where a result is not all of its source; returns the exit code."""
    if stopped:
        print(f"stopped after {seconds:.2f} s; {name} holds what was done and plays.")
        return 0 if reader.live else INTERRUPTED
    if reader.damage:
        print(
            f"{reader.name} is damaged at {reader.damage.time:.2f} s ({reader.damage.reason}); "
            f"{name} holds the {counted(frames, 'frame|frames')} that could be read.",
            file=sys.stderr,
        )
        return 1
    return 0


def plot_shares(table: Path, path: Path, classes: ClassTable) -> None:
    """Draw the course of each visible class's share; read from the table, which is complete."""
    values = np.loadtxt(table, delimiter=",", skiprows=1, ndmin=2)
    figure = Figure(figsize=(10, 5))
    axes = figure.subplots()
    for index, (name, color) in enumerate(zip(classes.names, classes.vis_colors, strict=True)):
        if any(color):
            axes.plot(values[:, 1], 100 * values[:, 2 + index], color=np.divide(color, 255), lw=1)
            axes.lines[-1].set_label(name.replace("$", r"\$"))
    axes.set(xlabel="time in seconds", ylabel="share of the frame in %", ylim=(0, None))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    save_figure(path, figure)


def check_outputs(inputs: list[str], out_dir: Path) -> None:
    """Refuse two inputs that would write one output, and an output that would replace its input.

    Raises:
        UserError: naming both.
    """
    owners: dict[str, str] = {}
    for source in inputs:
        target = out_dir / f"{output_stem(source)}.mp4"
        other = owners.setdefault(target.name.casefold(), source)
        if other is not source:
            raise UserError(
                f"{shown_name(other)} and {shown_name(source)} would both be written to {target}; "
                "segment them one by one with another --out-dir each."
            )
        replaces = not is_live(source) and target.exists() and Path(source).exists()
        if replaces and target.samefile(source):
            raise UserError(
                f"{source} would be replaced by its own result; choose another --out-dir."
            )
        if replaces and target.parent.resolve() == Path(source).parent.resolve():
            raise UserError(
                f"{target} lies beside {shown_name(source)} and may be your own; choose another "
                "--out-dir."
            )


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--model", "--device", "--deterministic", "--imgsz")
    what = "files, camera number, address"
    parser.add_argument("--input", nargs="+", required=True, metavar="VIDEO", help=what)
    cli.add_shared(parser, "--out-dir", default=Path("outputs/inference_results_video"))
    cli.add_shared(parser, "--batch", help="frames at a time")
    parser.add_argument("--codec", choices=QUALITY_OPTION, default="libx264", help="encoder")
    quality, weight = cli.number(float, 0, 51), cli.number(float, 0, 0.99)
    parser.add_argument("--crf", type=quality, default=20, help="quality, lower is better")
    what = "weight of the past in masks"
    parser.add_argument("--smooth", type=weight, default=0.0, help=what)
    parser.add_argument("--plot", action="store_true", help="draw the shares over time, too")
    parser.add_argument("--show", action="store_true", help="show the frames in a window")
    return parser.parse_args()


def main() -> int:
    """Check what was asked for before any work, then do it."""
    args = parse_args()
    check_outputs(args.input, args.out_dir)
    if args.show:
        check_window()
    if args.deterministic:
        compute_repeatably()
    predictor = Predictor.load(args.model, args.imgsz, args.device)
    with lock_folder(args.out_dir):
        return segment_all(predictor, args)


def segment_all(predictor: Predictor, args: argparse.Namespace) -> int:
    """Segment all inputs; among several, one that cannot be read does not lose the others."""
    code = 0
    for source in args.input:
        try:
            result = segment_video(source, predictor, args)
        except UserError as error:
            if len(args.input) == 1:
                raise
            print(f"skipped: {cli.explain(error)}", file=sys.stderr)
            result = 1
        if result == INTERRUPTED:
            return result
        code = max(code, result)
    return code


if __name__ == "__main__":
    cli.run(main)
