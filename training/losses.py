"""Losses from logits (B, K, H, W) and targets (B, H, W): pixels of 255 are ignored.

Each loss is a function of sums over pixels, class by class. So one definition serves a step, whose
pictures several processes may share, and a whole split: sums add up, and neither the size of a
batch nor the number of processes changes what comes out. A mean of means would depend on both.

They compute in fp32 whatever the autocast: sums over a picture overflow or round away in 16 bits.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BANDS = 16  # pieces that a batch's pixels are taken in
SMALL = 2**20  # scores that are always taken together


class CrossEntropy:
    """Mean cross entropy over the pixels that count; 0 where none does, not NaN."""

    rows = 2  # of sums: of the pixels' losses, of the pixels

    @staticmethod
    def sums(logits: Tensor, truth: Tensor) -> Tensor:
        losses = -logits.log_softmax(1).where(truth, 0)
        return torch.stack([_by_class(losses), _by_class(truth)])

    @staticmethod
    def value(sums: Tensor, weights: Tensor) -> Tensor:
        losses, pixels = (sums * weights).sum(1)  # no product of matrices: autocast rounds those
        return losses / pixels.clamp(min=1e-6)


class Dice:
    """One minus the Dice coefficient of each class over all pixels, averaged over classes.

    A class that the truth does not hold adds 0, as in V-Net's descendants: there is no overlap to
    ask for.
    """

    rows = 3  # of sums: of what was hit, of the probabilities, of the pixels

    @staticmethod
    def sums(logits: Tensor, truth: Tensor) -> Tensor:
        probs = logits.softmax(1)
        inside = probs.where(truth.any(1, keepdim=True), 0)
        return torch.stack([_by_class(x) for x in (probs.where(truth, 0), inside, truth)])

    @staticmethod
    def value(sums: Tensor, weights: Tensor) -> Tensor:
        hits, probs, pixels = sums
        losses = (1 - 2 * hits / (probs + pixels).clamp(min=1e-7)) * (pixels > 0)
        return (losses * weights).sum() / weights.sum()


class Focal:
    """Focal loss (Lin et al. 2017), each class against the rest, averaged over pixels and classes.

    Pixels that are already right fade out with (1 - p) ** 2, so rare classes are heard.
    """

    rows = 2  # of sums: of each class's losses over all pixels, of the pixels

    @staticmethod
    def sums(logits: Tensor, truth: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
        losses = (1 - torch.exp(-entropy)) ** 2 * entropy
        return torch.stack(
            [_by_class(losses.where(truth.any(1, keepdim=True), 0)), _by_class(truth)]
        )

    @staticmethod
    def value(sums: Tensor, weights: Tensor) -> Tensor:
        losses, pixels = sums
        mean = (losses * weights).sum() / weights.sum()
        return mean / pixels.sum().clamp(min=1)


LOSSES = {"ce": CrossEntropy, "dice": Dice, "focal": Focal}


class Loss:
    """One of LOSSES, or a sum of several, as what a step minimises and a split is measured by.

    Args:
        names: such as "ce+dice".
        weights: (K,), how much each class counts; None for all alike.
    """

    def __init__(self, names: str, weights: Tensor | None = None):
        self.parts = [LOSSES[name] for name in names.split("+")]
        self.weights = weights
        self.rows = sum(part.rows for part in self.parts)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of one batch, a scalar."""
        return self.value(self.sums(logits, targets))

    def sums(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What `value` needs of a batch, (rows, K) float32; two batches' add up to both's."""
        return _SumsInBands.apply(logits, targets, self._sums)

    def value(self, sums: Tensor) -> Tensor:
        """The loss of all the pictures that were summed, a scalar."""
        weights = sums.new_ones(sums.shape[1]) if self.weights is None else self.weights.to(sums)
        rows = sums.split([part.rows for part in self.parts])
        return sum(part.value(own, weights) for part, own in zip(self.parts, rows, strict=True))

    def _sums(self, logits: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
            truth = targets[:, None] == classes
            return torch.cat([part.sums(logits, truth) for part in self.parts])


class _SumsInBands(torch.autograd.Function):
    """Sums over pixels that hold no more than a band of rows beside the logits and their gradient.

    The sums of a band are made again when its gradient is asked for: what autograd keeps of each
    loss would be several times the logits, which at 150 classes fill the memory.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, targets: Tensor, sums: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.sums = sums
        return sum(sums(*band) for band in _bands(logits, targets))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        for scores, truth, out in _bands(logits, targets, result):
            scores = scores.detach().requires_grad_()
            with torch.enable_grad():
                sums = ctx.sums(scores, truth)
            out.copy_(torch.autograd.grad(sums, scores, gradient)[0])
        return result, None, None


def _bands(logits: Tensor, targets: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of rows of (B, K, H, W) and (B, H, W), as views."""
    height = logits.shape[2]
    rows = max(math.ceil(height / BANDS), SMALL * height // logits.numel(), 1)
    return zip(
        logits.split(rows, 2),
        targets.split(rows, 1),
        *(other.split(rows, 2) for other in others),
        strict=True,
    )


def _by_class(values: Tensor) -> Tensor:
    """Sums (K,) float32 over pictures and pixels of (B, K, H, W)."""
    return values.sum((0, 2, 3), dtype=None if values.is_floating_point() else torch.float32)
