"""An exported file gives the same masks as its checkpoint, and a stranger's file is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from house import ROOT
from narrow import narrow_model
from run_tiny import add_tiny
from tiny_annotations import coco, square, write_json, write_photo
from tiny_data import write_data

onnx = pytest.importorskip("onnx", reason="requirements-export.txt is not installed")
pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")

import export  # noqa: E402
from common.errors import UserError  # noqa: E402
from config import ClassTable, ModelConfig  # noqa: E402
from data.images import write_image  # noqa: E402
from inference import onnx_model  # noqa: E402
from inference.predictor import Predictor  # noqa: E402
from segmentation_model import Loaded, build_model  # noqa: E402

COLORS = ((0, 0, 0), (0, 9, 0), (9, 0, 0))
CLASSES = ClassTable(("ground", "leaf", "spot"), COLORS, COLORS)
SIZE = (128, 160)  # large enough for carrier tokens
CPU = torch.device("cpu")


def make(head: str) -> Loaded:
    """A tiny model whose classes all appear in its masks."""
    add_tiny()
    torch.manual_seed(0)
    model = build_model("tiny", head, 3).train()
    model(torch.randn(2, 3, *SIZE))  # moves BatchNorm's averages
    return Loaded(model.eval(), ModelConfig("tiny", head, 3, SIZE), CLASSES, {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A pyramid model, its file for any batch, and the graph that was written."""
    loaded = make("pyramid")
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    program = export.to_onnx(loaded, SIZE, half=False, dynamic_batch=True)
    export.write(program, path, "tiny")
    return loaded, path, program


def rewritten(path, tmp_path, change):
    """A copy of an ONNX file with something changed in it."""
    proto = onnx.load(path)
    change(proto)
    copy = tmp_path / "changed.onnx"
    onnx.save(proto, copy)
    return copy


def test_the_file_alone_brings_the_same_logits_classes_and_configuration(exported):
    loaded, path, _ = exported
    model, config, classes = onnx_model.load(path, CPU)
    assert (config, classes) == (loaded.config, CLASSES)
    images = torch.randn(3, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), loaded.model(images), atol=1e-4, rtol=1e-4)


def test_a_file_does_not_tell_where_it_was_made(exported):
    content = exported[1].read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


def test_what_is_written_was_compared_and_is_one_file(exported, tmp_path, monkeypatch):
    loaded, _, program = exported
    monkeypatch.setattr(export, "to_onnx", lambda *_: program)
    line = export.export(loaded, tmp_path / "a.onnx", SIZE)
    assert "textures" in line
    assert "100.0000% of the pixels" in line
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_a_picture_gets_the_same_mask_through_the_predictor(exported):
    loaded, path, _ = exported
    picture = export.textures(1, (80, 130))[0]
    theirs = Predictor(*onnx_model.load(path, CPU)).masks([picture])[0]
    ours = Predictor(loaded.model, loaded.config, loaded.classes).masks([picture])[0]
    assert len(np.unique(ours)) > 1
    assert (ours == theirs).mean() > 0.999


def test_the_articles_head_exports_in_half_precision_with_a_fixed_batch(tmp_path):
    path, size = tmp_path / "half.onnx", (64, 32)
    loaded = Loaded(
        narrow_model(depths=(1, 1, 1, 1)), ModelConfig("tiny", "article", 3, size), CLASSES, {}
    )
    program = export.to_onnx(loaded, size, half=True, dynamic_batch=False)
    export.write(program, path, "half")
    model, _, _ = onnx_model.load(path, CPU)
    assert model.batch == 1
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = loaded.model(images)
        torch.testing.assert_close(model(images), expected, atol=0.02, rtol=0.02)
    weights = sum(p.numel() for p in loaded.model.parameters())
    assert path.stat().st_size < 3 * weights  # bytes; in 32 bits it were 4 a weight


def test_position_tables_are_constants_of_the_graph(exported):
    """Their networks do not run again, and their weights take no place in the file."""
    names = exported[2].model.graph.initializers.keys()
    assert any("pos_emb" in name for name in names)
    assert not any("cpb_mlp" in name for name in names)


def test_a_file_whose_masks_differ_is_not_left_behind(exported, tmp_path, monkeypatch):
    loaded, source, _ = exported

    def flip_classes(program, path, name, limit):
        def change(proto):
            for tensor in proto.graph.initializer:
                if list(tensor.dims)[:1] == [3] and tensor.name.endswith("classifier.weight"):
                    tensor.raw_data = (-onnx.numpy_helper.to_array(tensor)).tobytes()

        proto = onnx.load(source)
        change(proto)
        onnx.save(proto, path)

    monkeypatch.setattr(export, "to_onnx", lambda *_: None)
    monkeypatch.setattr(export, "write", flip_classes)
    with pytest.raises(UserError, match="no file was written"):
        export.export(loaded, tmp_path / "wrong.onnx", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_file_go_beside_it_and_replace_the_older_ones(
    exported, tmp_path, monkeypatch
):
    loaded, _, program = exported
    monkeypatch.setattr(export, "to_onnx", lambda *_: program)
    path = tmp_path / "large.onnx"
    for _ in range(2):
        assert "keep both together" in export.export(loaded, path, SIZE, limit=0)
    beside = [file for file in tmp_path.iterdir() if file != path]
    assert len(beside) == 1
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        expected = loaded.model(images)
        actual = onnx_model.load(path, CPU)[0](images)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    beside[0].unlink()
    with pytest.raises(UserError, match="copy both files together"):
        onnx_model.load(path, CPU)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "..", "a\\b"])
def test_weights_outside_the_folder_are_refused(exported, tmp_path, name):
    def change(proto):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", name

    proto = onnx.load(exported[1])
    change(proto)
    path = tmp_path / "evil.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="refused"):
        onnx_model.load(path, CPU)


def test_a_tensor_hidden_in_a_node_is_found(tmp_path):
    hidden = onnx.TensorProto(name="hidden")
    node = onnx.helper.make_node("Constant", [], ["c"], value=hidden)
    branch = onnx.helper.make_graph([node], "branch", [], [])
    outer = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    proto = onnx.helper.make_model(onnx.helper.make_graph([outer], "graph", [], []))
    assert [tensor.name for tensor in onnx_model._tensors(proto)] == ["hidden", "hidden"]


def describe(**changes):
    """Change the description of a file."""

    def change(proto):
        for entry in proto.metadata_props:
            content = json.loads(entry.value)
            if entry.key in changes:
                content = changes[entry.key]
            elif isinstance(content, dict):
                content |= {k: v for k, v in changes.items() if k in content}
            entry.value = json.dumps(content)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda proto: proto.ClearField("metadata_props"), "does not say what its classes"),
        (describe(format=99), "has the format 99"),
        (describe(format="1"), "has the format '1'"),
        (describe(classes=[1]), "does not describe its model"),
        (describe(input_size=[1 << 40, 160]), "does not exist here"),
        (describe(input_size=[160, 128]), "does not take and give"),
        (describe(num_classes=2), "does not exist here"),
        (describe(mean=["a", 0, 0]), "does not describe its model"),
        (describe(names=["x" * (1 << 20)] * 3), "does not say what its classes"),
        (lambda proto: proto.graph.ClearField("node"), "onnxruntime cannot load"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(exported, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        onnx_model.load(rewritten(exported[1], tmp_path, change), CPU)


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x01" * 50])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "no.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError):
        onnx_model.load(path, CPU)


def test_a_truncated_file_is_refused(exported, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(exported[1].read_bytes()[:-1000])
    with pytest.raises(UserError):
        onnx_model.load(path, CPU)


def test_another_size_is_refused_with_the_one_that_works(exported):
    model, _, _ = onnx_model.load(exported[1], CPU)
    with pytest.raises(UserError, match="pass --imgsz 160 128"):
        model(torch.zeros(1, 3, 160, 128))


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is needed.*requirements-export"):
        onnx_model.packages()


@pytest.fixture
def loaded(exported, monkeypatch):
    """A model whose graph is made already."""
    monkeypatch.setattr(export, "to_onnx", lambda *_: exported[2])
    return exported[0]


def test_eight_bits_are_calibrated_on_photographs_and_smaller(loaded, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for index, picture in enumerate(export.textures(3, SIZE)):
        write_image(tmp_path / f"in/{index}.png", picture)
    line = export.export(loaded, tmp_path / "a.onnx", SIZE)
    monkeypatch.setitem(export.MAX_DIFFERENT, "int8", 0.2)  # random weights have no margins
    line = export.export(loaded, tmp_path / "b.onnx", SIZE, "int8", images=tmp_path / "in")
    assert "Calibrated on 3 pictures" in line
    assert "times as fast" in line
    assert (tmp_path / "b.onnx").stat().st_size < 0.7 * (tmp_path / "a.onnx").stat().st_size
    assert [path.name for path in sorted(tmp_path.glob("*.onnx"))] == ["a.onnx", "b.onnx"]
    model, config, classes = onnx_model.load(tmp_path / "b.onnx", CPU)
    assert (config.input_size, classes) == (SIZE, CLASSES)
    assert model(torch.zeros(1, 3, *SIZE)).shape == (1, 3, *SIZE)


def test_eight_bits_that_change_too_much_leave_no_file(loaded, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.png", export.textures(1, SIZE)[0])
    monkeypatch.setitem(export.MAX_DIFFERENT, "int8", -1.0)
    with pytest.raises(UserError, match=r"no file was written; .* or leave out --int8"):
        export.export(loaded, tmp_path / "b.onnx", SIZE, "int8", images=tmp_path / "in")
    assert not list(tmp_path.glob("*.onnx"))


def test_eight_bits_without_photographs_are_refused_before_anything_is_translated(
    loaded, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "to_onnx", lambda *_: pytest.fail("that takes a minute"))
    with pytest.raises(UserError, match="--int8 takes its ranges from photographs"):
        export.export(loaded, tmp_path / "b.onnx", SIZE, "int8")
    assert not list(tmp_path.glob("*.onnx"))


def trained_on(loaded: Loaded, root) -> Loaded:
    """The model as its checkpoint says that it was trained on some data."""
    return dataclasses.replace(loaded, content={"train_args": {"data": str(root)}})


def test_eight_bits_find_what_was_validated_on_below_any_name(loaded, tmp_path, monkeypatch):
    monkeypatch.setitem(export.MAX_DIFFERENT, "int8", 1.0)  # of random weights many do
    trained = trained_on(loaded, write_data(tmp_path / "textures", valid=2))
    line = export.export(trained, tmp_path / "b.onnx", SIZE, "int8")
    assert f"Calibrated on 2 pictures of {tmp_path / 'textures'}" in line
    assert ", validation mIoU " in line
    assert f"Compared with PyTorch on 2 pictures of {tmp_path / 'textures'}" in line


def test_photographs_of_annotations_without_splits_are_found(loaded, tmp_path):
    images = [f"{number}.jpg" for number in range(20)]
    shapes = [
        {"segmentation": [square(1, 1, 9, 9)], "image_id": number}
        for number, _ in enumerate(images, 1)
    ]
    write_json(tmp_path / "all.json", coco(shapes, images=images))
    for number, name in enumerate(images):
        write_photo(tmp_path / name, seed=number)
    trained = trained_on(loaded, tmp_path)
    pictures, what = export.photographs(None, export.data_of(trained))
    assert [picture.shape for picture in pictures] == [(20, 30, 3)] * 4
    assert what == f"4 pictures of {tmp_path}"
    assert export.validation_miou(tmp_path / "none.onnx", export.data_of(trained)) is None
    assert export.data_of(trained_on(loaded, tmp_path / "gone")) is None


@pytest.mark.parametrize("content", [{}, {"data": None}, {"data": 5}, {"data": "//host/share"}])
def test_where_a_model_names_no_data_none_are_looked_for(loaded, tmp_path, monkeypatch, content):
    monkeypatch.chdir(write_data(tmp_path))
    assert export.data_of(dataclasses.replace(loaded, content={"train_args": content})) is None


def test_photographs_that_cannot_be_used_are_left_out(loaded, tmp_path, capsys):
    trained = trained_on(loaded, write_data(tmp_path, valid=3))
    first, second, _ = sorted((tmp_path / "valid_images").iterdir())
    first.write_bytes(first.read_bytes()[:-9])
    (tmp_path / "valid_masks" / second.name).with_suffix(".png").unlink()
    assert export.photographs(None, export.data_of(trained))[1] == f"1 picture of {tmp_path}"
    assert f"{first} is cut off" in capsys.readouterr().out


def test_no_more_photographs_are_read_than_are_wanted(loaded, tmp_path):
    root = write_data(tmp_path, valid=export.MAX_IMAGES + 1)
    data = export.data_of(trained_on(loaded, root))
    assert len(export.photographs(None, data)[0]) == export.MAX_IMAGES
    assert len(export.photographs(root / "valid_images", None)[0]) == export.MAX_IMAGES


def test_a_file_that_is_replaced_is_named(tmp_path, capsys):
    path = tmp_path / export.file_name(tmp_path / "best.pth", SIZE, "int8")
    export.say_what_is_replaced(path)
    assert capsys.readouterr().out == ""
    path.touch()
    export.say_what_is_replaced(path)
    assert re.match(
        rf"{re.escape(str(path))} of 20[\d: -]+ will be replaced; ", capsys.readouterr().out
    )
