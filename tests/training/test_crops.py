"""The road of crops: a training that remembers its scale, and everything that uses its model."""

import json
import shlex
import sys

import pytest
import torch
from run_tiny import add_tiny
from tiny_data import write_pairs

import evaluate
import train
from common.errors import UserError
from inference.predictor import Predictor
from models.checkpoint import read_checkpoint
from segmentation_model import load_model

BASE = shlex.split(
    "--model tiny --head pyramid --weights none --imgsz 48 32 --batch 2 --workers 0 --device cpu "
    "--lr 0.01 --crop --photo-size 80 --augment strong"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("valid", 2)):
        write_pairs(root, split, count, 0, size=(90, 120))
    return root


def go(data, out_dir, *flags):
    add_tiny()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        places = ["--data", str(data), "--out-dir", str(out_dir)]
        patch.setattr(sys, "argv", ["train.py", *places, *flags])
        return train.main()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of two epochs left alone."""
    out_dir = tmp_path_factory.mktemp("whole")
    assert go(data, out_dir, *BASE, "--epochs", "2") == 0
    return out_dir


def test_the_checkpoint_remembers_the_scale(whole):
    config = load_model(whole / "model.pth").config
    assert (config.input_size, config.crop_side, config.photo_size) == ((32, 48), 80, 80)
    content = read_checkpoint(whole / "model.pth")
    for name in ("crop_side", "photo_size"):  # a checkpoint of before knows neither
        del content["model_config"][name]
    torch.save(content, whole / "old.pth")
    config = load_model(whole / "old.pth").config
    assert (config.crop_side, config.photo_size) == (None, None)


def test_a_run_of_crops_goes_on_as_if_it_had_not_stopped(data, whole, tmp_path):
    assert go(data, tmp_path, *BASE, "--epochs", "1") == 0
    assert go(data, tmp_path, "--resume", "--epochs", "2") == 0
    assert (tmp_path / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    with pytest.raises(UserError, match="had --photo-size 80, not 96"):
        go(data, tmp_path, "--resume", "--epochs", "3", "--photo-size", "96")


def test_evaluation_gives_the_table_that_the_training_ended_with(data, whole, tmp_path, capsys):
    best = whole / "best_model_iou.pth"
    flags = ["--model", best, "--data", data, "--device", "cpu", "--out-dir", tmp_path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
        evaluate.main()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    report = (whole / "report.html").read_text()
    assert f"{metrics['miou']:.4f}" in report or f"{metrics['miou']:.1%}" in report
    assert Predictor.load(best, device="cpu")._tile == (32, 48)


def test_the_scale_of_crops_without_crops_is_refused(data, tmp_path):
    flags = [flag for flag in BASE if flag != "--crop"]
    with pytest.raises(UserError, match="add --crop"):
        go(data, tmp_path, *flags, "--epochs", "1")
