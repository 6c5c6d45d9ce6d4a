"""One epoch: `train` and `validate` take their arguments in one order and return numbers.

Both return plain floats by name: loss, pixel_accuracy, miou, and a list, iou, in class order. The
figures come from one confusion matrix over the whole split, summed over all processes.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import distributed
from common.errors import UserError
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
            raise UserError(
                f"The loss was not finite {self.in_a_row} steps in a row, last on {names}; the "
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
    set_lr: Callable[[float], float] | None = None,
    accumulate: int = 1,
    clip_grad: float | None = None,
    ema: nn.Module | None = None,
    watch: NonFiniteWatch | None = None,
) -> dict:
    """Train for one epoch.

    Args:
        loader: yields images (B, 3, H, W), targets (B, H, W) and indices (B,) of the data
            set.
        set_lr: called before each step with the share of the epoch that is done, in [0, 1).
        accumulate: batches whose gradients are averaged into one step.
        clip_grad: the largest norm that all gradients together may have.
        ema: an average of the weights over time with an `update(model)`.
        watch: ends the run after too many steps in a row without a finite loss.

    Raises:
        UserError: the loss stays not finite, or the GPU's memory is too small.
    """
    model.train()
    matrix = ConfusionMatrix(num_classes, precision.device)
    totals = torch.zeros(2, dtype=precision.exact, device=precision.device)  # loss, pictures
    watch = watch or NonFiniteWatch()
    steps, group, bad, group_finite = len(loader), [], [], True
    bar = tqdm(loader, desc="Training", disable=not distributed.is_main(), dynamic_ncols=True)
    optimizer.zero_grad(set_to_none=True)
    for step, (images, targets, indices) in enumerate(bar):
        if not group:
            first = len(images)
            if set_lr is not None:
                set_lr(step / steps)
        group += indices.tolist()
        last_of_group = step % accumulate == accumulate - 1 or step == steps - 1
        images, targets = precision.to_device(images), targets.to(precision.device)
        statistics = [buffer.clone() for buffer in model.buffers()]
        waits = isinstance(model, DistributedDataParallel) and not last_of_group
        with model.no_sync() if waits else nullcontext(), out_of_memory_explained(len(images)):
            with precision.autocast():
                logits = model(images)
            loss = criterion(logits, targets)
            # A batch counts by its pictures: the last one of an epoch may have fewer.
            precision.scaler.scale(loss * (len(images) / first)).backward()
        # This waits for the device once a step; a run that goes on with NaN costs more.
        own = bool(torch.isfinite(loss.detach()))
        bad += [] if own else indices.tolist()
        if distributed.sum_over_processes(totals.new_tensor([not own])).item():
            group_finite = False
            for buffer, before in zip(model.buffers(), statistics, strict=True):
                buffer.copy_(before)  # BatchNorm's averages would stay NaN for ever
        else:
            matrix.update(logits.detach().max(1).indices, targets)
            totals += totals.new_tensor([loss.item() * len(images), len(images)])
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if last_of_group:
            batches = len(group) / first
            applied = _step(model, optimizer, precision, clip_grad, batches, group_finite)
            # fp16 looks for its scale by steps that are not applied; below 1 it looks in vain.
            scaler = precision.scaler
            searching = group_finite and scaler.is_enabled() and scaler.get_scale() > 1
            watch.see(applied or searching, _names(loader, group if group_finite else bad))
            if ema is not None and applied:
                ema.update(unwrapped(model))
            group, bad, group_finite = [], [], True
    return _figures(totals, matrix)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision,
          clip_grad: float | None, batches: float, losses_finite: bool) -> bool:  # fmt: skip
    """Apply the mean of the gathered gradients of `batches`, unless something is not finite.

    Returns:
        whether they were applied.
    """
    scaler = precision.scaler
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if batches != 1:
        torch._foreach_div_(gradients, batches)
    norm = nn.utils.get_total_norm(gradients)
    finite = losses_finite and bool(torch.isfinite(norm))
    if finite:
        if clip_grad is not None:
            nn.utils.clip_grads_with_norm_(model.parameters(), clip_grad, norm)
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return finite


@torch.inference_mode()
def validate(
    model: nn.Module,
    loader: DataLoader,
    criterion: Loss,
    precision: Precision,
    num_classes: int,
) -> dict:
    """Measure a model on a split at the network's input size; see `evaluate.py` for the masks' own.

    Each picture counts once whatever the number of processes, and the loss is its mean over them.
    """
    model.eval()
    matrix = ConfusionMatrix(num_classes, precision.device)
    totals = torch.zeros(2, dtype=precision.exact, device=precision.device)
    bar = tqdm(loader, desc="Validating", disable=not distributed.is_main(), dynamic_ncols=True)
    for images, targets, _ in bar:
        images, targets = precision.to_device(images), targets.to(precision.device)
        with out_of_memory_explained(len(images)):
            with precision.autocast():
                logits = model(images)
            loss = criterion(logits, targets)
        matrix.update(logits.max(1).indices, targets)
        totals += totals.new_tensor([loss.item() * len(images), len(images)])
    return _figures(totals, matrix)


def _figures(totals: Tensor, matrix: ConfusionMatrix) -> dict:
    loss, pictures = distributed.sum_over_processes(totals).tolist()
    distributed.sum_over_processes(matrix.counts)
    return {
        "loss": loss / pictures if pictures else math.nan,
        "pixel_accuracy": matrix.pixel_accuracy(),
        "miou": matrix.miou(),
        "iou": matrix.iou(),
    }


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def _names(loader: DataLoader, indices: list[int]) -> str:
    """The files of a batch, for a message."""
    return ", ".join(str(loader.dataset.pairs[index].image) for index in indices)


class out_of_memory_explained:
    """Turns CUDA's out of memory into a sentence that says what to change."""

    def __init__(self, batch: int):
        self.batch = batch

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if not isinstance(error, torch.OutOfMemoryError):
            return
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0
        raise UserError(
            f"The GPU's memory is too small for --batch {self.batch} (peak {peak:.1f} GiB): try a "
            "smaller --batch with --accumulate, --amp bf16, a smaller --imgsz or --head pyramid."
        ) from error
