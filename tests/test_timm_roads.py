"""A backbone of timm goes every way that FasterViT goes: training, resuming, predicting, export."""

import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_data import write_data

import export
import train
from common.errors import UserError
from inference.predictor import Predictor
from models import timm_weights
from models.checkpoint import read_checkpoint
from models.licences import NVIDIA
from segmentation_model import load_model

KINDS = {
    "strides from 2": "timm/test_efficientnet",
    "strides from 4": "timm/test_convnext",
    "channels last": "timm/test_mambaout",
    "plain ViT": "timm/test_vit",
    "merged branches": "timm/repvgg_a0",
}
SIZE = (56, 72)  # no stride divides it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), train=4, valid=2)


def go(monkeypatch, data, out_dir, *flags):
    fixed = f"--data {data} --out-dir {out_dir} --imgsz {SIZE[1]} {SIZE[0]} --epochs 1 --batch 2"
    flags = [*fixed.split(), "--workers", "0", "--device", "cpu", *flags]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    assert train.main() == 0


@pytest.mark.parametrize("variant", KINDS.values(), ids=KINDS)
def test_one_of_every_kind_is_trained_saved_loaded_used_and_exported(
    monkeypatch, data, tmp_path, variant
):
    go(monkeypatch, data, tmp_path, "--model", variant, "--weights", "none")
    loaded = load_model(tmp_path / "model.pth")
    assert (loaded.config.variant, loaded.config.head) == (variant, "pyramid")
    saved = read_checkpoint(tmp_path / "last.pth")["live_model_state_dict"]
    own = loaded.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in saved.items())

    photograph = np.random.default_rng(0).integers(0, 255, (75, 101, 3), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "model.pth", device="cpu")
    plain = Predictor(loaded.model, loaded.config, loaded.classes)
    scores, expected = (each.scores([photograph]) for each in (predictor, plain))
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert predictor.masks([photograph])[0].shape == (75, 101)

    assert "of the pixels get the same class" in export.export(loaded, tmp_path / "a.onnx", SIZE)


def test_a_run_goes_on_with_its_backbone_and_its_licence(monkeypatch, data, tmp_path):
    state = timm.create_model("test_vit.r160_in1k").state_dict()
    monkeypatch.setattr(timm_weights, "DEFAULT_WEIGHTS_DIR", tmp_path)
    save_file(state, tmp_path / "test_vit.r160_in1k.safetensors")
    out = tmp_path / "out"
    go(monkeypatch, data, out, "--model", "timm/test_vit.r160_in1k", "--lr", "0.01")
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--out-dir", str(out), "--resume", "--epochs", "2"]
    )
    assert train.main() == 0
    config = load_model(out / "model.pth").config
    assert config.weights_licence == "apache-2.0"
    assert config.mean == (0.5, 0.5, 0.5)
    assert "apache-2.0" in (out / "report.html").read_text()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The content of a checkpoint whose weights are the user's own."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        go(patch, data, out, "--model", "timm/test_vit", "--weights", "none")
    return read_checkpoint(out / "model.pth")


def licensed(trained, path, licence):
    """The same checkpoint with another licence."""
    config = trained["model_config"] | {"weights_licence": licence}
    torch.save(trained | {"model_config": config}, path)
    return path


def test_a_model_that_starts_from_a_checkpoint_inherits_its_licence(
    monkeypatch, data, trained, tmp_path
):
    weights = str(licensed(trained, tmp_path / "first.pth", NVIDIA))
    go(monkeypatch, data, tmp_path, "--model", "timm/test_vit", "--weights", weights)
    assert load_model(tmp_path / "model.pth").config.weights_licence == NVIDIA
    assert "NOT FOR COMMERCIAL USE" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("licence", [3, "x" * 200, "a\x1b[2J"])
def test_a_licence_that_is_none_is_refused(trained, tmp_path, licence):
    with pytest.raises(UserError, match="does not"):
        load_model(licensed(trained, tmp_path / "model.pth", licence))


def test_a_frozen_backbone_keeps_weights_and_statistics_while_the_head_learns(
    monkeypatch, data, tmp_path
):
    flags = ["--model", "timm/test_efficientnet", "--weights", "none", "--lr", "0.01"]
    go(monkeypatch, data, tmp_path / "a", *flags, "--freeze", "backbone")
    go(monkeypatch, data, tmp_path / "b", *flags, "--lr", "1e-30", "--freeze", "backbone")
    a, b = (read_checkpoint(tmp_path / name / "model.pth")["model_state_dict"] for name in "ab")
    changed = {name.split(".")[0] for name, tensor in a.items() if not torch.equal(tensor, b[name])}
    assert changed == {"pyramid_head"}
    assert all(int(t) == 0 for n, t in a.items() if "backbone" in n and n.endswith("_tracked"))


def test_names_that_timm_does_not_know_are_refused_by_the_parser(monkeypatch, data, capsys):
    with pytest.raises(SystemExit):
        go(monkeypatch, data, "x", "--model", "timm/qqqq")
    said = capsys.readouterr().err
    assert "'timm/qqqq' is neither timm/NAME of a model that timm has nor one of faster_vit" in said
    assert "mean" not in said
    with pytest.raises(SystemExit):
        go(monkeypatch, data, "x", "--model", "timm/convnext_tinny.in12k")
    assert "; did you mean timm/convnext_tiny or timm/" in capsys.readouterr().err
