"""A learning curve from photographs to sentence, of trainings that are never done twice."""

import csv
import shlex
import sys

import pytest
from data_sets import find_pairs
from run_tiny import add_tiny
from tiny_data import write_data

import train
from common.errors import UserError
from tools import learning_curve
from trust.growth import CANNOT_KNOW

FLAGS = "--model tiny --weights none --imgsz 64 32 --batch 4 --workers 0 --device cpu --lr 0.01 "
FLAGS += "--head pyramid --epochs 1 --seed 3"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Calls the tool; trainings are done in this process, and returned by their folder."""
    add_tiny()
    data, trained = write_data(tmp_path / "data", train=16, valid=3), []

    def train_here(words):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        assert train.main() == 0
        trained.append(words[words.index("--out-dir") + 1].split("/")[-2])

    def call(*more, out_dir=tmp_path / "curve"):
        trained.clear()
        places = ["--data", str(data), "--out-dir", str(out_dir)]
        words = ["learning_curve.py", *shlex.split(FLAGS), *places, *map(str, more)]
        monkeypatch.setattr(sys, "argv", words)
        assert learning_curve.main() == 0
        return list(trained)

    monkeypatch.setattr(learning_curve, "train", train_here)
    return call


@pytest.mark.soak  # eight trainings
def test_a_curve_is_trained_once_told_and_drawn(draw, tmp_path, capsys):
    out_dir = tmp_path / "curve"
    assert draw() == ["2_0", "2_1", "4_0", "4_1", "8_0", "8_1", "16_0"]
    said = capsys.readouterr().out
    assert said.count("with 32 photographs rather than 16 probably 0.") == 2
    assert CANNOT_KNOW in said
    assert (out_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    table = (out_dir / "learning_curve.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["photographs"] for row in rows[:7]] == ["2", "2", "4", "4", "8", "8", "16"]
    assert all(0 <= float(row["error"]) <= 1 for row in rows)

    names = {
        (count, repeat): [
            {pair.stem for pair in find_pairs(out_dir / f"{count}_{repeat}" / "data", split)}
            for split in ("train", "valid")
        ]
        for count, repeat in ((2, 0), (4, 0), (8, 0), (16, 0), (8, 1))
    }
    assert [len(learnt) for learnt, _ in names.values()] == [2, 4, 8, 16, 8]
    assert names[2, 0][0] < names[4, 0][0] < names[8, 0][0] < names[16, 0][0]
    assert names[8, 0][0].isdisjoint(names[8, 1][0])
    assert all(len(valid) == 3 for _, valid in names.values())

    (out_dir / "4_1" / "run" / "report.html").unlink()  # as if it was stopped before its end
    assert draw() == ["4_1"]
    assert (out_dir / "learning_curve.csv").read_text() == table
    with pytest.raises(UserError, match="holds a curve of other flags or data"):
        draw("--lr", 0.02)


def test_what_is_no_flag_of_a_curve_is_refused(draw, tmp_path):
    for flag in (["--folds", 3], ["--overwrite"], ["--resume"]):
        with pytest.raises(UserError, match=f"{flag[0]} is of single trainings"):
            draw(*flag)
    assert not (tmp_path / "curve").exists()


def test_a_training_that_failed_ends_the_curve_with_a_sentence(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    monkeypatch.setattr(learning_curve, "TRAIN", script)
    script.write_text("raise SystemExit(2)")
    with pytest.raises(UserError, match="A training has failed"):
        learning_curve.train(["--epochs", "1"])
    script.write_text("raise SystemExit(130)")  # as Ctrl-C ends one
    with pytest.raises(KeyboardInterrupt):
        learning_curve.train(["--epochs", "1"])
