"""Spoiled masks are found, borders and ignored pixels are no errors, scores are cleanlab's."""

import csv
import sys

import numpy as np
import pytest
from cleanlab.segmentation.rank import get_label_quality_scores
from PIL import Image
from tiny_data import write_data
from tiny_model import save_tiny

import evaluate
from trust import label_errors
from trust.label_errors import counted_pixels, disputed_regions, label_quality


def sure_of(mask, classes=3, certainty=0.9):
    """Probabilities of a model that sees exactly this mask."""
    probs = np.full((classes, *mask.shape), (1 - certainty) / (classes - 1), np.float32)
    np.put_along_axis(probs, mask[None].astype(int), certainty, axis=0)
    return probs


def leaf():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:70] = 1
    mask[20:32, 20:34] = 2
    return mask


def test_quality_is_cleanlabs_where_every_pixel_counts(monkeypatch):
    monkeypatch.setattr(label_errors, "BORDER", 0)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), (4, 12, 9)).transpose(0, 3, 1, 2)
    masks = rng.integers(0, 3, (4, 12, 9)).astype(np.uint8)
    theirs = get_label_quality_scores(masks, probs, method="softmin", verbose=False)[0]
    ours = [label_quality(p, m) for p, m in zip(probs, masks, strict=True)]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_an_erased_lesion_is_found_and_its_place_is_told():
    true, spoiled = leaf(), leaf()
    spoiled[20:32, 20:34] = 1
    probs = sure_of(true)
    assert label_quality(probs, spoiled) < 0.3 < 0.85 < label_quality(probs, true)
    (region,) = disputed_regions(probs, spoiled)
    assert (region.labelled, region.seen, region.box) == (1, 2, (20, 20, 14, 12))
    assert region.weight == pytest.approx(12 * 14 * 0.85, rel=1e-3)


def test_touching_patches_of_other_claims_are_two():
    seen = leaf()
    seen[32:44, 20:34] = 0
    labelled = leaf()
    labelled[20:32, 20:34] = 1
    found = disputed_regions(sure_of(seen), labelled)
    assert {(region.labelled, region.seen) for region in found} == {(1, 2), (1, 0)}


def test_what_is_off_by_two_pixels_or_ignored_is_no_error():
    true = leaf()
    moved = np.roll(true, 2, axis=1)
    assert label_quality(sure_of(true), moved) > 0.85
    assert not disputed_regions(sure_of(true), moved)
    unknown = np.full_like(true, 255)
    assert label_quality(sure_of(true), unknown) == 1
    assert not counted_pixels(unknown).any()
    assert not disputed_regions(sure_of(true), unknown)


def test_the_script_lists_and_shows_the_masks_worst_first(monkeypatch, tmp_path):
    data = write_data(tmp_path / "data", 2, 4)
    swapped = data / "valid_masks/valid2.png"
    Image.fromarray(1 - np.array(Image.open(swapped))).save(swapped)
    model = save_tiny(tmp_path / "m.pth")

    def sees_the_photograph(predictor, images, sizes, **rest):
        from inference.prediction import Prediction

        for image in images:
            red = (image[..., 0] > 100).astype(np.uint8)
            yield Prediction(red, None, sure_of(red, 2).astype(np.float16), None)

    flags = ["--model", str(model), "--data", str(data), "--out-dir", str(tmp_path / "e")]
    monkeypatch.setattr(sys, "argv", ["evaluate", "--device", "cpu", *flags])
    parts = [(None, label_errors.Predictor.load(model, device="cpu"), [])]
    from data.source import open_source

    source = open_source(data, ("valid",))
    parts = [(None, parts[0][1], source.pairs["valid"])]
    monkeypatch.setattr(label_errors.Predictor, "read", sees_the_photograph)
    suspects = label_errors.find_suspects(parts, source.reader)
    (tmp_path / "e").mkdir()
    evaluate.report_suspects(tmp_path / "e", suspects, parts, source.reader)
    with open(tmp_path / "e/suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[0]["file"], rows[0]["labelled"]] == ["valid2.png", "disease"]
    assert float(rows[0]["quality"]) < 0.2 < 0.8 < float(rows[1]["quality"])
    assert 0 <= float(rows[0]["left"]) < 1
    page = (tmp_path / "e/suspects.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 3
    assert "valid2.png" in page
