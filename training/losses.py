"""Losses from logits (B, K, H, W) and targets (B, H, W): pure functions, pixels of 255 ignored.

They compute in fp32 whatever the autocast: sums over a picture overflow or round away in 16 bits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from config import IGNORE_INDEX

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy over the pixels that count; 0 where none does, not NaN.

    Args:
        weights: (K,), how much a pixel of each class counts.
    """
    total = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE_INDEX, reduction="sum")
    valid = targets != IGNORE_INDEX
    count = valid.sum() if weights is None else weights[targets[valid]].sum()
    return total / count.clamp(min=1e-6)


def dice(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """One minus the Dice coefficient of each class over the batch, averaged over classes.

    A class that the batch's truth does not hold adds 0, as in V-Net's descendants: there is no
    overlap to ask for.
    """
    valid = (targets != IGNORE_INDEX)[:, None]
    probs = logits.softmax(1) * valid
    truth = F.one_hot(targets.where(valid[:, 0], 0), logits.shape[1]).movedim(-1, 1) * valid
    intersection = (probs * truth).sum((0, 2, 3))
    cardinality = (probs + truth).sum((0, 2, 3))
    losses = (1 - 2 * intersection / cardinality.clamp(min=1e-7)) * (truth.sum((0, 2, 3)) > 0)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()


def focal(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017), each class against the rest, averaged over pixels and classes.

    Pixels that are already right fade out with (1 - p) ** gamma, so rare classes are heard.
    """
    valid = targets != IGNORE_INDEX
    scores = logits.movedim(1, -1)[valid]  # N, K
    truth = F.one_hot(targets[valid], logits.shape[1]).to(scores.dtype)
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    losses = (1 - torch.exp(-entropy)) ** gamma * entropy
    if weights is not None:
        losses = losses * (weights * len(weights) / weights.sum())
    return losses.sum() / max(losses.numel(), 1)


LOSSES = {"ce": cross_entropy, "dice": dice, "focal": focal}


def make_criterion(names: str, weights: Tensor | None = None) -> Loss:
    """Turn "ce", "dice", "focal" or a sum such as "ce+dice" into one function."""
    parts = [LOSSES[name] for name in names.split("+")]

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return sum(part(logits, targets, weights) for part in parts)

    return criterion
