"""What a command line says when something is wrong."""

import argparse
import signal
import sys

import pytest

from common import cli
from common.errors import UserError


def run_with(monkeypatch, function, *flags):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(function)
    return stop.value.code


def fail_with(error):
    def function():
        raise error

    return function


def test_a_users_mistake_is_one_sentence_and_exit_code_2(monkeypatch, capsys):
    assert run_with(monkeypatch, fail_with(UserError("a.png is\n  empty; replace it."))) == 2
    assert capsys.readouterr().err == "error: a.png is empty; replace it.\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError(28, "No space left", "a.pth")])
def test_no_traceback_without_debug_and_one_with_it(monkeypatch, capsys, error):
    assert run_with(monkeypatch, fail_with(error)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert run_with(monkeypatch, fail_with(error), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_result_is_the_exit_code(monkeypatch):
    assert run_with(monkeypatch, lambda: None) == 0
    assert run_with(monkeypatch, lambda: 1) == 1
    assert run_with(monkeypatch, fail_with(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("function", [lambda: 0, fail_with(UserError("no."))])
def test_a_signal_does_not_garble_the_end_of_a_script(monkeypatch, function):
    run_with(monkeypatch, function)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (cli.positive_int, "0"),
        (cli.positive_int, "1.5"),
        (cli.natural, "-1"),
        (cli.positive_float, "nan"),
        (cli.positive_float, "inf"),
        (cli.positive_float, "0"),
        (cli.fraction, "1.01"),
        (cli.pixels, "0"),
        (cli.pixels, "1e3"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a (whole )?number"):
        kind(text)


def test_a_size_is_typed_width_first_and_taken_height_first():
    parser = cli.Parser("")
    cli.add_shared(parser.add_argument_group("network"), "--imgsz")
    assert parser.parse_args(["--imgsz", "640", "480"]).imgsz == (480, 640)
    assert parser.parse_args([]).imgsz is None


def test_a_shared_flag_takes_a_scripts_own_default_and_help():
    parser = cli.Parser("")
    cli.add_shared(parser, "--batch", default=7, help="own words")
    assert parser.parse_args([]).batch == 7
    assert "own words (default: 7)" in parser.format_help()
    assert cli.SHARED["--batch"]["default"] == 1


def test_numbers_within_range_pass():
    assert cli.positive_int("3") == 3
    assert cli.fraction("0") == 0.0
    assert cli.positive_float("1e-4") == 1e-4


def test_a_flag_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    def function():
        cli.Parser("What it does.").parse_args()

    assert run_with(monkeypatch, function, "--no-such-flag") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--no-such-flag" in said
    assert "python script.py --help" in said
