"""The flags of a training: the article's, recipes, ranges, and what a checkpoint records."""

import argparse

import numpy as np
import pytest

from common.errors import UserError
from config import DEFAULT_OUT_DIR
from training.flags import as_flags, class_weights, make_parser, parse_args, plain_args


def flags_of(text):
    return make_parser().parse_args(text.split())


def test_the_articles_flags_are_the_articles_run():
    flags = "--imgsz 512 512 --epochs 50 --lr 0.0001 --batch 2 --scheduler"
    args, _ = parse_args(flags.split())
    assert (args.imgsz, args.epochs, args.lr, args.batch) == ((512, 512), 50, 1e-4, 2)
    assert (args.scheduler, args.scheduler_epochs) == ("multistep", [25, 30])
    assert (args.optimizer, args.loss, args.augment) == ("adam", "ce", "article")
    assert (args.head, args.weight_decay, args.warmup, args.ema) == ("article", 0.0, 0.0, None)
    assert args.out_dir == DEFAULT_OUT_DIR
    assert vars(args) == vars(parse_args(["--scheduler"])[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--imgsz 640 480 --ema 0.5 --class-weights 1,2 --loss ce+dice --skip-bad --compile",
        "--data a=b --weights none --scheduler poly --scheduler-epochs 3 9 --drop-path 0",
    ],
)
def test_recorded_flags_are_read_as_they_were_typed(text):
    args = flags_of(text)
    assert make_parser().parse_args(as_flags(plain_args(args))) == args


def test_the_size_is_recorded_with_the_width_first_and_taken_height_first():
    args = flags_of("--imgsz 640 480")
    assert args.imgsz == (480, 640)
    assert plain_args(args)["imgsz"] == [640, 480]  # as every checkpoint has had it
    assert as_flags({"imgsz": [640, 480]}) == ["--imgsz", "640", "480"]
    args.imgsz = None
    assert plain_args(args)["imgsz"] is None


def test_the_help_of_a_recipe_shows_its_defaults(capsys):
    for flags, lr in (([], "0.0001"), (["--recipe", "scratch"], "0.001")):
        with pytest.raises(SystemExit):
            parse_args([*flags, "--help"])
        assert f"--lr LR learning rate (default: {lr})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "text",
    [
        *("--batch 0", "--lr nan", "--lr -1", "--imgsz 0 512", "--epochs -1", "--workers -2"),
        *("--loss hinge", "--ema 1", "--seed -1", "--accumulate 0", "--scheduler step"),
        *("--model resnet", "--clip-grad inf", "--drop-path 2"),
    ],
)
def test_flags_out_of_range_are_refused_with_exit_code_2(text, capsys):
    with pytest.raises(SystemExit) as stop:
        flags_of(text)
    assert stop.value.code == 2
    assert text.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1", "1,2,3", "1,nan", "1,-1", "a,b", ""])
def test_class_weights_must_be_one_positive_number_a_class(text):
    with pytest.raises(UserError, match="2 positive numbers"):
        class_weights(text, None, 2)


def test_a_class_that_is_nowhere_does_not_outweigh_the_others():
    dataset = argparse.Namespace(class_pixels=lambda: np.array([900, 100, 0]))
    weights = class_weights("auto", dataset, 3)
    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(3)
    assert weights[0] < weights[2] < weights[1]


def test_automatic_class_weights_favour_the_rare():
    dataset = argparse.Namespace(class_pixels=lambda: np.array([900, 100]))
    common, rare = class_weights("auto", dataset, 2).tolist()
    assert rare / common == pytest.approx(3)
    assert (rare + common) / 2 == pytest.approx(1)
