"""Train FasterViT for semantic segmentation.

The article's run, on its own data:
    python train.py --imgsz 512 512 --epochs 50 --lr 0.0001 --batch 2 --scheduler

Your own photographs and masks, without ImageNet weights, on a laptop:
    python train.py --data input/my_leaves --recipe scratch

Go on where a run was stopped, with all its flags:
    python train.py --out-dir outputs --resume

Several GPUs of one machine:
    torchrun --nproc_per_node=4 train.py --imgsz 512 512 --batch 8
"""

import argparse
import csv
import io
import json
import math
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

import cli
import distributed
import engine
from checkpoint import load_weights, read_checkpoint, save_checkpoint, versions
from config import DEFAULT_DATA, DEFAULT_OUT_DIR, ClassTable, ModelConfig
from datasets import (
    MaskReader,
    SegmentationDataset,
    check_pairs,
    data_fingerprint,
    find_pairs,
    input_size,
    make_loader,
)
from errors import UserError
from evaluation import evaluate_pairs, samples, summarise, table, without_nan
from files import lock_folder, replacing, write_text
from images import read_image, write_image
from losses import LOSSES, make_criterion
from predictor import Predictor
from pretrained import load_exactly
from report import write_report
from segmentation_model import HEADS, VARIANTS, build_model, window_without_padding
from utils import choose_device, fit_within, overlay, plot_curves, seed_everything, side_by_side

BEST = {"miou": "best_model_iou.pth", "loss": "best_model_loss.pth"}
# What a run leaves in its folder, and all that --overwrite removes.
PRODUCTS = (*BEST.values(), "model.pth", "last.pth", "history.csv",
            "log.jsonl", "loss.png", "accuracy.png", "miou.png", "report.html")  # fmt: skip
# Flags that were found together, by measurement (docs/results.md); each can be given anew.
RECIPES = {
    "scratch": {
        "head": "pyramid", "weights": "none", "imgsz": None, "epochs": 10, "batch": 4,
        "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "scheduler": "cosine",
        "warmup": 1.0, "drop_path": 0.0, "loss": "ce+dice", "cache": "ram",
    },
}  # fmt: skip
# Pixels of the network's input where the recipe leaves its size to the photographs' proportions.
RECIPE_PIXELS = 320 * 160
# Flags of one call, not of the run: a resumed run takes all others from its checkpoint.
CALL_FLAGS = ("resume", "overwrite", "out_dir", "debug", "device", "workers")


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_device()
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="scratch: without ImageNet weights, few pictures, a small machine; sets "
        "the defaults of the flags below",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        default=DEFAULT_DATA,
        metavar="ROOT",
        help="folder with train_images, train_masks, valid_images, valid_masks",
    )
    data.add_argument(
        "--imgsz",
        nargs=2,
        type=cli.number(int, 32, 16384),
        default=[512, 512],
        metavar=("WIDTH", "HEIGHT"),
        help="size of the network's input; a recipe's follows the photographs' proportions",
    )
    data.add_argument(
        "--augment",
        choices=("article", "strong", "none"),
        default="article",
        help="article: flip, brightness, rotation; strong: scale, crop and blur too",
    )
    data.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out and list pairs that cannot be read, rather than stop",
    )
    data.add_argument(
        "--cache",
        choices=("none", "ram"),
        default="none",
        help="ram: keep the decoded, resized pictures in memory",
    )
    data.add_argument("--workers", type=cli.natural, default=2, help="processes that load data")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", choices=VARIANTS, default="faster_vit_0", help="backbone", metavar="VARIANT"
    )
    model.add_argument("--head", choices=HEADS, default="article", help="decode head")
    model.add_argument(
        "--weights",
        metavar="PATH|none",
        help="weights to start from: a file, or none; ImageNet's if not given",
    )
    model.add_argument(
        "--window",
        type=cli.number(int, 2, 64),
        metavar="N",
        help="side of the attention windows, with --weights none alone; one that divides a 16th "
        "and a 32nd of --imgsz leaves nothing to pad; the variant's if not given",
    )
    model.add_argument(
        "--drop-path",
        type=cli.fraction,
        default=None,
        metavar="P",
        help="stochastic depth of the last block; the variant's if not given",
    )

    run = parser.add_argument_group("run")
    run.add_argument("--epochs", type=cli.positive_int, default=50, help="passes over the data")
    run.add_argument("--batch", type=cli.positive_int, default=2, help="pictures a step, a process")
    run.add_argument("--seed", type=cli.number(int, 0, 2**32 - 1), default=42, help="of everything")
    run.add_argument("--out-dir", type=Path, default=DEFAULT_OUT_DIR, help="folder for results")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --out-dir")
    run.add_argument(
        "--resume",
        nargs="?",
        const="",
        default=None,
        metavar="CHECKPOINT",
        help="go on from OUT_DIR/last.pth, or from another last.pth",
    )
    run.add_argument(
        "--patience",
        type=cli.positive_int,
        metavar="N",
        help="stop after N epochs without a better validation mIoU",
    )
    run.add_argument(
        "--max-non-finite",
        type=cli.positive_int,
        default=10,
        metavar="N",
        help="stop after N steps in a row whose loss is not finite",
    )

    step = parser.add_argument_group("optimisation")
    step.add_argument(
        "--optimizer", choices=("adam", "adamw", "sgd"), default="adam", help="method"
    )
    step.add_argument("--lr", type=cli.positive_float, default=1e-4, help="learning rate")
    step.add_argument(
        "--weight-decay",
        type=cli.number(float, 0),
        default=0.0,
        help="on all but norms, biases, position MLPs and layer scale",
    )
    step.add_argument(
        "--head-lr-mult",
        type=cli.positive_float,
        default=1.0,
        metavar="X",
        help="the head learns X times as fast as the backbone",
    )
    step.add_argument(
        "--scheduler",
        nargs="?",
        choices=("multistep", "cosine", "poly"),
        const="multistep",
        default=None,
        help="lower the learning rate; bare: the article's steps by a factor of 10",
    )
    step.add_argument(
        "--scheduler-epochs",
        nargs="+",
        type=cli.positive_int,
        default=[25, 30],
        metavar="EPOCH",
        help="epochs after which multistep lowers it",
    )
    step.add_argument(
        "--warmup",
        type=cli.number(float, 0),
        default=0.0,
        metavar="EPOCHS",
        help="epochs over which the learning rate rises from 0",
    )
    step.add_argument(
        "--accumulate",
        type=cli.positive_int,
        default=1,
        metavar="N",
        help="average the gradients of N batches into one step",
    )
    step.add_argument(
        "--clip-grad",
        type=cli.positive_float,
        metavar="NORM",
        help="largest norm of all gradients together",
    )
    step.add_argument(
        "--ema",
        type=cli.number(float, 0, 0.999999),
        metavar="DECAY",
        help="validate and save a moving average of the weights",
    )
    step.add_argument(
        "--loss",
        type=loss_names,
        default="ce",
        help=f"{', '.join(LOSSES)}, or a sum such as ce+dice",
    )
    step.add_argument(
        "--class-weights",
        metavar="auto|W1,W2,...",
        help="how much each class counts; auto: rare ones more",
    )

    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="mixed precision; auto is off on the CPU",
    )
    speed.add_argument("--channels-last", action="store_true", help="memory order for GPUs")
    speed.add_argument("--compile", action="store_true", help="use torch.compile")
    speed.add_argument(
        "--tensorboard", action="store_true", help="write scalars and pictures there"
    )
    return parser


def apply_recipe(parser: cli.Parser, argv: list[str]) -> cli.Parser:
    """Let the recipe that was asked for, if one was, set the defaults of all other flags."""
    name = parser.parse_args(argv).recipe
    if name is not None:
        parser.set_defaults(**RECIPES[name])
    return parser


def loss_names(text: str) -> str:
    """The argument type of --loss."""
    unknown = [name for name in text.split("+") if name not in LOSSES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(LOSSES)}")
    return text


def parse_args(argv: list[str]) -> tuple[argparse.Namespace, dict | None]:
    """Flags, and the checkpoint that the run goes on from, whose flags hold unless given anew."""
    parser = apply_recipe(make_parser(), argv)
    args = parser.parse_args(argv)
    if args.resume is None:
        return args, None
    path = Path(args.resume) if args.resume else args.out_dir / "last.pth"
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
    args = parser.parse_args([*as_flags(content.get("train_args")), *argv])
    return args, content


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


def refuse_used_folder(out_dir: Path) -> None:
    """Never replace a run unasked.

    Raises:
        UserError: the folder holds one.
    """
    if any((out_dir / name).exists() for name in PRODUCTS):
        resume = "pass --resume to go on, " if (out_dir / "last.pth").is_file() else "pass "
        raise UserError(
            f"{out_dir}/ already holds a run ({describe_run(out_dir)}): {resume}"
            "--overwrite to replace it, or another --out-dir."
        )


def check_shared_disk(out_dir: Path, token: str) -> None:
    """See that all processes find the folder that the main one holds.

    Raises:
        UserError: another machine has a folder of its own there.
    """
    distributed.barrier()
    lock = out_dir / ".lock"
    if not distributed.is_main():
        token = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    if len(set(distributed.gather(token))) > 1:
        raise UserError(
            f"{out_dir} is not the same folder for all processes; machines that share a run need "
            "an --out-dir on a disk that they share."
        )


def goes_on_in_place(args: argparse.Namespace) -> bool:
    """Whether the run is resumed in its own folder, which is there."""
    if args.resume is None:
        return False
    return not args.resume or Path(args.resume).parent.samefile(args.out_dir)


def bring_best(source: Path, out_dir: Path) -> None:
    """Take the best checkpoints along when a run goes on in another folder."""
    for name in BEST.values():
        if not (source / name).is_file():
            print(f"{source / name} is not there: the best of the epochs to come takes its place.")
            continue
        with replacing(out_dir / name) as temporary:
            shutil.copyfile(source / name, temporary)


def clear_folder(out_dir: Path) -> None:
    """Remove an earlier run; called when nothing but training itself can go wrong any more."""
    for path in [out_dir / name for name in PRODUCTS]:
        path.unlink(missing_ok=True)
    for pattern in ("valid_preds/epoch_*.jpg", "tensorboard/events.out.tfevents.*"):
        for path in out_dir.glob(pattern):
            path.unlink()


def describe_run(out_dir: Path) -> str:
    """What a folder's run reached, for a message."""
    history = out_dir / "history.csv"
    if not history.is_file():
        return "no epoch finished"
    try:
        with open(history, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        best = max((float(row["valid_miou"]) for row in rows), default=math.nan)
    except (KeyError, TypeError, ValueError, csv.Error):
        return "with a history.csv of another program"
    return f"epoch {len(rows)}, best mIoU {best:.4f}"


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Four groups: backbone and head, with and without weight decay."""
    groups = []
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for in_head in (False, True):
        for decayed in (True, False):
            members = [
                p for name, p in named
                if is_head(name) == in_head and (p.ndim > 1 and ".cpb_mlp." not in name) == decayed
            ]  # fmt: skip
            if members:
                lr = args.lr * (args.head_lr_mult if in_head else 1)
                decay = args.weight_decay if decayed else 0.0
                groups.append({"params": members, "lr": lr, "base_lr": lr, "weight_decay": decay})
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    # One pass over the weights instead of a dozen: a quarter of the time on the CPU.
    return kind(groups, fused=True)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the segmentation head rather than to the backbone."""
    return name.startswith(("upsample_and_classify.", "conv2d_block", "pyramid_head."))


def lr_factor(done: float, args: argparse.Namespace) -> float:
    """The learning rate's factor after `done` epochs, a fraction within one: a pure function.

    It needs no state, so a resumed run cannot lose it; `--epochs` stretches cosine and poly.
    """
    rise = min(1.0, (done + 1e-3) / args.warmup) if args.warmup else 1.0
    left = max(0.0, 1 - max(0.0, done - args.warmup) / max(args.epochs - args.warmup, 1e-9))
    if args.scheduler == "multistep":
        return rise * 0.1 ** sum(done >= epoch for epoch in args.scheduler_epochs)
    if args.scheduler == "cosine":
        return rise * 0.5 * (1 - math.cos(math.pi * left))
    if args.scheduler == "poly":
        return rise * left**0.9
    return rise


def random_states() -> list[dict]:
    """The state of every generator of every process, as plain types."""
    kind, keys, *rest = np.random.get_state()
    own = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, keys.tolist(), *rest],
    }
    return distributed.gather(own)


def restore_random_states(states: list[dict]) -> None:
    """Put every generator back where `random_states` saw it."""
    if len(states) != distributed.world_size():
        return  # another number of processes draws other numbers anyway
    own = states[distributed.rank()]
    torch.set_rng_state(own["torch"])
    if torch.cuda.is_available():
        for device, state in zip(range(torch.cuda.device_count()), own["cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)
    kind, keys, *rest = own["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def check_same_run(saved: dict, args: argparse.Namespace, classes: ClassTable,
                   fingerprint: str) -> None:  # fmt: skip
    """Refuse to go on with what is not the same run.

    Raises:
        UserError: names the first difference.
    """
    config = saved["model_config"]
    differences = [
        ("--model", config["variant"], args.model),
        ("--head", config["head"], args.head),
        ("--window", config.get("window"), args.window),
        ("--imgsz", list(config["input_size"])[::-1], list(args.imgsz)),
        ("classes", saved["classes"]["names"], list(classes.names)),
        ("class colours", saved["classes"]["colors"], [list(color) for color in classes.colors]),
        ("--optimizer", saved["train_args"].get("optimizer"), args.optimizer),
        ("data files", saved["data_fingerprint"][:12], fingerprint[:12]),
    ]
    for what, then, now in differences:
        if then != now:
            raise UserError(
                f"The run to resume had {what} {then}, not {now}; give the same, or start a new "
                "run in another --out-dir (its weights can serve as --weights)."
            )


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


def write_history(out_dir: Path, history: list[dict], names: tuple[str, ...]) -> None:
    """history.csv holds figures only, so that equal runs have equal files; log.jsonl times too."""
    table = io.StringIO()
    columns = ["epoch", "lr"]
    columns += [f"{s}_{f}" for s in ("train", "valid") for f in ("loss", "pixel_accuracy", "miou")]
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns + [f"valid_iou_{name}" for name in names])
    for row in history:
        writer.writerow([row[column] for column in columns] + row["valid_iou"])
    write_text(out_dir / "history.csv", table.getvalue())
    lines = (json.dumps(without_nan(row)) + "\n" for row in history)
    write_text(out_dir / "log.jsonl", "".join(lines))
    for name, figure, title in (("loss.png", "loss", "loss"), ("miou.png", "miou", "mean IoU"),
                                ("accuracy.png", "pixel_accuracy", "pixel accuracy")):  # fmt: skip
        train, valid = (
            [row[f"{split}_{figure}"] for row in history] for split in ("train", "valid")
        )
        plot_curves(out_dir / name, train, valid, title)


def save_valid_picture(
    path: Path, predictor: Predictor, dataset: SegmentationDataset
) -> np.ndarray:
    """Photograph | truth | prediction of a few validation pictures, the same in every epoch."""
    chosen = np.linspace(0, len(dataset.pairs) - 1, min(4, len(dataset.pairs))).round().astype(int)
    rows = []
    for index in chosen:
        pair = dataset.pairs[index]
        image = read_image(pair.image)
        truth = dataset.reader.read(pair, image.shape[:2])
        mask = predictor.masks([image])[0]
        views = [
            image,
            overlay(image, truth, predictor.classes),
            overlay(image, mask, predictor.classes),
        ]
        rows.append([fit_within(view, 240, 320) for view in views])
    sheet = side_by_side(rows)
    write_image(path, sheet)
    return sheet


def tensorboard_writer() -> type:
    """The class of writers, whose construction begins a file.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs a package: pip install tensorboard") from error
    return SummaryWriter


def log_tensorboard(board, row: dict) -> None:
    """Write an epoch's figures, where there is a writer."""
    if board is not None:
        for name, value in row.items():
            if isinstance(value, float):
                board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])


def main() -> int:
    args, saved = parse_args(sys.argv[1:])
    device = distributed.init(choose_device(args.device))
    try:
        # Only the main process writes, so only it holds the folder.
        with lock_folder(args.out_dir, distributed.is_main()) as token:
            if distributed.is_main() and not args.overwrite and not goes_on_in_place(args):
                refuse_used_folder(args.out_dir)
            check_shared_disk(args.out_dir, token)
            run(args, saved, device)
    except KeyboardInterrupt:
        if distributed.is_main():
            print(f"\nInterrupted. {how_to_go_on(args)}", file=sys.stderr)
        return 130
    except OSError as error:
        raise UserError(f"{cli.explain(error)} {how_to_go_on(args)}") from error
    finally:
        distributed.shutdown()
    return 0


def how_to_go_on(args: argparse.Namespace) -> str:
    """What is safe after an interruption, and the command that goes on."""
    folder = shlex.quote(str(args.out_dir))
    if (args.out_dir / "last.pth").is_file():
        return (
            f"Every finished epoch is safe in {args.out_dir}/last.pth; go on from there with: "
            f"python train.py --out-dir {folder} --resume"
        )
    resume = f"--resume {shlex.quote(args.resume)} " if args.resume else ""
    return f"No epoch was finished; start again with {resume}--out-dir {folder} --overwrite."


def run(args: argparse.Namespace, saved: dict | None, device: torch.device) -> None:
    """Everything from the data to the last checkpoint."""
    main_process = distributed.is_main()
    say = print if main_process else (lambda *_: None)
    seed_everything(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    # Data
    reader = MaskReader.for_data(args.data)
    classes = reader.classes
    pairs = {split: find_pairs(args.data, split, args.skip_bad) for split in ("train", "valid")}
    say(reader.describe())
    checked = [check_pairs(pairs[split], reader, args.skip_bad) for split in pairs]
    fingerprint = data_fingerprint(args.data, checked)
    if args.imgsz is None:
        args.imgsz = list(input_size([pair.image for pair in checked[0]], RECIPE_PIXELS)[::-1])
        say(f"The network's input is {args.imgsz[0]}x{args.imgsz[1]}, as the photographs' shape is")
    size = (args.imgsz[1], args.imgsz[0])
    if args.recipe and args.window is None and args.weights == "none":
        args.window = window_without_padding(size)
        say(f"Attention windows of {args.window}x{args.window}, which this size pads least")
    say(f"{len(checked[0])} training and {len(checked[1])} validation pairs in {args.data}")
    config = ModelConfig(args.model, args.head, len(classes), size, window=args.window)
    train_set, valid_set = (
        SegmentationDataset(part, reader, size, config.mean, config.std, augment=augment,
                            seed=args.seed, cache=args.cache)
        for part, augment in zip(checked, (args.augment, "none"), strict=True)
    )  # fmt: skip
    if args.cache == "ram":
        say(f"The cache takes {train_set.cache_gib() + valid_set.cache_gib():.2f} GiB")
    shares = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    # On maps of one pixel BatchNorm needs two pictures.
    one_pixel = max(size) <= 32 and args.head == "pyramid"
    if one_pixel and min(args.batch, len(train_set)) == 1:
        raise UserError(
            f"One picture at {size[1]}x{size[0]} is too little for a step; use --batch 2 or a "
            "larger --imgsz."
        )
    train_loader = make_loader(
        train_set, args.batch, args.workers, train=True, seed=args.seed, drop_last=one_pixel,
        **shares,
    )  # fmt: skip
    valid_loader = make_loader(
        valid_set, args.batch, args.workers, train=False, seed=args.seed, **shares
    )

    # Model
    changes = {} if args.drop_path is None else {"drop_path_rate": args.drop_path}
    model = build_model(
        args.model, args.head, len(classes), args.window, resolution=size, **changes
    )
    origin = str(saved.get("started_from", "not recorded")) if saved is not None else ""
    for turn in (0, 1):  # the main process first: it may have to download them
        if saved is None and main_process == (turn == 0):
            origin = load_weights(model, args.model, args.weights)
            say(origin)
        distributed.barrier()
    seed_everything(args.seed + distributed.rank())  # processes drop different paths from here on
    model.to(device)
    precision = engine.Precision.choose(args.amp, device, args.channels_last)
    weights = class_weights(args.class_weights, train_set, len(classes))
    criterion = make_criterion(args.loss, None if weights is None else weights.to(device))
    optimizer = make_optimizer(model, args)
    ema = ModelEmaV3(model, decay=args.ema) if args.ema else None
    history: list[dict] = []
    started = [(group["base_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    if saved is not None:
        try:
            check_same_run(saved, args, classes, fingerprint)
            load_exactly(model, saved["live_model_state_dict"], Path("the run's checkpoint"))
            optimizer.load_state_dict(saved["optimizer"])
            if saved["scaler"] and precision.scaler.is_enabled():
                precision.scaler.load_state_dict(saved["scaler"])
            if ema is not None:  # one that is new begins with the run's weights
                average = saved["ema"] or saved["live_model_state_dict"]
                load_exactly(ema.module, average, Path("the run's checkpoint"))
            restore_random_states(saved["random_states"])
            history = saved["history"]
            best_epoch(history, "miou")
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError,
                AttributeError) as error:  # fmt: skip
            raise UserError(
                f"The run cannot go on, because its checkpoint is incomplete or damaged "
                f"({type(error).__name__}); start a new one, its best_model_iou.pth can serve as "
                "--weights."
            ) from error
        # Of the flags that were given anew, not of the checkpoint.
        for group, (lr, decay) in zip(optimizer.param_groups, started, strict=True):
            group["base_lr"], group["weight_decay"] = lr, decay
        say(f"Going on after epoch {len(history)}")
    wrapped = distributed.wrap(model, device)
    if args.compile:
        wrapped = torch.compile(wrapped)
    judged = ema.module if ema is not None else model  # the weights that are measured and saved

    writer = tensorboard_writer() if main_process and args.tensorboard else None
    if main_process and not goes_on_in_place(args):
        clear_folder(args.out_dir)
        if saved is not None:
            bring_best(Path(args.resume).parent, args.out_dir)
    board = writer(args.out_dir / "tensorboard") if writer is not None else None

    # Epochs
    watch = engine.NonFiniteWatch(args.max_non_finite)
    for epoch in range(len(history) + 1, args.epochs + 1):
        best = best_epoch(history, "miou") if history else epoch
        if args.patience and epoch - 1 - best >= args.patience:
            say(f"No better validation mIoU since epoch {best}: stopping early. With a larger "
                "--patience the run can be resumed.")  # fmt: skip
            break
        started = time.time()
        say(f"EPOCH: {epoch}")
        train_loader.batch_sampler.set_epoch(epoch)

        def set_lr(share: float, epoch: int = epoch) -> None:
            factor = lr_factor(epoch - 1 + share, args)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

        trained = engine.train(
            wrapped, train_loader, criterion, optimizer, precision, len(classes), set_lr=set_lr,
            accumulate=args.accumulate, clip_grad=args.clip_grad, ema=ema,
            watch=watch,
        )  # fmt: skip
        distributed.broadcast_buffers(judged)
        valid = engine.validate(judged, valid_loader, criterion, precision, len(classes))
        history.append(
            {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
            | {f"train_{name}": value for name, value in trained.items()}
            | {f"valid_{name}": value for name, value in valid.items()}
            | {"seconds": round(time.time() - started, 2)}
        )
        states = random_states()
        if main_process:
            log_tensorboard(board, history[-1])
            common = {"epoch": epoch, "metrics": valid, "train_args": plain_args(args),
                      "started_from": origin}  # fmt: skip
            save_epoch(args.out_dir, judged, config, classes, history, common)
            predictor = Predictor(judged, config, classes, device=device)
            picture = args.out_dir / "valid_preds" / f"epoch_{epoch:03d}.jpg"
            sheet = save_valid_picture(picture, predictor, valid_set)
            if board is not None:
                board.add_image("valid_preds", sheet, epoch, dataformats="HWC")
                board.flush()
            # Last of all: whatever was written for an epoch that this file does not know yet is
            # written again, the same, when the run goes on.
            save_checkpoint(
                args.out_dir / "last.pth", judged, config, classes, **common,
                live_model_state_dict=model.state_dict(), optimizer=optimizer.state_dict(),
                scaler=precision.scaler.state_dict(), history=history, random_states=states,
                ema=None if ema is None else ema.module.state_dict(),
                data_fingerprint=fingerprint,
            )  # fmt: skip
            say_epoch(trained, valid, optimizer.param_groups[0]["lr"] if args.scheduler else None)
    say("TRAINING COMPLETE")
    report(args, dict(zip(pairs, checked, strict=True)), reader, history, device, origin)
    say(f"Results are in {args.out_dir}/, see report.html; the best model is best_model_iou.pth")


def report(args: argparse.Namespace, pairs: dict[str, list], reader: MaskReader,
           history: list[dict], device: torch.device, origin: str) -> None:  # fmt: skip
    """Measure the best model once more, now at each mask's own size, and write report.html."""
    distributed.barrier()  # the main process has written the best model
    predictor = Predictor.load(args.out_dir / "best_model_iou.pth", device=str(device))
    records = evaluate_pairs(predictor, pairs["valid"], reader)
    if not distributed.is_main():
        return
    metrics = summarise(records, predictor.classes)
    print(table(metrics))
    seconds = sum(row["seconds"] for row in history)
    pictures = len(history) * (len(pairs["train"]) + len(pairs["valid"]))
    write_report(
        args.out_dir / "report.html", title=f"Training of {args.model}, {args.head} head",
        classes=predictor.classes, metrics=metrics, history=history,
        samples=samples(predictor, pairs["valid"], reader, records), settings=plain_args(args),
        facts={"started from": origin, "device": str(device), "processes": distributed.world_size(),
               "training minutes": round(seconds / 60, 1),
               "pictures a second, validation included": round(pictures / seconds, 2),
               **versions()},
    )  # fmt: skip


def save_epoch(out_dir: Path, model: nn.Module, config: ModelConfig, classes: ClassTable,
               history: list[dict], common: dict) -> None:  # fmt: skip
    """Write the epoch's checkpoints, the best ones where it is the best so far, and the curves."""
    for (figure, file), word in zip(BEST.items(), ("IoU", "loss"), strict=True):
        if best_epoch(history, figure) == len(history) or not (out_dir / file).exists():
            print(f"\nBest validation {word}: {history[-1][f'valid_{figure}']}")
            print(f"\nSaving best model for epoch: {len(history)}\n")
            save_checkpoint(out_dir / file, model, config, classes, **common)
    save_checkpoint(out_dir / "model.pth", model, config, classes, **common)
    write_history(out_dir, history, classes.names)


def best_epoch(history: list[dict], figure: str) -> int:
    """The first epoch with the highest mIoU or the lowest loss; a NaN is never the best."""
    sign = -1 if figure == "loss" else 1
    values = [sign * row[f"valid_{figure}"] for row in history]
    return 1 + max(range(len(values)), key=lambda i: (values[i] == values[i], values[i], -i))


def say_epoch(trained: dict, valid: dict, lr: float | None) -> None:
    """The epoch's figures in the article's words."""
    for word, figures in (("Train", trained), ("Valid", valid)):
        print(
            f"{word} Epoch Loss: {figures['loss']:.4f}, {word} Epoch PixAcc: "
            f"{figures['pixel_accuracy']:.4f}, {word} Epoch mIOU: {figures['miou']:.6f}"
        )
    if lr is not None:
        print(f"Learning rate of group 0: {lr:.4e}")
    print("-" * 50)


def plain_args(args: argparse.Namespace) -> dict:
    """The flags as plain types."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


if __name__ == "__main__":
    cli.run(main)
