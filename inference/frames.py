"""What happens to a video's frames between decoder and encoder: fitted, scored, smoothed, drawn.

Each stage is a generator, so that they can run side by side; sound passes by in its place.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event

import cv2
import numpy as np
import torch

from common.device import spare_cores
from inference.predictor import Predictor
from video.pipeline import ahead, keep_memory
from video.reader import Frame, Sound, VideoReader
from video.tinting import Tinter, Turn

QUEUE = 2  # batches or frames that wait between two stages
CUT = 24 / 255  # mean difference of two thumbnails, of the full range; see Smoother


@dataclass
class Fitted:
    """A frame with its picture as the model takes it, and a `thumbnail` where one is needed."""

    frame: Frame
    image: np.ndarray
    thumbnail: np.ndarray | None


@dataclass
class Scored:
    """A frame with what the model says: scores (K, h, w), see `Predictor.frame_scores`."""

    frame: Frame
    scores: torch.Tensor
    thumbnail: np.ndarray | None


@dataclass
class Drawn:
    """A frame that carries its overlay, and each class's share of it: (K,) in [0, 1]."""

    frame: Frame
    shares: np.ndarray


@contextmanager
def segmented_frames(
    reader: VideoReader, predictor: Predictor, stop: Event, batch: int = 1, smooth: float = 0.0
) -> Iterator[Iterator[Drawn | Sound]]:
    """Decode, score and draw at the same time; the block encodes what it takes from the iterator.

    Setting `stop` ends all stages, and so does leaving the block, on an error too. OpenCV, which
    draws, has only the threads meanwhile that the model leaves free: where a frame's drawing is
    spread over all cores, the model waits for one of them.

    Args:
        batch: frames that the model sees at once.
        smooth: see `Smoother`.
    """
    turn, threads = Turn(reader.matrix), cv2.getNumThreads()
    keep_memory()
    with (
        closing(ahead(fit(reader.batches(batch), predictor, smooth > 0), QUEUE, stop)) as batches,
        closing(ahead(score(batches, predictor), QUEUE * batch, stop)) as scored,
        closing(ahead(draw(scored, predictor, turn, smooth), QUEUE, stop)) as drawn,
    ):
        try:
            cv2.setNumThreads(spare_cores(predictor.device))
            yield drawn
        finally:
            stop.set()
            cv2.setNumThreads(threads)


class Smoother:
    """Average probabilities over time so that borders do not flicker; start anew at each cut.

    A new scene begins where the mean difference of two grey thumbnails exceeds 24 of 255. Noise
    averages out in a thumbnail and a pan changes little of it from frame to frame; taking a fast
    pan for a cut costs one unsmoothed frame.

    Args:
        amount: weight A in [0, 1) of the past: p_t = A p_(t-1) + (1 - A) softmax(scores_t).
    """

    def __init__(self, amount: float):
        self._amount = amount
        self._past: torch.Tensor | None = None
        self._seen: np.ndarray | None = None

    def __call__(self, item: Scored) -> torch.Tensor:
        """Scores as they are if there is nothing to smooth, else averaged probabilities."""
        if self._amount == 0:
            return item.scores
        now = item.scores.float().softmax(dim=0)
        if self._past is not None:
            difference = cv2.absdiff(self._seen, item.thumbnail).mean() / 255
            now = now if difference > CUT else torch.lerp(now, self._past, self._amount)
        self._past, self._seen = now, item.thumbnail
        return now


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A grey picture of 32 x 32 for `Smoother`, from HWC uint8 RGB, by area averages."""
    height, width = image.shape[:2]
    # Every n-th pixel first: the average of 32 x 32 cells needs no more than some of each.
    sparse = np.ascontiguousarray(image[:: max(1, height // 256), :: max(1, width // 256)])
    return cv2.resize(cv2.cvtColor(sparse, cv2.COLOR_RGB2GRAY), (32, 32), None, 0, 0, 3)


def fit(
    batches: Iterable[list[Frame | Sound]], predictor: Predictor, with_thumbnails: bool
) -> Iterator[list[Fitted | Sound]]:
    """Make each frame's picture as small as the model needs it; sound passes by in its place."""
    for batch in batches:
        for place, item in enumerate(batch):
            if isinstance(item, Frame):
                small = thumbnail(item.image) if with_thumbnails else None
                batch[place] = Fitted(item, predictor.fitted(item.image), small)
                item.image = None  # full size, needed no more
        yield batch


def score(
    batches: Iterable[list[Fitted | Sound]], predictor: Predictor
) -> Iterator[Scored | Sound]:
    """Run the model on each batch's frames; sound passes by in its place."""
    for batch in batches:
        images = [item.image for item in batch if isinstance(item, Fitted)]
        scores = iter(predictor.frame_scores(images) if images else ())
        for item in batch:
            if isinstance(item, Sound):
                yield item
            else:
                yield Scored(item.frame, next(scores), item.thumbnail)


def draw(
    items: Iterable[Scored | Sound], predictor: Predictor, turn: Turn, smooth: float
) -> Iterator[Drawn | Sound]:
    """Turn scores into masks of the frame's size, measure them, and tint the frame."""
    smoother, tinter = Smoother(smooth), Tinter(predictor.classes, turn)
    for item in items:
        if isinstance(item, Sound):
            yield item
            continue
        frame = item.frame
        size = turn.upright_size(frame.picture.height, frame.picture.width)
        mask = predictor.mask(smoother(item), size)
        # OpenCV's histogram reads the bytes as they are; NumPy's would first make them 64-bit.
        counts = cv2.calcHist([mask], [0], None, [256], [0, 256])[: len(predictor.classes), 0]
        frame.picture = tinter.draw(frame.picture, mask)
        yield Drawn(frame, counts.astype(np.float64) / mask.size)
