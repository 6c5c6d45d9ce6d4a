"""One epoch: `train` and `validate` take their arguments in one order and return numbers.

Both return plain floats by name: loss, pixel_accuracy, miou, and a list, iou, in class order. The
figures come from one confusion matrix over the whole split, summed over all processes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import distributed
from common.errors import UserError
from common.text import counted
from metrics import ConfusionMatrix
from training.losses import Loss
from training.precision import Precision


class NonFiniteWatch:
    """Counts steps in a row without a finite loss or gradient; ends the run at too many.

    It outlives an epoch, since one may have fewer steps than it waits for.
    """

    def __init__(self, patience: int = 10):
        self.patience = patience
        self.in_a_row = 0

    def see(self, finite: bool, names: str) -> None:
        """Note one step and, where it is not finite, say which files it held.

        Args:
            names: of this process's files that may be at fault; empty if another's are.

        Raises:
            UserError: `patience` steps in a row were not finite.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if finite:
            return
        names = names or "the pictures of another process"
        tqdm.write(f"The loss or its gradient is not finite on {names}: the step is not applied.")
        if self.in_a_row >= self.patience:
            many = counted(self.in_a_row, "step|steps")
            raise UserError(
                f"The loss was not finite {many} in a row, last on {names}; the "
                "last good checkpoint stands. Lower --lr, add --clip-grad 1 or look at these files."
            )


def train(
    model: nn.Module,
    loader: DataLoader,
    criterion: Loss,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    num_classes: int,
    *,
    set_lr: Callable[[float], None] | None = None,
    accumulate: int = 1,
    clip_grad: float | None = None,
    ema: nn.Module | None = None,
    steps_before: int = 0,
    watch: NonFiniteWatch | None = None,
) -> dict:
    """Train for one epoch.

    Args:
        loader: yields images (B, 3, H, W), targets (B, H, W), as `Precision.to_device` takes
            them, and indices (B,) of the data set.
        set_lr: called before each step with the share of the epoch that is done, in [0, 1).
        accumulate: batches whose gradients are averaged into one step.
        clip_grad: the largest norm that all gradients together may have.
        ema: an average of the weights over time with an `update(model, step)`.
        steps_before: optimizer steps of the epochs before, from which `ema` counts on.
        watch: ends the run after too many steps in a row without a finite loss.

    Raises:
        UserError: the loss stays not finite, or the GPU's memory is too small.
    """
    model.train()
    for module in frozen_modules(model):
        module.eval()
    matrix = ConfusionMatrix(num_classes, precision.device)
    watch = watch or NonFiniteWatch()
    loss_sum, pictures, batches = 0.0, 0, len(loader)
    bar = tqdm(loader, desc="Training", disable=not distributed.is_main(), dynamic_ncols=True)
    stream = iter(bar)
    optimizer.zero_grad(set_to_none=True)
    for start in range(0, batches, accumulate):
        if set_lr is not None:
            set_lr(start / batches)
        traces = [*model.buffers(), matrix.counts]
        before = [tensor.clone() for tensor in traces]
        count = min(accumulate, batches - start)
        gathered = _gather(model, islice(stream, count), count, criterion, precision, matrix)
        step = _step(model, optimizer, precision, clip_grad, gathered)
        if step.finite:
            for loss, own in zip(step.losses, step.indices, strict=True):
                loss_sum, pictures = loss_sum + loss * len(own), pictures + len(own)
            bar.set_postfix(loss=f"{step.losses[-1]:.4f}")
        else:  # as if it had not been: BatchNorm's averages would stay NaN for ever
            for tensor, then in zip(traces, before, strict=True):
                tensor.copy_(then)
        watch.see(step.applied or step.searching, _names(loader, step.suspects()))
        if ema is not None and step.applied:
            ema.update(distributed.unwrapped(model), steps_before + start // accumulate + 1)
    next(stream, None)  # lets the bar and the loader's workers end
    totals = torch.tensor([loss_sum, pictures], dtype=precision.exact, device=precision.device)
    loss_sum, pictures = distributed.sum_over_processes(totals).tolist()
    return _figures(loss_sum / pictures if pictures else math.nan, matrix)


# Of the batches of a step: losses, whether they are good, and indices; see `Step`.
Gathered = tuple[list[Tensor], list[Tensor], list[list[int]]]


@dataclass
class Step:
    """What became of one optimizer step.

    Args:
        losses: of each batch, with what other processes have of it.
        indices: of each batch's pictures in the data set, this process's alone.
        good: whether this process's part of each batch has a finite loss.
        finite: whether all losses of all processes are.
        applied: whether the weights moved.
        searching: whether fp16 looks for a scale of the loss, by steps that are not applied.
    """

    losses: list[float]
    indices: list[list[int]]
    good: list[bool]
    finite: bool
    applied: bool
    searching: bool

    def suspects(self) -> list[int]:
        """The pictures whose loss is not finite; all of them where only the gradient is not."""
        batches = zip(self.good, self.indices, strict=True)
        return [i for good, own in batches for i in own if self.finite or not good]


def _gather(
    model: nn.Module,
    batches: Iterable,
    count: int,
    criterion: Loss,
    precision: Precision,
    matrix: ConfusionMatrix,
) -> Gathered:
    """Add up the gradients of `count` batches, and their predictions in the matrix.

    A batch is what all processes have of it together: its loss is that of one process with all its
    pictures, whatever shares of them are ignored or of a rare class.

    Returns:
        `losses`, `good` and `indices` of `Step`, the first two still on the device.
    """
    losses, good, indices = [], [], []
    for images, targets, own in batches:
        images, targets = precision.to_device(images, targets)
        indices.append(own.tolist())
        waits = len(indices) < count
        with distributed.no_sync(model, waits), out_of_memory_explained(len(images)):
            with precision.autocast():
                logits = model(images)
            sums = criterion.sums(logits, targets)
            loss = criterion.value(distributed.sum_with_gradient(sums))
            # A batch counts by its pictures: the last one of an epoch may have fewer.
            share = len(images) / len(indices[0])
            precision.scaler.scale(loss * share).backward()
        losses.append(loss.detach())
        good.append(sums.detach().isfinite().all())
        matrix.update(logits.detach().max(1).indices, targets)
    return losses, good, indices


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_grad: float | None,
    gathered: Gathered,
) -> Step:
    """Apply the mean of the gathered gradients, unless a loss or a gradient is not finite."""
    scaler, (losses, good, indices) = precision.scaler, gathered
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    batches = sum(map(len, indices)) / len(indices[0])
    if batches != 1:
        torch._foreach_div_(gradients, batches)
    norm = nn.utils.get_total_norm(gradients)
    # The one place where a step waits for the device to be judged; going on with NaN costs more.
    asked = [*losses, *good, norm]
    *values, size = torch.stack([value.to(precision.exact) for value in asked]).tolist()
    losses, good = values[: len(indices)], [bool(value) for value in values[len(indices) :]]
    finite = all(map(math.isfinite, losses))
    applied = finite and math.isfinite(size)
    if applied:
        if clip_grad is not None:
            nn.utils.clip_grads_with_norm_(model.parameters(), clip_grad, norm)
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    # Below 1 fp16 looks for its scale in vain.
    searching = finite and not applied and scaler.is_enabled() and scaler.get_scale() > 1
    return Step(losses, indices, good, finite, applied, searching)


@torch.inference_mode()
def validate(
    model: nn.Module, loader: DataLoader, criterion: Loss, precision: Precision, num_classes: int
) -> dict:
    """Measure a model on a split at the network's input size; see `evaluate.py` for the masks' own.

    Each picture counts once whatever the number of processes. The loss is that of all its pictures
    as one batch: cross entropy and focal are means over all pixels that count, Dice is of the areas
    in the whole split. Like the other figures it depends neither on the batches that the pictures
    came in nor on the processes that they were dealt to.
    """
    model.eval()
    matrix = ConfusionMatrix(num_classes, precision.device)
    sums = torch.zeros(criterion.rows, num_classes, dtype=precision.exact, device=precision.device)
    bar = tqdm(loader, desc="Validating", disable=not distributed.is_main(), dynamic_ncols=True)
    for images, targets, _ in bar:
        images, targets = precision.to_device(images, targets)
        with out_of_memory_explained(len(images)):
            with precision.autocast():
                logits = model(images)
            sums += criterion.sums(logits, targets)
        matrix.update(logits.max(1).indices, targets)
    return _figures(criterion.value(distributed.sum_over_processes(sums)).item(), matrix)


def _figures(loss: float, matrix: ConfusionMatrix) -> dict:
    """The figures of an epoch from its loss and the counts of each process."""
    distributed.sum_over_processes(matrix.counts)
    return {
        "loss": loss,
        "pixel_accuracy": matrix.pixel_accuracy(),
        "miou": matrix.miou(),
        "iou": matrix.iou(),
    }


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that hold weights none of which learns: they behave as in evaluation."""
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            yield module


def _names(loader: DataLoader, indices: list[int]) -> str:
    """The files of a batch, for a message."""
    return ", ".join(str(loader.dataset.pairs[index].image) for index in indices)


@contextmanager
def out_of_memory_explained(batch: int) -> Iterator[None]:
    """Turn CUDA's out of memory into a sentence that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0
        raise UserError(
            f"The GPU's memory is too small for --batch {batch} (peak {peak:.1f} GiB): try a "
            "smaller --batch with --accumulate, --amp bf16, a smaller --imgsz or --head pyramid."
        ) from error
