"""Measure what a model costs: time, memory and operations, for inference and for a training step.

    python tools/benchmark.py                                   # FasterViT-0, 512x512, both modes
    python tools/benchmark.py --head article pyramid --compare  # beside the article's literal order
    python tools/benchmark.py --sizes 256 512 768 1024          # how cost grows with pixels
    python tools/benchmark.py --merged --compile --mode inference
    python tools/benchmark.py --checkpoint outputs/model.onnx   # onnxruntime against PyTorch

All that is compared runs in turns in one process, so that a busy machine slows down each alike.
"""

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common import cli
from common.device import choose_device, machine
from common.errors import UserError
from common.files import write_csv
from config import DEFAULT_OUT_DIR, ModelConfig, Size
from inference import onnx_model
from models.deploy import fold_batchnorm
from models.heads import HEADS, at_least_3x3, resize
from models.timm_backbone import is_timm
from segmentation_model import FasterViT, build_model, load_model
from training.flags import add_backbone_flag
from training.precision import Precision

CASE_COLUMNS = ("variant", "head", "run", "size", "batch", "device", "precision", "mode")
FIGURES = ("parameters", "gflop", "milliseconds", "images_per_second", "peak_memory_mib")
COLUMNS = CASE_COLUMNS + FIGURES


@dataclass(frozen=True)
class Case:
    """One row of the table: what runs, how, and on how much.

    Args:
        run: "eager", "merged" (as it predicts), "compiled", "literal" (the article's order) or
            "onnxruntime".
        size: (height, width).
        mode: "inference" or "train", a training step with Adam.
        amp: precision as `Precision.choose` names it.
        checkpoint: where the weights come from, None for random ones.
        window: side of the attention windows, None for the variant's.
    """

    run: str
    variant: str
    head: str
    num_classes: int
    size: Size
    batch: int
    mode: str
    device: str
    amp: str
    checkpoint: Path | None = None
    window: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells cases apart that are measured in turns."""
        return self.head, self.run

    @property
    def name(self) -> str:
        return f"{self.size[1]}x{self.size[0]} {self.mode} {self.head} {self.run}"


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device")
    add_backbone_flag(parser)
    what = f"decode heads: {', '.join(HEADS)} (default: the backbone's own)"
    parser.add_argument("--head", nargs="+", choices=HEADS, metavar="HEAD", help=what)
    cli.add_shared(parser, "--window")
    what = "a trained model, or an .onnx file to compare with PyTorch"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=what)
    sides = {"type": cli.number(int, 32, 65536), "nargs": "+", "metavar": "N"}
    what = "sides of square pictures (default: 512, or the checkpoint's size)"
    parser.add_argument("--sizes", **sides, help=what)
    what = "pictures at once (default: 1 for inference, 2 for training)"
    cli.add_shared(parser, "--batch", default=None, metavar="B", help=what)
    modes = ("inference", "train", "both")
    parser.add_argument("--mode", choices=modes, default="both", help="what is measured")
    cli.add_shared(parser, "--amp", default="off", help="precision of the matrix products")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile beside it")
    what = "measure beside it the model as it predicts, norms and branches merged, channels last"
    parser.add_argument("--merged", action="store_true", help=what)
    what = "measure the article's literal order of the same weights beside it"
    parser.add_argument("--compare", action="store_true", help=what)
    counts = {"type": cli.positive_int, "default": 5, "metavar": "N"}
    parser.add_argument("--repeats", **counts, help="measurements, whose median counts")
    table = {"type": Path, "default": DEFAULT_OUT_DIR / "benchmark.csv", "metavar": "FILE"}
    parser.add_argument("--out", **table, help="the table as CSV")
    return parser.parse_args()


class LiteralArticle(nn.Module):
    """The article's order on the weights of a model with its head, to measure against.

    Upsample each level to a quarter of the picture, concatenate, convolve, upsample, classify.
    """

    def __init__(self, model: FasterViT):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        _, features = self.model.forward_features(images)
        features[0] = self.model.conv2d_block1(at_least_3x3(features[0]))
        features[1] = self.model.conv2d_block2(at_least_3x3(features[1]))
        grid = (-(-H // 4), -(-W // 4))
        head = self.model.upsample_and_classify
        x = head[:-2](torch.cat([resize(feature, grid) for feature in features], dim=1))
        return head[-1](resize(x, (H, W)))


def build(case: Case) -> nn.Module | Callable[[Tensor], Tensor]:
    """The model of a case, with the weights of its checkpoint where it names one."""
    if case.run == "onnxruntime":
        return onnx_model.load(case.checkpoint, torch.device(case.device))[0]
    if case.checkpoint and case.checkpoint.suffix != ".onnx":
        loaded = load_model(case.checkpoint)
        if loaded.config.head == case.head:
            return wrap(loaded.model.to(case.device), case.run)
    model = build_model(case.variant, case.head, case.num_classes, case.window)
    return wrap(model.to(case.device), case.run)


def wrap(model: FasterViT, run: str) -> nn.Module:
    """The same weights run in another way."""
    if run == "literal":
        return LiteralArticle(model)
    if run == "merged":
        return fold_batchnorm(model).to(memory_format=torch.channels_last)
    return torch.compile(model, dynamic=False) if run == "compiled" else model


def make_step(model: Callable[[Tensor], Tensor], case: Case) -> Callable[[], None]:
    """What is timed: one inference or one training step on random pictures."""
    device = torch.device(case.device)
    precision = Precision.choose(case.amp, device)
    images = torch.randn(case.batch, 3, *case.size, device=device)

    def infer() -> None:
        with torch.inference_mode(), precision.autocast():
            model(images)

    if isinstance(model, nn.Module):
        model.train(case.mode == "train")
    if case.mode == "inference":
        return infer

    targets = torch.randint(case.num_classes, (case.batch, *case.size), device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)  # as train.py

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), targets)
        precision.scaler.scale(loss).backward()
        precision.scaler.step(optimizer)
        precision.scaler.update()

    return train


def synchronise(device: torch.device) -> None:
    """Wait for the device: a GPU's calls return before their work is done."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """The time that one step takes, its work on the device included."""
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def warm_up(step: Callable[[], None], case: Case) -> float | None:
    """Run a step for the first time, which is slower, and count its operations, in GFLOP.

    A multiplication and an addition count as two. What a compiler or onnxruntime does cannot be
    counted: None.
    """
    if case.run in ("compiled", "onnxruntime"):
        step()
        return None
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def peak_memory(case: Case) -> int | None:
    """The most memory, in bytes, that a fresh process needs for a case.

    On a GPU what PyTorch allocated there; on the CPU the process's largest resident size, PyTorch
    itself (about 0.3 GiB) included. None where the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_peak_memory_here, case, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"A process that ran {case.run} at {case.size[1]}x{case.size[0]} in batches of "
                f"{case.batch} was ended by the system, likely for want of memory; choose smaller "
                "--sizes or a smaller --batch."
            ) from error


def _peak_memory_here(case: Case, threads: int) -> int | None:
    torch.set_num_threads(threads)
    model = build(case)
    if case.mode == "train":  # the optimizer's state exists from the first step on
        small = Case(**(vars(case) | {"size": (64, 64)}))
        make_step(model, small)()
    make_step(model, case)()
    if torch.device(case.device).type == "cuda":
        return torch.cuda.max_memory_allocated(case.device)
    return _largest_resident_size()


def _largest_resident_size() -> int | None:
    """Of this process since its program started, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would hand on the size of the process that started us
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def time_cases(
    cases: list[Case], models: dict[tuple, Callable], repeats: int, bar: tqdm
) -> list[dict]:
    """Measure cases that differ in head and in how they run alone, in turns; one row each."""
    device = torch.device(cases[0].device)
    steps = {case.key: make_step(models[case.key], case) for case in cases}
    gflop, times = {}, {case.key: [] for case in cases}
    for case in cases:
        bar.set_description(case.name)
        gflop[case.key] = warm_up(steps[case.key], case)
        bar.update()
    for _ in range(repeats):
        for case in cases:
            bar.set_description(case.name)
            # Another's mode would switch off the weights that both share.
            if isinstance(models[case.key], nn.Module):
                models[case.key].train(case.mode == "train")
            times[case.key].append(seconds(steps[case.key], device))
            bar.update()
    del steps
    rows = []
    for case in cases:
        bar.set_description(f"{case.name} memory")
        rows.append(_row(case, models, gflop, statistics.median(times[case.key])))
        bar.update()
    return rows


def _row(case: Case, models: dict[tuple, Callable], gflop: dict, median: float) -> dict:
    memory = peak_memory(case)
    counted = case.key if case.run == "literal" else (case.head, "eager")
    parameters = sum(parameter.numel() for parameter in models[counted].parameters())
    dtype = Precision.choose(case.amp, torch.device(case.device)).dtype
    row = {name: vars(case).get(name) for name in CASE_COLUMNS}
    return row | {
        "size": f"{case.size[1]}x{case.size[0]}",
        "precision": "fp32" if dtype is None or case.run == "onnxruntime" else str(dtype)[6:],
        "parameters": parameters,
        "gflop": round(gflop[counted], 1),
        "milliseconds": round(median * 1e3, 2),
        "images_per_second": round(case.batch / median, 3),
        "peak_memory_mib": None if memory is None else round(memory / 2**20),
    }


def format_table(rows: list[dict]) -> str:
    """Rows as aligned columns."""

    def cell(value: object) -> str:
        return "-" if value is None else value if isinstance(value, str) else f"{value:,}"

    columns = [[name.replace("_", " ")] + [cell(row[name]) for row in rows] for name in COLUMNS]
    aligned = [[text.rjust(max(map(len, column))) for text in column] for column in columns]
    return "\n".join(map("  ".join, zip(*aligned, strict=True)))


def ratios(rows: list[dict]) -> list[str]:
    """Each way of running against the eager model, and how time grows with the pixels."""
    sentences = []
    eager = [row for row in rows if row["run"] == "eager"]
    for row, own in product((row for row in rows if row["run"] != "eager"), eager):
        # The literal order is the article's: other heads are held against it, too.
        names = ("size", "mode") if row["run"] == "literal" else ("size", "mode", "head")
        if any(row[name] != own[name] for name in names):
            continue
        text = f"{row['size']} {row['mode']}: {row['run']} / {own['head']} head eager: "
        text += f"time {row['milliseconds'] / own['milliseconds']:.2f}"
        if row["peak_memory_mib"]:
            text += f", peak memory {row['peak_memory_mib'] / own['peak_memory_mib']:.2f}"
        sentences.append(text)
    for head, mode in dict.fromkeys((row["head"], row["mode"]) for row in eager):
        of_mode = [row for row in eager if (row["head"], row["mode"]) == (head, mode)]
        per_pixel = [r["milliseconds"] / math.prod(map(int, r["size"].split("x"))) for r in of_mode]
        sentences += [
            f"{head} head, {mode}: time per pixel at {row['size']} / {of_mode[0]['size']}: "
            f"{value / per_pixel[0]:.2f}"
            for row, value in zip(of_mode[1:], per_pixel[1:], strict=True)
        ]
    return sentences


def plan(args: argparse.Namespace, config: ModelConfig, device: torch.device) -> list[list[Case]]:
    """The cases, those together that are measured in turns."""
    onnx = args.checkpoint is not None and args.checkpoint.suffix == ".onnx"
    heads = args.head if args.head and args.checkpoint is None else [config.head]
    runs = (
        ["eager"] + ["merged"] * args.merged + ["compiled"] * args.compile + ["onnxruntime"] * onnx
    )
    ways = [(head, run) for head in heads for run in runs]
    ways += [("article", "literal")] * args.compare
    modes = ("inference", "train") if args.mode == "both" else (args.mode,)
    modes = ("inference",) if onnx else modes
    sizes = [(side, side) for side in args.sizes] if args.sizes else [config.input_size]
    batches = {mode: args.batch or {"inference": 1, "train": 2}[mode] for mode in modes}
    same = {"variant": config.variant, "num_classes": config.num_classes, "device": str(device)}
    same |= {"amp": args.amp, "checkpoint": args.checkpoint, "window": args.window}
    cases = [
        same | {"size": size, "batch": batches[mode], "mode": mode}
        for mode, size in product(modes, sizes)
    ]
    groups = [[Case(run, head=head, **case) for head, run in ways] for case in cases]
    # What is merged cannot be trained.
    return [[c for c in group if (c.run, c.mode) != ("merged", "train")] for group in groups]


def config_of(args: argparse.Namespace) -> ModelConfig:
    """The model that the flags or the checkpoint name."""
    if args.checkpoint is None:
        return ModelConfig(args.model, "pyramid" if is_timm(args.model) else "article")
    if args.checkpoint.suffix == ".onnx":
        return onnx_model.load(args.checkpoint, torch.device("cpu"))[1]
    return load_model(args.checkpoint).config


def main() -> None:
    args = parse_args()
    device, config = choose_device(args.device), config_of(args)
    groups = plan(args, config, device)
    print(machine())
    models = {}
    for case in groups[0]:
        eager = models.get((case.head, "eager"))
        shares = eager is not None and case.run != "onnxruntime"
        models[case.key] = wrap(eager, case.run) if shares else build(case)
    rows = []
    total = sum(len(group) * (args.repeats + 2) for group in groups)
    with tqdm(total=total, dynamic_ncols=True) as bar:
        for group in groups:
            try:
                rows += time_cases(group, models, args.repeats, bar)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{group[0].size[1]}x{group[0].size[0]} in batches of {group[0].batch} does "
                    f"not fit into the memory of {device}; choose smaller --sizes or a smaller "
                    "--batch."
                ) from error
    print(format_table(rows))
    print("\n".join(ratios(rows)))
    write_csv(args.out, COLUMNS, ([row[name] for name in COLUMNS] for row in rows))
    print(f"The table is in {args.out}.")


if __name__ == "__main__":
    cli.run(main)
