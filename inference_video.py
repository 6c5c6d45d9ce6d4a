"""Segment videos, a camera or a stream: the same video with its classes tinted, and the numbers.

    python inference_video.py --model outputs/best_model_iou.pth --input walk.mp4
    python inference_video.py --model outputs/best_model_iou.pth --input a.mp4 b.mov --smooth 0.8
    python inference_video.py --model outputs/best_model_iou.pth --input 0 --show

For each VIDEO: VIDEO.mp4 with size, rotation, frame times and sound of the original, and
VIDEO_per_frame.csv with each class's share of every frame. Ctrl-C closes a file that plays.
"""

import argparse
import csv
import os
import sys
import threading
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from common import cli
from common.errors import UserError
from common.files import lock_folder, replacing
from common.text import printable
from config import ClassTable
from inference.frames import draw, score
from inference.predictor import Predictor
from video.files import (
    QUALITY_OPTION,
    Frame,
    Sound,
    VideoReader,
    VideoWriter,
    is_live,
    output_stem,
    shown_name,
)
from video.pipeline import ahead, stopped_by_interrupt
from video.tinting import Turn

QUEUE = 2  # batches or frames that wait between two stages
INTERRUPTED = 130


class Window:
    """A window with the latest frame; Esc, q or its cross close it."""

    def __init__(self, name: str, turn: Turn):
        self._name, self._turn = name, turn
        cv2.namedWindow(name, cv2.WINDOW_NORMAL)

    def show(self, frame: Frame) -> bool:
        """Whether to go on."""
        picture = self._turn.upright(frame.picture.to_ndarray(format="bgr24"))
        cv2.imshow(self._name, picture)
        closed = cv2.waitKey(1) & 0xFF in (27, ord("q"))
        return not closed and cv2.getWindowProperty(self._name, cv2.WND_PROP_VISIBLE) > 0


def segment(source: str, predictor: Predictor, args: argparse.Namespace) -> int:
    """Segment one video. Returns the exit code: 0, 1 if it is damaged, 130 if interrupted.

    Raises:
        UserError: it cannot be read at all.
    """
    target = args.out_dir / f"{output_stem(source)}.mp4"
    table = target.with_name(f"{target.stem}_per_frame.csv")
    with (
        VideoReader(source) as reader,
        stopped_by_interrupt() as stop,
        replacing(target) as mp4_file,
        replacing(table) as csv_file,  # the inner one: an error without a name is the table's
    ):
        frames, seconds, stopped = run_pipeline(reader, predictor, args, stop, mp4_file, csv_file)
        if frames == 0:
            raise KeyboardInterrupt  # nothing to keep
    if args.plot:
        plot_shares(table, target.with_name(f"{target.stem}_per_frame.png"), predictor.classes)
    shown = printable(target)
    print(f"{shown}: {frames} frames, {seconds:.2f} s; shares in {printable(table.name)}")
    if stopped:
        print(f"stopped after {seconds:.2f} s; {shown} holds what was done and plays.")
        return 0 if reader.live else INTERRUPTED
    if reader.damage:
        print(
            f"{reader.name} is damaged at {reader.damage.time:.2f} s ({reader.damage.reason}); "
            f"{shown} holds the {frames} frames that could be read.",
            file=sys.stderr,
        )
        return 1
    return 0


def run_pipeline(
    reader: VideoReader,
    predictor: Predictor,
    args: argparse.Namespace,
    stop: threading.Event,
    mp4_file: Path,
    csv_file: Path,
) -> tuple[int, float, bool]:
    """Decode, score, draw and encode side by side.

    Returns:
        Frames written, seconds they last, and whether it was stopped before the end.
    """
    turn, waiting = Turn(reader.matrix), QUEUE * args.batch
    window = Window(reader.name, turn) if args.show else None
    frames, seconds = 0, 0.0
    with (
        closing(ahead(reader.batches(args.batch), QUEUE, stop)) as batches,
        closing(ahead(score(batches, predictor, args.smooth > 0), waiting, stop)) as scored,
        closing(ahead(draw(scored, predictor, turn, args.smooth), QUEUE, stop)) as drawn,
        VideoWriter(mp4_file, reader, args.codec, args.crf) as writer,
        open(csv_file, "w", encoding="utf-8", newline="") as file,
        tqdm(total=reader.expected_frames, unit=" frames", desc=reader.name) as bar,
    ):
        rows = csv.writer(file)
        rows.writerow(["frame", "time", *(f"share_{name}" for name in predictor.classes.names)])
        try:
            for item in drawn:
                if isinstance(item, Sound):
                    if not writer.write_sound(item):
                        reader.note("its sound breaks off")
                    continue
                frame = item.frame
                writer.write(frame)
                shares = (f"{share:.6f}" for share in item.shares)
                rows.writerow([frame.index, f"{float(frame.time):.6f}", *shares])
                frames, seconds = frames + 1, float(frame.time + frame.duration)
                bar.update()
                if window and not window.show(frame):
                    stop.set()
            stopped = stop.is_set()
        finally:
            stop.set()  # on an error the other stages end, too
    return frames, seconds, stopped


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
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


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


def check_window() -> None:
    """Refuse --show where no window can be opened.

    Raises:
        UserError: OpenCV was built without windows, or there is no screen.
    """
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in screens):
        raise UserError("--show needs a screen and there is none here; leave it out.")
    try:
        cv2.namedWindow("--show")
        cv2.destroyWindow("--show")
    except cv2.error as error:
        raise UserError(
            "--show needs an OpenCV with windows: pip uninstall opencv-python-headless, then "
            "pip install opencv-python."
        ) from error


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint or exported model")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="VIDEO", help="files, camera number, address"
    )
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/inference_results_video"))
    parser.add_imgsz(None, "size of the network's input; the checkpoint's if left out")
    parser.add_argument("--batch", type=cli.positive_int, default=1, help="frames at a time")
    parser.add_argument("--codec", choices=QUALITY_OPTION, default="libx264", help="encoder")
    parser.add_argument(
        "--crf", type=cli.number(float, 0, 51), default=20, help="quality, lower is better"
    )
    parser.add_argument(
        "--smooth", type=cli.number(float, 0, 0.99), default=0.0, help="weight of the past in masks"
    )
    parser.add_argument("--plot", action="store_true", help="draw the shares over time, too")
    parser.add_argument("--show", action="store_true", help="show the frames in a window")
    parser.add_device()
    return parser.parse_args()


def main() -> int:
    """Check what was asked for before any work, then do it."""
    args = parse_args()
    check_outputs(args.input, args.out_dir)
    if args.show:
        check_window()
    size = tuple(args.imgsz[::-1]) if args.imgsz else None
    predictor = Predictor.load(args.model, size=size, device=args.device)
    with lock_folder(args.out_dir):
        return segment_all(args, predictor)


def segment_all(args: argparse.Namespace, predictor: Predictor) -> int:
    """Segment all inputs; among several, one that cannot be read does not lose the others."""
    code = 0
    for source in args.input:
        try:
            result = segment(source, predictor, args)
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
