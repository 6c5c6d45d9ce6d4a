"""One video from source to files: the same video with its classes tinted, and a table of shares."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from common.device import spare_cores
from common.files import replacing
from inference.frames import Drawn, segmented_frames
from inference.predictor import Predictor
from video.reader import Frame, Sound, VideoReader
from video.writer import VideoWriter


def table_of(target: Path) -> Path:
    """The table beside a marked video: each class's share of every frame."""
    return target.with_name(f"{target.stem}_per_frame.csv")


@contextmanager
def segmented_clip(
    reader: VideoReader,
    predictor: Predictor,
    target: Path,
    stop: Event,
    *,
    batch: int = 1,
    smooth: float = 0.0,
    codec: str = "libx264",
    crf: float = 20,
) -> Iterator[Iterator[Frame]]:
    """Write the marked video and its table while the block takes the frames that are written.

    Both are there whole when the block is left, and neither when it is left by an error. Setting
    `stop` ends the frames early; what was written until then plays.

    Args:
        target: the .mp4 file.
        batch: frames that the model sees at once.
        smooth: weight of the past, see `inference.frames.Smoother`.
        codec, crf: see `video.writer.VideoWriter`.
    """
    with (
        replacing(target) as mp4_file,
        replacing(table_of(target)) as csv_file,  # the inner one: errors without a name are its
        segmented_frames(reader, predictor, stop, batch, smooth) as items,
        VideoWriter(mp4_file, reader, codec, crf, spare_cores(predictor.device)) as writer,
        open(csv_file, "w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["frame", "time", *(f"share_{n}" for n in predictor.classes.names)])
        yield _write_items(items, reader, writer, rows)


def _write_items(
    items: Iterator[Drawn | Sound], reader: VideoReader, writer: VideoWriter, rows
) -> Iterator[Frame]:
    """Write sound, frames, and a row of a CSV for each frame, which is then handed on."""
    for item in items:
        if isinstance(item, Sound):
            if not writer.write_sound(item):
                reader.note("its sound breaks off")
            continue
        frame = item.frame
        writer.write(frame)
        shares = (f"{share:.6f}" for share in item.shares)
        rows.writerow([frame.index, f"{float(frame.time):.6f}", *shares])
        yield frame
