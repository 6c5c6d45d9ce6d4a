"""Write a trained model as an ONNX file that other programs run, and prove that it is the same.

    pip install -r requirements-export.txt
    python export.py --model outputs/best_model_iou.pth
    python export.py --model outputs/best_model_iou.pth --imgsz 640 480 --images my_photographs
    python export.py --model outputs/best_model_iou.pth --half --dynamic-batch --out-dir exported
    python export.py --model outputs/best_model_iou.pth --int8 --images my_photographs

The file takes normalised RGB (B, 3, HEIGHT, WIDTH) float32 and gives logits (B, K, HEIGHT, WIDTH).
Height and width are those of --imgsz and cannot change afterwards, because the windows of the
attention depend on them: export once per size. Class names, colours, size and normalisation are in
its metadata, and evaluate.py and the inference scripts take it as --model. It is run before it
gets its name: where more than 0.1 % of the pixels get another class (0.5 % with --int8), no file
is left behind. --int8 computes in 8 bits, with ranges taken from the photographs: a third of the
file, and about half of the time where the network is convolutional.
"""

import argparse
import dataclasses
import glob
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import common.environment  # noqa: F401 - first, to say what is not installed

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import cli
from common.errors import UserError
from common.files import lock_folder, replacing
from common.text import counted, printable
from config import DEFAULT_OUT_DIR, Size
from data.checks import check_pairs
from data.images import list_images, read_image
from data.source import Source, open_source
from inference import onnx_model
from inference.evaluation import evaluate_pairs
from inference.predictor import Predictor
from inference.quantisation import inputs_of, quantise
from metrics import ConfusionMatrix
from models.checkpoint import FORMAT
from models.deploy import fix_positions, fold_batchnorm
from segmentation_model import Loaded, load_model
from training.run_files import model_files

# Share of pixels that may get another class than PyTorch gives them.
MAX_DIFFERENT = {"": 0.001, "half": 0.001, "int8": 0.005}
# A protobuf message, which an ONNX file is, cannot be larger than 2 GiB; the graph needs some too.
MAX_INSIDE = 2**31 - 2**26
MAX_IMAGES = 16
DRAWN = "4 drawn textures (give --images for photographs)"


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--model", help="checkpoint of train.py")
    cli.add_shared(parser, "--imgsz", help="size that the file is for; the training's if not given")
    cli.add_shared(parser, "--out-dir", default=DEFAULT_OUT_DIR / "export")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--half", action="store_true", help="weights in 16 bits: half the file")
    what = "weights and activations in 8 bits: smaller and faster, with --images to calibrate on"
    kinds.add_argument("--int8", action="store_true", help=what)
    parser.add_argument("--dynamic-batch", action="store_true", help="any number of pictures")
    what = f"photographs to compare and calibrate on (the first {MAX_IMAGES}); if not given, those "
    what += "to validate on of the model's data, or drawn textures where these are gone"
    parser.add_argument("--images", type=Path, metavar="FOLDER", help=what)
    return parser.parse_args()


class HalfInside(nn.Module):
    """A model that computes in 16 bits and speaks in 32, like every other export."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.half()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.half()).float()


def to_onnx(loaded: Loaded, size: Size, half: bool, dynamic_batch: bool):
    """Translate a model into an ONNX graph with its description: `torch.onnx.ONNXProgram`."""
    model = fix_positions(fold_batchnorm(loaded.model), [size])
    model = HalfInside(model).eval() if half else model
    # A batch of one would be taken for a constant.
    images = torch.zeros(2 if dynamic_batch else 1, 3, *size)
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},) if dynamic_batch else None
    options = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": shapes}
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, on its own insides, as the log above
        program = torch.onnx.export(model, (images,), dynamo=True, verbose=False, **options)
    for node in program.model.graph:  # the exporter notes there from which folders the code came
        node.metadata_props.clear()
    config = loaded.config.to_plain() | {"input_size": list(size)}
    description = {"format": FORMAT, "model_config": config, "classes": loaded.classes.to_plain()}
    for key, value in description.items():
        program.model.metadata_props[key] = json.dumps(value)
    return program


def write(program, path: Path, name: str, limit: int = MAX_INSIDE) -> Path | None:
    """Write the graph; weights that do not fit into one file go into a second one beside it.

    The second file has a name of its own each time, so that an older export of the same name stays
    whole until the new one takes its place.

    Args:
        name: what the second file's name begins with.
        limit: bytes of weights from which on they are kept apart.

    Returns:
        the second file, None where there is none.
    """
    from onnxscript import ir

    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size <= limit:
        ir.save(program.model, path)
        return None
    beside = path.with_name(f"{name}.{path.stem.removeprefix('.tmp-')}.data")
    try:
        ir.save(program.model, path, external_data=beside.name)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def textures(count: int, size: Size) -> list[np.ndarray]:
    """Pictures with the statistics of photographs (detail at all scales): HWC uint8 RGB."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        picture = np.zeros((*size, 3), np.float32)
        for octave in range(1, 8):
            noise = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32) / octave
            picture += cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
        pictures.append(np.clip(picture * 40 + rng.uniform(80, 170, 3), 0, 255).astype(np.uint8))
    return pictures


def photographs(folder: Path | None, data: Source | None) -> tuple[list[np.ndarray], str] | None:
    """The first pictures to compare and calibrate on, and what to call them.

    Args:
        folder: that a person named; None takes the data's own.
        data: see `data_of`.

    Raises:
        UserError: the folder holds none, or one cannot be read.
    """
    if folder is not None:
        paths = list_images(folder)
        if not paths:
            raise UserError(f"{folder} holds no pictures; name a folder with photographs.")
    elif data is not None:
        folder, paths = data.root, [pair.image for pair in data.pairs["valid"]]
    else:
        return None
    pictures = [read_image(path) for path in paths[:MAX_IMAGES]]
    return pictures, f"{counted(len(pictures), 'picture|pictures')} of {printable(folder)}"


def data_of(loaded: Loaded) -> Source | None:
    """What the model was validated on, in any layout, where it is still at hand and usable.

    Data that are divided by a split.csv, which need not be at hand, may have been divided
    otherwise than here: what is to validate on is then theirs, but perhaps not new to the model.
    """
    root = _data_root(loaded)
    if root is None:
        return None
    look = {"as_trained": loaded.config.mask_reading, "choices": loaded.config.choices}
    try:
        source = open_source(root, ("valid",), skip_bad=True, **look)
        usable = check_pairs(source, skip_bad=True)
    except (UserError, OSError, ValueError):
        return None
    return dataclasses.replace(source, pairs=usable)


def _data_root(loaded: Loaded) -> Path | None:
    """The data set that a checkpoint says it was trained on, None where it does not say."""
    trained = loaded.content.get("train_args")
    root = trained.get("data") if isinstance(trained, dict) else None
    # The path is a stranger's: it must not lead to another machine.
    usable = isinstance(root, str) and not root.startswith(("//", "\\\\"))
    return Path(root) if usable else None


@torch.inference_mode()
def compare(
    reference: Predictor, exported: Predictor, pictures: list[np.ndarray]
) -> tuple[float, float, float]:
    """How far an export is from its original.

    Returns:
        the largest difference of two logits, the largest logit, both in absolute value, and the
        share of pixels that get another class.
    """
    difference = largest = different = pixels = 0
    step = exported.model.batch or 2  # where any number may pass at once, several do
    groups = [pictures[first : first + step] for first in range(0, len(pictures), step)]
    for group in tqdm(groups, desc="Comparing", dynamic_ncols=True):
        ours, theirs = (predictor.scores(group) for predictor in (reference, exported))
        if not torch.isfinite(theirs).all():
            return float("inf"), ours.abs().max().item(), 1.0
        difference = max(difference, (ours - theirs).abs().max().item())
        largest = max(largest, ours.abs().max().item())
        different += (ours.argmax(1) != theirs.argmax(1)).sum().item()
        pixels += ours[:, 0].numel()
    return difference, largest, different / pixels


def verify(
    path: Path, loaded: Loaded, size: Size, pictures: list[np.ndarray], what: str, kind: str = ""
) -> str:
    """Run the file that was written beside the model that it was made of.

    Args:
        what: the pictures to compare on are called.
        kind: "", "half" or "int8".

    Returns:
        a line on how equal they are.

    Raises:
        UserError: they are not equal enough, or the file cannot be run.
    """
    model, config, classes = onnx_model.load(path, torch.device("cpu"))
    reference = Predictor(loaded.model, loaded.config, loaded.classes, size)
    difference, largest, different = compare(reference, Predictor(model, config, classes), pictures)
    line = (
        f"Compared with PyTorch on {what}: logits differ by at most {difference:.2g} (the largest "
        f"is {largest:.2g}), {1 - different:.4%} of the pixels get the same class."
    )
    allowed = MAX_DIFFERENT[kind]
    if different > allowed:
        advice = f"; train the model longer, or leave out --{kind}" if kind else ""
        raise UserError(f"{line} At most {allowed:.1%} may differ: no file was written{advice}.")
    return line


def in_8_bits(
    path: Path,
    loaded: Loaded,
    size: Size,
    pictures: list[np.ndarray],
    what: str,
    data: Source | None,
) -> str:
    """Replace a file that was just written by one in 8 bits; what that gained, in words.

    Args:
        pictures: photographs to take the ranges from.
        what: they are called.
        data: see `data_of`.
    """
    config = dataclasses.replace(loaded.config, input_size=size)
    exact = path.with_name(f"{path.stem}-exact.onnx")
    path.rename(exact)
    try:
        quantise(exact, path, inputs_of(pictures, config, loaded.classes))
        before, after = (seconds_of(file, size) for file in (exact, path))
        sizes = [file.stat().st_size / 2**20 for file in (exact, path)]
        mious = [validation_miou(file, data) for file in (exact, path)]
    finally:
        exact.unlink()
    line = f"Calibrated on {what}: {sizes[1]:.1f} instead of {sizes[0]:.1f} MiB, "
    line += f"{before / after:.2f} times as fast here"
    if None not in mious:
        line += f", validation mIoU {mious[1]:.4f} instead of {mious[0]:.4f}"
    return line + "."


def validation_miou(path: Path, data: Source | None) -> float | None:
    """The mIoU of a file on the split that its model was validated on, where that is known."""
    if data is None or data.divided:
        return None
    predictor = Predictor(*onnx_model.load(path, torch.device("cpu")))
    _, confusion = evaluate_pairs(predictor, data.pairs["valid"], data.reader)
    return ConfusionMatrix.of(confusion).miou()


def seconds_of(path: Path, size: Size) -> float:
    """The CPU seconds that a file takes for one picture, median of nine after one."""
    model = onnx_model.load(path, torch.device("cpu"))[0]
    images, times = torch.zeros(1, 3, *size), []
    for _ in range(10):
        start = time.process_time()
        model(images)
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def say_what_is_replaced(path: Path) -> None:
    """A line on the file of this name that is there; models of two runs may have one name."""
    if path.is_file():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        print(f"{path} of {when} will be replaced; --out-dir with another folder keeps it.")


def file_name(model: Path, size: Size, kind: str) -> str:
    return f"{model.stem}_{size[1]}x{size[0]}{kind and f'_{kind}'}.onnx"


def export(
    loaded: Loaded,
    path: Path,
    size: Size,
    kind: str = "",
    dynamic_batch: bool = False,
    images: Path | None = None,
    limit: int = MAX_INSIDE,
) -> str:
    """Write `path` if what it holds gives the same masks; see `verify` and `write`."""
    data = data_of(loaded) if images is None or kind == "int8" else None
    found = photographs(images, data)
    if found is None and kind == "int8":
        raise UserError("--int8 takes its ranges from photographs; name some with --images.")
    pictures, what = found or (textures(4, size), DRAWN)
    program = to_onnx(loaded, size, kind == "half", dynamic_batch)
    with replacing(path) as temporary:
        beside = write(program, temporary, path.stem, limit)
        try:
            line = ""
            if kind == "int8":
                line = in_8_bits(temporary, loaded, size, pictures, what, data) + "\n"
            line += verify(temporary, loaded, size, pictures, what, kind)
        except BaseException:
            if beside:
                beside.unlink(missing_ok=True)
            raise
    for older in path.parent.glob(f"{glob.escape(path.stem)}.*.data"):
        if older != beside:
            older.unlink()
    return line + (f"\nIts weights are in {beside}: keep both together." if beside else "")


def main() -> None:
    args = parse_args()
    onnx_model.packages()
    model, *others = model_files(args.model)
    if others:
        raise UserError(
            f"A file holds one model, and --model names {len(others) + 1}; export them one by one, "
            f"such as --model {model}."
        )
    loaded = load_model(model)
    size = args.imgsz or loaded.config.input_size
    if min(size) < 32:
        raise UserError(f"--imgsz {size[1]} {size[0]} is too small; the model needs 32 and more.")
    kind = "half" if args.half else "int8" if args.int8 else ""
    path = args.out_dir / file_name(model, size, kind)
    print(f"Exporting {loaded.config.variant}, {loaded.config.head} head, takes a minute ...")
    if loaded.config.crop_side:
        scale = f"photographs whose longer side has about {loaded.config.crop_side} pixels"
        print(f"Its input are crops of {size[1]}x{size[0]} of {scale}; our scripts cut them.")
    with lock_folder(args.out_dir):
        say_what_is_replaced(path)
        print(export(loaded, path, size, kind, args.dynamic_batch, args.images))
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, for {size[1]}x{size[0]}.")


if __name__ == "__main__":
    cli.run(main)
