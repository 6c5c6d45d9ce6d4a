"""Losses against segmentation_models_pytorch and PyTorch, and at their edges."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from training import losses
from training.losses import LOSSES, Loss

WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, 11, generator=generator) * 3
    targets = torch.randint(0, 3, (3, 9, 11), generator=generator)  # class 3 is absent
    targets[:, :3] = 255
    return logits, targets


def their_dice(logits, targets, weights):
    """Theirs knows no weights, but can leave all classes but one out."""
    dice = [smp.losses.DiceLoss("multiclass", [index], ignore_index=255) for index in range(4)]
    values = torch.stack([loss(logits, targets) for loss in dice])
    return (values * weights).sum() / weights.sum()


def their_focal(logits, targets, weights):
    return smp.losses.FocalLoss("multiclass", gamma=2.0, ignore_index=255, class_weights=weights)(
        logits, targets
    )


ORACLES = {
    "ce": lambda x, y, weights: F.cross_entropy(x, y, weights, ignore_index=255),
    "dice": their_dice,
    "focal": their_focal,
    "ce+dice": lambda *batch: ORACLES["ce"](*batch) + ORACLES["dice"](*batch),
}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("names", ORACLES)
@pytest.mark.parametrize("small", [2**20, 1], ids=["at once", "row by row"])
def test_losses_and_their_gradients_are_those_of_others(batch, names, weights, small, monkeypatch):
    monkeypatch.setattr(losses, "SMALL", small)
    results = []
    theirs = torch.ones(4) if weights is None else weights
    for criterion in (Loss(names, weights), lambda *batch: ORACLES[names](*batch, theirs)):
        logits = batch[0].clone().requires_grad_()
        loss = criterion(logits, batch[1])
        loss.backward()
        results.append((loss.detach(), logits.grad))
    for ours, other in zip(*results, strict=True):
        assert torch.allclose(ours, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("names", ["ce", "dice", "focal", "ce+dice"])
def test_ignored_pixels_change_neither_loss_nor_gradient(batch, names):
    logits, targets = batch
    criterion = Loss(names)
    results = []
    for noise in (0.0, 5.0):
        x = logits.clone()
        x[:, :, :3] += noise
        x.requires_grad_()
        loss = criterion(x, targets)
        loss.backward()
        assert (x.grad[:, :, :3] == 0).all()
        results.append(loss.item())
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@pytest.mark.parametrize("names", ["ce", "dice", "focal", "ce+dice+focal"])
def test_a_batch_of_ignored_pixels_has_a_finite_loss(names):
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = Loss(names)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("names", LOSSES)
def test_a_heavier_class_counts_more(batch, names):
    logits, targets = batch
    wrong = logits.clone()
    wrong[:, 1] -= 20  # class 1 is always missed
    light = Loss(names, torch.tensor([1.0, 0.1, 1.0, 1.0]))(wrong, targets)
    heavy = Loss(names, torch.tensor([1.0, 10.0, 1.0, 1.0]))(wrong, targets)
    assert heavy > light


@pytest.mark.parametrize("names", LOSSES)
def test_the_loss_of_pictures_together_is_that_of_their_sums(batch, names):
    criterion = Loss(names, WEIGHTS)
    pictures = zip(*(part.split(1) for part in batch), strict=True)
    together = criterion.value(sum(criterion.sums(*picture) for picture in pictures))
    assert together.item() == pytest.approx(criterion(*batch).item(), rel=1e-6)


def test_losses_compute_in_fp32_inside_autocast(batch):
    logits, targets = batch
    criterion = Loss("ce+dice+focal")
    plain = criterion(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion(logits, targets)
    assert inside.dtype == torch.float32
    assert inside.item() == plain.item()


def test_gradients_of_16_bits_stay_in_16_bits(batch):
    logits = batch[0].bfloat16().requires_grad_()
    Loss("ce+dice")(logits, batch[1]).backward()
    assert logits.grad.dtype == torch.bfloat16


def peak_of(step) -> int:
    """Bytes that a step holds at once beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("names", ["ce", "dice", "focal", "ce+dice+focal"])
def test_150_classes_take_no_more_than_twice_the_logits_memory(names, monkeypatch):
    monkeypatch.setattr(losses, "SMALL", 1)  # in bands, as where it matters
    logits = torch.randn(2, 150, 96, 96, requires_grad=True)
    targets = torch.randint(0, 150, (2, 96, 96))
    peak = peak_of(lambda: Loss(names)(logits, targets).backward())
    size = logits.numel() * logits.element_size()
    assert size < peak < 2 * size  # the gradient takes as much as the logits
