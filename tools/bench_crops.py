"""Whether crops beat whole photographs at equal time, by hand (not part of the tests).

    python tools/leaf_splits.py --data input/orig_data --out-dir input/splits
    python tools/bench_crops.py --data input/splits/0 --out-dir outputs/crops --photo-size 640

Trains on whole photographs, then on crops for as many epochs as take the same time, validation and
files included, and measures both best models with evaluate.py at the masks' own size. Flags
that follow `--` go to both trainings (`--seed 1 --workers 0`).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402


def run(script: str, *flags) -> None:
    subprocess.run([sys.executable, ROOT / script, *map(str, flags)], check=True)


def seconds_of(out_dir: Path) -> list[float]:
    """How long each epoch of a run took."""
    lines = (out_dir / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_shared(parser, "--data", "--out-dir", required=True)
    cli.add_shared(parser, "--imgsz", default=(256, 256))
    parser.add_argument("--epochs", type=cli.positive_int, default=30, help="on whole photographs")
    parser.add_argument("--photo-size", type=cli.positive_int, metavar="PIXELS")
    parser.add_argument("more", nargs="*", help="flags of both trainings, after --")
    args = parser.parse_args()
    both = ["--recipe", "light", "--data", args.data, "--imgsz", *args.imgsz[::-1], *args.more]
    crop = ["--crop", *(["--photo-size", args.photo_size] if args.photo_size else [])]
    folders = {name: args.out_dir / name for name in ("whole", "probe", "crops")}
    run("train.py", *both, "--out-dir", folders["whole"], "--epochs", args.epochs)
    total = sum(seconds_of(folders["whole"]))
    run("train.py", *both, *crop, "--out-dir", folders["probe"], "--epochs", 2)
    epochs = max(1, round(total / seconds_of(folders["probe"])[-1]))  # the first one warms up
    run("train.py", *both, *crop, "--out-dir", folders["crops"], "--epochs", epochs)
    print(f"\n{'':8}{'epochs':>8}{'minutes':>9}{'mIoU':>8}{'boundary':>10}  IoU of the classes")
    for name in ("whole", "crops"):
        out, best = folders[name] / "evaluation", folders[name] / "best_model_iou.pth"
        run("evaluate.py", "--model", best, "--data", args.data, "--out-dir", out)
        metrics, seconds = json.loads((out / "metrics.json").read_text()), seconds_of(folders[name])
        ious = ", ".join(f"{value:.4f}" for value in metrics["iou"])
        figures = f"{metrics['miou']:8.4f}{metrics['mean_boundary_iou']:10.4f}  {ious}"
        print(f"{name:8}{len(seconds):8}{sum(seconds) / 60:9.1f}{figures}")


if __name__ == "__main__":
    main()
