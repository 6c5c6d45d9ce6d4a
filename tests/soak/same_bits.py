"""Whether a change of the code changed a bit: digests of all that the scripts compute from seeds.

    python tests/soak/same_bits.py --code OLD_CHECKOUT --out-dir /tmp/old > old.txt
    python tests/soak/same_bits.py --code . --out-dir /tmp/new > new.txt
    diff old.txt new.txt

Each line is a SHA-256 and what it is of. Times, versions and paths are left out; all else counts:
weights of three seeded trainings, one of them stopped and resumed, their histories and figures,
masks, overlays and tables of pictures and of a video, evaluations, and an export's logits.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

HERE = Path(__file__).resolve().parents[2]
TIMES = ("seconds", "versions", "out_dir", "data", "resume", "model")
SMALL = "--weights none --imgsz 96 64 --batch 2 --epochs 2 --workers 1 --device cpu"
TRAININGS = {
    "article": f"{SMALL} --scheduler --seed 1",
    "pyramid": f"{SMALL} --head pyramid --augment strong --optimizer adamw --lr 0.001 --warmup 1 "
    "--weight-decay 0.02 --scheduler cosine --loss ce+dice+focal --class-weights auto --ema 0.9 "
    "--accumulate 2 --clip-grad 1 --head-lr-mult 2 --window 5 --cache ram --seed 2",
    "recipe": "--recipe scratch --epochs 2 --seed 3 --workers 1 --device cpu",
}
PICTURES = {
    "whole": "--save overlay mask colour prob cvat --mm-per-pixel 0.1",
    "tiled": "--tile 96 --overlap 0.3 --batch 2 --tta",
    "aspect": "--keep-aspect --imgsz 128 64 --batch 2",
}


def script(code: Path, name: str) -> Path:
    """A script at the top, or among the tools."""
    return code / name if (code / name).is_file() else code / "tools" / name


def run(code: Path, cwd: Path, name: str, flags: str) -> None:
    command = [sys.executable, str(script(code, name)), *flags.split()]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} {flags}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def feed(digest, value: object) -> None:
    """Add a value of a checkpoint, its tensors as bytes, to a digest."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            if key not in TIMES:
                digest.update(str(key).encode())
                feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            feed(digest, item)
    else:
        digest.update(repr(value).encode())


def of(path: Path) -> str:
    """The digest of a file by what it means."""
    digest = hashlib.sha256()
    if path.suffix == ".pth":
        feed(digest, torch.load(path, map_location="cpu", weights_only=True))
    elif path.suffix == ".json":
        feed(digest, json.loads(path.read_text()))
    elif path.suffix == ".jsonl":
        feed(digest, [json.loads(line) for line in path.read_text().splitlines()])
    elif path.suffix == ".npz":
        feed(digest, {key: torch.from_numpy(np.load(path)["probabilities"]) for key in "p"})
    elif path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        size = session.get_inputs()[0].shape
        images = torch.randn(size, generator=torch.Generator().manual_seed(0)).numpy()
        feed(digest, torch.from_numpy(session.run(None, {"images": images})[0]))
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--code", type=Path, default=HERE, help="checkout to run")
    parser.add_argument("--out-dir", type=Path, required=True, help="an empty folder")
    args = parser.parse_args()
    code, place = args.code.resolve(), args.out_dir
    place.mkdir(parents=True)
    drawn = "--train 6 --valid 3 --video-seconds 1 --seed 5"
    run(code, place, "sample_data.py", f"--out-dir data {drawn}")
    for path in filter(Path.is_file, (place / "data").rglob("*")):
        os.utime(path, (0, 0))  # by their times of change a journal knows pictures again
    for name, flags in TRAININGS.items():
        run(code, place, "train.py", f"--data data --out-dir {name} {flags}")
        model = f"--model {name}/best_model_iou.pth"
        run(code, place, "evaluate.py", f"{model} --data data --out-dir {name}/evaluation")
        video = f"--input data/sample_video.mp4 --out-dir {name}/video --smooth 0.5 --plot"
        run(code, place, "inference_video.py", f"{model} {video}")
    run(code, place, "train.py", "--out-dir pyramid --resume --epochs 3")
    model = "--model pyramid/model.pth"
    for name, flags in PICTURES.items():
        places = f"{model} --input data/valid_images --out-dir pictures/{name}"
        run(code, place, "inference_image.py", f"{places} {flags}")
    run(code, place, "export.py", f"{model} --out-dir export --images data/valid_images")
    skipped = ("report.html", "run.json", "summary.html", ".lock", "cvat.zip")
    for path in sorted(filter(Path.is_file, place.rglob("*"))):
        if path.name not in skipped:
            print(of(path), path.relative_to(place))


if __name__ == "__main__":
    main()
