"""What docs/results.md is made with: validation sets that do not overlap, means over seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import write_data

from data.pairs import find_pairs

ROOT = Path(__file__).resolve().parents[2]


def script(name: str, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("labelmap", [None, "ground:0,0,0::\nspot:1,1,1::\n"])
def test_four_validation_sets_share_no_picture(tmp_path, labelmap):
    data = write_data(tmp_path / "data", train=6, valid=2)
    if labelmap:
        (data / "labelmap.txt").write_text(labelmap)
    done = script("leaf_splits.py", "--data", data, "--out-dir", tmp_path / "splits")
    assert done.returncode == 0, done.stderr
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


def test_too_few_pictures_for_four_validation_sets_are_refused(tmp_path):
    data = write_data(tmp_path / "data", train=5, valid=2)
    done = script("leaf_splits.py", "--data", data, "--out-dir", tmp_path / "splits")
    assert done.returncode == 2
    assert "5 training pictures, too few" in done.stderr
    assert not (tmp_path / "splits").exists()


def test_a_class_that_some_seeds_have_not_seen_has_the_mean_of_the_others(tmp_path):
    for seed, iou in ((1, [0.9, 0.5, None]), (2, [0.8, None, None])):
        content = {"miou": 0.6 + seed / 10, "mean_boundary_iou": 0.5, "iou": iou}
        content["classes"] = ["a", "b", "c"]
        (tmp_path / f"{seed}.json").write_text(json.dumps(content))
    done = script("mean_of_seeds.py", *sorted(tmp_path.iterdir()))
    assert done.stdout.split("\n")[:4] == [
        "mean of 2 seeds: mIoU 0.7500",
        "  a: IoU 0.8500",
        "  b: IoU 0.5000",
        "  c: IoU nan",
    ]
