"""How unlike a model's training pictures a picture is, by what its backbone sees in them.

A model answers every picture, also one of a plant, an organ or a camera that it never saw. The
distance to the nearest training pictures in the backbone's features tells such pictures apart (Sun
et al. 2022, "Out-of-distribution detection with deep nearest neighbors"). The training pictures'
features travel in the checkpoint.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.errors import UserError
from data.images import read_image
from inference.predictor import Predictor
from models.checkpoint import add_to_checkpoint, is_plain, read_checkpoint
from training.run_files import model_files

NEIGHBOURS = 5
MOST_PICTURES = 2000  # that are remembered; more would crowd the checkpoint


@dataclass(frozen=True)
class Familiarity:
    """What a model's training pictures look like to it.

    Args:
        known: (M, C) features of training pictures.
        own: (M,) `own_distances` of them.
    """

    known: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, known: np.ndarray) -> "Familiarity":
        return cls(known, own_distances(known))

    def unlike(self, features: np.ndarray) -> np.ndarray:
        """Which share of the training pictures has nearer neighbours than (N, C), (N,) in [0, 1].

        From 0.95 on a picture is more unlike the training pictures than 95 % of themselves.

        Raises:
            UserError: they are of another backbone.
        """
        if features.shape[1] != self.known.shape[1]:
            raise UserError(
                f"The model holds {self.known.shape[1]} features of each training picture, and its "
                f"backbone gives {features.shape[1]}; train anew."
            )
        distances = neighbour_distance(features, self.known)
        return np.searchsorted(self.own, distances) / len(self.own)


def remember_pictures(checkpoint: Path, predictor: Predictor, pictures: Sequence[Path]) -> None:
    """Keep in a checkpoint what its training pictures look like to it, if it does not know yet.

    Args:
        predictor: of that checkpoint; nothing is kept of a model that hides its backbone.
    """
    if read_checkpoint(checkpoint).get("familiarity") is not None:
        return
    if len(pictures) > MOST_PICTURES:
        pictures = random.Random(0).sample(list(pictures), MOST_PICTURES)
    bar = tqdm(pictures, "Remembering the training pictures", delay=2, dynamic_ncols=True)
    seen = [predictor.features([read_image(path)]) for path in bar]
    if any(features is None for features in seen):
        return
    known = torch.from_numpy(np.concatenate(seen)).half()
    add_to_checkpoint(checkpoint, familiarity=known)


def read_familiarity(models: Sequence[Path]) -> list[Familiarity] | None:
    """What each model that --model names has kept of its training pictures.

    Returns:
        None where one of them has kept nothing.

    Raises:
        UserError: what a checkpoint holds is no such thing.
    """
    found = []
    for path in model_files(models):
        kept = None
        if path.suffix.lower() != ".onnx":
            kept = read_checkpoint(path).get("familiarity")
        if kept is None:
            return None
        if not is_plain(kept) or kept.ndim != 2 or not kept.isfinite().all():
            raise UserError(f"{path} holds damaged features of its training pictures; train anew.")
        if not 1 <= len(kept) <= MOST_PICTURES:
            raise UserError(
                f"{path} holds the features of {len(kept):,} training pictures, and of 1 to "
                f"{MOST_PICTURES:,} they can be used; train anew."
            )
        found.append(Familiarity.of(kept.float().numpy()))
    return found


def neighbour_distance(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Distance of each of (N, C) features to its fifth nearest of (M, C), in [0, 2], (N,).

    Of the normalised vectors, whose length says more of contrast than of content.
    """
    near = _unit(features) @ _unit(known).T
    rank = min(NEIGHBOURS, near.shape[1])
    similarity = -np.partition(-near, rank - 1, axis=1)[:, rank - 1]
    return np.sqrt(np.maximum(2 - 2 * similarity, 0))


def own_distances(known: np.ndarray) -> np.ndarray:
    """`neighbour_distance` of each training picture to all others, (M,), sorted."""
    near = _unit(known) @ _unit(known).T
    np.fill_diagonal(near, -1)  # never its own neighbour
    rank = min(NEIGHBOURS, max(1, len(known) - 1))
    similarity = -np.partition(-near, rank - 1, axis=1)[:, rank - 1]
    return np.sort(np.sqrt(np.clip(2 - 2 * similarity, 0, 4)))


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
