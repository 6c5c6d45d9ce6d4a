"""What docs/results.md is made with: validation sets that do not overlap, means over seeds."""

import json
import sys

import numpy as np
import pytest
from data_sets import find_pairs
from tiny_annotations import coco, square, write_json, write_photo
from tiny_data import write_data

from data.source import open_source
from tools import few_pictures, leaf_splits, mean_of_seeds


@pytest.fixture
def call(monkeypatch):
    """Run a tool's `main` as its command line does."""

    def call(tool, *flags) -> None:
        monkeypatch.setattr(sys, "argv", [f"{tool.__name__}.py", *map(str, flags)])
        tool.main()

    return call


@pytest.mark.parametrize("labelmap", [None, "ground:0,0,0::\nspot:1,1,1::\n"])
def test_four_validation_sets_share_no_picture(call, tmp_path, labelmap):
    data = write_data(tmp_path / "data", train=6, valid=2)
    if labelmap:
        (data / "labelmap.txt").write_text(labelmap)
    call(leaf_splits, "--data", data, "--out-dir", tmp_path / "splits")
    valid = []
    for part in map(str, range(4)):
        folder = tmp_path / "splits" / part
        trained, judged = (
            {pair.image.read_bytes() for pair in find_pairs(folder, split)}
            for split in ("train", "valid")
        )
        assert (len(trained), len(judged)) == (6, 2)
        assert not trained & judged
        assert (folder / "labelmap.txt").exists() == bool(labelmap)
        valid += judged
    assert len(set(valid)) == 8


def test_too_few_pictures_for_four_validation_sets_are_refused(call, tmp_path, capsys):
    data = write_data(tmp_path / "data", train=5, valid=2)
    with pytest.raises(SystemExit, match="2"):
        call(leaf_splits, "--data", data, "--out-dir", tmp_path / "splits")
    assert "5 training pictures, too few" in capsys.readouterr().err
    assert not (tmp_path / "splits").exists()


def test_a_class_that_some_seeds_have_not_seen_has_the_mean_of_the_others(call, tmp_path, capsys):
    for seed, iou in ((1, [0.9, 0.5, None]), (2, [0.8, None, None])):
        content = {"miou": 0.6 + seed / 10, "mean_boundary_iou": 0.5, "iou": iou}
        content["classes"] = ["a", "b", "c"]
        (tmp_path / f"{seed}.json").write_text(json.dumps(content))
    call(mean_of_seeds, *sorted(tmp_path.iterdir()))
    assert capsys.readouterr().out.split("\n")[:4] == [
        "mean of 2 seeds: mIoU 0.7500",
        "  a: IoU 0.8500",
        "  b: IoU 0.5000",
        "  c: IoU nan",
    ]


def test_a_few_pictures_are_drawn_alike_by_a_seed_and_divided_as_on_the_page(call, tmp_path):
    data = write_data(tmp_path / "data", train=12, valid=2)
    (data / "labelmap.txt").write_text("ground:0,0,0::\nspot:1,1,1::\n")
    whole, drawn = open_source(data), {}
    originals = {pair.stem: pair for pair in whole.pairs["train"]}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        call(few_pictures, "--data", data, "--seed", seed, "--out-dir", tmp_path / name)
        splits = {split: find_pairs(tmp_path / name, split) for split in ("train", "valid")}
        assert (len(splits["train"]), len(splits["valid"])) == (8, 2)
        drawn[name] = [[pair.image.name for pair in pairs] for pairs in splits.values()]
        few = open_source(tmp_path / name)
        assert few.reader.classes == whole.reader.classes
        for pair in splits["train"] + splits["valid"]:
            own = originals[pair.stem]
            assert pair.image.read_bytes() == own.image.read_bytes()
            assert np.array_equal(few.reader.read(pair), whole.reader.read(own))
    assert drawn["one"] == drawn["again"] != drawn["other"]


def test_a_few_pictures_of_annotations_have_their_masks(call, tmp_path):
    painted = [{"image_id": n, "segmentation": [square(1, 1, 4 + n, 9)]} for n in range(1, 13)]
    names = [f"{n}.jpg" for n in range(1, 13)]
    write_json(tmp_path / "set/all.json", coco(painted, images=names))
    for number, name in enumerate(names):
        write_photo(tmp_path / "set" / name, seed=number)
    call(few_pictures, "--data", tmp_path / "set", "--count", 5, "--out-dir", tmp_path / "few")
    few = open_source(tmp_path / "few")
    assert [len(few.pairs[split]) for split in ("train", "valid")] == [4, 1]
    for pair in few.pairs["train"] + few.pairs["valid"]:
        assert (few.reader.read(pair) > 0).sum() == (3 + int(pair.stem)) * 8


def test_more_pictures_than_there_are_cannot_be_drawn(call, tmp_path, capsys):
    data = write_data(tmp_path / "data", train=5, valid=2)
    with pytest.raises(SystemExit, match="2"):
        call(few_pictures, "--data", data, "--out-dir", tmp_path / "few")
    assert "--count is 10; " in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
