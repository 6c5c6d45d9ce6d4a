"""Learning curves: known curves are found again, and intervals cover what they promise."""

import numpy as np
import pytest
from scipy.optimize import least_squares
from sklearn.metrics import jaccard_score

from trust.growth import (
    COVERAGE,
    EXPONENTS,
    Growth,
    Noise,
    Outlook,
    fit_power_law,
    miou_errors,
    picture_weights,
    power_law,
    severity_errors,
)

SIZES = np.array([50.0, 100.0, 200.0, 400.0])
TRAININGS = np.array([2, 2, 2, 1])


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("exponent", EXPONENTS[[50, 90, 130]])
def test_a_curve_without_noise_is_found_again(floor, exponent):
    errors = floor + 2.0 * SIZES**-exponent
    (curve,) = fit_power_law(SIZES, errors[None])
    assert curve == pytest.approx([floor, 2.0, exponent], rel=1e-6, abs=1e-9)
    assert power_law(curve[None], 800)[0] == pytest.approx(floor + 2.0 * 800**-exponent)


def test_no_curve_fits_better_by_scipys_search():
    """Noisy ones, among which are some whose floor or fall would be negative."""
    random = np.random.default_rng(0)
    errors = (0.05 + SIZES**-0.6) * np.exp(random.normal(0, 0.15, (30, 4)))
    errors[:2] = [0.1, 0.11, 0.12, 0.13], [0.3, 0.1, 0.03, 0.01]
    bounds = ([0, 0, EXPONENTS[0]], [np.inf, np.inf, EXPONENTS[-1]])
    curves = fit_power_law(SIZES, errors)
    assert (curves[:, :2] >= 0).all()
    assert {*(curves[:, 0] == 0), *(curves[:, 1] == 0)} == {False, True}
    for curve, own in zip(curves, errors, strict=True):

        def off(values, own=own):
            a, b, c = values
            return (a + b * (SIZES / 50) ** -c) / own - 1

        start = [curve[0], curve[1] * 50 ** -curve[2], curve[2]]
        found = least_squares(off, np.clip(start, 1e-3, 1.9), bounds=bounds)
        assert (off(start) ** 2).sum() <= 2 * found.cost + 1e-4  # the exponents are 2.3 % apart


def test_the_noise_is_the_pooled_spread_of_the_repeats():
    noise = Noise.of([np.exp([0.0, 0.2]), np.exp([1.0, 1.4]), np.array([0.3])])
    assert noise.freedom == 2
    assert noise.spread == pytest.approx(np.sqrt((0.02 + 0.08) / 2))


@pytest.mark.parametrize(("counts", "at"), [(SIZES[:3], 400), (SIZES, 800)])
def test_the_interval_of_a_training_to_come_covers_as_often_as_it_says(counts, at):
    """Of 200 curves drawn at random, each with trainings that differ by 3 to 15 %."""
    random = np.random.default_rng(0)
    trainings = TRAININGS[: len(counts)] if at == 800 else np.array([2, 2, 2])
    covered = []
    for _ in range(200):
        floor, fall = random.uniform(0, 0.1), random.uniform(0.5, 3)
        exponent, spread = random.uniform(0.2, 1.0), random.uniform(0.03, 0.15)
        runs = [
            (floor + fall * size**-exponent) * np.exp(spread * random.standard_normal(repeats))
            for size, repeats in zip(counts, trainings, strict=True)
        ]
        means = np.array([[own.mean() for own in runs]])
        growth = Growth.of(counts, means, trainings, Noise.of(runs), draws=200)
        _, low, high = growth.measured(at)
        new = (floor + fall * at**-exponent) * np.exp(spread * random.standard_normal())
        covered.append(low <= new <= high)
    assert abs(np.mean(covered) - COVERAGE) < 0.05


def test_errors_are_those_of_the_whole_split():
    random = np.random.default_rng(0)
    truth, pred = random.integers(0, 3, (2, 5, 400))
    areas = np.stack(
        [
            [[((t == k) & (p == k)).sum(), (t == k).sum(), (p == k).sum()] for k in range(3)]
            for t, p in zip(truth, pred, strict=True)
        ]
    ).swapaxes(1, 2)
    iou = jaccard_score(truth.ravel(), pred.ravel(), average="macro")
    assert miou_errors(areas, np.ones((1, 5)))[0] == pytest.approx(1 - iou)
    twice = np.array([[2, 0, 1, 1, 1]])
    drawn = jaccard_score(*(x[[0, 0, 2, 3, 4]].ravel() for x in (truth, pred)), average="macro")
    assert miou_errors(areas, twice)[0] == pytest.approx(1 - drawn)
    shares = [
        np.array([(own == 2).sum() / (own > 0).sum() for own in part]) for part in (truth, pred)
    ]
    expected = np.abs(shares[0] - shares[1])
    names = ("ground", "leaf", "spot")
    assert severity_errors(areas, np.ones((1, 5)), names)[0] == pytest.approx(expected.mean())


def test_a_class_that_no_picture_holds_has_no_part_in_the_error():
    areas = np.array([[[6, 0], [10, 0], [6, 0]]])
    assert miou_errors(areas, np.ones((1, 1)))[0] == pytest.approx(0.4)


def test_pictures_are_drawn_with_replacement():
    weights = picture_weights(20)
    assert (weights.sum(1) == 20).all()
    assert weights.var() == pytest.approx(0.95, rel=0.05)


def outlook(factor: float) -> Outlook:
    """Of trainings whose error falls as n^-1/2; that on all is `factor` times as large."""
    areas, random = [], np.random.default_rng(0)
    for count, repeats in zip(SIZES, TRAININGS, strict=True):
        error = 2 * count**-0.5 * (factor if count == 400 else 1)
        runs = []
        for _ in range(repeats):
            off = random.uniform(0.97, 1.03) * random.uniform(0.9, 1.1, (30, 1))
            right = np.round(10_000 * (1 - error * off))
            whole = np.full((30, 1), 10_000)
            runs.append(np.stack([right, whole, right], axis=1))
        areas.append(runs)
    return Outlook.of([50, 100, 200, 400], areas, miou_errors)


def test_what_is_foretold_is_said_and_proved():
    found = outlook(1.0)
    likely, low, high = found.growth.measured(800)
    assert low < likely < high
    assert low < 2 * 800**-0.5 < high
    assert found.growth.gain(400, 800)[0] == pytest.approx(2 * (400**-0.5 - 800**-0.5), rel=0.2)
    assert found.holds
    said = found.describe()
    assert f"with 800 photographs rather than 400 probably {likely:.4f} (90%" in said
    assert said.endswith("the forecast held.")
    assert len(found.points()) == 7
    assert len(found.rows()) == 11


def test_a_forecast_that_did_not_hold_is_called_so():
    found = outlook(2.0)
    assert not found.holds
    assert found.describe().endswith("the forecast did NOT hold.")
