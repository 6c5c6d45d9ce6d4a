"""What a prediction adds up to, against sums over whole arrays, however it is cut into bands."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from inference.prediction import SoftCounts, collect, collect_mask


def bands_of(scores, *cuts):
    edges = [0, *cuts, scores.shape[1]]
    for top, end in pairwise(edges):
        yield top, scores[:, top:end]


def test_sums_and_points_are_those_of_the_whole_picture():
    scores = 3 * torch.randn(3, 20, 17)
    probs = scores.double().softmax(0).numpy()
    points = np.array([[0.0, 0.0], [0.99, 0.99], [0.5, 0.25]])
    got = collect(bands_of(scores, 7, 8), (20, 17), 3, True, points)
    mask = probs.argmax(0)
    assert np.array_equal(got.mask, mask)
    assert np.array_equal(got.mask, collect_mask(bands_of(scores, 5), (20, 17)))
    assert got.probabilities == pytest.approx(probs, abs=1e-3)
    seen = np.eye(3, dtype=bool)[mask].transpose(2, 0, 1)
    assert got.sums.pixels.tolist() == seen.sum((1, 2)).tolist()
    assert got.sums.area == pytest.approx(probs.sum((1, 2)))
    assert got.sums.own == pytest.approx((probs * seen).sum((1, 2)))
    assert got.sums.doubt == pytest.approx((probs * (1 - probs)).sum((1, 2)), rel=1e-5)
    places = [(0, 0), (19, 16), (10, 4)]
    assert np.exp(got.points) == pytest.approx(np.array([probs[:, y, x] for y, x in places]))


def test_temperature_changes_the_probabilities_alone():
    scores = torch.randn(3, 8, 9)
    plain, soft = (collect(bands_of(scores), (8, 9), 3, True, None, t) for t in (1.0, 2.0))
    assert np.array_equal(plain.mask, soft.mask)
    assert np.array_equal(plain.sums.own, soft.sums.own)
    assert soft.probabilities == pytest.approx((scores / 2).softmax(0).numpy(), abs=1e-3)


def test_a_pixel_that_cannot_be_a_class_makes_no_nan():
    scores = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]])
    got = collect(iter([(0, scores)]), (1, 2), 2)
    assert got.sums.area.tolist() == [1, 1]
    assert got.sums.confidence() == 1


def counts(pixels, area, own):
    arrays = (np.array(values, float) for values in (pixels, area, own))
    return SoftCounts(*arrays, np.zeros(len(pixels)))


def test_confidence_is_the_dice_to_expect():
    certain = counts([900, 100, 0], [900, 100, 0], [900, 100, 0])
    assert certain.confidence() == 1
    suspected = counts([900, 100, 0], [895, 100, 5], [895, 100, 0])  # a few pixels of a third class
    half = counts([900, 100, 0], [850, 100, 50], [850, 100, 0])
    assert 1 > suspected.confidence() > 0.85 > half.confidence() > 0.6
    rng = np.random.default_rng(0)
    probs = rng.random((40, 50))  # of one class beside the ground
    mask = probs > 0.5
    drawn = rng.random((400, 40, 50)) < probs
    dice = (2 * (drawn & mask).sum((1, 2)) / (drawn.sum((1, 2)) + mask.sum())).mean()
    soft = counts([mask.size - mask.sum(), mask.sum()], [1, probs.sum()], [1, probs[mask].sum()])
    extra = 0.01 * mask.size
    own = (2 * probs[mask].sum() + extra) / (mask.sum() + probs.sum() + extra)
    assert own == pytest.approx(dice, abs=0.01)
    assert 0 <= soft.confidence() <= 1
