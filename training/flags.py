"""The flags of a training: what they are, what a recipe and a resumed run make of them.

What must outlive the run is recorded in its checkpoints as plain types, and `--resume` reads it as
if it had been typed again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from common import cli, distributed
from common.errors import UserError
from config import DEFAULT_DATA, DEFAULT_OUT_DIR, Size
from data.splits import FOLDS_FILE, MAX_FOLDS, SEED, VALID_SHARE, Division
from datasets import SegmentationDataset, input_size
from models.backbone import window_without_padding
from models.checkpoint import read_checkpoint
from models.heads import HEADS
from models.timm_backbone import is_timm, similar_names
from models.variants import VARIANTS
from training.losses import LOSSES
from training.optimisation import OPTIMIZERS, SCHEDULERS
from training.run_files import LAST, checkpoints_of_folds, fold_folder

# Flags that were found together, by measurement (docs/results.md); each can be given anew.
RECIPES = {
    "light": {"model": "timm/tf_efficientnet_lite0", "imgsz": None, "epochs": 30, "batch": 4}
    | {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "scheduler": "cosine", "warmup": 1.0}
    | {"loss": "ce+dice", "clip_grad": 1.0, "ema": 0.97, "cache": "ram", "channels_last": True},
    # Of the literature (ConvNeXt, BEiT and ViTDet fine-tune alike); not measured on a GPU here.
    "finetune": {"head": "pyramid", "epochs": 100, "batch": 8, "augment": "strong", "ema": 0.999}
    | {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 0.05, "scheduler": "cosine", "warmup": 3.0}
    | {"head_lr_mult": 5.0, "loss": "ce+dice", "clip_grad": 1.0},
    "scratch": {"head": "pyramid", "weights": "none", "imgsz": None, "epochs": 10, "batch": 4}
    | {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "scheduler": "cosine", "warmup": 1.0}
    | {"drop_path": 0.0, "loss": "ce+dice", "clip_grad": 1.0, "cache": "ram"},
}
# Pixels of the network's input where the recipe leaves its size to the photographs' proportions.
RECIPE_PIXELS = 320 * 160
AUTO = "auto"  # of --resume: go on if there is something to go on from
# Flags of one call, not of the run: a resumed run takes all others from its checkpoint.
CALL_FLAGS = ("resume", "overwrite", "out_dir", "debug", "device", "workers")
CALL_FLAGS += ("fold", "folds_file", "split_file", "no_file_cache")

COUNT = {"type": cli.positive_int, "metavar": "N"}
SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}
NOT_NEGATIVE = {"type": cli.number(float, 0), "default": 0.0}


def make_parser(doc: str = "") -> cli.Parser:
    """The parser of train.py, whose --help opens with `doc`."""
    parser = cli.Parser(doc)
    cli.add_shared(parser, "--device", "--deterministic")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="light: few photographs, a laptop, weights that came with pip; finetune: a GPU, the "
        "published weights of --model; scratch: no weights; each sets defaults of the flags below",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_split_flags(parser.add_argument_group("splits"))
    add_model_flags(parser.add_argument_group("model"))
    add_run_flags(parser.add_argument_group("run"))
    add_optimisation_flags(parser.add_argument_group("optimisation"))
    add_speed_flags(parser.add_argument_group("speed"))
    return parser


def add_data_flags(group) -> None:
    cli.add_shared(group, "--data", default=DEFAULT_DATA)
    what = "size of the network's input; a recipe's follows the photographs' proportions"
    cli.add_shared(group, "--imgsz", default=(512, 512), help=what)
    group.add_argument(
        "--augment",
        choices=("article", "strong", "none"),
        default="article",
        help="article: flip, brightness, rotation; strong: scale, crop and blur too",
    )
    what = "learn from crops of --imgsz, at the photographs' own resolution; tiles measure"
    group.add_argument("--crop", **SWITCH, help=what)
    what = "with --crop, scale the photographs so that their longer side has PIXELS"
    group.add_argument("--photo-size", type=cli.pixels, metavar="PIXELS", help=what)
    what = "share of the crops that are centred on a rare class"
    group.add_argument("--crop-rare", type=cli.fraction, default=0.33, metavar="SHARE", help=what)
    what = "leave out and list pairs that cannot be read, rather than stop"
    cli.add_shared(group, "--skip-bad", **SWITCH, help=what)
    cli.add_data_flags(group)
    what = "ram: keep the decoded, resized pictures in memory; --crop keeps them on the disk"
    group.add_argument("--cache", choices=("none", "ram"), default="none", help=what)
    cli.add_shared(group, "--no-file-cache")
    cli.add_shared(group, "--workers", type=cli.natural, help="processes that load data")


def add_split_flags(group) -> None:
    what = (
        'pictures that must not part: a pattern on names with one group, such as "(.*)_\\d+", or '
    )
    what += "a CSV file with file and group; those that look alike if not given"
    cli.add_shared(group, "--groups", help=what)
    share, what = cli.number(float, 0.01, 0.9), "share to validate on, of data without splits"
    group.add_argument("--valid-share", type=share, default=VALID_SHARE, metavar="SHARE", help=what)
    what = "split.csv of an earlier run, whose pictures stay where they were"
    cli.add_shared(group, "--split-file", help=what)
    what = "cross-validation: train N models, each measured on pictures that it has not seen"
    group.add_argument("--folds", type=cli.number(int, 2, MAX_FOLDS), metavar="N", help=what)
    what = "train this fold alone, from 0 up, so that several machines can share"
    group.add_argument("--fold", type=cli.natural, metavar="NUMBER", help=what)
    what = "folds.csv to take rather than to divide the pictures anew"
    group.add_argument("--folds-file", type=Path, metavar="CSV", help=what)


def add_model_flags(group) -> None:
    add_backbone_flag(group)
    what = "decode head; pyramid is timm's backbones' only one, article FasterViT's if not given"
    group.add_argument("--head", choices=HEADS, help=what)
    what = "weights to start from: a file, or none; the published ones of ImageNet if not given"
    group.add_argument("--weights", metavar="PATH|none", help=what)
    cli.add_shared(
        group,
        "--window",
        help="side of the attention windows, with --weights none or a checkpoint that has the "
        "same; one that divides a 16th and a 32nd of --imgsz leaves nothing to pad; the variant's "
        "if not given",
    )
    what = "stochastic depth of the last block; the variant's if not given"
    group.add_argument("--drop-path", type=cli.fraction, metavar="P", help=what)
    what = "let only the head learn: faster, for very few pictures"
    group.add_argument("--freeze", choices=("backbone",), help=what)


def add_backbone_flag(group) -> None:
    what = "backbone: faster_vit_0 to 6, faster_vit_tiny, or timm/NAME[.TAG] as the Hub writes it"
    named = {"type": backbone_name, "default": "faster_vit_0", "metavar": "VARIANT"}
    group.add_argument("--model", **named, help=what)


def backbone_name(text: str) -> str:
    """The argument type of a backbone's name."""
    if text in VARIANTS or is_timm(text):
        return text
    similar = similar_names(text)
    advice = f"; did you mean {' or '.join(similar)}?" if similar else ""
    known = ", ".join(VARIANTS)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither timm/NAME of a model that timm has nor one of {known}{advice}"
    )


def add_run_flags(group) -> None:
    group.add_argument("--epochs", type=cli.positive_int, default=50, help="passes over the data")
    cli.add_shared(group, "--batch", default=2, help="pictures a step, a process")
    seeds = cli.number(int, 0, 2**32 - 1)
    group.add_argument("--seed", type=seeds, default=SEED, help="of everything")
    cli.add_shared(group, "--out-dir", default=DEFAULT_OUT_DIR)
    cli.add_shared(group, "--overwrite", help="replace the run in --out-dir")
    what = "go on from OUT_DIR/last.pth, or from another last.pth; auto: where there is one, and "
    what += "begin otherwise"
    group.add_argument("--resume", nargs="?", const="", metavar="CHECKPOINT|auto", help=what)
    what = "stop after N epochs without a better validation mIoU"
    group.add_argument("--patience", **COUNT, help=what)
    what = "stop after N steps in a row whose loss is not finite"
    group.add_argument("--max-non-finite", **COUNT, default=10, help=what)


def add_optimisation_flags(group) -> None:
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="method")
    group.add_argument("--lr", type=cli.positive_float, default=1e-4, help="learning rate")
    what = "on all but norms, biases, position MLPs and layer scale"
    group.add_argument("--weight-decay", **NOT_NEGATIVE, help=what)
    factor = {"type": cli.positive_float, "default": 1.0, "metavar": "X"}
    what = "the head learns X times as fast as the backbone"
    group.add_argument("--head-lr-mult", **factor, help=what)
    bare = {"nargs": "?", "const": "multistep"}
    what = "lower the learning rate; bare: the article's steps by a factor of 10"
    group.add_argument("--scheduler", **bare, choices=SCHEDULERS, help=what)
    epochs = {"nargs": "+", "type": cli.positive_int, "metavar": "EPOCH"}
    what = "epochs after which multistep lowers it"
    group.add_argument("--scheduler-epochs", **epochs, default=[25, 30], help=what)
    what = "epochs over which the learning rate rises from 0"
    group.add_argument("--warmup", **NOT_NEGATIVE, metavar="EPOCHS", help=what)
    what = "average the gradients of N batches into one step"
    group.add_argument("--accumulate", **COUNT, default=1, help=what)
    what = "largest norm of all gradients together; 0 leaves them as they are"
    group.add_argument("--clip-grad", **NOT_NEGATIVE, metavar="NORM", help=what)
    what = "validate and save a moving average of the weights; its decay rises to DECAY over the "
    what += "first steps"
    group.add_argument("--ema", type=cli.number(float, 0, 0.999999), metavar="DECAY", help=what)
    what = f"{', '.join(LOSSES)}, or a sum such as ce+dice"
    group.add_argument("--loss", type=loss_names, default="ce", help=what)
    what = "how much each class counts; auto: rare ones more"
    group.add_argument("--class-weights", metavar="auto|W1,W2,...", help=what)


def add_speed_flags(group) -> None:
    cli.add_shared(group, "--amp", default="auto", help="mixed precision; auto is off on the CPU")
    group.add_argument("--channels-last", **SWITCH, help="memory order of GPUs and of small nets")
    group.add_argument("--compile", **SWITCH, help="use torch.compile")
    group.add_argument("--tensorboard", **SWITCH, help="write scalars and pictures there")


def loss_names(text: str) -> str:
    """The argument type of --loss."""
    unknown = [name for name in text.split("+") if name not in LOSSES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(LOSSES)}")
    return text


def apply_recipe(parser: cli.Parser, argv: list[str]) -> cli.Parser:
    """Let the recipe that was asked for, if one was, set the defaults of all other flags.

    It is looked for by itself, so that --help, which ends the parsing, shows its defaults too.
    """
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--recipe", nargs="?")
    name = only.parse_known_args(argv)[0].recipe
    parser.set_defaults(**RECIPES.get(name, {}))
    return parser


def parse_args(argv: list[str], doc: str = "") -> tuple[argparse.Namespace, dict | None]:
    """Flags, and the checkpoint that the run goes on from, whose flags hold unless given anew."""
    args = apply_recipe(make_parser(doc), argv).parse_args(argv)
    if args.resume == AUTO:
        args.resume = ""
        if not resumed_checkpoint(args).is_file():
            args.resume = AUTO  # which is to begin, from here on
    path = resumed_checkpoint(args)
    if path is None:
        args.head = args.head or ("pyramid" if is_timm(args.model) else "article")
        return settle(args), None
    if not path.is_file():
        raise UserError(
            f"{path} is not there, so there is no run to resume; start it without --resume."
        )
    content = read_checkpoint(path)
    if "optimizer" not in content:
        raise UserError(
            f"{path} holds weights only; resume from a last.pth, or pass --weights {path}."
        )
    # As if typed again, in front of what was typed now: a stranger's numbers pass the same checks.
    # Without the recipe's defaults: what it sets today, a run of yesterday may not have had.
    resume = args.resume
    args = make_parser(doc).parse_args([*as_flags(content.get("train_args")), *argv])
    args.resume = resume
    return settle(args), content


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """Settle how many folds there are, and refuse flags that have no meaning together.

    Raises:
        UserError: flags contradict each other, or the folder.
    """
    if args.photo_size and not args.crop:
        raise UserError("--photo-size is the scale of crops: add --crop, or leave it out.")
    if args.split_file is not None and (args.folds or args.folds_file):
        raise UserError("--split-file divides into two; with --folds pass --folds-file instead.")
    if args.folds_file is not None:
        count = Division.read(args.folds_file, "fold").count
        if args.folds not in (None, count):
            raise UserError(f"{args.folds_file} has {count} folds, and not --folds {args.folds}.")
        args.folds = count
    if args.fold is not None and args.fold >= (args.folds or 0):
        raise UserError(
            f"--fold {args.fold} is not one of --folds {args.folds}, which are counted from 0."
            if args.folds
            else f"--fold {args.fold} needs --folds N, the number of all folds."
        )
    if args.folds and args.resume is not None:
        parent = args.out_dir.parent
        if args.resume not in ("", AUTO) or (parent / FOLDS_FILE).is_file():
            where = parent if (parent / FOLDS_FILE).is_file() else args.out_dir
            raise UserError(
                "One of several folds goes on from their common folder: give --out-dir "
                f"{where} --resume, with --fold NUMBER for one alone."
            )
    return args


def fold_args(args: argparse.Namespace, number: int) -> argparse.Namespace:
    """The flags of a fold's own run, which goes on only where there is something to go on from."""
    own = argparse.Namespace(**vars(args))
    own.fold, own.out_dir = number, fold_folder(args.out_dir, number)
    if args.resume is not None and not (own.out_dir / LAST).is_file():
        own.resume, own.overwrite = None, True  # no epoch was finished there
    return own


def resumed_checkpoint(args: argparse.Namespace) -> Path | None:
    """The file that the run goes on from; None for a new run, as AUTO's is once parsed.

    Of a folder of folds it is the first fold's that has one: its flags are those of all.
    """
    if args.resume in (None, AUTO):
        return None
    own = Path(args.resume) if args.resume else args.out_dir / LAST
    return own if args.resume or own.is_file() else next(checkpoints_of_folds(args.out_dir), own)


def plain_args(args: argparse.Namespace) -> dict:
    """The flags as checkpoints and reports record them: plain types, the input's width first."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return plain | {"imgsz": args.imgsz and list(args.imgsz[::-1])}


def as_flags(train_args: object) -> list[str]:
    """A checkpoint's flags as they are typed."""
    if not isinstance(train_args, dict):
        raise UserError("The checkpoint does not say with which flags its run was started.")
    known = {action.dest for action in make_parser()._actions} - {*CALL_FLAGS, "help"}
    flags = []
    for name, value in train_args.items():
        if name not in known or value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple):
            if not all(isinstance(part, int | float) for part in value):  # no flag among them
                raise UserError(f"The checkpoint's {flag} is not made of numbers; start a new run.")
            flags += [flag, *map(str, value)]
        elif isinstance(value, str | int | float):
            flags.append(flag if value is True else f"{flag}={value}")
    return flags


def settle_recipe(args: argparse.Namespace, sizes: list[Size]) -> None:
    """Make flags of what a recipe leaves to the pictures: the network's input and its windows.

    Once settled they are the run's, whatever pictures the folder holds when it is resumed.

    Args:
        sizes: (height, width) of the photographs to learn from.
    """
    if args.imgsz is None:
        args.imgsz = input_size(sizes, RECIPE_PIXELS)
        height, width = args.imgsz
        distributed.say(f"The network's input is {width}x{height}, as the photographs' shape is")
    begins = resumed_checkpoint(args) is None
    new = begins and args.window is None and args.weights == "none"
    if args.recipe and new and args.model in VARIANTS:
        args.window = window_without_padding(args.imgsz)
        windows = f"{args.window}x{args.window}"
        distributed.say(f"Attention windows of {windows}, which this size pads least")


def class_weights(
    text: str | None, dataset: SegmentationDataset, count: int
) -> torch.Tensor | None:
    """Parse --class-weights; "auto" is the inverse root of each class's share, mean 1.

    Raises:
        UserError: not one positive number a class.
    """
    if text is None:
        return None
    if text == "auto":
        pixels = dataset.class_pixels().astype(np.float64)
        seen = pixels > 0
        values = np.ones(count)  # a class that is nowhere must not outweigh those that are
        values[seen] = (pixels[seen] / pixels.sum()) ** -0.5
        values[seen] /= values[seen].mean()
    else:
        try:
            values = np.array([float(part) for part in text.split(",")])
        except ValueError:
            values = np.array([])
        if len(values) != count or not (np.isfinite(values) & (values > 0)).all():
            raise UserError(f"--class-weights {text} is not auto or {count} positive numbers.")
        values /= values.mean()
    return torch.tensor(values, dtype=torch.float32)
