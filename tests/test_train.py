"""A run from flags to files: repeatable, resumable, never overwritten unasked."""

import argparse
import csv
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from run_tiny import add_tiny
from tiny_data import write_data, write_pairs

import evaluate
import train
from common.errors import UserError
from config import DEFAULT_OUT_DIR
from models import pretrained
from models.checkpoint import read_checkpoint
from segmentation_model import load_model
from training.run_folder import BEST, PRODUCTS

ROOT = Path(__file__).resolve().parent.parent
BASE = ["--model", "tiny", "--head", "pyramid", "--weights", "none", "--imgsz", "64", "32",
        "--batch", "2", "--workers", "0", "--device", "cpu", "--lr", "0.01"]  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_variant():
    add_tiny()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in run_tiny.py: the number of threads may change a last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def go(monkeypatch, data, out_dir, *flags):
    monkeypatch.setattr(sys, "argv", ["train.py", *BASE, "--data", str(data),
                                      "--out-dir", str(out_dir), *flags])  # fmt: skip
    return train.main()


def weights_of(out_dir, name="last.pth"):
    return read_checkpoint(out_dir / name)["live_model_state_dict" if "last" in name else
                                           "model_state_dict"]  # fmt: skip


def assert_same_run(a, b):
    assert (a / "history.csv").read_bytes() == (b / "history.csv").read_bytes()
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run of three epochs left alone."""
    out_dir = tmp_path_factory.mktemp("reference")
    add_tiny()
    with pytest.MonkeyPatch.context() as patch:
        assert go(patch, data, out_dir, "--epochs", "3") == 0
    return out_dir


def test_a_run_leaves_what_the_article_promises(reference):
    for name in PRODUCTS:
        assert (reference / name).stat().st_size > 0, name
    assert len(list((reference / "valid_preds").iterdir())) == 3
    assert not list(reference.glob(".tmp-*"))
    with open(reference / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert 0 < float(rows[-1]["valid_miou"]) <= 1
    assert "valid_iou_disease" in rows[0]
    assert "seconds" not in rows[0]
    assert "seconds" in json.loads((reference / "log.jsonl").read_text().splitlines()[0])


def test_the_best_checkpoints_are_the_best_epochs(reference):
    with open(reference / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["valid_miou"]))
    assert read_checkpoint(reference / "best_model_iou.pth")["epoch"] == int(best["epoch"])
    best = min(rows, key=lambda row: float(row["valid_loss"]))
    assert read_checkpoint(reference / "best_model_loss.pth")["epoch"] == int(best["epoch"])
    loaded = load_model(reference / "model.pth")
    assert loaded.config.input_size == (32, 64)
    assert loaded.content["epoch"] == 3


def test_the_same_seed_gives_the_same_run_whatever_the_workers(
    monkeypatch, data, reference, tmp_path
):
    go(monkeypatch, data, tmp_path / "again", "--epochs", "3", "--workers", "2")
    assert_same_run(reference, tmp_path / "again")
    go(monkeypatch, data, tmp_path / "other", "--epochs", "3", "--seed", "7")
    assert (reference / "history.csv").read_bytes() != (tmp_path / "other/history.csv").read_bytes()


def test_a_run_is_never_overwritten_unasked(monkeypatch, data, tmp_path):
    out_dir = tmp_path / "out"
    go(monkeypatch, data, out_dir, "--epochs", "1")
    before = (out_dir / "last.pth").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run \(epoch 1.*--resume.*--overwrite"):
        go(monkeypatch, data, out_dir, "--epochs", "1")
    assert (out_dir / "last.pth").read_bytes() == before
    (out_dir / "notes.txt").write_text("mine")
    go(monkeypatch, data, out_dir, "--epochs", "1", "--seed", "3", "--overwrite")
    assert (out_dir / "last.pth").read_bytes() != before
    assert (out_dir / "notes.txt").read_text() == "mine"


def test_a_run_that_goes_on_equals_one_that_was_left_alone(monkeypatch, data, reference, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "1")
    go(monkeypatch, data, tmp_path, "--epochs", "3", "--resume")
    assert_same_run(reference, tmp_path)


def test_a_resumed_run_takes_its_flags_from_the_checkpoint(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "2", "--ema", "0.5", "--patience", "5")
    monkeypatch.setattr(sys, "argv", ["train.py", "--out-dir", str(tmp_path), "--resume"])
    args, saved = train.parse_args(sys.argv[1:])
    assert (args.ema, args.imgsz, args.epochs, args.head) == (0.5, [64, 32], 2, "pyramid")
    assert args.out_dir == tmp_path
    assert len(saved["history"]) == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--imgsz", "32", "32"], r"--imgsz \[64, 32\], not \[32, 32\]"),
        (["--head", "article"], "--head pyramid, not article"),
        (["--model", "faster_vit_0"], "--model tiny, not faster_vit_0"),
        (["--data", "OTHER"], "data files"),
        (["--optimizer", "sgd"], "--optimizer adam, not sgd"),
        (["--weights", "other.pth"], "--weights none, not other.pth"),
    ],
)
def test_resuming_another_run_is_refused_with_the_difference(
    monkeypatch, data, reference, tmp_path, flags, named
):
    if "OTHER" in flags:
        flags = ["--data", str(write_data(tmp_path / "other", train=5))]
    with pytest.raises(UserError, match=named):
        go(monkeypatch, data, tmp_path / "out", "--resume", str(reference / "last.pth"), *flags)


def test_a_strangers_flag_that_is_no_text_is_not_printed(monkeypatch, data, reference, tmp_path):
    content = read_checkpoint(reference / "last.pth")
    text = ["ha"]
    for _ in range(20):
        text = [text, text]  # as text a million times as long
    content["train_args"]["weights"] = {"a": text}
    torch.save(content, tmp_path / "last.pth")
    with pytest.raises(UserError, match="incomplete or damaged"):
        go(monkeypatch, data, tmp_path / "out", "--resume", str(tmp_path / "last.pth"))


def test_resuming_with_other_classes_is_refused(monkeypatch, data, reference, tmp_path):
    other = write_data(tmp_path / "other")
    (other / "labelmap.txt").write_text("ground:0,0,0::\nspot:1,1,1::\n")
    with pytest.raises(UserError, match="classes"):
        go(monkeypatch, other, tmp_path / "out", "--resume", str(reference / "last.pth"))


def test_flags_given_anew_hold_when_a_run_goes_on(monkeypatch, data, reference, tmp_path):
    last = str(reference / "last.pth")
    go(monkeypatch, data, tmp_path, "--resume", last, "--epochs", "4", "--lr", "1e-9",
       "--weight-decay", "0.5", "--ema", "0.5", "--amp", "bf16")  # fmt: skip
    saved = read_checkpoint(tmp_path / "last.pth")
    assert saved["history"][-1]["lr"] == pytest.approx(1e-9)
    assert {group["weight_decay"] for group in saved["optimizer"]["param_groups"]} == {0, 0.5}
    # At such a rate nothing moves: a new average is that of the run's weights, not of random ones.
    for name, value in weights_of(reference).items():
        if value.is_floating_point() and "running" not in name:
            assert torch.allclose(saved["ema"][name], value, atol=1e-6), name


def test_a_run_that_goes_on_elsewhere_takes_its_best_along(monkeypatch, data, reference, tmp_path):
    last = str(reference / "last.pth")
    (tmp_path / "model.pth").write_bytes(b"of another run")
    with pytest.raises(UserError, match="already holds a run"):
        go(monkeypatch, data, tmp_path, "--resume", last, "--epochs", "4")
    # With no epoch left to do, the report is of the best model there was.
    go(monkeypatch, data, tmp_path, "--resume", last, "--epochs", "3", "--overwrite")
    for name in BEST.values():
        assert (tmp_path / name).read_bytes() == (reference / name).read_bytes()
    assert not (tmp_path / "model.pth").exists()


def test_a_best_checkpoint_of_epochs_that_the_run_has_not_had_is_replaced(
    monkeypatch, data, reference, tmp_path
):
    go(monkeypatch, data, tmp_path, "--epochs", "1")
    first = (tmp_path / "best_model_iou.pth").read_bytes()
    later = read_checkpoint(reference / "best_model_loss.pth") | {"epoch": 3}
    torch.save(later, tmp_path / "best_model_loss.pth")
    # At such a rate the model gets worse: what the run had already stays its best.
    go(monkeypatch, data, tmp_path, "--epochs", "3", "--lr", "1", "--resume")
    assert read_checkpoint(tmp_path / "best_model_loss.pth")["epoch"] == 2  # replaced once
    assert (tmp_path / "best_model_iou.pth").read_bytes() == first


def test_a_damaged_best_checkpoint_does_not_stop_a_run(monkeypatch, data, tmp_path, capsys):
    go(monkeypatch, data, tmp_path, "--epochs", "1")
    (tmp_path / "best_model_iou.pth").write_bytes(b"cut off")
    go(monkeypatch, data, tmp_path, "--epochs", "2", "--resume")
    assert "The best of the epochs to come takes its place" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "best_model_iou.pth")["epoch"] == 2


def test_a_finished_run_without_its_best_says_what_to_do(monkeypatch, data, reference, tmp_path):
    (tmp_path / "last.pth").write_bytes((reference / "last.pth").read_bytes())
    with pytest.raises(UserError, match=r"no epoch was left.*larger --epochs"):
        go(monkeypatch, data, tmp_path / "out", "--resume", str(tmp_path / "last.pth"))


def test_a_link_to_the_checkpoint_does_not_cost_the_run(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path / "run", "--epochs", "1")
    (tmp_path / "run/last.pth").rename(tmp_path / "elsewhere.pth")
    (tmp_path / "run/last.pth").symlink_to(tmp_path / "elsewhere.pth")
    last = str(tmp_path / "run/last.pth")
    go(monkeypatch, data, tmp_path / "run", "--resume", last, "--epochs", "2", "--overwrite")
    assert (tmp_path / "run/best_model_iou.pth").is_file()
    assert read_checkpoint(tmp_path / "run/last.pth")["epoch"] == 2


def test_weights_alone_cannot_be_resumed(monkeypatch, data, reference, tmp_path):
    with pytest.raises(UserError, match="weights only"):
        go(monkeypatch, data, tmp_path, "--resume", str(reference / "model.pth"))
    with pytest.raises(UserError, match="no run to resume"):
        go(monkeypatch, data, tmp_path, "--resume")


def test_weights_of_our_own_start_a_new_run_with_other_classes(
    monkeypatch, reference, tmp_path, capsys
):
    other = write_data(tmp_path / "other")
    write_pairs(other, "train", 1, 5)
    (other / "labelmap.txt").write_text("a:0,0,0::\nb:1,1,1::\nc:2,2,2::\n")
    weights = reference / "best_model_iou.pth"
    go(monkeypatch, other, tmp_path / "out", "--epochs", "1", "--weights", str(weights))
    assert "tensors of the segmentation head" in capsys.readouterr().out
    assert load_model(tmp_path / "out/model.pth").config.num_classes == 3
    # Which file it was can be told for ever.
    digest = pretrained.sha256(weights)
    assert digest in read_checkpoint(tmp_path / "out/last.pth")["started_from"]
    assert digest in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_an_average_is_validated_and_saved(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "1", "--ema", "0.9")
    last = read_checkpoint(tmp_path / "last.pth")
    name = "patch_embed.conv_down.0.weight"
    assert not torch.equal(last["live_model_state_dict"][name], last["ema"][name])
    assert torch.equal(weights_of(tmp_path, "model.pth")[name], last["ema"][name])


def test_patience_ends_a_run_that_no_longer_improves(monkeypatch, data, tmp_path, capsys):
    go(monkeypatch, data, tmp_path, "--epochs", "9", "--lr", "1e-12", "--patience", "2")
    assert "stopping early" in capsys.readouterr().out
    history = (tmp_path / "history.csv").read_text()
    assert len(history.splitlines()) < 10
    go(monkeypatch, data, tmp_path, "--resume")  # still the same patience: not one epoch more
    assert (tmp_path / "history.csv").read_text() == history


def test_many_options_work_together(monkeypatch, data, tmp_path):
    go(
        monkeypatch, data, tmp_path, "--epochs", "2", "--optimizer", "adamw", "--weight-decay",
        "0.05", "--head-lr-mult", "3", "--scheduler", "cosine", "--warmup", "0.5", "--loss",
        "ce+dice", "--class-weights", "auto", "--augment", "strong", "--accumulate", "2",
        "--clip-grad", "1", "--amp", "bf16", "--channels-last", "--cache", "ram",
    )  # fmt: skip
    assert read_checkpoint(tmp_path / "last.pth")["epoch"] == 2


def test_tensorboard_gets_scalars_and_pictures_of_this_run_alone(monkeypatch, data, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    flags = ["--tensorboard", "--optimizer", "sgd", "--lr", "0.001", "--overwrite"]
    for epochs in ("1", "2"):
        go(monkeypatch, data, tmp_path, "--epochs", epochs, *flags)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"brain.Event:2" in file.read_bytes()[:64]  # whole from its header on
    events = event_accumulator.EventAccumulator(str(file))
    events.Reload()
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scalars = [event.value for event in events.Scalars("valid/miou")]
    assert scalars == pytest.approx([row["valid_miou"] for row in logged])
    assert [event.step for event in events.Images("valid_preds")] == [1, 2]


# --- Pure parts ---


def flags_of(*flags):
    return train.make_parser().parse_args(list(flags))


def test_the_articles_flags_are_the_articles_run():
    args = flags_of(
        *[
            "--imgsz",
            "512",
            "512",
            "--epochs",
            "50",
            "--lr",
            "0.0001",
            "--batch",
            "2",
            "--scheduler",
        ]
    )
    assert (args.imgsz, args.epochs, args.lr, args.batch) == ([512, 512], 50, 1e-4, 2)
    assert (args.scheduler, args.scheduler_epochs) == ("multistep", [25, 30])
    assert (args.optimizer, args.loss, args.augment, args.head) == (
        "adam",
        "ce",
        "article",
        "article",
    )
    assert (args.weight_decay, args.warmup, args.ema) == (0.0, 0.0, None)
    assert args.out_dir == DEFAULT_OUT_DIR


def test_a_recipe_sets_defaults_and_typed_flags_win(monkeypatch, data, tmp_path, capsys):
    flags = ["--recipe", "scratch", "--model", "tiny", "--data", str(data), "--lr", "0.003",
             "--epochs", "1", "--workers", "0", "--out-dir", str(tmp_path)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    assert train.main() == 0
    assert "256x192" in capsys.readouterr().out  # the photographs are 56x40
    saved = read_checkpoint(tmp_path / "last.pth")
    assert saved["model_config"]["input_size"] == [192, 256]
    expected = train.RECIPES["scratch"] | {"lr": 0.003, "epochs": 1, "imgsz": [256, 192]}
    assert {name: saved["train_args"][name] for name in expected} == expected
    # The run that goes on has the same flags, typed or not.
    resumed, _ = train.parse_args(["--out-dir", str(tmp_path), "--resume"])
    assert {name: getattr(resumed, name) for name in expected} == expected
    assert flags_of().epochs == 50


def test_a_recipe_of_today_does_not_change_a_run_of_yesterday(monkeypatch, data, tmp_path):
    recipe = ["--recipe", "scratch"]
    go(monkeypatch, data, tmp_path, *recipe, "--epochs", "1", "--clip-grad", "0")
    again = [*recipe, "--out-dir", str(tmp_path), "--resume"]
    assert train.parse_args(again)[0].clip_grad == 0  # as it was typed then
    content = read_checkpoint(tmp_path / "last.pth")
    content["train_args"]["clip_grad"] = None  # as before the recipe had it
    torch.save(content, tmp_path / "last.pth")
    assert train.parse_args(again)[0].clip_grad == 0
    assert train.parse_args([*again, "--clip-grad", "2"])[0].clip_grad == 2
    go(monkeypatch, data, tmp_path, *recipe, "--epochs", "2", "--resume")
    assert read_checkpoint(tmp_path / "last.pth")["train_args"]["window"] == 5


def test_a_recipe_chooses_no_windows_for_a_run_that_had_none(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "1")
    go(monkeypatch, data, tmp_path, "--recipe", "scratch", "--epochs", "2", "--resume")
    assert read_checkpoint(tmp_path / "last.pth")["epoch"] == 2


def test_the_help_of_a_recipe_shows_its_defaults(capsys):
    for flags, lr in (([], "0.0001"), (["--recipe", "scratch"], "0.001")):
        with pytest.raises(SystemExit):
            train.parse_args([*flags, "--help"])
        assert f"--lr LR learning rate (default: {lr})" in " ".join(capsys.readouterr().out.split())


def test_a_switch_can_be_turned_off_when_a_run_goes_on(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "1", "--channels-last")
    again = ["--out-dir", str(tmp_path), "--resume"]
    assert train.parse_args(again)[0].channels_last is True
    assert train.parse_args([*again, "--no-channels-last"])[0].channels_last is False


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch", "0"], ["--lr", "nan"], ["--lr", "-1"], ["--imgsz", "0", "512"],
        ["--epochs", "-1"], ["--workers", "-2"], ["--loss", "hinge"], ["--ema", "1"],
        ["--seed", "-1"], ["--accumulate", "0"], ["--scheduler", "step"], ["--model", "resnet"],
        ["--clip-grad", "inf"], ["--drop-path", "2"],
    ],
)  # fmt: skip
def test_flags_out_of_range_are_refused_with_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        flags_of(*flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1", "1,2,3", "1,nan", "1,-1", "a,b", ""])
def test_class_weights_must_be_one_positive_number_a_class(text):
    with pytest.raises(UserError, match="2 positive numbers"):
        train.class_weights(text, None, 2)


def test_a_class_that_is_nowhere_does_not_outweigh_the_others():
    dataset = argparse.Namespace(class_pixels=lambda: np.array([900, 100, 0]))
    weights = train.class_weights("auto", dataset, 3)
    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(3)
    assert weights[0] < weights[2] < weights[1]


def test_automatic_class_weights_favour_the_rare():
    dataset = argparse.Namespace(class_pixels=lambda: np.array([900, 100]))
    common, rare = train.class_weights("auto", dataset, 2).tolist()
    assert rare / common == pytest.approx(3)
    assert (rare + common) / 2 == pytest.approx(1)


# --- Real processes ---

# A shell's background job, as with `nohup ... &`: it ignores SIGINT, and SIGTERM must do.
NOHUP = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable]


def start(data, out_dir, *flags, script="train.py", before=()):
    command = [*(before or [sys.executable]), str(ROOT / "tests/run_tiny.py"), script]
    return subprocess.Popen(
        [*command, *BASE, "--data", str(data), "--out-dir", str(out_dir), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        # These tests may themselves run in the background, where Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


PATIENCE = 600  # seconds: what takes ten alone may take ten times that on a busy machine


def wait_for(process, path):
    """Until a file is there or the process has ended."""
    end = time.time() + PATIENCE
    while time.time() < end and process.poll() is None and not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_that_is_killed_at_random_loses_nothing(data, reference, tmp_path, workers):
    out_dir, rng = tmp_path / "out", random.Random(int(workers))
    process = start(data, out_dir, "--epochs", "3", "--workers", workers)
    wait_for(process, out_dir / ("last.pth" if workers == "0" else "model.pth"))
    time.sleep(rng.uniform(0, 0.5))
    process.kill()
    process.communicate()
    for path in out_dir.glob("[!.]*.pth"):
        read_checkpoint(path)  # every finished checkpoint loads
    how = ["--resume"] if (out_dir / "last.pth").exists() else ["--overwrite"]
    process = start(data, out_dir, "--epochs", "3", "--workers", workers, *how)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert_same_run(reference, out_dir)


@pytest.mark.parametrize(
    ("sent", "before", "workers"),
    # The last one as a scheduler or `timeout` does it: to the workers, too, at the same time.
    [(signal.SIGINT, (), "0"), (signal.SIGTERM, NOHUP, "0"), (signal.SIGTERM, (), "2")],
)
def test_a_signal_ends_the_run_at_once_and_says_how_to_go_on(data, tmp_path, sent, before, workers):
    process = start(data, tmp_path, "--epochs", "5000", "--workers", workers, before=before)
    wait_for(process, tmp_path / "last.pth")
    (os.killpg if workers == "2" else os.kill)(process.pid, sent)
    _, errors = process.communicate(timeout=120)  # 5000 epochs would take an hour
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    read_checkpoint(tmp_path / "last.pth")


def torchrun(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={processes}"]  # fmt: skip


# A pair of numbers takes 20 seconds of two cores: one in `make test`, the other in `make soak`.
@pytest.mark.parametrize(
    ("training", "evaluating"), [(3, 2), pytest.param(2, 3, marks=pytest.mark.soak)]
)
def test_several_processes_train_one_model_and_measure_as_one(
    data, tmp_path, training, evaluating, monkeypatch
):
    monkeypatch.setenv("RANK_WEIGHTS", str(tmp_path))
    process = start(data, tmp_path / "out", "--epochs", "1", before=torchrun(training))
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-3000:]
    history = (tmp_path / "out/history.csv").read_text().splitlines()
    assert len(history) == 2
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in range(training)]
    for name, value in weights_of(tmp_path / "out").items():
        assert all(torch.equal(value, rank[name]) for rank in ranks), name
    # The same weights measured by one process here and by several there: the same bytes.
    flags = ["--model", str(tmp_path / "out/model.pth"), "--data", str(data), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, "--out-dir", str(tmp_path / "one")])
    evaluate.main()
    command = [*torchrun(evaluating), str(ROOT / "tests/run_tiny.py"), "evaluate.py", *flags]
    command += ["--out-dir", str(tmp_path / "many")]
    done = subprocess.run(command, cwd=ROOT, timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("metrics.json", "per_image.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert re.search(r'"images": 3', (tmp_path / "one/metrics.json").read_text())


def test_several_processes_share_the_pictures_of_a_folder(data, reference, tmp_path):
    flags = ["inference_image.py", "--input", str(data / "train_images"), "--device", "cpu",
             "--model", str(reference / "model.pth"), "--out-dir"]  # fmt: skip
    for name, before in (("one", [sys.executable]), ("two", torchrun(2))):
        command = [*before, str(ROOT / "tests/run_tiny.py"), *flags, str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, timeout=PATIENCE, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.name != ".lock"}
                for name in ("one", "two"))  # fmt: skip
    assert one == two
    assert len([name for name in one if name.endswith("_mask.png")]) == 6


def free_port() -> str:
    """A port that nobody listens on, below those that a system hands out to whoever asks."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)


def test_machines_without_a_shared_folder_are_told_so_before_they_train(data, tmp_path):
    port = free_port()
    (tmp_path / "1").mkdir()  # as `outputs` is in every clone
    processes = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port}  # fmt: skip
        before = ["env", *(f"{key}={value}" for key, value in place.items()), sys.executable]
        processes.append(start(data, tmp_path / rank, "--epochs", "1", before=before))
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "on a disk that they share" in errors
    assert not list(tmp_path.rglob("*.pth"))


def test_a_process_that_dies_ends_the_others_with_its_error(data, tmp_path, monkeypatch):
    monkeypatch.setenv("DYING_RANK", "1")
    process = start(data, tmp_path, "--epochs", "5000", before=torchrun(3))
    try:
        _, errors = process.communicate(timeout=PATIENCE)  # all epochs would take an hour
    finally:
        process.kill()
    assert process.returncode != 0
    assert "process 1 was meant to fail" in errors
    assert read_checkpoint(tmp_path / "last.pth")["epoch"] == 1
