"""The figures against torchmetrics, and what an average of batches gets wrong."""

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from metrics import ConfusionMatrix, article_batch_miou, boundary_counts, mean


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for size in (7, 31, 64):
        preds = torch.randint(0, 4, (2, size, size + 3), generator=generator)
        targets = torch.randint(0, 4, (2, size, size + 3), generator=generator)
        targets[:, : size // 3] = 255
        pairs.append((preds, targets))
    return pairs


def test_figures_agree_with_torchmetrics(batches):
    ours = ConfusionMatrix(4)
    arguments = {"num_classes": 4, "ignore_index": 255, "average": None}
    theirs = {
        "iou": MulticlassJaccardIndex(**arguments),
        "dice": MulticlassF1Score(**arguments),
        "precision": MulticlassPrecision(**arguments),
        "recall": MulticlassRecall(**arguments),
    }
    accuracy = MulticlassAccuracy(num_classes=4, ignore_index=255, average="micro")
    for preds, targets in batches:
        ours.update(preds, targets)
        for metric in (*theirs.values(), accuracy):
            metric.update(preds, targets)
    for name, metric in theirs.items():
        assert getattr(ours, name)() == pytest.approx(metric.compute().tolist(), rel=1e-6)
    assert ours.pixel_accuracy() == pytest.approx(accuracy.compute().item(), rel=1e-6)


def test_an_absent_class_is_left_out_of_the_mean_as_in_torchmetrics():
    preds = torch.tensor([[0, 0, 1, 1]])
    targets = torch.tensor([[0, 1, 1, 1]])
    ours = ConfusionMatrix(3)
    ours.update(preds, targets)
    theirs = MulticlassJaccardIndex(num_classes=3, average="macro")
    assert np.isnan(ours.iou()[2])
    assert ours.miou() == pytest.approx(theirs(preds, targets).item())
    assert ours.miou() == pytest.approx((1 / 2 + 2 / 3) / 2)
    # The article's way counts it as 0.
    assert article_batch_miou(ours.areas.numpy()) == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_miou_does_not_depend_on_how_the_split_is_cut_into_batches(batches):
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    for preds, targets in batches:
        whole.update(preds, targets)
        for pred, target in zip(preds, targets, strict=True):
            parts.update(pred, target)
    assert whole.miou() == parts.miou()


def test_a_split_of_ignored_pixels_has_no_figures():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(3, 3, dtype=torch.long), torch.full((3, 3), 255))
    assert np.isnan(matrix.miou())
    assert np.isnan(matrix.pixel_accuracy())
    assert np.isnan(mean([]))


def erosion_band(mask: np.ndarray, distance: int) -> np.ndarray:
    """The definition of the paper, by repeated erosion."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return (mask.astype(np.uint8) - eroded).astype(bool)


def test_boundary_iou_follows_the_papers_erosions():
    rng = np.random.default_rng(1)
    target, pred = (
        (cv2.GaussianBlur(rng.random((90, 140)).astype(np.float32), (0, 0), 6) > 0.5).astype(
            np.uint8
        )
        for _ in range(2)
    )
    distance = max(1, round(0.02 * float(np.hypot(90, 140))))
    intersections, unions = boundary_counts(pred, target, 2)
    for index in (0, 1):
        truth, guess = (erosion_band(mask == index, distance) for mask in (target, pred))
        assert intersections[index] == np.count_nonzero(truth & guess)
        assert unions[index] == np.count_nonzero(truth | guess)


def test_a_shifted_border_costs_more_boundary_iou_than_iou():
    target = np.zeros((200, 200), np.uint8)
    target[40:160, 40:160] = 1
    pred = np.roll(target, 4, axis=1)
    matrix = ConfusionMatrix(2)
    matrix.update(torch.from_numpy(pred), torch.from_numpy(target))
    intersections, unions = boundary_counts(pred, target, 2)
    assert intersections[1] / unions[1] < matrix.iou()[1] - 0.2
