"""Cross-validation: models that are one, each picture measured by the one that never saw it."""

import csv
import json
import shlex
import shutil
import sys

import numpy as np
import pytest
from run_tiny import add_tiny
from tiny_data import write_data

import evaluate
import train
from common.errors import UserError
from data.source import open_source
from data.splits import Division
from inference.evaluation import evaluate_pairs
from inference.predictor import Predictor
from metrics import ClassAreas, ConfusionMatrix
from models.checkpoint import read_checkpoint

BASE = shlex.split(
    "--model tiny --head pyramid --weights none --imgsz 64 32 --batch 3 --workers 0 --device cpu "
    "--lr 0.01 --epochs 2"
)


@pytest.fixture(autouse=True, scope="module")
def tiny_variant():
    add_tiny()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def go(data, out_dir, *flags, base=BASE):
    places = [] if data is None else ["--data", str(data)]
    with pytest.MonkeyPatch.context() as patch:
        words = ["train.py", *base, *places, "--out-dir", str(out_dir), *map(str, flags)]
        patch.setattr(sys, "argv", words)
        return train.main()


@pytest.fixture(scope="module")
def cv(data, tmp_path_factory):
    """Two folds left alone."""
    out_dir = tmp_path_factory.mktemp("cv") / "cv"
    assert go(data, out_dir, "--folds", 2) == 0
    return out_dir


def weights_of(folder):
    state = read_checkpoint(folder / "last.pth")["live_model_state_dict"]
    return {name: value.numpy().copy() for name, value in state.items()}


def assert_same_fold(a, b):
    assert (a / "history.csv").read_bytes() == (b / "history.csv").read_bytes()
    first, second = weights_of(a), weights_of(b)
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


def test_every_picture_of_both_splits_is_left_out_once(data, cv):
    folds = Division.read(cv / "folds.csv", "fold")
    pictures = {p.relative_to(data).as_posix() for p in data.glob("*_images/*")}
    assert folds.parts.keys() == pictures
    assert folds.count == 2
    for number in range(2):
        record = read_checkpoint(cv / f"fold_{number}/last.pth")
        assert record["epoch"] == 2
        assert record["train_args"]["fold"] == number
        assert (cv / f"fold_{number}/report.html").is_file()
    differ = [weights_of(cv / f"fold_{number}") for number in range(2)]
    assert any(not np.array_equal(value, differ[1][name]) for name, value in differ[0].items())


def test_each_picture_is_measured_by_the_fold_that_has_not_seen_it(data, cv, tmp_path, monkeypatch):
    flags = ["--model", str(cv), "--data", str(data), "--device", "cpu", "--out-dir"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, str(tmp_path)])
    assert evaluate.main() == 0
    folds = Division.read(cv / "folds.csv", "fold")
    source = open_source(data, ("train", "valid"))
    pairs = source.pairs["train"] + source.pairs["valid"]
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(pairs) == 9
    total, mious = 0, []
    for number in range(2):
        single = Predictor.load(cv / f"fold_{number}/best_model_iou.pth", device="cpu")
        own = [p for p in pairs if folds.parts[p.image.relative_to(data).as_posix()] == str(number)]
        records, counts = evaluate_pairs(single, own, source.reader)
        for record in records:
            row = rows[record["file"]]
            assert row["fold"] == str(number)
            miou = ClassAreas(record["areas"]).miou()
            assert float(row["miou"]) == pytest.approx(miou, abs=1e-6)
        total, mious = total + counts, [*mious, ConfusionMatrix.of(counts).miou()]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["confusion"] == total.tolist()
    assert metrics["fold_miou"] == pytest.approx(mious)
    assert metrics["miou_mean_of_folds"] == pytest.approx(np.mean(mious))
    assert metrics["miou_spread_of_folds"] == pytest.approx(np.std(mious, ddof=1))
    assert json.loads((tmp_path / "run.json").read_text())["split"] == "out of fold"
    # A split that is named is measured by all together.
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", *flags, str(tmp_path / "v"), "--split", "valid"]
    )
    assert evaluate.main() == 0
    assert "fold" not in (tmp_path / "v/per_image.csv").read_text().splitlines()[0]


def test_the_interval_of_the_concordance_draws_the_groups_of_the_folds_or_those_given(
    data, cv, tmp_path, monkeypatch
):
    def agreement(*flags):
        places = ["--model", cv, "--data", data, "--device", "cpu", "--out-dir", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, places), *flags])
        assert evaluate.main() == 0
        return json.loads((tmp_path / "out/metrics.json").read_text())["severity_agreement"][0]

    alone = agreement()
    pairs = agreement("--groups", r"([a-z]+)\d")  # train and valid: too few to be drawn
    assert alone["concordance"] == pairs["concordance"]
    assert (alone["concordance_low"] is None, pairs["concordance_low"]) == (False, None)
    table = cv / "folds.csv"
    kept = table.read_text()
    lines = [line.split(",") for line in kept.splitlines()]
    merged = [[name, f"plant {fold}", fold] for name, _, fold in lines[1:]]
    table.write_text("\n".join(map(",".join, [lines[0], *merged])) + "\n")
    try:
        assert agreement()["concordance_low"] is None
    finally:
        table.write_text(kept)


def test_a_killed_cross_validation_goes_on_with_the_first_unfinished_fold(
    data, cv, tmp_path, monkeypatch, capsys
):
    once, calls = train.run_epoch, []

    def killed_in_the_second_folds_second_epoch(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return once(*args)

    out_dir = tmp_path / "cv"
    with monkeypatch.context() as patch:
        patch.setattr(train, "run_epoch", killed_in_the_second_folds_second_epoch)
        assert go(data, out_dir, "--folds", 2) == 130
    assert f"--out-dir {out_dir} --resume" in capsys.readouterr().err
    finished = (out_dir / "fold_0/last.pth").stat().st_mtime_ns
    assert go(None, out_dir, "--resume", base=["--device", "cpu"]) == 0
    assert "Fold 0 is finished" in capsys.readouterr().out
    assert (out_dir / "fold_0/last.pth").stat().st_mtime_ns == finished
    assert (out_dir / "folds.csv").read_bytes() == (cv / "folds.csv").read_bytes()
    for number in range(2):
        assert_same_fold(cv / f"fold_{number}", out_dir / f"fold_{number}")


def test_one_fold_alone_is_that_of_all_and_folds_can_be_given(data, cv, tmp_path, capsys):
    out_dir = tmp_path / "alone"
    assert go(data, out_dir, "--folds-file", cv / "folds.csv", "--fold", 1) == 0
    assert "Folds still to train: 0" in capsys.readouterr().out
    assert [path.name for path in out_dir.glob("fold_*")] == ["fold_1"]
    assert_same_fold(cv / "fold_1", out_dir / "fold_1")
    with pytest.raises(UserError, match=r"fold_0.*is not there.*2 folds"):
        Predictor.load(out_dir, device="cpu")
    # Another machine must not divide the same folder otherwise.
    with pytest.raises(UserError, match=r"has 2 other folds.*--seed"):
        go(data, out_dir, "--folds", 2, "--fold", 0, "--seed", 7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", 2], r"already holds a run \(epoch 2.*--resume.*--overwrite"),
        (["--folds", 3, "--fold", 1, "--resume"], "has 2 other folds.*--overwrite"),
        (["--fold", 1], "--fold 1 needs --folds N"),
        (["--folds", 3, "--fold", 3], "--fold 3 is not one of --folds 3"),
        (["--folds", 4, "--folds-file", "OUT/folds.csv"], "has 2 folds, and not --folds 4"),
        (["--resume", "OUT/fold_1/last.pth"], "give --out-dir OUT --resume"),
        (["--folds", 10, "--overwrite"], "9 photographs in 9 groups are too few for 10 parts"),
    ],
)
def test_what_contradicts_the_folder_is_refused(data, cv, tmp_path, flags, message):
    out_dir = shutil.copytree(cv, tmp_path / "cv")
    before = {p: p.read_bytes() for p in out_dir.rglob("*.pth")}
    words = [str(word).replace("OUT", str(out_dir)) for word in flags]
    with pytest.raises(UserError, match=message.replace("OUT", str(out_dir))):
        go(data, out_dir, *words)
    assert before == {p: p.read_bytes() for p in out_dir.rglob("*.pth")}
    assert (out_dir / "folds.csv").read_bytes() == (cv / "folds.csv").read_bytes()


def test_pictures_that_came_later_are_not_folded_in_silently(data, cv, tmp_path):
    root, out_dir = shutil.copytree(data, tmp_path / "data"), shutil.copytree(cv, tmp_path / "cv")
    for part in ("images", "masks"):
        shutil.copy(root / f"train_{part}/train0.png", root / f"train_{part}/new.png")
    with pytest.raises(UserError, match=r"does not place 1 of 10.*train_images/new\.png"):
        go(root, out_dir, "--resume")
    (out_dir / "folds.csv").unlink()
    with pytest.raises(UserError, match=r"folds\.csv is not there any more"):
        go(data, out_dir, "--resume")
