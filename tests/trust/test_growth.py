"""Learning curves: known curves are found again, and intervals cover what they promise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import make_smoothing_spline
from sklearn.metrics import jaccard_score

from trust.growth import (
    COVERAGE,
    DRIFT,
    Growth,
    Noise,
    Outlook,
    draw_curves,
    miou_errors,
    picture_weights,
    severity_errors,
)

SIZES = np.array([50.0, 100.0, 200.0, 400.0])
TRAININGS = np.array([2, 2, 2, 1])


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.0])
def test_a_power_law_without_noise_is_found_again(exponent):
    """What is measured is met exactly; what is foretold is the law, give or take the drift."""
    errors = 2.0 * SIZES**-exponent
    growth = Growth.of(SIZES, errors[None], TRAININGS, Noise(0.0, 3))
    for size, error in zip(SIZES, errors, strict=True):
        assert growth.expected(size) == pytest.approx([error] * 3, rel=1e-4)
    likely, low, high = growth.expected(800)
    assert likely == pytest.approx(2.0 * 800**-exponent, rel=0.05)
    assert low < 2.0 * 800**-exponent < high
    near, far = (np.log(up / down) for _, down, up in map(growth.expected, (500, 800)))
    assert 0 < near < far / 2  # it widens with the distance


def test_the_mean_curve_is_the_smoothing_spline_of_scipy():
    """Wahba 1978: the mean of a line with a drifting slope is the cubic smoothing spline."""
    sizes = 25 * 2.0 ** np.arange(7)
    own = np.arange(7.0)
    logs = np.log(0.02 + sizes**-0.6) + np.random.default_rng(0).normal(0, 0.05, 7)
    grid = np.linspace(0, 7, 15)
    drift = DRIFT * np.polyfit(own, logs, 1)[0]
    spread = np.full((20_000, 7), 0.05)
    random = np.random.default_rng(1)
    curves = draw_curves(own, np.broadcast_to(logs, spread.shape), spread, grid, random)
    spline = make_smoothing_spline(own, logs, lam=0.05**2 / drift**2)
    assert curves.mean(0)[:13] == pytest.approx(spline(grid[:13]), abs=0.01)
    straight = spline(6) + spline.derivative()(6) * (grid[13:] - 6)
    assert curves.mean(0)[13:] == pytest.approx(straight, abs=0.01)


def test_more_photographs_are_not_foretold_to_do_harm():
    growth = Growth.of(SIZES, np.array([[0.2, 0.15, 0.14, 0.15]]), TRAININGS, Noise(0.1, 3))
    assert growth.gain(400, 800)[1] >= 0
    assert (growth.at(600) <= growth.at(400) + 1e-12).all()


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
    # More often where the floor is low: a slope that may drift costs a law that does not.
    assert COVERAGE - 0.02 < np.mean(covered) < 0.99


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


def test_no_error_above_one_is_foretold_and_a_forecast_that_wide_proves_nothing():
    errors = np.array([[0.9, 0.5, 0.8, 0.7]])
    growth = Growth.of(SIZES, errors, TRAININGS, Noise(1.0, 1))
    for foretold in (growth.expected, growth.measured):
        assert 0 < foretold(50)[1] < foretold(50)[2] <= 1
        assert 0 < foretold(800)[1] < foretold(800)[2] <= 1
    found = replace(outlook(1.0), proof=(0.1, 0.02, 1.0))
    assert found.holds
    assert found.describe().endswith("the forecast was too wide to prove anything.")
    found = replace(found, proof=(0.5, 0.05, 1.0))  # cut off at 1: nothing above was excluded
    assert found.verdict.endswith("too wide to prove anything")


def test_the_fall_that_is_foretold_is_told_from_the_same_curve():
    """The likely error now, less the fall, is about that with twice: all three are said."""
    found = outlook(1.0)
    now, gain = found.growth.expected(400)[0], found.growth.gain(400, 800)[0]
    said = f"the curve, whose likely error with 400 is {now:.4f}, falls by {gain:.4f} "
    assert said in found.describe()
    assert now - gain == pytest.approx(found.growth.expected(800)[0], rel=0.02)
