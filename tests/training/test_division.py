"""Data that do not say what is for validation: train.py divides them, and everybody keeps to it."""

import json
import shlex
import shutil
import sys

import pytest
from PIL import Image
from run_tiny import add_tiny
from tiny_data import write_data

import evaluate
import train
from common.errors import UserError
from data.splits import Division

BASE = shlex.split(
    "--model tiny --head pyramid --weights none --imgsz 64 32 --batch 3 --workers 0 --device cpu "
    "--epochs 1"
)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Masks of CVAT, six pictures of three plants, with one list of all."""
    folder = tmp_path_factory.mktemp("export")
    data, root = write_data(folder / "data", train=6), folder / "export"
    for part, name in (("images", "JPEGImages"), ("masks", "SegmentationClass")):
        (root / name).mkdir(parents=True)
        for number in range(6):
            picture = data / f"train_{part}/train{number}.png"
            shutil.copy(picture, root / name / f"plant{number // 2}_{number}.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    names = (f"plant{number // 2}_{number}\n" for number in range(6))
    (root / "ImageSets/Segmentation/default.txt").write_text("".join(names))
    shutil.copytree(root, folder / "more")
    for name in ("JPEGImages", "SegmentationClass"):
        shutil.copy(root / name / "plant0_0.png", folder / "more" / name / "plant9_9.png")
    with open(folder / "more/ImageSets/Segmentation/default.txt", "a") as file:
        file.write("plant9_9\n")
    return root


def call(script, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags), "--device", "cpu"])
        return script.main()


def test_a_division_is_kept_by_evaluation_and_resume(export, tmp_path, capsys):
    add_tiny()
    out = tmp_path / "out"
    flags = ("--data", export, "--valid-share", 0.3, "--groups", r"(plant\d)_\d")
    assert call(train, *BASE, *flags, "--out-dir", out) == 0
    said = capsys.readouterr().out
    assert "4 training and 2 validation pairs" in said
    division = Division.read(out / "split.csv", "split")
    valid = {name for name, part in division.parts.items() if part == "valid"}
    assert len(valid) == 2
    assert len({division.groups[name] for name in valid}) == 1

    best = out / "best_model_iou.pth"
    for number, more in enumerate(((), ("--split-file", out / "split.csv"), ("--split", "all"))):
        folder = tmp_path / f"e{number}"
        assert call(evaluate, "--model", best, "--data", export, "--out-dir", folder, *more) == 0
        measured = json.loads((folder / "metrics.json").read_text())["images"]
        assert measured == (6 if "all" in more else 2)
    lonely = shutil.copy(best, tmp_path / "lonely.pth")
    with pytest.raises(UserError, match=r"--split-file.*--split all"):
        call(evaluate, "--model", lonely, "--data", export, "--out-dir", tmp_path / "e")

    more = export.parent / "more"
    with pytest.raises(UserError, match=r"does not place 1 of 7.*plant9_9"):
        call(train, "--out-dir", out, "--resume", "--data", more)
    assert call(train, "--out-dir", out, "--resume") == 0


def test_data_with_splits_have_nothing_to_divide(export, tmp_path):
    add_tiny()
    for flags, named in (
        (("--groups", "(.)"), "--groups"),
        (("--split-file", "x"), "--split-file"),
    ):
        with pytest.raises(UserError, match=f"says by itself.*{named} has nothing to divide"):
            call(train, *BASE, "--data", export.parent / "data", "--out-dir", tmp_path, *flags)


def test_a_class_that_only_validation_shows_is_told_and_the_size_of_each_figure(tmp_path, capsys):
    add_tiny()
    data = write_data(tmp_path / "data", train=3, valid=2)
    for mask in (data / "train_masks").iterdir():
        Image.new("L", Image.open(mask).size).save(mask)
    (data / "labelmap.txt").write_text("ground:0,0,0::\nspot:1,1,1::\n")
    assert call(train, *BASE, "--data", data, "--out-dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "No mask to learn from shows spot, but those to validate on do" in said
    assert "at each mask's own size (the epochs were measured at 64x32)" in said
