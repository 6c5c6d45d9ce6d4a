"""A checkpoint rebuilds its model, and a stranger's file is data."""

import errno
import os

import pytest
import torch
from house import modules
from run_tiny import add_tiny

from common.errors import UserError
from config import ClassTable, MaskReading, ModelConfig
from models import digests
from models.checkpoint import read_checkpoint, save_checkpoint
from models.pretrained import load_weights
from segmentation_model import build_model, load_model

COLORS = ((0, 0, 0), (0, 9, 0), (9, 0, 0))
CLASSES = ClassTable(("ground", "leaf", "spot"), COLORS, COLORS, ((3, (1, 1, 1)),))


@pytest.fixture(autouse=True)
def tiny_variant():
    add_tiny()


@pytest.fixture
def saved(tmp_path):
    """A tiny model and its checkpoint."""
    reading = MaskReading("indices", "colours", "binary", 19)
    config = ModelConfig("tiny", "pyramid", 3, (64, 96), mask_reading=reading)
    model = build_model("tiny", "pyramid", 3).train()
    for _ in range(2):
        model(torch.randn(2, 3, 64, 96))  # moves BatchNorm's averages
    path = tmp_path / "model.pth"
    save_checkpoint(path, model, config, CLASSES, epoch=3, metrics={"miou": 0.5})
    return model.eval(), config, path


def test_a_checkpoint_alone_rebuilds_model_configuration_and_classes(saved):
    model, config, path = saved
    loaded = load_model(path)
    images = torch.randn(1, 3, 80, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model(images))
    assert loaded.config == config
    assert loaded.classes == CLASSES
    assert loaded.content["epoch"] == 3
    assert not loaded.model.training


def test_windows_of_another_size_travel_in_the_checkpoint(tmp_path):
    model = build_model("tiny", "pyramid", 3, window=4).eval()
    config = ModelConfig("tiny", "pyramid", 3, (64, 96), window=4)
    save_checkpoint(tmp_path / "a.pth", model, config, CLASSES)
    loaded = load_model(tmp_path / "a.pth")
    images = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(loaded.model(images), expected)
        other = build_model("tiny", "pyramid", 3).eval()
        other.load_state_dict(model.state_dict())  # the same shapes, another meaning
        assert not torch.allclose(other(images), expected, atol=1e-4)
    with pytest.raises(UserError, match=r"--window 4, not windows of the variant's.*--window 4"):
        load_weights(other, "tiny", str(tmp_path / "a.pth"))
    config = ModelConfig("tiny", "pyramid", 3, (64, 96))
    save_checkpoint(tmp_path / "b.pth", other, config, CLASSES)
    with pytest.raises(UserError, match=r"variant's own size, not --window 4.*--weights none"):
        load_weights(model, "tiny", str(tmp_path / "b.pth"))


def test_a_checkpoint_holds_plain_types_only(saved):
    def check(value):
        if isinstance(value, dict):
            for key, item in value.items():
                assert type(key) in (str, int)
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert type(value) in (torch.Tensor, str, int, float, bool, type(None))

    check(dict(read_checkpoint(saved[2])))


def test_the_articles_checkpoint_without_our_fields_loads(tmp_path):
    model = build_model(num_classes=2)
    state = model.state_dict()
    state["levels.2.blocks.0.attn.pos_emb_funct.relative_bias"] = torch.zeros(1, 8, 53, 53)
    state["levels.2.global_tokenizer.to_global_feature.pos.bias"] = torch.zeros(256)
    torch.save({"model_state_dict": state}, tmp_path / "best_model_iou.pth")
    loaded = load_model(tmp_path / "best_model_iou.pth")
    assert loaded.config == ModelConfig()
    assert loaded.classes == ClassTable.default()
    assert torch.equal(loaded.model.conv2d_block1.weight, model.conv2d_block1.weight)


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["epoch", "classes", "model_state_dict"])
def test_a_planted_pickle_does_not_run(saved, tmp_path, where):
    content = torch.load(saved[2], weights_only=True)
    content[where] = Planted(tmp_path / "harm")
    torch.save(content, tmp_path / "planted.pth")
    with pytest.raises(UserError, match="could run a stranger's code"):
        load_model(tmp_path / "planted.pth")
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "planted.pth", weights_only=False)  # the plant does work
    assert (tmp_path / "harm").exists()


def test_a_newer_format_is_refused_with_a_sentence(saved, tmp_path):
    content = torch.load(saved[2], weights_only=True) | {"format": 99}
    torch.save(content, tmp_path / "newer.pth")
    with pytest.raises(UserError, match=r"99.*update"):
        load_model(tmp_path / "newer.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("variant", "resnet"),
        ("head", "unet"),
        ("num_classes", 4),
        ("num_classes", "many"),
        ("num_classes", 10**9),
        ("input_size", [64]),
        ("input_size", [0, 64]),
        ("std", [0.0, 1.0, 1.0]),
        ("mean", None),
        ("mask_reading", [1]),
        ("mask_reading", {"grey": "indices"}),
        ("mask_reading", {"grey": "x", "palette": "colours", "jpeg": "colours", "threshold": 1}),
        ("mask_reading", {"grey": [], "palette": "colours", "jpeg": "colours", "threshold": 1}),
        ("mask_reading", {"grey": "colours", "palette": {}, "jpeg": [], "threshold": 1}),
        (
            "mask_reading",
            {"grey": "indices", "palette": "colours", "jpeg": "colours", "threshold": 999},
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(saved, tmp_path, key, value):
    content = torch.load(saved[2], weights_only=True)
    content["model_config"][key] = value
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError):
        load_model(tmp_path / "odd.pth")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "list", "flipped", "no_state", "nan"])
def test_a_damaged_file_is_refused_with_its_name(saved, tmp_path, damage):
    data = saved[2].read_bytes()
    path = tmp_path / "damaged.pth"
    if damage in ("list", "no_state", "nan"):
        content = torch.load(saved[2], weights_only=True)
        if damage == "nan":
            content["model_state_dict"]["patch_embed.conv_down.0.weight"][0] = float("nan")
        content = {"list": [1], "no_state": {"model_config": content["model_config"]}}.get(
            damage, content
        )
        torch.save(content, path)
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "empty": b"",
                "text": b"these are not weights",
                "cut": data[:middle],
                "flipped": data[:50] + bytes(255 - b for b in data[50:150]) + data[150:],
            }[damage]
        )
    with pytest.raises(UserError, match=r"damaged\.pth"):
        load_model(path)


def test_every_load_of_the_house_is_weights_only():
    loads = 0
    for path in modules().values():
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        loads += text.count("torch.load(")
    assert loads > 0


def test_a_file_in_weights_that_changed_since_its_first_use_is_noticed(
    saved, tmp_path, monkeypatch
):
    model, config, path = saved
    monkeypatch.setattr("models.digests.DEFAULT_WEIGHTS_DIR", tmp_path)
    load_weights(model, "tiny", str(path))
    record = tmp_path / "model.pth.sha256"
    assert record.read_text().split() == [digests.sha256(path), "model.pth"]
    load_weights(model, "tiny", str(path))
    save_checkpoint(path, model, config, CLASSES, epoch=4)
    with pytest.raises(UserError, match=r"not the file that was first used.*delete .*\.sha256"):
        load_weights(model, "tiny", str(path))


def test_weights_in_a_folder_closed_to_writing_load(saved, tmp_path, monkeypatch, capsys):
    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    model, _, path = saved
    monkeypatch.setattr("models.digests.DEFAULT_WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr("models.digests.replacing", refuse)
    assert "backbone tensors" in load_weights(model, "tiny", str(path)).line
    assert "cannot be written (Read-only file system)" in capsys.readouterr().out
    assert not (tmp_path / "model.pth.sha256").exists()
