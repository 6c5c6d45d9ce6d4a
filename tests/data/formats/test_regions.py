"""Outlines and run lengths become pixels as in the tools that made them."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as oracle

from common.errors import UserError
from data.formats.coco import decode_counts
from data.formats.regions import MAX_POINTS, Runs, box, ellipse, outline, rotated

SIZE = (40, 50)


def pixels(region, size=SIZE) -> np.ndarray:
    top, left, patch = region.draw(size)
    mask = np.zeros(size, bool)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return mask


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


@pytest.mark.filterwarnings("ignore:__array__")  # pycocotools' own
@pytest.mark.parametrize("decimals", [0, 1, 2, 9])
def test_polygons_are_the_pixels_that_pycocotools_gives(decimals):
    """To the last one, for polygons that cross themselves, and reach beyond the picture."""
    rng = np.random.default_rng(decimals)
    for _ in range(150):
        ring = rng.uniform(-5, 55, (rng.integers(3, 9), 2)).round(decimals)
        expected = oracle.decode(oracle.frPyObjects([ring.ravel().tolist()], *SIZE))[..., 0]
        assert np.array_equal(pixels(outline(ring)), expected.astype(bool))


def test_parts_are_united_and_bridges_of_no_width_leave_no_trace():
    two = pixels(outline([2, 2, 12, 2, 12, 12, 2, 12], [8, 8, 30, 8, 30, 20, 8, 20]))
    assert two[3, 3]
    assert two[10, 10]  # in both
    bridge = [2, 2, 12, 2, 12, 12, 20, 30, 30, 30, 30, 38, 20, 38, 20, 30, 12, 12, 2, 12]
    parts = outline([2, 2, 12, 2, 12, 12, 2, 12], [20, 30, 30, 30, 30, 38, 20, 38])
    assert np.array_equal(pixels(outline(bridge)), pixels(parts))


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_go_by_columns_as_in_pycocotools(compressed):
    mask = np.random.default_rng(0).random(SIZE) < 0.3
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    if compressed:
        text = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert decode_counts(text) == counts
        counts = decode_counts(text)
    assert np.array_equal(pixels(Runs(np.array(counts), SIZE, by_columns=True)), mask)


def test_a_mask_by_rows_lies_in_its_window_and_is_clipped():
    runs = Runs(np.array([1, 2, 1, 2]), (2, 3), corner=(-1, 48))
    assert np.argwhere(pixels(runs)).tolist() == [[0, 49]]
    assert runs.beyond(SIZE)


def test_ellipses_and_turned_boxes_have_their_area_and_place():
    circle = pixels(ellipse(100, 90, 80, 60), (200, 200))
    assert circle.sum() == pytest.approx(math.pi * 80 * 60, rel=1e-3)
    large = Image.new("1", (1600, 1600))
    ImageDraw.Draw(large).ellipse((160, 240, 1440, 1200), fill=1)
    drawn = np.array(large).reshape(200, 8, 200, 8)[:, 4, :, 4]
    assert iou(circle, drawn) > 0.997
    turned = pixels(rotated(box(10, 10, 30, 20), 90, (20, 15)))
    assert np.array_equal(turned, pixels(box(15, 5, 25, 25)))


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([1, 2, 3, 4, 5], "odd"),
        ([1, 2, float("nan"), 4, 5, 6], "not a finite number"),
        ([1, 2, 3, 4, 5, 1e12], "far outside"),
        (["a", 2, 3, 4, 5, 6], "no numbers"),
        ([[1, 2], [3], [4, 5]], "no numbers"),
        (None, "finite|no numbers|odd"),
        ([0.0] * (2 * MAX_POINTS + 2), "points, more than"),
    ],
)
def test_an_outline_that_cannot_be_meant_is_refused(points, reason):
    with pytest.raises(UserError, match=reason):
        outline(points)


def test_an_outline_that_would_take_minutes_is_refused():
    zigzag = np.array([[0, 0], [9000, 100]] * (MAX_POINTS // 2), float)
    with pytest.raises(UserError, match="to and fro"):
        outline(zigzag).draw((100, 9000))


@pytest.mark.parametrize("counts", [[10], [-1, 2001], [1000, 1001], []])
def test_run_lengths_that_do_not_add_up_are_refused(counts):
    with pytest.raises(UserError, match="runs cover"):
        Runs(np.array(counts, np.int64), SIZE)


@pytest.mark.parametrize("text", ["~", "\u00e9", "o" * 60, "0oo"])
def test_damaged_compressed_run_lengths_are_refused(text):
    with pytest.raises(UserError, match="run lengths"):
        decode_counts(text)
