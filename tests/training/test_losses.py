"""Losses against segmentation_models_pytorch and PyTorch, and at their edges."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from training.losses import cross_entropy, dice, focal, make_criterion


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, 11, generator=generator) * 3
    targets = torch.randint(0, 3, (3, 9, 11), generator=generator)  # class 3 is absent
    targets[:, :3] = 255
    return logits, targets


def test_cross_entropy_is_pytorchs(batch):
    logits, targets = batch
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    for weight in (None, weights):
        expected = F.cross_entropy(logits, targets, weight, ignore_index=255)
        assert cross_entropy(logits, targets, weight).item() == pytest.approx(expected.item())


def test_dice_is_that_of_segmentation_models(batch):
    logits, targets = batch
    expected = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, targets)
    assert dice(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_focal_is_that_of_segmentation_models(batch):
    logits, targets = batch
    expected = smp.losses.FocalLoss("multiclass", gamma=2.0, ignore_index=255)(logits, targets)
    assert focal(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("names", ["ce", "dice", "focal", "ce+dice"])
def test_ignored_pixels_change_neither_loss_nor_gradient(batch, names):
    logits, targets = batch
    criterion = make_criterion(names)
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
    loss = make_criterion(names)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_a_sum_is_the_sum_of_its_parts(batch):
    logits, targets = batch
    total = make_criterion("ce+dice")(logits, targets)
    assert total.item() == pytest.approx((cross_entropy(*batch) + dice(*batch)).item())


@pytest.mark.parametrize("names", ["ce", "dice", "focal"])
def test_a_heavier_class_counts_more(batch, names):
    logits, targets = batch
    wrong = logits.clone()
    wrong[:, 1] -= 20  # class 1 is always missed
    light = make_criterion(names, torch.tensor([1.0, 0.1, 1.0, 1.0]))(wrong, targets)
    heavy = make_criterion(names, torch.tensor([1.0, 10.0, 1.0, 1.0]))(wrong, targets)
    assert heavy > light


def test_losses_compute_in_fp32_inside_autocast(batch):
    logits, targets = batch
    criterion = make_criterion("ce+dice+focal")
    plain = criterion(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion(logits, targets)
    assert inside.dtype == torch.float32
    assert inside.item() == plain.item()
