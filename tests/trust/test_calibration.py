"""Intervals that hold what they promise, probabilities that mean what they say."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from tiny_model import save_tiny
from torchmetrics.functional.classification import binary_calibration_error as binary_error
from torchmetrics.functional.classification import multiclass_calibration_error as theirs

from common.errors import UserError
from config import ClassTable
from inference.evaluation import PixelSample
from inference.prediction import SoftCounts
from inference.predictor import Predictor
from metrics import SeverityTable
from models.checkpoint import read_checkpoint
from segmentation_model import load_model
from trust.calibration import (
    Calibration,
    best_temperature,
    calibration_error,
    carry,
    conformal_quantile,
    doubt,
    fewest,
    read_calibration,
    reliability,
    reliability_figures,
    softened,
)


def pixels(count=20_000, classes=3, sharpness=2.0, seed=0):
    """Scores that are `sharpness` times too sure, and classes drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, classes)) * 1.5
    probs = softened(scores, 1)
    targets = (probs.cumsum(1) > rng.random((count, 1))).argmax(1)
    said = softened(scores * sharpness, 1)
    return np.log(said), targets


def test_the_quantile_is_the_smallest_that_keeps_the_promise():
    errors = np.array([5.0, 1, 4, 2, 3, 9, 8, 7, 6])
    assert conformal_quantile(errors, 0.9) == 9  # the ceil(10 * 0.9)-th of nine
    assert conformal_quantile(errors, 0.8) == 8
    assert conformal_quantile(errors[:8], 0.9) is None
    assert [fewest(coverage) for coverage in (0.8, 0.9, 0.95)] == [4, 9, 19]
    for coverage in (0.5, 0.8, 0.9, 0.95):
        n = fewest(coverage)
        assert conformal_quantile(np.arange(n), coverage) is not None
        assert conformal_quantile(np.arange(n - 1), coverage) is None


def test_intervals_cover_what_they_promise_on_skewed_errors():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(3000):
        errors = rng.exponential(size=20) ** 2
        covered.append(errors[19] <= conformal_quantile(errors[:19], 0.9))
    # Of 19 errors the 18th is taken: the next one lies below it in 18 of 20 cases, exactly.
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_the_temperature_is_that_of_another_search_and_undoes_what_was_too_sure():
    log_probs, targets = pixels()

    def loss(temperature):
        probs = softened(log_probs, temperature)
        return -np.log(probs[np.arange(len(targets)), targets]).mean()

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    found = best_temperature(log_probs, targets)
    assert found == pytest.approx(expected, rel=1e-2)
    assert found == pytest.approx(2, rel=0.05)
    assert np.array_equal(softened(log_probs, found).argmax(1), log_probs.argmax(1))


def test_calibration_errors_are_torchmetrics():
    log_probs, targets = pixels()
    probs = softened(log_probs, 1)
    steps = reliability(probs.max(1), probs.argmax(1) == targets)
    expected = theirs(torch.tensor(probs), torch.tensor(targets), num_classes=3, n_bins=15)
    assert calibration_error(steps) == pytest.approx(float(expected), abs=1e-5)
    one = reliability(probs[:, 1], targets == 1)
    expected = binary_error(torch.tensor(probs[:, 1]), torch.tensor(targets == 1), n_bins=15)
    assert calibration_error(one) == pytest.approx(float(expected), abs=1e-5)
    assert calibration_error(reliability(np.array([1.0]), np.array([True]))) == 0


def records_of(count=30, classes=2):
    rng, records = np.random.default_rng(1), []
    for number in range(count):
        true, off, unsure = int(rng.integers(5, 50)), int(rng.integers(-4, 5)), float(rng.random())
        counts = np.diag([100 - true - abs(off), true])
        counts[(0, 1) if off > 0 else (1, 0)] = abs(off)
        arrays = (counts.sum(0), counts.sum(0), counts.sum(0), np.full(classes, 1 + unsure))
        soft = SoftCounts(*(array.astype(float) for array in arrays))
        log_probs, targets = pixels(50, classes, seed=number)
        sample = PixelSample(log_probs.astype(np.float16), targets, np.arange(50) % 5 == 0)
        areas = np.stack([counts.diagonal(), counts.sum(1), counts.sum(0)])
        record = {"file": f"{number}.png", "areas": areas, "boundary": np.ones((2, 2), int)}
        records.append(record | {"soft": soft, "sample": sample})
    return records


def test_the_interval_of_a_picture_grows_with_its_doubt_and_stays_a_share(tmp_path):
    predictor = Predictor.load(save_tiny(tmp_path / "m.pth"), device="cpu")
    records = records_of()
    made = Calibration.of(records, predictor)
    table = SeverityTable.of(predictor.classes.names)
    inside = 0
    for record in records:
        areas, own = record["areas"], float(doubt(record["soft"], table)[0])
        low, high = made.interval("disease", areas[2][1] / 100, own, 0.9)
        assert 0 <= low <= high <= 1
        inside += low - 1e-9 <= areas[1][1] / 100 <= high + 1e-9
    assert inside == math.ceil(31 * 0.9)
    narrow, wide = (made.interval("disease", 0.5, own, 0.9) for own in (0.01, 0.02))
    assert wide[1] - wide[0] == pytest.approx(2 * (narrow[1] - narrow[0]))
    assert made.interval("rust", 0.5, 0.01, 0.9) is None
    assert Calibration.of(records[:8], predictor).interval("disease", 0.5, 0.01, 0.9) is None


def test_a_model_carries_its_calibration_and_stays_the_same_model(tmp_path):
    path = save_tiny(tmp_path / "m.pth", epoch=3)
    before = load_model(path)
    made = Calibration.of(records_of(), Predictor.load(path, device="cpu"))
    assert read_calibration([path]) is None
    assert carry([path], made) == path
    assert read_calibration([path]) == made
    after = load_model(path)
    assert after.content["epoch"] == 3
    states = before.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True))
    with pytest.raises(UserError, match="one checkpoint"):
        carry([path, path], made)
    torch.save(before.model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match="not written by train"):
        carry([tmp_path / "bare.pth"], made)


def test_a_folder_of_folds_carries_its_calibration_in_a_file(tmp_path):
    (tmp_path / "folds.csv").write_text("file,fold\na,0\nb,1\n")
    assert read_calibration([tmp_path]) is None
    made = Calibration(1.5, {"disease": [0.1, 0.2]}, [[32, 32]], True)
    assert carry([tmp_path], made) == tmp_path / "calibration.json"
    assert read_calibration([tmp_path]) == made
    assert made.pictures == 2


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": math.nan},
        {"temperature": 1e9},
        {"temperature": None},
        {"errors": {"disease": [1.0, -1.0]}},
        {"errors": {"disease": [math.inf]}},
        {"errors": [1]},
        {"passed": 3},
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path, change):
    plain = {"temperature": 1.0, "errors": {"disease": [0.1]}, "passed": [], "out_of_fold": True}
    (tmp_path / "folds.csv").write_text("file,fold\na,0\nb,1\n")
    (tmp_path / "calibration.json").write_text(json.dumps(plain | change))
    with pytest.raises(UserError, match="damaged"):
        read_calibration([tmp_path])
    (tmp_path / "calibration.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        read_calibration([tmp_path])


def test_reliability_is_told_before_and_after_and_near_borders(tmp_path):
    records = records_of(200)
    figures = reliability_figures(records, ClassTable.default())
    assert figures["after"]["error"] < 0.5 * figures["before"]["error"]
    assert set(figures["after"]["class_errors"]) == {"background", "disease"}
    assert sum(step["share"] for step in figures["before"]["steps"]) == pytest.approx(1)
    fixed = reliability_figures(records, ClassTable.default(), temperature=1.0)
    assert fixed["before"] == fixed["after"]
    content = read_checkpoint(save_tiny(tmp_path / "m.pth"))
    assert "calibration" not in content
