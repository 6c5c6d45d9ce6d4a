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
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

import engine
from common import cli, distributed
from common.device import choose_device, seed_everything
from common.errors import UserError
from common.files import lock_folder
from config import DEFAULT_DATA, DEFAULT_OUT_DIR, ClassTable, ModelConfig, Size
from data.checks import check_pairs
from data.masks import MaskReader
from data.pairs import Pair, data_fingerprint, find_pairs
from datasets import SegmentationDataset, input_size, make_loader
from inference.evaluation import (
    evaluate_pairs,
    example_pictures,
    format_table,
    save_valid_picture,
    split_metrics,
)
from inference.predictor import Predictor
from models.checkpoint import read_checkpoint, save_checkpoint, versions
from models.heads import HEADS
from models.variants import VARIANTS
from reporting.report import write_report
from segmentation_model import build_model, load_weights, window_without_padding
from training.losses import LOSSES, Loss, make_criterion
from training.optimisation import OPTIMIZERS, SCHEDULERS, lr_factor, make_optimizer
from training.run_folder import (
    best_of_other_epochs,
    bring_best,
    check_shared_disk,
    clear_folder,
    refuse_used_folder,
    save_epoch,
)
from training.state import TrainingState, best_epoch, check_same_run

# Flags that were found together, by measurement (docs/results.md); each can be given anew.
RECIPES = {
    "scratch": {
        "head": "pyramid", "weights": "none", "imgsz": None, "epochs": 10, "batch": 4,
        "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "scheduler": "cosine",
        "warmup": 1.0, "drop_path": 0.0, "loss": "ce+dice", "clip_grad": 1.0, "cache": "ram",
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
        action=argparse.BooleanOptionalAction,
        default=False,
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
        help="side of the attention windows, with --weights none or a checkpoint that has the "
        "same; one that divides a 16th and a 32nd of --imgsz leaves nothing to pad; the variant's "
        "if not given",
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
    step.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="method")
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
        choices=SCHEDULERS,
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
        type=cli.number(float, 0),
        default=0.0,
        metavar="NORM",
        help="largest norm of all gradients together; 0 leaves them as they are",
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
    for flag, why in (
        ("--channels-last", "memory order for GPUs"),
        ("--compile", "use torch.compile"),
        ("--tensorboard", "write scalars and pictures there"),
    ):
        speed.add_argument(flag, action=argparse.BooleanOptionalAction, default=False, help=why)
    return parser


def apply_recipe(parser: cli.Parser, argv: list[str]) -> cli.Parser:
    """Let the recipe that was asked for, if one was, set the defaults of all other flags.

    It is looked for by itself, so that --help, which ends the parsing, shows its defaults too.
    """
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--recipe", nargs="?")
    name = only.parse_known_args(argv)[0].recipe
    parser.set_defaults(**RECIPES.get(name, {}))
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
    # Without the recipe's defaults: what it sets today, a run of yesterday may not have had.
    args = make_parser().parse_args([*as_flags(content.get("train_args")), *argv])
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


def goes_on_in_place(args: argparse.Namespace) -> bool:
    """Whether the run is resumed in its own folder, which is there."""
    if args.resume is None:
        return False
    return not args.resume or Path(args.resume).parent.samefile(args.out_dir)


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


@dataclass
class Data:
    """The pairs of both splits, and how they reach the model that `config` describes."""

    reader: MaskReader
    pairs: dict[str, list[Pair]]
    fingerprint: str
    config: ModelConfig
    train_set: SegmentationDataset
    valid_set: SegmentationDataset
    train_loader: DataLoader
    valid_loader: DataLoader

    @property
    def classes(self) -> ClassTable:
        return self.reader.classes


def say(text: str) -> None:
    """Print, once for all processes."""
    if distributed.is_main():
        print(text)


def run(args: argparse.Namespace, saved: dict | None, device: torch.device) -> None:
    """Everything from the data to the last checkpoint."""
    seed_everything(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    data = prepare_data(args)
    state = prepare_state(args, data, saved, device)
    weights = class_weights(args.class_weights, data.train_set, len(data.classes))
    criterion = make_criterion(args.loss, None if weights is None else weights.to(device))
    wrapped = distributed.wrap(state.model, device)
    if args.compile:
        wrapped = torch.compile(wrapped)
    board = open_folder(args)
    watch = engine.NonFiniteWatch(args.max_non_finite)
    replaced = set()
    if distributed.is_main():
        replaced = best_of_other_epochs(args.out_dir, len(state.history))
    for epoch in range(len(state.history) + 1, args.epochs + 1):
        if out_of_patience(args, state.history):
            break
        say(f"EPOCH: {epoch}")
        trained, valid = run_epoch(args, data, state, wrapped, criterion, watch)
        write_epoch(args, data, state, valid, board, replaced)
        say_epoch(trained, valid, state.history[-1]["lr"] if args.scheduler else None)
    say("TRAINING COMPLETE")
    report(args, data, state)
    say(f"Results are in {args.out_dir}/, see report.html; the best model is best_model_iou.pth")


def prepare_data(args: argparse.Namespace) -> Data:
    """Find and check the pairs, and settle what the recipe leaves to them."""
    reader = MaskReader.for_data(args.data)
    pairs = {split: find_pairs(args.data, split, args.skip_bad) for split in ("train", "valid")}
    say(reader.describe())
    pairs = {split: check_pairs(pairs[split], reader, args.skip_bad) for split in pairs}
    fingerprint = data_fingerprint(args.data, list(pairs.values()))
    size = settle_size(args, pairs["train"])
    say(f"{len(pairs['train'])} training and {len(pairs['valid'])} validation pairs in {args.data}")
    config = ModelConfig(args.model, args.head, len(reader.classes), size, window=args.window)
    train_set, valid_set = (
        SegmentationDataset(part, reader, size, config.mean, config.std, augment=augment,
                            seed=args.seed, cache=args.cache)
        for part, augment in zip(pairs.values(), (args.augment, "none"), strict=True)
    )  # fmt: skip
    if args.cache == "ram":
        say(f"The cache takes {train_set.cache_gib() + valid_set.cache_gib():.2f} GiB")
    # On maps of one pixel BatchNorm needs two pictures.
    one_pixel = max(size) <= 32 and args.head == "pyramid"
    if one_pixel and min(args.batch, len(train_set)) == 1:
        raise UserError(
            f"One picture at {size[1]}x{size[0]} is too little for a step; use --batch 2 or a "
            "larger --imgsz."
        )
    shares = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    train_loader = make_loader(train_set, args.batch, args.workers, train=True, seed=args.seed,
                               drop_last=one_pixel, **shares)  # fmt: skip
    valid_loader = make_loader(valid_set, args.batch, args.workers, train=False, seed=args.seed,
                               **shares)  # fmt: skip
    return Data(reader, pairs, fingerprint, config, train_set, valid_set, train_loader,
                valid_loader)  # fmt: skip


def settle_size(args: argparse.Namespace, train_pairs: list[Pair]) -> Size:
    """The network's input, (height, width); a recipe's input and windows become flags like others.

    Once settled they are the run's, whatever pictures the folder holds when it is resumed.
    """
    if args.imgsz is None:
        args.imgsz = list(input_size([pair.image for pair in train_pairs], RECIPE_PIXELS)[::-1])
        say(f"The network's input is {args.imgsz[0]}x{args.imgsz[1]}, as the photographs' shape is")
    size = (args.imgsz[1], args.imgsz[0])
    if args.recipe and args.resume is None and args.window is None and args.weights == "none":
        args.window = window_without_padding(size)
        say(f"Attention windows of {args.window}x{args.window}, which this size pads least")
    return size


def prepare_state(args: argparse.Namespace, data: Data, saved: dict | None,
                  device: torch.device) -> TrainingState:  # fmt: skip
    """Build the model with what moves its weights, as at a run's start or where it stopped."""
    if saved is not None:
        flags = {"optimizer": args.optimizer, "weights": args.weights}
        check_same_run(saved, data.config, data.classes, flags, data.fingerprint)
    changes = {} if args.drop_path is None else {"drop_path_rate": args.drop_path}
    model = build_model(args.model, args.head, len(data.classes), args.window,
                        resolution=data.config.input_size, **changes)  # fmt: skip
    origin = ""
    for turn in (0, 1):  # the main process first: it may have to download them
        if saved is None and distributed.is_main() == (turn == 0):
            origin = load_weights(model, args.model, args.weights)
            say(origin)
        distributed.barrier()
    seed_everything(args.seed + distributed.rank())  # processes drop different paths from here on
    model.to(device)
    optimizer = make_optimizer(model, args.optimizer, args.lr, args.weight_decay, args.head_lr_mult)
    ema = ModelEmaV3(model, decay=args.ema) if args.ema else None
    precision = engine.Precision.choose(args.amp, device, args.channels_last)
    state = TrainingState(model, optimizer, precision, ema, origin=origin)
    if saved is not None:
        state.restore(saved)
        say(f"Going on after epoch {len(state.history)}")
    return state


def open_folder(args: argparse.Namespace):
    """Make the folder ready, now that nothing but training itself can go wrong any more.

    An earlier run is cleared away, or the best of the one that goes on brought along.

    Returns:
        TensorBoard's writer in the main process, if it is asked for.
    """
    if not distributed.is_main():
        return None
    writer = tensorboard_writer() if args.tensorboard else None
    if not goes_on_in_place(args):
        clear_folder(args.out_dir)
        if args.resume:
            bring_best(Path(args.resume).parent, args.out_dir)
    return writer(args.out_dir / "tensorboard") if writer is not None else None


def out_of_patience(args: argparse.Namespace, history: list[dict]) -> bool:
    """Whether --patience ends the run here; says so."""
    if not args.patience or not history:
        return False
    best = best_epoch(history, "miou")
    if len(history) - best < args.patience:
        return False
    say(f"No better validation mIoU since epoch {best}: stopping early. With a larger "
        "--patience the run can be resumed.")  # fmt: skip
    return True


def run_epoch(args: argparse.Namespace, data: Data, state: TrainingState, wrapped: nn.Module,
              criterion: Loss, watch: engine.NonFiniteWatch) -> tuple[dict, dict]:  # fmt: skip
    """Train once through the data, validate, and add the figures to the history.

    Returns:
        the figures of training and of validation.
    """
    started = time.time()
    epoch = len(state.history) + 1
    data.train_loader.batch_sampler.set_epoch(epoch)

    def set_lr(share: float) -> None:
        factor = lr_factor(
            epoch - 1 + share, args.epochs, args.scheduler, args.warmup, args.scheduler_epochs
        )
        for group in state.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    trained = engine.train(
        wrapped, data.train_loader, criterion, state.optimizer, state.precision,
        len(data.classes), set_lr=set_lr, accumulate=args.accumulate,
        clip_grad=args.clip_grad or None, ema=state.ema, watch=watch,
    )  # fmt: skip
    distributed.broadcast_buffers(state.judged)
    valid = engine.validate(
        state.judged, data.valid_loader, criterion, state.precision, len(data.classes)
    )
    state.history.append(
        {"epoch": epoch, "lr": state.optimizer.param_groups[0]["lr"]}
        | {f"train_{name}": value for name, value in trained.items()}
        | {f"valid_{name}": value for name, value in valid.items()}
        | {"seconds": round(time.time() - started, 2)}
    )
    return trained, valid


def write_epoch(args: argparse.Namespace, data: Data, state: TrainingState, valid: dict,
                board, replaced: set[str]) -> None:  # fmt: skip
    """Leave the epoch in the folder: figures, checkpoints, curves, a picture.

    All processes call it, for the state of their random numbers; the main one writes.

    Args:
        valid: the figures of validation.
        board: TensorBoard's writer, or None.
        replaced: see `save_epoch`.
    """
    plain = state.to_plain()
    if not distributed.is_main():
        return
    model, epoch = state.judged, len(state.history)
    common = {"epoch": epoch, "metrics": valid, "train_args": plain_args(args),
              "started_from": state.origin}  # fmt: skip
    log_tensorboard(board, state.history[-1])
    save_epoch(args.out_dir, model, data.config, data.classes, state.history, common, replaced)
    predictor = Predictor(model, data.config, data.classes, device=state.precision.device)
    picture = args.out_dir / "valid_preds" / f"epoch_{epoch:03d}.jpg"
    sheet = save_valid_picture(picture, predictor, data.valid_set)
    if board is not None:
        board.add_image("valid_preds", sheet, epoch, dataformats="HWC")
        board.flush()
    # Last of all: whatever was written for an epoch that this file does not know yet is
    # written again, the same, when the run goes on.
    save_checkpoint(args.out_dir / "last.pth", model, data.config, data.classes, **common, **plain,
                    data_fingerprint=data.fingerprint)  # fmt: skip


def report(args: argparse.Namespace, data: Data, state: TrainingState) -> None:
    """Measure the best model once more, now at each mask's own size, and write report.html."""
    distributed.barrier()  # the main process has written the best model
    device, best = str(state.precision.device), args.out_dir / "best_model_iou.pth"
    if not best.is_file():
        raise UserError(
            f"{best} is not there, and no epoch was left that could be the best: copy it from the "
            "folder of the run, or give a larger --epochs."
        )
    predictor = Predictor.load(best, device=device)
    records = evaluate_pairs(predictor, data.pairs["valid"], data.reader)
    if not distributed.is_main():
        return
    metrics = split_metrics(records, predictor.classes)
    print(format_table(metrics))
    seconds = sum(row["seconds"] for row in state.history)
    pictures = len(state.history) * sum(len(part) for part in data.pairs.values())
    write_report(
        args.out_dir / "report.html", title=f"Training of {args.model}, {args.head} head",
        classes=predictor.classes, metrics=metrics, history=state.history,
        samples=example_pictures(predictor, data.pairs["valid"], data.reader, records),
        settings=plain_args(args),
        facts={"started from": state.origin, "device": device,
               "processes": distributed.world_size(),
               "training minutes": round(seconds / 60, 1),
               "pictures a second, validation included": round(pictures / seconds, 2),
               **versions()},
    )  # fmt: skip


def say_epoch(trained: dict, valid: dict, lr: float | None) -> None:
    """The epoch's figures in the article's words."""
    for word, figures in (("Train", trained), ("Valid", valid)):
        say(
            f"{word} Epoch Loss: {figures['loss']:.4f}, {word} Epoch PixAcc: "
            f"{figures['pixel_accuracy']:.4f}, {word} Epoch mIOU: {figures['miou']:.6f}"
        )
    if lr is not None:
        say(f"Learning rate of group 0: {lr:.4e}")
    say("-" * 50)


def plain_args(args: argparse.Namespace) -> dict:
    """The flags as plain types."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


if __name__ == "__main__":
    cli.run(main)
