"""Whether crops beat whole photographs at equal time, by hand (not part of the tests).

    python tools/leaf_splits.py --data input/orig_data --out-dir input/splits
    python tools/bench_crops.py --data input/splits/0 --out-dir outputs/crops --photo-size 640

Trains on whole photographs, then on crops for as many epochs as take the same time, validation and
files included, and measures both best models with evaluate.py at the masks' own size. Time is the
processors' (on a CPU, Linux or macOS), which other work does not change. Flags that follow `--` go
to both trainings (`--seed 1 --workers 0`).
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common.environment  # noqa: E402, F401 - first, to say what is not installed

from common import cli  # noqa: E402


def run(script: str, *flags) -> float:
    """Run a script to its end.

    Returns:
        its seconds of CPU, on all cores together.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, ROOT / script, *map(str, flags)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_shared(parser, "--data", "--out-dir", required=True)
    cli.add_shared(parser, "--imgsz", default=(256, 256))
    parser.add_argument("--epochs", type=cli.positive_int, default=30, help="on whole photographs")
    parser.add_argument("--photo-size", type=cli.positive_int, metavar="PIXELS")
    parser.add_argument("more", nargs="*", help="flags of both trainings, after --")
    args = parser.parse_args()
    both = ["--recipe", "light", "--device", "cpu", "--data", args.data]
    both += ["--imgsz", *args.imgsz[::-1], *args.more, "--overwrite"]
    crop = [*both, "--crop", *(["--photo-size", args.photo_size] if args.photo_size else [])]
    whole, probe, crops = (args.out_dir / name for name in ("whole", "probe", "crops"))
    total = run("train.py", *both, "--out-dir", whole, "--epochs", args.epochs)
    one, three = (run("train.py", *crop, "--out-dir", probe, "--epochs", n) for n in (1, 3))
    epoch = (three - one) / 2
    epochs = max(1, round((total - (one - epoch)) / epoch))  # both take as long to start
    taken = run("train.py", *crop, "--out-dir", crops, "--epochs", epochs)
    print(f"\n{'':8}{'epochs':>8}{'minutes':>9}{'mIoU':>8}{'boundary':>10}  IoU of the classes")
    for folder, count, seconds in ((whole, args.epochs, total), (crops, epochs, taken)):
        out, best = folder / "evaluation", folder / "best_model_iou.pth"
        run("evaluate.py", "--model", best, "--data", args.data, "--out-dir", out)
        metrics = json.loads((out / "metrics.json").read_text())
        ious = ", ".join(f"{value:.4f}" for value in metrics["iou"])
        figures = f"{metrics['miou']:8.4f}{metrics['mean_boundary_iou']:10.4f}  {ious}"
        print(f"{folder.name:8}{count:8}{seconds / 60:9.1f}{figures}")


if __name__ == "__main__":
    main()
