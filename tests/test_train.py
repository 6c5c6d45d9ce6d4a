"""A run from flags to files: repeatable, resumable, never overwritten unasked."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from PIL import Image
from processes import PATIENCE, Script, free_port, together
from run_tiny import ROOT, add_tiny
from timm.utils import ModelEmaV3
from tiny_data import write_data, write_pairs
from tiny_world import together as in_a_group

import evaluate
import inference_image
import train
from common.errors import UserError
from common.files import without_nan
from models import digests
from models.checkpoint import read_checkpoint
from segmentation_model import load_model
from training.flags import RECIPES, make_parser, parse_args
from training.run_files import BEST
from training.run_folder import CURVES, PRODUCTS, RunFolder

BASE = shlex.split(
    "--model tiny --head pyramid --weights none --imgsz 64 32 --batch 2 --workers 0 --device cpu "
    "--lr 0.01"
)


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
    places = ["--data", str(data), "--out-dir", str(out_dir)]
    monkeypatch.setattr(sys, "argv", ["train.py", *BASE, *places, *flags])
    return train.main()


def weights_of(out_dir):
    return read_checkpoint(out_dir / "last.pth")["live_model_state_dict"]


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


@pytest.fixture(scope="module")
def one_epoch(data, tmp_path_factory):
    """The same run after its first epoch; copy it before going on."""
    out_dir = tmp_path_factory.mktemp("one_epoch")
    add_tiny()
    with pytest.MonkeyPatch.context() as patch:
        assert go(patch, data, out_dir, "--epochs", "1") == 0
    return out_dir


@pytest.fixture
def begun(one_epoch, tmp_path):
    """A copy of the run after its first epoch."""
    return shutil.copytree(one_epoch, tmp_path / "begun")


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
    go(monkeypatch, data, tmp_path / "other", "--epochs", "1", "--seed", "7")
    own, other = ((run / "history.csv").read_text() for run in (reference, tmp_path / "other"))
    assert own.splitlines()[1] != other.splitlines()[1]


def test_a_run_is_never_overwritten_unasked(monkeypatch, data, begun):
    before = (begun / "last.pth").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run \(epoch 1.*--resume.*--overwrite"):
        go(monkeypatch, data, begun, "--epochs", "1")
    assert (begun / "last.pth").read_bytes() == before
    (begun / "notes.txt").write_text("mine")
    go(monkeypatch, data, begun, "--epochs", "1", "--seed", "3", "--overwrite")
    assert (begun / "last.pth").read_bytes() != before
    assert (begun / "notes.txt").read_text() == "mine"


def test_a_run_that_goes_on_equals_one_that_was_left_alone(monkeypatch, data, reference, begun):
    go(monkeypatch, data, begun, "--epochs", "3", "--resume")
    assert_same_run(reference, begun)


def test_a_resumed_run_takes_its_flags_from_the_checkpoint(reference):
    args, saved = parse_args(["--out-dir", str(reference), "--resume"])
    assert (args.lr, args.imgsz, args.epochs, args.head) == (0.01, (32, 64), 3, "pyramid")
    assert args.out_dir == reference
    assert len(saved["history"]) == 3


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
    anew = ["--lr", "1e-9", "--weight-decay", "0.5", "--ema", "0.5", "--amp", "bf16"]
    go(monkeypatch, data, tmp_path, "--resume", last, "--epochs", "4", *anew)
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
    monkeypatch, data, reference, begun
):
    first = (begun / "best_model_iou.pth").read_bytes()
    later = read_checkpoint(reference / "best_model_loss.pth") | {"epoch": 3}
    torch.save(later, begun / "best_model_loss.pth")
    # At such a rate the model gets worse: what the run had already stays its best.
    go(monkeypatch, data, begun, "--epochs", "3", "--lr", "1", "--resume")
    assert read_checkpoint(begun / "best_model_loss.pth")["epoch"] == 2  # replaced once
    assert (begun / "best_model_iou.pth").read_bytes() == first


def test_a_damaged_best_checkpoint_does_not_stop_a_run(monkeypatch, data, begun, capsys):
    (begun / "best_model_iou.pth").write_bytes(b"cut off")
    go(monkeypatch, data, begun, "--epochs", "2", "--resume")
    assert "The best of the epochs to come takes its place" in capsys.readouterr().out
    assert read_checkpoint(begun / "best_model_iou.pth")["epoch"] == 2


def test_a_finished_run_without_its_best_says_what_to_do(monkeypatch, data, reference, tmp_path):
    (tmp_path / "last.pth").write_bytes((reference / "last.pth").read_bytes())
    with pytest.raises(UserError, match=r"no epoch was left.*larger --epochs"):
        go(monkeypatch, data, tmp_path / "out", "--resume", str(tmp_path / "last.pth"))


def test_a_link_to_the_checkpoint_does_not_cost_the_run(monkeypatch, data, begun, tmp_path):
    last = (begun / "last.pth").rename(tmp_path / "elsewhere.pth")
    (begun / "last.pth").symlink_to(last)
    again = ["--resume", str(begun / "last.pth"), "--epochs", "2", "--overwrite"]
    go(monkeypatch, data, begun, *again)
    assert (begun / "best_model_iou.pth").is_file()
    assert read_checkpoint(begun / "last.pth")["epoch"] == 2


def test_resume_auto_ends_as_a_run_left_alone_however_often_it_was_stopped(
    monkeypatch, data, reference, tmp_path, capsys
):
    auto, save = ["--epochs", "3", "--resume", "auto"], train.save_checkpoint

    def stopped_in(last):
        """Stop where all of an epoch is written but the checkpoint to go on from."""

        def save_or_stop(path, *rest, **record):
            if record["epoch"] == last:
                raise KeyboardInterrupt
            save(path, *rest, **record)

        with monkeypatch.context() as patch:
            patch.setattr(train, "save_checkpoint", save_or_stop)
            assert go(patch, data, tmp_path, *auto) == 130
        assert "Start the same command again" in capsys.readouterr().err

    stopped_in(1)
    assert (tmp_path / "model.pth").is_file()
    stopped_in(2)  # it began anew
    assert go(monkeypatch, data, tmp_path, *auto) == 0
    assert "Going on after epoch 1" in capsys.readouterr().out
    assert_same_run(reference, tmp_path)
    go(monkeypatch, data, tmp_path, *auto)  # nothing is left to do
    assert_same_run(reference, tmp_path)


@pytest.mark.parametrize("kept", [["best_model_iou.pth"], ["history.csv"], ["report.html"]])
def test_resume_auto_replaces_no_run(monkeypatch, data, reference, tmp_path, kept):
    for name in kept:
        shutil.copyfile(reference / name, tmp_path / name)
    if "best_model_iou.pth" in kept:
        torch.save(read_checkpoint(tmp_path / kept[0]) | {"epoch": 2}, tmp_path / kept[0])
    before = (tmp_path / kept[0]).read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        go(monkeypatch, data, tmp_path, "--epochs", "1", "--resume", "auto")
    assert (tmp_path / kept[0]).read_bytes() == before


def test_a_recipe_chooses_windows_for_a_run_that_begins_by_itself(monkeypatch, data, tmp_path):
    flags = ["--recipe", "scratch", "--resume", "auto"]
    go(monkeypatch, data, tmp_path, *flags, "--epochs", "1")
    assert read_checkpoint(tmp_path / "last.pth")["train_args"]["window"] == 5


def test_processes_that_find_different_checkpoints_do_not_train(tmp_path):
    def check(rank):
        folder = RunFolder(tmp_path / "out")
        refused = pytest.raises(UserError, match=r"epochs 0, 1.*same command again")
        with folder.lock(), refused:
            folder.check_shared(rank)

    in_a_group(2, tmp_path / "two", check)


def test_two_trainings_in_neighbouring_folders_do_not_disturb_each_other(data, reference, tmp_path):
    succeed([start(data, tmp_path / f"run{rank}", "--epochs", "3") for rank in range(2)])
    for rank in range(2):
        assert_same_run(reference, tmp_path / f"run{rank}")
        for name in CURVES:
            assert Image.open(tmp_path / f"run{rank}" / f"{name}.png").size == (990, 660)


@pytest.mark.soak  # a minute of compiling
def test_a_compiled_model_trains_as_one_that_is_not(monkeypatch, data, tmp_path):
    # Without what the two draw at random each in its own way, and what makes much of a last bit.
    flags = shlex.split("--epochs 2 --drop-path 0 --optimizer sgd --accumulate 2")
    go(monkeypatch, data, tmp_path / "plain", *flags)
    go(monkeypatch, data, tmp_path / "compiled", *flags, "--compile")
    compiled, plain = weights_of(tmp_path / "compiled"), weights_of(tmp_path / "plain")
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.allclose(compiled[name], value, rtol=1e-3, atol=1e-3), name


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
    digest = digests.sha256(weights)
    assert digest in read_checkpoint(tmp_path / "out/last.pth")["started_from"]
    assert digest in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_an_average_is_validated_and_saved(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "1", "--ema", "0.9")
    last = read_checkpoint(tmp_path / "last.pth")
    name = "patch_embed.conv_down.0.weight"
    assert not torch.equal(last["live_model_state_dict"][name], last["ema"][name])
    model = read_checkpoint(tmp_path / "model.pth")["model_state_dict"]
    assert torch.equal(model[name], last["ema"][name])


def test_the_average_of_a_short_run_is_not_its_first_weights(monkeypatch, data, tmp_path):
    steps, update = [], ModelEmaV3.update

    def seen(ema, model, step):
        steps.append(step)
        update(ema, model, step)

    monkeypatch.setattr(ModelEmaV3, "update", seen)
    options = ("--epochs", "2", "--ema", "0.9999", "--batch", "1", "--accumulate", "2")
    go(monkeypatch, data, tmp_path, *options)
    assert len(steps) > 2
    assert steps == list(range(1, len(steps) + 1))
    last = read_checkpoint(tmp_path / "last.pth")
    moved = {  # BatchNorm's begin at 0
        key: torch.cat([v.flatten() for n, v in last[key].items() if n.endswith("running_mean")])
        for key in ("ema", "live_model_state_dict")
    }
    assert moved["ema"].norm() > 0.3 * moved["live_model_state_dict"].norm() > 0


def test_the_closing_table_is_that_of_evaluation(monkeypatch, data, begun, tmp_path):
    tables = []
    for script in (train, evaluate):
        monkeypatch.setattr(script, "format_table", lambda metrics: tables.append(metrics) or "")
    go(monkeypatch, data, begun, "--epochs", "1", "--resume")
    flags = ["--model", str(begun / "best_model_iou.pth"), "--data", str(data), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, "--out-dir", str(tmp_path / "eval")])
    evaluate.main()
    closing, measured = (json.dumps(without_nan(metrics)) for metrics in tables)
    assert closing == measured


def test_patience_ends_a_run_that_no_longer_improves(monkeypatch, data, tmp_path, capsys):
    go(monkeypatch, data, tmp_path, "--epochs", "9", "--lr", "1e-12", "--patience", "2")
    assert "stopping early" in capsys.readouterr().out
    history = (tmp_path / "history.csv").read_text()
    assert len(history.splitlines()) < 10
    go(monkeypatch, data, tmp_path, "--resume")  # still the same patience: not one epoch more
    assert (tmp_path / "history.csv").read_text() == history


def test_with_many_options_a_run_goes_on_as_if_left_alone(monkeypatch, data, tmp_path):
    options = shlex.split(
        "--optimizer adamw --weight-decay 0.05 --head-lr-mult 3 --scheduler --scheduler-epochs 1 "
        "--warmup 1.5 --loss ce+dice --class-weights auto --augment strong --accumulate 2 "
        "--clip-grad 1 --ema 0.5 --amp bf16 --channels-last --cache ram --drop-path 0.3"
    )
    go(monkeypatch, data, tmp_path / "whole", "--epochs", "2", *options)
    go(monkeypatch, data, tmp_path / "parts", "--epochs", "1", *options)
    go(monkeypatch, data, tmp_path / "parts", "--epochs", "2", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    kernel = weights_of(tmp_path / "whole")["patch_embed.conv_down.0.weight"]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    whole, parts = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    for name, value in whole["ema"].items():
        assert torch.equal(value, parts["ema"][name]), name


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


def test_a_recipe_sets_defaults_and_typed_flags_win(monkeypatch, data, tmp_path, capsys):
    flags = shlex.split("--recipe scratch --model tiny --lr 0.003 --epochs 1 --workers 0")
    places = ["--data", str(data), "--out-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, *places])
    assert train.main() == 0
    assert "256x192" in capsys.readouterr().out  # the photographs are 56x40
    saved = read_checkpoint(tmp_path / "last.pth")
    assert saved["model_config"]["input_size"] == [192, 256]
    assert saved["model_config"]["mask_reading"]["grey"] == "indices"
    expected = RECIPES["scratch"] | {"lr": 0.003, "epochs": 1, "imgsz": [256, 192]}
    assert {name: saved["train_args"][name] for name in expected} == expected
    # The run that goes on has the same flags, typed or not.
    resumed, _ = parse_args(["--out-dir", str(tmp_path), "--resume"])
    expected["imgsz"] = (192, 256)
    assert {name: getattr(resumed, name) for name in expected} == expected
    assert make_parser().parse_args([]).epochs == 50


def test_a_recipe_of_today_does_not_change_a_run_of_yesterday(monkeypatch, data, tmp_path):
    recipe = ["--recipe", "scratch"]
    go(monkeypatch, data, tmp_path, *recipe, "--epochs", "1", "--clip-grad", "0")
    again = [*recipe, "--out-dir", str(tmp_path), "--resume"]
    assert parse_args(again)[0].clip_grad == 0  # as it was typed then
    content = read_checkpoint(tmp_path / "last.pth")
    content["train_args"]["clip_grad"] = None  # as before the recipe had it
    torch.save(content, tmp_path / "last.pth")
    assert parse_args(again)[0].clip_grad == 0
    assert parse_args([*again, "--clip-grad", "2"])[0].clip_grad == 2
    go(monkeypatch, data, tmp_path, *recipe, "--epochs", "2", "--resume")
    assert read_checkpoint(tmp_path / "last.pth")["train_args"]["window"] == 5


def test_a_recipe_chooses_no_windows_for_a_run_that_had_none(monkeypatch, data, begun):
    go(monkeypatch, data, begun, "--recipe", "scratch", "--epochs", "2", "--resume")
    assert read_checkpoint(begun / "last.pth")["train_args"]["window"] is None


def test_a_switch_can_be_turned_off_when_a_run_goes_on(monkeypatch, data, tmp_path):
    go(monkeypatch, data, tmp_path, "--epochs", "1", "--channels-last")
    again = ["--out-dir", str(tmp_path), "--resume"]
    assert parse_args(again)[0].channels_last is True
    assert parse_args([*again, "--no-channels-last"])[0].channels_last is False


# --- Real processes ---


def start(data, out_dir, *flags, **how):
    places = ["--data", str(data), "--out-dir", str(out_dir)]
    return Script("train.py", *BASE, *places, *flags, **how)


def test_a_run_that_is_killed_takes_its_workers_along_and_loses_nothing(data, reference, tmp_path):
    """At random moments: tests/soak/kills.py."""
    flags = ["--epochs", "3", "--workers", "2"]
    process = start(data, tmp_path, *flags, STOPS_IN="2")
    process.wait_for(process.stands_still)
    family = process.family()
    process.send(signal.SIGKILL)
    process.finish()
    assert len(family) == 5  # two for training, two for validation
    _, left = psutil.wait_procs(family, timeout=PATIENCE)
    assert not left
    succeed([start(data, tmp_path, *flags, "--resume")])
    assert_same_run(reference, tmp_path)


@pytest.mark.parametrize(
    ("sent", "nohup", "workers"),
    # The last one as a scheduler or `timeout` does it: to the workers, too, at the same time.
    [(signal.SIGINT, False, "0"), (signal.SIGTERM, True, "0"), (signal.SIGTERM, False, "2")],
)
def test_a_signal_ends_the_run_at_once_and_says_how_to_go_on(data, tmp_path, sent, nohup, workers):
    process = start(data, tmp_path, "--epochs", "5000", "--workers", workers, nohup=nohup)
    process.wait_for((tmp_path / "last.pth").exists)
    process.send(sent, to_all=workers == "2")
    code, errors = process.finish(120)  # 5000 epochs would take an hour
    assert code == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    read_checkpoint(tmp_path / "last.pth")


def succeed(processes):
    for code, errors in [process.finish() for process in processes]:
        assert code == 0, errors[-3000:]


@pytest.mark.parametrize(("training", "evaluating"), [(3, 2), (2, 3)])
def test_several_processes_train_one_model_and_measure_as_one(
    data, tmp_path, training, evaluating, monkeypatch
):
    flags = ["--data", str(data), "--out-dir", str(tmp_path / "out"), "--epochs", "1"]
    succeed(together(training, "train.py", *BASE, *flags, RANK_WEIGHTS=str(tmp_path)))
    history = (tmp_path / "out/history.csv").read_text().splitlines()
    assert len(history) == 2
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in range(training)]
    for name, value in weights_of(tmp_path / "out").items():
        assert all(torch.equal(value, rank[name]) for rank in ranks), name
    # The same weights measured by one process here and by several there: the same bytes.
    flags = ["--model", str(tmp_path / "out/model.pth"), "--data", str(data), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, "--out-dir", str(tmp_path / "one")])
    evaluate.main()
    succeed(together(evaluating, "evaluate.py", *flags, "--out-dir", str(tmp_path / "many")))
    for name in ("metrics.json", "per_image.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert re.search(r'"images": 3', (tmp_path / "one/metrics.json").read_text())


def test_several_processes_share_the_pictures_of_a_folder(monkeypatch, data, reference, tmp_path):
    flags = ["--input", str(data / "train_images"), "--model", str(reference / "model.pth")]
    flags += ["--device", "cpu", "--out-dir"]
    succeed(together(2, "inference_image.py", *flags, str(tmp_path / "two")))
    monkeypatch.setattr(sys, "argv", ["inference_image.py", *flags, str(tmp_path / "one")])
    assert inference_image.main() == 0
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("[!.]*")}
        for name in ("one", "two")
    )
    assert one == two
    assert len([name for name in one if name.endswith("_mask.png")]) == 6


def test_machines_without_a_shared_folder_are_told_so_before_they_train(data, tmp_path):
    (tmp_path / "1").mkdir()  # as `outputs` is in every clone
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    world |= {"LOCAL_RANK": "0"}
    places = [tmp_path / rank for rank in "01"]
    machines = [start(data, at, "--epochs", "1", **world, RANK=at.name) for at in places]
    for code, errors in [machine.finish() for machine in machines]:
        assert code == 2
        assert "on a disk that they share" in errors
    assert not list(tmp_path.rglob("*.pth"))


def test_a_run_whose_processes_are_killed_ends_as_one_left_alone(data, tmp_path):
    """Twice, each time in the middle of an epoch, by the same command as `torchrun` would."""

    def run(name, killed):
        places = ["--data", str(data), "--out-dir", str(tmp_path / name)]
        flags = [*BASE, *places, "--epochs", "2", "--batch", "1", "--resume", "auto"]
        for restart in range(10):
            how = {"KILLED_IN": killed, "TORCHELASTIC_RESTART_COUNT": str(restart)}
            ended = [process.finish() for process in together(3, "train.py", *flags, **how)]
            if not any(code for code, _ in ended):
                return restart
            assert ended[1][0] == -signal.SIGKILL
            for code, errors in (ended[0], ended[2]):
                assert code == 2
                assert "without it this one cannot go on" in errors

    assert run("alone", "") == 0
    assert run("killed", "1 2") == 2
    assert_same_run(tmp_path / "alone", tmp_path / "killed")


def test_a_process_that_dies_ends_the_others_with_its_error(data, tmp_path):
    # All epochs would take an hour.
    flags = [*BASE, "--data", str(data), "--out-dir", str(tmp_path), "--epochs", "5000"]
    alive, dead = (one.finish() for one in together(2, "train.py", *flags, DYING_RANK="1"))
    assert dead[0] == alive[0] == 2
    assert "process 1 was meant to fail" in dead[1]
    assert "without it this one cannot go on" in alive[1]
    assert read_checkpoint(tmp_path / "last.pth")["epoch"] == 1


def torchrun(data, out_dir, *flags, workers, restarts=0, **environment):
    """By `torchrun` itself: it is what ends the others, and what starts all again."""
    how = ["--standalone", f"--nproc_per_node={workers}", f"--max-restarts={restarts}"]
    script = [str(ROOT / "tests/run_tiny.py"), "train.py", *BASE]
    places = ["--data", str(data), "--out-dir", str(out_dir)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *how, *script, *places, *flags],
        env=os.environ | environment,
        cwd=ROOT,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )


@pytest.mark.soak  # torchrun and what it starts import for half a minute
def test_torchrun_ends_all_with_the_error_of_the_one_that_died(data, tmp_path):
    # All epochs would take an hour.
    done = torchrun(data, tmp_path, "--epochs", "5000", workers=2, DYING_RANK="1")
    assert done.returncode != 0
    assert "process 1 was meant to fail" in done.stderr
    assert read_checkpoint(tmp_path / "last.pth")["epoch"] == 1


@pytest.mark.soak  # a minute of two cores: three processes start four times
def test_torchrun_starts_a_run_again_that_goes_on_by_itself(data, tmp_path):
    flags = ["--epochs", "4", "--batch", "1", "--resume", "auto"]
    for name, killed in (("alone", ""), ("killed", "2 3")):
        how = {"workers": 3, "restarts": 3, "KILLED_IN": killed}
        done = torchrun(data, tmp_path / name, *flags, **how)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Going on after epoch") == len(killed.split())
    assert_same_run(tmp_path / "alone", tmp_path / "killed")


SBATCH = ROOT / "tools/slurm.sbatch"


def test_the_example_for_slurm_starts_a_run_that_goes_on(tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name, line in (("scontrol", "echo node1; echo node2"), ("srun", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NODELIST": "node[1-2]", "NNODES": "2", "GPUS_ON_NODE": "4"}
    where = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", SBATCH, "--epochs", "9", "--out-dir", "a b"],
        env=where | {f"SLURM_{name}": value for name, value in job.items()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes=2 --nproc_per_node=4 --max-restarts=3" in done.stdout
    assert "--rdzv_endpoint=node1:29500" in done.stdout
    flags = done.stdout.split("train.py ")[1].strip()
    assert flags == "--workers 8 --epochs 9 --out-dir a b --resume auto"
    parse_args(["--workers", "8", "--epochs", "9", "--out-dir", str(tmp_path), "--resume", "auto"])
