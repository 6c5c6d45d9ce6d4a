"""What all command lines share: checked argument types, the usual flags, errors in one sentence."""

import argparse
import io
import math
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from common.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose --help opens with the script's own docstring, examples included."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=_HelpFormatter, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """One sentence, as for all mistakes; thirty lines of flags above it would hide it."""
        self.exit(2, f"error: {message}; python {sys.argv[0]} --help shows what there is.\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines; adds defaults, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, "") or action.default is False:
            return action.help or ""
        return super()._get_help_string(action) or ""


class _HeightFirst(argparse.Action):
    """Keeps WIDTH HEIGHT, as one types a size, as the (height, width) that all code takes."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, (values[1], values[0]))


def number(
    kind: type, low: float, high: float = math.inf, *, open_low: bool = False
) -> Callable[[str], float]:
    """Make an argument type: a finite `kind` (int or float) from `low` to `high`."""
    what = "a whole number" if kind is int else "a number"
    above = "above" if open_low else "from"
    span = f"{above} {low:g} to {high:g}" if high < math.inf else f"{above} {low:g} up"

    def parse(text: str) -> float:
        try:
            value = kind(text)
            float(value)  # a whole number may be too long for one
        except (ValueError, OverflowError):
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high) or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {span}")
        return value

    return parse


# Kinds of devices that PyTorch computes on, if it was built for them.
DEVICE = re.compile(r"auto|(cpu|cuda|hpu|mps|mtia|xla|xpu)(:[0-9]{1,3})?")


def unusable_device(name: str) -> UserError:
    """What is said of a --device that is none here."""
    return UserError(f"--device {name} cannot be used here; try --device cpu.")


def check_device_name(name: str) -> None:
    """Look at a --device as far as that goes without PyTorch, which takes seconds to import.

    Raises:
        UserError: no device has such a name.
    """
    if not DEVICE.fullmatch(name):
        raise unusable_device(name)


pixels = number(int, 32, 16384)  # a side of the network's input
positive_int = number(int, 1)
natural = number(int, 0)
positive_float = number(float, 0, open_low=True)
fraction = number(float, 0, 1)

# Flags that mean the same in several scripts. Each takes those it wants; its own default and help
# win where they differ.
SHARED = {
    "--amp": {"choices": ("auto", "bf16", "fp16", "off")},
    "--batch": {"type": positive_int, "default": 1, "help": "pictures a pass"},
    "--data": {"type": Path, "metavar": "ROOT", "help": "data set, see docs/data.md"},
    "--deterministic": {
        "action": argparse.BooleanOptionalAction,
        "default": False,
        "help": "the same bits in every run on the same GPU, but slower; products are made in TF32 "
        "with or without it, where a GPU can",
    },
    "--device": {"default": "auto", "metavar": "D", "help": "auto, cpu, cuda, cuda:1, mps"},
    "--groups": {"metavar": "PATTERN|CSV"},
    "--imgsz": {
        "nargs": 2,
        "type": pixels,
        "action": _HeightFirst,
        "metavar": ("WIDTH", "HEIGHT"),
        "help": "network's input; the training's if not given",
    },
    "--keep-aspect": {"action": "store_true", "help": "pad rather than stretch"},
    "--model": {
        "nargs": "+",
        "type": Path,
        "required": True,
        "metavar": "MODEL",
        "help": "checkpoint, .onnx file or folder of folds; of several the mean",
    },
    "--no-file-cache": {
        "action": "store_true",
        "help": "read every file of the data anew; keep nothing in the user's cache folder",
    },
    "--out-dir": {"type": Path, "help": "folder for results"},
    "--overlap": {
        "type": number(float, 0, 0.9),
        "help": "share of a tile that it shares with the next; 0.5 if not given, 0.25 for a model "
        "that was trained on crops",
    },
    "--overwrite": {"action": "store_true"},
    "--skip-bad": {"action": "store_true", "help": "leave out pictures that cannot be used"},
    "--split-file": {"type": Path, "metavar": "CSV"},
    "--tile": {
        "type": number(int, 32, 8192),
        "metavar": "SIZE",
        "help": "cut larger pictures into tiles of SIZE pixels, at full resolution; a model that "
        "was trained on crops does so by itself",
    },
    "--tta": {
        "action": "store_true",
        "help": "average over mirror images: four passes, not always better (docs/inference.md)",
    },
    "--window": {
        "type": number(int, 2, 64),
        "metavar": "N",
        "help": "side of the attention windows; the variant's if not given",
    },
    "--workers": {"type": positive_int, "default": 2},
}


def add_shared(parser: argparse._ActionsContainer, *flags: str, **own) -> None:
    """Declare flags of SHARED in a parser or in a group of it; what is the script's `own` wins."""
    for flag in flags:
        parser.add_argument(flag, **SHARED[flag] | own)


def add_data_flags(parser: argparse._ActionsContainer) -> None:
    """Declare what a person decides about annotations and classes."""
    add = parser.add_argument
    what = "classes that become one, as 'rust,spot=disease'; more of them after a semicolon"
    add("--merge", default="", metavar="RULES", help=what)
    what = "classes whose pixels count nowhere, with commas between them"
    add("--ignore", default="", metavar="NAMES", help=what)
    what = (
        "of COCO's and YOLO's shapes that overlap, the smaller one is on top, or the file's later"
    )
    add("--overlap", choices=("smaller", "file"), default="smaller", help=what)
    what = "YOLO lines of four corners are outlines, not turned boxes"
    add("--polygons", action="store_true", help=what)


def data_choices(args: argparse.Namespace) -> dict:
    """What `add_data_flags` says, as the keywords of `config.DataChoices`."""
    merge, ignore = (
        tuple(filter(None, map(str.strip, text.split(mark))))
        for text, mark in ((args.merge, ";"), (args.ignore, ","))
    )
    same = {"overlap": args.overlap, "polygons": args.polygons}
    return same | {"merge": merge, "ignore": ignore}


def add_prediction_flags(parser: Parser) -> argparse._ArgumentGroup:
    """Declare how pictures pass through the network, in a group of their own."""
    group = parser.add_argument_group("network")
    add_shared(group, "--imgsz", "--batch", "--keep-aspect", "--tile", "--overlap", "--tta")
    return group


def prediction_options(args: argparse.Namespace) -> dict:
    """What `add_prediction_flags` says beside --imgsz, as the predictor's keywords."""
    same = {name: getattr(args, name) for name in ("keep_aspect", "tile", "overlap", "batch")}
    return same | {"flips": args.tta}


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and turn what goes wrong into one sentence and an exit code.

    0: done (or what `main` returned). 2: a mistake the user can fix, or an error of ours (then the
    sentence asks for `--debug`). 130: interrupted by Ctrl-C.
    """
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, interrupt)
    for stream in (sys.stdout, sys.stderr):  # not every terminal can print every name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nInterrupted. What was finished is whole; start the same command again.\n"
        )
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        with suppress(OSError):  # nobody can be told: the terminal's own disk is full
            if debug:
                traceback.print_exc()
            print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        # Python's own end is at hand; torchrun sends SIGTERM just then when another process failed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(code or 0)


def interrupt(*_) -> None:
    """What SIGTERM does: the same as Ctrl-C, also under nohup, where SIGINT itself is ignored."""
    raise KeyboardInterrupt


def explain(error: Exception) -> str:
    """One sentence for any error: our own as they are, the system's with the file's name."""
    sentence = " ".join(_sentence(error).split())
    # Names in it may come from a stranger; what controls a terminal is shown, not obeyed.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in sentence)


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        what = f"{error.filename}: " * bool(error.filename) + str(error.strerror or error)
        return f"{what}. Nothing was half-written; put this right and retry."
    text = " ".join(str(error).split())[:300]
    if type(error).__name__.startswith("Dist") or "gloo/transport" in text:
        return "Another process of this run has ended, and without it this one cannot go on."
    if "deterministic" in text and "implementation" in text:
        return f"--deterministic cannot be kept: {text[:120]}. Leave it out."
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if full or "not enough memory" in text or "t allocate memory" in text:
        return f"The memory is too small ({text[:120]}): try a smaller --imgsz, --batch or --tile."
    return f"unexpected {type(error).__name__}: {text} (run again with --debug for the traceback)"
