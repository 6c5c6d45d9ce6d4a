"""Polygons are trained on, gone on with, measured and checked like masks."""

import json
import shlex
import sys

import pytest
from run_tiny import add_tiny
from tiny_annotations import coco, square, write_json, write_photo

import datasets
import evaluate
import train
from models.checkpoint import read_checkpoint
from segmentation_model import load_model

BASE = "--model tiny --head pyramid --weights none --imgsz 32 32 --batch 2 --workers 0 --device cpu"
RULES = ["--merge", "leaf,spot=plant", "--ignore", "tape"]


@pytest.fixture
def root(tmp_path):
    add_tiny()
    names = [f"{number}.jpg" for number in range(6)]
    for number, name in enumerate(names):
        write_photo(tmp_path / "set" / "images" / name, (40, 40), seed=number)
    shapes = [
        {"segmentation": [square(4, 4, 30, 30)], "image_id": number + 1, "category_id": kind}
        for number in range(6)
        for kind in (1, 2)
    ]
    shapes.append({"segmentation": [square(32, 32, 38, 38)], "image_id": 1, "category_id": 3})
    content = coco(shapes, size=(40, 40), names=("leaf", "spot", "tape"), images=tuple(names))
    return write_json(tmp_path / "set" / "annotations.json", content).parent


def run(monkeypatch, main, *flags) -> int:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, flags)])
    return main()


def test_polygons_are_trained_resumed_and_measured(monkeypatch, root, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [*shlex.split(BASE), "--data", root, "--out-dir", out, *RULES]
    assert run(monkeypatch, train.main, *flags, "--epochs", 1) == 0
    assert "COCO JSON from" in capsys.readouterr().out
    loaded = load_model(out / "last.pth")
    assert loaded.classes.names == ("background", "plant")
    assert loaded.config.choices.merge == ("leaf,spot=plant",)
    assert run(monkeypatch, train.main, "--out-dir", out, "--resume", "--epochs", 2) == 0
    assert read_checkpoint(out / "last.pth")["epoch"] == 2
    # The model remembers the rules: measuring needs none.
    measured = tmp_path / "measured"
    model = ["--model", out / "best_model_iou.pth", "--data", root, "--device", "cpu"]
    assert run(monkeypatch, evaluate.main, *model, "--out-dir", measured) == 0
    metrics = json.loads((measured / "metrics.json").read_text())
    assert metrics["classes"] == ["background", "plant"]


def test_the_data_check_shows_shares_before_and_after(monkeypatch, root, capsys):
    (root / "images" / "5.jpg").unlink()
    assert run(monkeypatch, datasets.main, root, *RULES) == 1
    shown = capsys.readouterr().out
    before, after = shown.split("After --merge and --ignore:")
    assert "1 picture whose annotations cannot be used" in after
    assert "5.jpg is not there" in after
    assert [name in before for name in ("leaf", "spot", "tape", "ignored")] == [True] * 3 + [False]
    assert "plant" in after
    assert "ignored" in after
