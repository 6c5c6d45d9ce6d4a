"""The one path from a picture to its classes: resize, normalise, model, resize back, arg-max.

Training's validation pictures, evaluation, image and video inference all go through `Predictor`, so
they cannot disagree. Whether one model answers or several, nobody who predicts asks.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.device import choose_device
from common.errors import UserError
from config import ClassTable, ModelConfig, Size
from data.crops import view_size
from data.images import Normalisation, fit_within, resize_image, resize_mask
from inference import onnx_model
from inference.prediction import MeanBands, Prediction, collect, collect_mask
from models.deploy import fix_positions, fold_batchnorm
from models.heads import resize
from segmentation_model import load_model
from training.run_files import model_files

# Rows of a picture whose scores are held at once: K x BAND x W floats, whatever the height. They
# pass through the cache several times; 512 of a 1080p frame leave it, and take 1.5 times as long.
BAND = 64


@dataclass(eq=False)
class Predictor:
    """Segments pictures of any size with one model.

    Args:
        model: in evaluation mode; moved to `device`.
        config: its mean, std and default input size.
        classes: what its outputs mean.
        size: (height, width) of the network's input; None takes the one of the training.
        keep_aspect: fit the picture into `size` and pad it, rather than stretch it.
        tile: side in pixels of the square tiles in which a picture larger than one passes through
            the network at its own resolution; None to resize it as a whole. A model that was
            trained on crops takes every picture in tiles, of `size` where there is no `tile`, and
            at the scale of its training.
        overlap: share of a tile's side that it shares with the next one, in [0, 0.9]; None for a
            half, or for a quarter where the model was trained on crops.
        flips: average the picture's and its mirror images' probabilities.
        batch: tiles that pass at once.
        temperature: of the probabilities that are handed out (see `trust.calibration`).
    """

    model: nn.Module
    config: ModelConfig
    classes: ClassTable
    size: Size | None = None
    device: str | torch.device = "cpu"
    keep_aspect: bool = False
    tile: int | None = None
    overlap: float | None = None
    flips: bool = False
    batch: int = 1
    temperature: float = 1.0

    def __post_init__(self):
        self.size = self.size or self.config.input_size
        self._crops = self.config.crop_side is not None
        self._tile = (self.tile, self.tile) if self.tile else self.size
        if self.overlap is None:
            self.overlap = 0.25 if self._crops else 0.5
        self._warned = False
        self.device = torch.device(self.device)
        self.model = self.model.to(self.device).eval()
        self._normalise = Normalisation(self.config.mean, self.config.std)

    @staticmethod
    def load(
        models: Path | Sequence[Path], size: Size | None = None, device: str = "auto", **options
    ) -> "Predictor":
        """Make the predictor of a checkpoint, an ONNX file or a folder of folds, or of several.

        Raises:
            UserError: a model or the device cannot be used, or not with such tiles, or the models'
                classes differ.
        """
        chosen, paths = choose_device(device), model_files(models)
        members = [Predictor._of_file(path, size, chosen, **options) for path in paths]
        names = [member.classes.names for member in members]
        for path, own in zip(paths, names, strict=True):
            if own != names[0]:
                raise UserError(
                    f"{path} knows the classes {', '.join(own)}, and {paths[0]} "
                    f"{', '.join(names[0])}; only models of the same classes can be averaged."
                )
        return members[0] if len(members) == 1 else Ensemble(members)

    @classmethod
    def _of_file(cls, path: Path, size: Size | None, chosen: torch.device, **options) -> Self:
        """Make the predictor of one file, whose model is made to predict only."""
        tile = options.get("tile")
        if path.suffix.lower() == ".pt2":
            raise UserError(
                f"{path} is a file of torch.export, which can hold code and is not read; make an "
                ".onnx file of the checkpoint with export.py."
            )
        if path.suffix.lower() == ".onnx":
            model, config, classes = onnx_model.load(path, chosen)
            if tile and model.size != (tile, tile):
                raise UserError(
                    f"{path} takes {model.size[1]}x{model.size[0]} pixels, so it cannot take tiles "
                    f"of {tile}; export it with --imgsz {tile} {tile}, or leave --tile out."
                )
            return cls(model, config, classes, size, chosen, **options)
        loaded = load_model(path)
        sizes = [size or loaded.config.input_size] + ([(tile, tile)] if tile else [])
        model = fix_positions(fold_batchnorm(loaded.model).to(chosen), sizes)
        model = model.to(memory_format=torch.channels_last)
        return cls(model, loaded.config, loaded.classes, size, chosen, **options)

    @property
    def members(self) -> list["Predictor"]:
        """The predictors whose mean this one is: itself alone."""
        return [self]

    # --- Whole pictures ---

    @torch.inference_mode()
    def scores(self, images: list[np.ndarray]) -> Tensor:
        """Logits at the network's size, (B, K, h, w) float32, of pictures HWC uint8 RGB."""
        fitted = [resize_image(image, self._inner(image.shape[:2])) for image in images]
        return self._forward(fitted)

    def fitted(self, frame: np.ndarray) -> np.ndarray:
        """A picture as small as its `frame_scores` need it, which are the same of both.

        Resizing can so be done where the model does not wait for it.
        """
        if self._crops:
            return self._view(frame)
        return resize_image(frame, self._inner(frame.shape[:2]))

    def frame_scores(self, frames: list[np.ndarray]) -> Tensor:
        """Scores for `mask`, (B, K, h, w) float32, of pictures of one size HWC uint8 RGB.

        At the network's size, or at that of a view in tiles.
        """
        if not self._crops:
            return self.scores(frames)
        return torch.stack([self._tiled_scores(self._view(frame)) for frame in frames])

    @torch.inference_mode()
    def mask(self, scores: Tensor, size: Size) -> np.ndarray:
        """Class indices (H, W) uint8 at the picture's own size from its scores (K, h, w).

        Scores are resized before the arg-max, so that outlines are smooth and not steps.
        """
        return collect_mask(self._bands(self._filled(scores, size), size), size)

    def masks_at(self, images: list[np.ndarray], sizes: list[Size]) -> Iterator[np.ndarray]:
        """As `masks`, each at the (height, width) of a mask that it is compared with."""
        for (bands, shape), size in zip(self._bands_of(images, sizes), sizes, strict=True):
            yield resize_mask(collect_mask(bands, shape), size)

    def masks(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Class indices (H, W) uint8 of each picture, HWC uint8 RGB, at its own size."""
        return list(self.masks_at(images, [image.shape[:2] for image in images]))

    def read(
        self,
        images: list[np.ndarray],
        sizes: list[Size] | None = None,
        *,
        with_probabilities: bool = False,
        points: list[np.ndarray | None] | None = None,
    ) -> Iterator[Prediction]:
        """All that the model says of each picture, HWC uint8 RGB.

        Args:
            sizes: (height, width) at which it says it, the picture's own if not given; a picture
                that passes in tiles at its own resolution keeps its own.
            points: of each picture as `inference.prediction.collect` takes them.
        """
        sizes = sizes or [image.shape[:2] for image in images]
        points = points or [None] * len(images)
        for (bands, size), places in zip(self._bands_of(images, sizes), points, strict=True):
            wanted = (with_probabilities, places, self.temperature)
            yield collect(bands, size, len(self.classes), *wanted)

    @torch.inference_mode()
    def features(self, images: list[np.ndarray]) -> np.ndarray | None:
        """What the backbone sees in whole pictures, (B, C) float32: its maps' means over the area.

        At half the network's size, which tells pictures apart as well and costs a quarter.

        Returns:
            None where the model hides its backbone, as an export does.
        """
        maps_of = getattr(self.model, "backbone_maps", None)
        if maps_of is None:
            return None
        size = tuple(max(32, side // 2) for side in self.size)
        batch = np.stack([self._normalise(resize_image(image, size)) for image in images])
        maps = maps_of(torch.from_numpy(batch).to(self.device))
        return torch.cat([x.float().mean((2, 3)) for x in maps], dim=1).cpu().numpy()

    def _bands_of(
        self, images: list[np.ndarray], sizes: list[Size]
    ) -> Iterator[tuple[Iterator[tuple[int, Tensor]], Size]]:
        """For each picture its scores, band by band from the top.

        Args:
            sizes: the (height, width) that is wanted of each picture's scores.

        Yields:
            the bands, and the size that they have: a picture that passes in tiles at its own
            resolution keeps its own.
        """
        whole = [image for image in images if not self._is_tiled(image)]
        scores = iter(self.scores(whole)) if whole else iter(())
        for image, size in zip(images, sizes, strict=True):
            if not self._is_tiled(image):
                yield self._bands(self._filled(next(scores), size), size), size
                continue
            view = self._view(image)
            if view is image:
                yield self.tiled_bands(image), image.shape[:2]
            else:
                yield self._bands(self._tiled_scores(view), size), size

    def _inner(self, size: Size) -> Size:
        """The part of the network's input that a picture of `size` fills."""
        return fit_within(size, self.size) if self.keep_aspect else self.size

    def _filled(self, scores: Tensor, size: Size) -> Tensor:
        """The part of scores (K, h, w) that a picture of `size` fills."""
        if not self.keep_aspect or self._crops:
            return scores
        h, w = self._inner(size)
        return scores[:, :h, :w]

    def _forward(self, images: list[np.ndarray], size: Size | None = None) -> Tensor:
        """Pictures HWC uint8, no larger than `size`, to logits (B, K, *size) float32."""
        h, w = size or self.size
        # Zeros after the normalisation: what a picture does not fill has the mean colour.
        batch = np.zeros((len(images), 3, h, w), np.float32)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[0], : image.shape[1]] = self._normalise(image)
        # Convolutions on the CPU take less time from this order (docs/speed.md).
        x = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
        if not self.flips:
            return self.model(x).float()
        total = torch.zeros((), device=self.device)
        for axes in ((), (3,), (2,), (2, 3)):
            total = total + self.model(x.flip(axes)).float().softmax(1).flip(axes)
        return (total / 4).clamp(min=1e-9).log()

    def _bands(self, scores: Tensor, size: Size) -> Iterator[tuple[int, Tensor]]:
        """Resize scores (K, h, w) to a picture's size, a band of rows at a time.

        Yields:
            the band's first row, and its scores (K, rows, W).
        """
        h, (H, W) = scores.shape[1], size
        scores = resize(scores[None], (h, W))[0]
        # Along the height by hand, so that the whole picture's scores never exist at once.
        rows = ((torch.arange(H, device=scores.device) + 0.5) * (h / H) - 0.5).clamp(0, h - 1)
        above = rows.floor().long()
        below = (above + 1).clamp(max=h - 1)
        weight = (rows - above)[:, None].to(scores.dtype)
        for top in range(0, H, BAND):
            part = slice(top, top + BAND)
            if h == H:
                yield top, scores[:, part]
            else:
                yield top, torch.lerp(scores[:, above[part]], scores[:, below[part]], weight[part])

    # --- Large pictures in tiles ---

    def _is_tiled(self, image: np.ndarray) -> bool:
        return self._crops or (self.tile is not None and max(image.shape[:2]) > self.tile)

    def _view(self, image: np.ndarray) -> np.ndarray:
        """A picture at the scale at which it passes in tiles: the training's, or its own.

        Says once where that differs much from what the model was trained on.
        """
        if not self._crops:
            return image
        photo_size, longest = self.config.photo_size, max(image.shape[:2])
        ratio = longest / self.config.crop_side
        if not self._warned and (ratio < 0.5 or (ratio > 2 and photo_size is None)):
            self._warned = True
            tqdm.write(
                f"A picture of {image.shape[1]}x{image.shape[0]} px is much "
                f"{'smaller' if ratio < 1 else 'larger'} than the photographs that the model was "
                f"trained on (about {self.config.crop_side} px): look at its mask with care.",
                file=sys.stderr,
            )
        return resize_image(image, view_size(image.shape[:2], photo_size))

    def _tiled_scores(self, view: np.ndarray) -> Tensor:
        """All scores of a view at once, (K, h, w): only of one whose size is bounded."""
        return torch.cat([band for _, band in self.tiled_bands(view)], dim=1)

    @torch.inference_mode()
    def tiled_bands(self, image: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """Scores at the picture's own resolution from overlapping tiles, blended smoothly.

        Each tile counts most at its centre, where the network saw what lies around. Only the rows
        that a later tile can still change are held: K x tile x W floats.

        Args:
            image: HWC uint8 RGB, or what can be sliced like it and has its shape.

        Yields:
            the band's first row, and its scores (K, rows, W).
        """
        sides, (H, W) = self._tile, image.shape[:2]
        height, width = sides
        tops, lefts = (
            _starts(length, side, max(1, round(side * (1 - self.overlap))))
            for length, side in ((H, height), (W, width))
        )
        ramps = (
            torch.hann_window(side + 2, periodic=False, device=self.device)[1:-1] for side in sides
        )
        window = torch.outer(*ramps)
        held = torch.zeros(len(self.classes), height, W, device=self.device)
        weights = torch.zeros(height, W, device=self.device)
        for top, next_top in zip(tops, [*tops[1:], H], strict=True):
            for first in range(0, len(lefts), self.batch):
                group = lefts[first : first + self.batch]
                tiles = [image[top : top + height, left : left + width] for left in group]
                probs = self._forward(tiles, sides).softmax(1)
                for left, tile, prob in zip(group, tiles, probs, strict=True):
                    h, w = tile.shape[:2]
                    held[:, :h, left : left + w] += (prob * window)[:, :h, :w]
                    weights[:h, left : left + w] += window[:h, :w]
            done = next_top - top
            yield top, (held[:, :done] / weights[:done]).log_()
            for buffer in (held, weights):
                kept = buffer[..., done:, :].clone()
                buffer.zero_()
                buffer[..., : kept.shape[-2], :] = kept


class Ensemble(Predictor):
    """Several predictors as one: the mean of their probabilities, at the picture's own size.

    Each member has its own input size, normalisation and scale. A video's frames, which are many,
    are averaged before they are resized (see `frame_scores`).

    Args:
        members: predictors of the same classes, made with the same options.
    """

    def __init__(self, members: list[Predictor]):
        self._members, self._crops = members, False
        first = max(members, key=lambda member: math.prod(member.size))
        licences = dict.fromkeys(member.config.weights_licence for member in members)
        licence = ", ".join(filter(None, licences)) or None
        self.config = replace(first.config, weights_licence=licence)
        self.classes, self.size, self.device = first.classes, first.size, first.device
        self.batch, self.temperature = first.batch, 1.0

    @property
    def members(self) -> list[Predictor]:
        """The predictors whose mean this one is."""
        return self._members

    def fitted(self, frame: np.ndarray) -> np.ndarray:
        """The picture as it is: each member needs it in another size."""
        return frame

    @torch.inference_mode()
    def frame_scores(self, frames: list[np.ndarray]) -> Tensor:
        """The logarithm of the mean probabilities, (B, K, h, w), at the finest member's size."""
        parts = [member.frame_scores(frames).softmax(1) for member in self.members]
        size = max((part.shape[-2:] for part in parts), key=math.prod)
        return (sum(resize(part, size) for part in parts) / len(parts)).clamp(min=1e-9).log()

    def tiled_bands(self, image: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """The logarithm of the mean probabilities of all members' tiles, band by band."""
        return MeanBands([member.tiled_bands(image) for member in self.members])

    def _bands_of(
        self, images: list[np.ndarray], sizes: list[Size]
    ) -> Iterator[tuple[Iterator[tuple[int, Tensor]], Size]]:
        # Where one member keeps a picture's own size, all do.
        sizes = [
            image.shape[:2] if any(m._is_tiled(image) for m in self.members) else size
            for image, size in zip(images, sizes, strict=True)
        ]
        all_parts = zip(*(m._bands_of(images, sizes) for m in self.members), strict=True)
        for parts, size in zip(all_parts, sizes, strict=True):
            yield MeanBands([bands for bands, _ in parts]), size


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles begin along one axis: evenly, about `step` apart, the last one at the end."""
    if length <= side:
        return [0]
    count = 1 + math.ceil((length - side) / step)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]
