"""tools/convert.py writes what training reads."""

import json

import numpy as np
import pytest
from tiny_annotations import all_pairs, coco, labels, open_all, square, write_json, write_photo

from common import cli
from data.checks import survey
from data.source import open_source
from tools import convert

SIZE = (20, 30)
BOX_ALONE = {"id": 9, "segmentation": [], "bbox": [12, 2, 4, 3]}


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(("x/a.jpg", "y/a.jpg", "b.jpg")):
        write_photo(tmp_path / "set" / name, SIZE, seed=number, orientation=1 + 5 * (number == 2))
    shapes = [
        {"segmentation": [square(1, 1, 9, 9)]},
        {"segmentation": [square(0, 0, 4, 6)], "category_id": 2, "image_id": 3},
    ]
    content = coco(shapes, names=("leaf", "spot: dry"), images=("x/a.jpg", "y/a.jpg", "b.jpg"))
    content["images"][2] |= {"height": 30, "width": 20}
    return write_json(tmp_path / "set" / "all.json", content).parent


def run(monkeypatch, *flags) -> None:
    monkeypatch.setattr("sys.argv", ["convert.py", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        cli.run(convert.main)
    assert end.value.code in (0, 2)


def test_what_is_written_is_read_the_same(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    content = json.loads((root / "all.json").read_text())
    content["annotations"].append(content["annotations"][0] | BOX_ALONE)
    write_json(root / "all.json", content)
    run(monkeypatch, "--data", root, "--out-dir", out)
    before = open_all(root)
    assert sum((before.reader.read(pair) == 255).sum() for pair in all_pairs(before)) == 12
    expected = {
        pair.image.read_bytes(): before.reader.read(pair).tobytes() for pair in all_pairs(before)
    }
    written = open_source(out)
    assert {
        pair.image.read_bytes(): written.reader.read(pair).tobytes() for pair in all_pairs(written)
    } == expected
    assert written.reader.classes.names == ("background", "leaf", "spot- dry")
    assert not written.divided
    assert labels(out, "b").shape == (30, 20)


def test_a_folder_that_holds_something_is_left_alone(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run(monkeypatch, "--data", root, "--out-dir", out)
    assert "already holds notes.txt" in capsys.readouterr().err
    run(monkeypatch, "--data", root, "--out-dir", out, "--overwrite")
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("*_images/*"))) == 3


def test_merged_classes_are_written_merged(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(monkeypatch, "--data", root, "--out-dir", out, "--merge", "leaf,spot: dry=plant")
    assert open_source(out).reader.classes.names == ("background", "plant")
    assert np.unique(labels(out, "b")).tolist() == [0, 1]


def test_data_without_splits_are_divided_as_train_py_does_it(root, tmp_path, monkeypatch, capsys):
    (root / "b2.jpg").write_bytes((root / "b.jpg").read_bytes())
    content = json.loads((root / "all.json").read_text())
    content["images"].append(content["images"][2] | {"id": 4, "file_name": "b2.jpg"})
    write_json(root / "all.json", content)
    run(monkeypatch, "--data", root, "--out-dir", tmp_path / "out")
    assert "2 that look alike stay together" in capsys.readouterr().out
    expected = {
        split: sorted(p.image.read_bytes() for p in own)
        for split, own in survey(root).pairs.items()
    }
    assert expected == {
        split: sorted(pair.image.read_bytes() for pair in own)
        for split, own in open_source(tmp_path / "out").pairs.items()
    }
    for path in [*root.glob("**/*.jpg")]:
        path.write_bytes((root / "x/a.jpg").read_bytes())
    run(monkeypatch, "--data", root, "--out-dir", tmp_path / "alike", "--skip-bad")
    assert "by their names alone, as train.py would not do it: All " in capsys.readouterr().out
