"""Figures of a split: what the pictures' severities say beside the areas."""

import csv
import json
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import write_data, write_pairs
from tiny_model import save_tiny
from torch import nn

import evaluate
import inference_image
from config import ClassTable, ModelConfig
from data.source import open_source
from inference.evaluation import evaluate_pairs, format_table, last_severity, split_metrics
from inference.predictor import Predictor
from metrics import ConfusionMatrix, SeverityTable


def areas(counts: list) -> np.ndarray:
    return ConfusionMatrix.of(np.array(counts)).areas.numpy()


def record(name: str, counts: list) -> dict:
    return {"file": name, "areas": areas(counts), "boundary": np.ones((2, len(counts)), int)}


def named(*names: str) -> ClassTable:
    grey = ((0, 0, 0),) * len(names)
    return ClassTable(names, grey, grey)


def test_severity_is_the_last_symptoms_share_of_the_plant_or_of_the_picture():
    two = areas([[70, 10], [5, 15]])
    assert last_severity(two, ClassTable.default()) == (0.2, 0.25)
    three = areas([[900, 0, 0], [0, 60, 0], [0, 30, 10]])
    assert last_severity(three, named("ground", "Leaf", "spot")) == (0.4, 0.1)
    assert last_severity(three, named("ground", "leaf rust", "mildew")) == (0.04, 0.01)
    nothing = areas([[9, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert last_severity(nothing, named("ground", "leaf", "spot")) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("names", "symptoms", "whole"),
    [
        (("background", "disease"), (1,), (0, 1)),
        (("background", "leaf"), (), (1,)),
        (("background", "Leaves", "healthy plant"), (), (1, 2)),
        (("leaf", "spot"), (1,), (0, 1)),
        (("soil", "healthy_leaf", "rust", "blight"), (2, 3), (1, 2, 3)),
        (("leaf", "rust", "blight"), (1, 2), (0, 1, 2)),
        (("background", "rust", "leaf"), (1,), (2, 1)),
        (("soil", "leaf", "rust", "healthy"), (2,), (1, 3, 2)),
        (("background", "leaf", "root", "stem"), (), (1, 2, 3)),
        (("background", "leaf", "lesion", "stem"), (2,), (1, 3, 2)),
    ],
)
def test_the_severity_table_knows_the_leaf_by_its_name(names, symptoms, whole):
    assert SeverityTable.of(names) == SeverityTable(symptoms, whole)


def test_a_symptom_that_is_nowhere_has_no_error_that_was_measured():
    records = [record("a", [[5, 0, 0], [0, 4, 0], [0, 0, 0]])]
    for names in (("ground", "rust", "blight"), ("ground", "leaf", "healthy")):
        metrics = split_metrics(records, np.diag([5, 4, 0]), named(*names))
        assert np.isnan(metrics["severity_error"])
        assert metrics["severity_worst"] is None
        assert metrics["severity_missed"] == []
        assert "severity" not in format_table(metrics)


def test_where_no_class_is_a_symptom_nothing_calls_a_share_severity(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "data", "train", 2, seed=0)
    write_pairs(tmp_path / "data", "valid", 2, seed=0)
    (tmp_path / "data" / "labelmap.txt").write_text("background:0,0,0::\nleaf:0,176,0::\n")
    leaf = ClassTable(("background", "leaf"), *(((0, 0, 0), (0, 176, 0)),) * 2)
    model, out = save_tiny(tmp_path / "leaf.pth", classes=leaf), tmp_path / "out"
    data, pictures = str(tmp_path / "data"), str(tmp_path / "data" / "valid_images")
    shared = ["--model", str(model), "--out-dir", str(out), "--device", "cpu"]
    for script, flags in (
        (evaluate, ["--data", data, "--calibrate"]),
        (inference_image, ["--input", pictures]),
    ):
        monkeypatch.setattr(sys, "argv", ["script", *shared, *flags])
        assert script.main() == 0
    said = capsys.readouterr().out
    assert "There is no severity: none of the classes background, leaf is a symptom." in said
    assert "calibrated on" not in said.lower()
    assert not (out / "severity.csv").exists()
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["severity"] for row in rows] == ["", ""]
    assert float(rows[0]["share_leaf"]) > 0
    for page in ("report.html", "summary.html"):
        assert "none of the classes background, leaf is a symptom" in (out / page).read_text()
    assert "highest severity" not in (out / "summary.html").read_text()


def test_an_evaluation_that_is_replaced_is_named(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "data", "train", 1, seed=0)
    write_pairs(tmp_path / "data", "valid", 1, seed=1)
    model, out = save_tiny(tmp_path / "m.pth"), tmp_path / "out"
    out.mkdir()
    flags = {"--model": model, "--data": tmp_path / "data", "--out-dir": out, "--device": "cpu"}
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, chain(*flags.items()))])
    (out / "run.json").write_text("[]")  # of another program
    for _ in range(2):
        assert evaluate.main() == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "replaced" in line]
    assert line.startswith(f"{out}/ holds the evaluation of {model} on {tmp_path / 'data'} of 20")


def test_the_worst_picture_and_those_that_are_missed_are_named():
    records = [
        record("good", [[80, 0], [0, 20]]),
        record("missed", [[90, 0], [9, 1]]),
        record("too much", [[60, 20], [0, 20]]),
    ]
    metrics = split_metrics(records, np.array([[230, 20], [9, 41]]), ClassTable.default())
    assert metrics["severity_error"] == pytest.approx((0 + 0.09 + 0.2) / 3)
    assert metrics["severity_worst"] == ("too much", 0.2, 0.4)
    assert [name for name, *_ in metrics["severity_missed"]] == ["missed"]


def test_a_picture_is_remembered_by_its_areas_not_by_a_confusion_of_all_classes(tmp_path):
    """150 x 150 counts of each of 2,000 pictures would take 360 MB."""
    source = open_source(write_data(tmp_path, 1, 2), ("valid",))
    classes = named(*map(str, range(150)))
    config = ModelConfig(num_classes=150, input_size=(32, 32))
    predictor = Predictor(nn.Conv2d(3, 150, 1), config, classes)
    pairs = source.pairs["valid"] * 2
    records, confusion = evaluate_pairs(predictor, pairs, source.reader)
    assert max(v.nbytes for r in records for v in r.values() if isinstance(v, np.ndarray)) <= 3600
    whole = ConfusionMatrix.of(confusion)
    assert torch.equal(sum(torch.tensor(r["areas"]) for r in records), whole.areas)
    assert split_metrics(records, confusion, classes)["miou"] == whole.miou()


def call(monkeypatch, script, *flags) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
    assert script.main() == 0


@pytest.mark.parametrize(
    "flags", ["--tile 32 --overlap 0.3 --batch 2 --tta", "--keep-aspect --batch 3"]
)
def test_evaluation_measures_the_masks_that_inference_writes_with_the_same_flags(
    monkeypatch, tmp_path, flags
):
    data = write_data(tmp_path / "data", train=1, valid=0)
    write_pairs(data, "valid", 3, 1, size=(50, 90))
    model = ["--model", save_tiny(tmp_path / "model.pth"), "--device", "cpu", *flags.split()]
    call(monkeypatch, evaluate, *model, "--data", data, "--out-dir", tmp_path / "e")
    inputs = ["--input", data / "valid_images", "--save", "mask", "--out-dir", tmp_path / "i"]
    call(monkeypatch, inference_image, *model, *inputs)
    counts = np.zeros((2, 2), int)
    for path in (data / "valid_masks").iterdir():
        pred = np.array(Image.open(tmp_path / "i" / f"{path.stem}_mask.png"))
        np.add.at(counts, (np.array(Image.open(path)), pred), 1)
    assert json.loads((tmp_path / "e/metrics.json").read_text())["confusion"] == counts.tolist()
    plain = [*model[:4], "--data", data, "--out-dir", tmp_path / "plain"]
    call(monkeypatch, evaluate, *plain)
    other = json.loads((tmp_path / "plain/metrics.json").read_text())["confusion"]
    assert other != counts.tolist()  # or the flags did nothing
