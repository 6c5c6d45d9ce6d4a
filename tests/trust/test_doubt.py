"""Each result says how sure it is, how unlike training, and between what its severity lies."""

import csv
import sys

import numpy as np
import pytest
from tiny_data import write_data
from tiny_model import save_tiny

import evaluate
import inference_image
from common.errors import UserError
from data.images import list_images
from inference.predictor import Predictor
from trust.familiarity import remember_pictures


def run(script, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--device", "cpu", *map(str, flags)])
    return script.main()


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def model(tmp_path):
    return save_tiny(tmp_path / "m.pth")


def test_results_of_a_calibrated_model_have_an_interval(monkeypatch, tmp_path, model, capsys):
    data = write_data(tmp_path / "data", 6, 12)
    pictures = data / "valid_images"
    flags = ("--model", model, "--input", pictures, "--save", "mask", "--out-dir")
    run(inference_image, monkeypatch, *flags, tmp_path / "before")
    for row in rows_of(tmp_path / "before/results.csv"):
        assert 0 < float(row["confidence"]) <= 1
        assert row["unlike_training"] == row["severity_low"] == row["severity_high"] == ""
    measured = ("--model", model, "--data", data, "--out-dir", tmp_path / "e")
    run(evaluate, monkeypatch, *measured, "--calibrate")
    assert "Calibrated on 12 pictures" in capsys.readouterr().out
    remember_pictures(model, Predictor.load(model, device="cpu"), list_images(pictures))
    run(inference_image, monkeypatch, *flags, tmp_path / "after")
    true = {row["file"]: float(row["true_disease"]) for row in rows_of(tmp_path / "e/severity.csv")}
    inside = 0
    for row in rows_of(tmp_path / "after/results.csv"):
        low, severity, high = (float(row[f"severity{end}"]) for end in ("_low", "", "_high"))
        assert 0 <= low <= severity <= high <= 1
        assert 0 <= float(row["unlike_training"]) <= 1
        inside += low - 1e-6 <= true[row["file"].rsplit("/", 1)[1]] <= high + 1e-6
    assert inside == 12  # of 12 pictures the ceil(13 * 0.9)-th error, the largest, is the bound
    page = (tmp_path / "after/summary.html").read_text()
    assert page.count('class="interval"') == 12
    run(inference_image, monkeypatch, *flags, tmp_path / "wider", "--coverage", "0.95")
    assert "12 pictures, and --coverage 0.95 needs 19" in capsys.readouterr().out
    run(inference_image, monkeypatch, *flags, tmp_path / "other", "--tta")
    assert "calibrated with other" in capsys.readouterr().out
    assert rows_of(tmp_path / "other/results.csv")[0]["severity_low"] == ""


@pytest.mark.parametrize("flag", ["--calibrate", "--find-label-errors"])
def test_nothing_is_learnt_from_pictures_that_were_seen(monkeypatch, tmp_path, model, flag):
    data = write_data(tmp_path / "data", 2, 2)
    flags = ("--model", model, "--data", data, "--out-dir", tmp_path / "e", "--split", "train")
    with pytest.raises(UserError, match=f"{flag} --split train would learn"):
        run(evaluate, monkeypatch, *flags, flag)
    assert not (tmp_path / "e").exists() or not np.any(list((tmp_path / "e").glob("*.csv")))
