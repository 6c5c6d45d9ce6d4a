"""Train FasterViT for semantic segmentation.

The article's run, on its own data:
    python train.py --imgsz 512 512 --epochs 50 --lr 0.0001 --batch 2 --scheduler

Your own photographs and masks, on a laptop, from ImageNet weights that came with pip:
    python train.py --data input/my_leaves --recipe light

Cross-validation, whose five models together are one that knows how far to trust it:
    python train.py --data input/my_leaves --recipe light --folds 5 --out-dir outputs/cv

Go on where a run was stopped, with all its flags:
    python train.py --out-dir outputs --resume

Several GPUs of one machine, and again by itself when a process is lost:
    torchrun --nproc_per_node=4 --max-restarts=3 train.py --batch 8 --resume auto
"""

import argparse
import dataclasses
import math
import sys
import time

import common.environment  # noqa: F401 - first, to say what is not installed

import torch
from timm.utils import ModelEmaV3
from torch import nn

import engine
from common import cli, distributed
from common.device import choose_device, compute_repeatably, seed_everything
from common.distributed import say
from common.errors import UserError
from config import DataChoices, ModelConfig
from data.source import Source
from data.splits import by_part, everything_of
from inference.evaluation import (
    evaluate_pairs,
    example_pictures,
    format_table,
    least_sure,
    save_valid_picture,
    split_metrics,
)
from inference.predictor import Predictor
from models.checkpoint import read_checkpoint, save_checkpoint, versions
from models.pretrained import Start, licence_of, load_weights
from models.variants import normalisation
from reporting.report import write_report
from segmentation_model import build_model
from training.flags import (
    AUTO,
    class_weights,
    fold_args,
    parse_args,
    plain_args,
    resumed_checkpoint,
    settle_recipe,
)
from training.losses import Loss
from training.optimisation import freeze_backbone, lr_factor, make_optimizer
from training.precision import Precision
from training.preparation import Crops, Data, Split, divide, make_data, open_pairs
from training.run_files import fold_folder
from training.run_folder import RunFolder
from training.state import TrainingState, best_epoch, check_same_run
from trust.agreement import describe_all, severity_agreement, unmeasured
from trust.calibration import reliability_figures
from trust.familiarity import remember_pictures
from trust.folds import next_step, settle_folds


def main() -> int:
    args, saved = parse_args(sys.argv[1:], __doc__)
    if args.deterministic:
        compute_repeatably()
    device = choose_device(args.device)
    distributed.init(device)
    try:
        if args.folds or args.folds_file:
            return train_folds(args, device)
        return train_in(RunFolder(args.out_dir), args, saved, device)
    finally:
        distributed.shutdown()


def train_folds(args: argparse.Namespace, device: torch.device) -> int:
    """Cross-validation: a run a fold, each in a folder of its own, which together are a model.

    With --resume a fold that is finished is left alone and one that was stopped goes on.
    """
    numbers = range(args.folds) if args.fold is None else [args.fold]
    folders = {
        number: RunFolder(fold_folder(args.out_dir, number), args.out_dir) for number in numbers
    }
    if distributed.is_main() and args.resume in (None, AUTO) and not args.overwrite:
        for folder in folders.values():
            folder.refuse_if_used(begun_again=args.resume == AUTO)
    source, pairs = open_data_set(args)
    everything = everything_of(pairs)
    settle_recipe(args, [source.facts.size_of(pair) for pair in everything])
    division = (args.folds, args.groups, args.seed, args.folds_file)
    state = {"goes_on": args.resume is not None, "anew": args.overwrite and args.fold is None}
    folds = settle_folds(args.out_dir, everything, source, *division, **state)
    for number, folder in folders.items():
        own = fold_args(args, number)
        if own.resume is not None and folder.is_finished(own.epochs):
            say(f"Fold {number} is finished")
            continue
        say(f"FOLD: {number}, of 0 to {args.folds - 1}")
        split = by_part(everything, ["valid" if fold == number else "train" for fold in folds])
        saved = None if own.resume is None else read_checkpoint(folder.last)
        code = train_in(folder, own, saved, device, (source, split))
        if code:
            return code
    say(next_step(args.out_dir, args.folds, args.data))
    return 0


def train_in(
    folder: RunFolder,
    args: argparse.Namespace,
    saved: dict | None,
    device: torch.device,
    opened: tuple[Source, Split] | None = None,
) -> int:
    """Train one model into a folder that nobody else holds; returns the exit code.

    Args:
        opened: the data set and its pairs by split, where that is done.
    """
    try:
        with folder.lock():
            goes_on = distributed.is_main() and folder.holds(resumed_checkpoint(args))
            if distributed.is_main() and not args.overwrite and not goes_on:
                folder.refuse_if_used(begun_again=args.resume == AUTO)
            folder.check_shared(0 if saved is None else saved.get("epoch"))
            if opened is None:
                source, pairs = open_data_set(args)
                how = {"share": args.valid_share, "groups": args.groups, "seed": args.seed}
                how |= {"split_file": args.split_file, "resumed": resumed_checkpoint(args)}
                opened = source, divide(source, pairs, args.out_dir, **how)
            run(args, prepare_data(args, *opened), saved, device, folder)
    except KeyboardInterrupt:
        if distributed.is_main():
            print(f"\nInterrupted. {folder.how_to_go_on(args.resume)}", file=sys.stderr)
        return 130
    except OSError as error:
        raise UserError(f"{cli.explain(error)} {folder.how_to_go_on(args.resume)}") from error
    return 0


def run(
    args: argparse.Namespace,
    data: Data,
    saved: dict | None,
    device: torch.device,
    folder: RunFolder,
) -> None:
    """Everything from the model's first weights to the last checkpoint."""
    seed_everything(args.seed)
    state = prepare_state(args, data, saved, device)
    weights = class_weights(args.class_weights, data.train_loader.dataset, len(data.classes))
    criterion = Loss(args.loss, None if weights is None else weights.to(device))
    wrapped = distributed.wrap(state.model, device)
    if args.compile:
        wrapped = torch.compile(wrapped)
    folder.open(resumed_checkpoint(args), len(state.history), args.tensorboard)
    watch = engine.NonFiniteWatch(args.max_non_finite)
    for epoch in range(len(state.history) + 1, args.epochs + 1):
        if out_of_patience(args, state.history):
            break
        say(f"EPOCH: {epoch}")
        trained, valid = run_epoch(args, data, state, wrapped, criterion, watch)
        write_epoch(args, data, state, valid, folder)
        say_epoch(trained, valid, state.history[-1]["lr"] if args.scheduler else None)
    say("TRAINING COMPLETE")
    measure_best(args, data, state, folder)
    say(f"Results are in {args.out_dir}/, see report.html; the best model is best_model_iou.pth")


def open_data_set(args: argparse.Namespace) -> tuple[Source, Split]:
    """The data set, and the pairs of it that can be used, by split."""
    choices = DataChoices(**cli.data_choices(args))
    return open_pairs(args.data, choices, skip_bad=args.skip_bad, cache=not args.no_file_cache)


def prepare_data(args: argparse.Namespace, source: Source, pairs: Split) -> Data:
    """Make the pairs ready for the network, and settle what the recipe leaves to them."""
    settle_recipe(args, [source.facts.size_of(pair) for pair in pairs["train"]])
    say(f"{len(pairs['train'])} training and {len(pairs['valid'])} validation pairs in {args.data}")
    shape = (args.model, args.head, len(source.reader.classes), args.imgsz)
    look = {"window": args.window, "mask_reading": source.mask_reading}
    look |= {"choices": DataChoices(**cli.data_choices(args))}
    config = ModelConfig(*shape, *normalisation(args.model), **look)
    crops = Crops(args.photo_size, args.crop_rare) if args.crop else None
    options = {"augment": args.augment, "cache": args.cache, "batch": args.batch}
    options |= {"workers": args.workers, "seed": args.seed}
    return make_data(source, pairs, config, crops, **options)


def prepare_state(
    args: argparse.Namespace, data: Data, saved: dict | None, device: torch.device
) -> TrainingState:
    """Build the model with what moves its weights, as at a run's start or where it stopped."""
    config = data.config
    if saved is not None:
        flags = {name: getattr(args, name) for name in ("optimizer", "weights", "freeze")}
        check_same_run(saved, config, data.classes, flags, data.fingerprint)
    changes = {} if args.drop_path is None else {"drop_path_rate": args.drop_path}
    shape = (args.model, args.head, len(data.classes), args.window)
    model = build_model(*shape, resolution=config.input_size, **changes)
    start = Start("") if saved is None else Start("", licence_of(saved))
    for turn in (0, 1):  # the main process first: it may have to download them
        if saved is None and distributed.is_main() == (turn == 0):
            start = load_weights(model, args.model, args.weights)
            say(start.line)
        distributed.barrier()
    data.config = dataclasses.replace(config, weights_licence=start.licence)
    if args.freeze:
        freeze_backbone(model)
    seed_everything(args.seed + distributed.rank())  # processes drop different paths from here on
    look = {"mean": config.mean, "std": config.std}
    precision = Precision.choose(args.amp, device, args.channels_last, **look)
    model.to(device, memory_format=precision.order)
    optimizer = make_optimizer(model, args.optimizer, args.lr, args.weight_decay, args.head_lr_mult)
    # Warm-up: in a training of few steps the first weights would stay most of the average.
    ema = ModelEmaV3(model, decay=args.ema, use_warmup=True) if args.ema else None
    state = TrainingState(model, optimizer, precision, ema, started_from=start.line)
    if saved is not None:
        state.restore(saved)
        say(f"Going on after epoch {len(state.history)}")
    return state


def out_of_patience(args: argparse.Namespace, history: list[dict]) -> bool:
    """Whether --patience ends the run here; says so."""
    if not args.patience or not history:
        return False
    best = best_epoch(history, "miou")
    if len(history) - best < args.patience:
        return False
    say(
        f"No better validation mIoU since epoch {best}: stopping early. With a larger "
        "--patience the run can be resumed."
    )
    return True


def run_epoch(
    args: argparse.Namespace,
    data: Data,
    state: TrainingState,
    wrapped: nn.Module,
    criterion: Loss,
    watch: engine.NonFiniteWatch,
) -> tuple[dict, dict]:
    """Train once through the data, validate, and add the figures to the history.

    Returns:
        the figures of training and of validation.
    """
    started = time.time()
    epoch = len(state.history) + 1
    data.train_loader.batch_sampler.set_epoch(epoch)

    def set_lr(share: float) -> None:
        schedule = (args.epochs, args.scheduler, args.warmup, args.scheduler_epochs)
        factor = lr_factor(epoch - 1 + share, *schedule)
        for group in state.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    options = {"accumulate": args.accumulate, "clip_grad": args.clip_grad or None}
    options |= {"set_lr": set_lr, "ema": state.ema, "watch": watch}
    steps = math.ceil(len(data.train_loader) / args.accumulate)
    options["steps_before"] = (epoch - 1) * steps
    loop = (criterion, state.optimizer, state.precision, len(data.classes))
    trained = engine.train(wrapped, data.train_loader, *loop, **options)
    distributed.broadcast_buffers(state.eval_model)
    loop = (criterion, state.precision, len(data.classes))
    valid = engine.validate(state.eval_model, data.valid_loader, *loop)
    state.history.append(
        {"epoch": epoch, "lr": state.optimizer.param_groups[0]["lr"]}
        | {f"train_{name}": value for name, value in trained.items()}
        | {f"valid_{name}": value for name, value in valid.items()}
        | {"seconds": round(time.time() - started, 2)}
    )
    return trained, valid


def write_epoch(
    args: argparse.Namespace, data: Data, state: TrainingState, valid: dict, folder: RunFolder
) -> None:
    """Leave the epoch in the folder: figures, checkpoints, curves, a picture.

    Args:
        valid: the figures of validation.
    """
    plain = state.to_plain()  # of all processes, for their random numbers; the main one writes
    if not distributed.is_main():
        return
    epoch, saved = len(state.history), (state.eval_model, data.config, data.classes)
    record = {"epoch": epoch, "metrics": valid, "train_args": plain_args(args)}
    record["started_from"] = state.started_from
    folder.save_epoch(*saved, state.history, record)
    predictor = Predictor(*saved, device=state.precision.device)
    sheet = save_valid_picture(folder.picture(epoch), predictor, data.valid_loader.dataset)
    folder.log_to_board(state.history[-1], sheet)
    # Last of all: whatever was written for an epoch that this file does not know yet is
    # written again, the same, when the run goes on.
    record |= {"data_fingerprint": data.fingerprint, **plain}
    save_checkpoint(folder.last, *saved, **record)


def measure_best(
    args: argparse.Namespace, data: Data, state: TrainingState, folder: RunFolder
) -> None:
    """Measure the best model once more, now at each mask's own size, and write report.html."""
    distributed.barrier()  # the main process has written the best model
    device, best = str(state.precision.device), folder.best["miou"]
    if not best.is_file():
        raise UserError(
            f"{best} is not there, and no epoch was left that could be the best: copy it from the "
            "folder of the run, or give a larger --epochs."
        )
    predictor = Predictor.load(best, device=device)
    pairs = data.pairs["valid"]
    records, confusion = evaluate_pairs(predictor, pairs, data.reader)
    if not distributed.is_main():
        return
    metrics = split_metrics(records, confusion, predictor.classes)
    remember_pictures(best, predictor, [pair.image for pair in data.pairs["train"]])
    severity = severity_agreement(records, predictor.classes)
    size = "x".join(map(str, data.config.input_size[::-1]))
    print(f"The best model at each mask's own size (the epochs were measured at {size}):")
    print(format_table(metrics), describe_all(severity, predictor.classes), sep="\n")
    seconds = sum(row["seconds"] for row in state.history)
    pictures = len(state.history) * sum(len(part) for part in data.pairs.values())
    facts = {
        "started from": state.started_from,
        "licence of the weights": data.config.weights_licence or "the user's own",
        "device": device,
        "processes": distributed.world_size(),
        "training minutes": round(seconds / 60, 1),
        "pictures a second, validation included": round(pictures / seconds, 2),
    }
    write_report(
        folder.report,
        title=f"Training of {args.model}, {args.head} head",
        classes=predictor.classes,
        metrics=metrics,
        severity=severity,
        severity_note=unmeasured(severity, predictor.classes),
        reliability=reliability_figures(records, predictor.classes),
        doubtful=least_sure(records),
        history=state.history,
        samples=example_pictures([predictor] * len(pairs), pairs, data.reader, records),
        settings=plain_args(args),
        facts=facts | versions(),
    )


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


if __name__ == "__main__":
    cli.run(main)
