"""A training that is killed at random moments and resumed ends as if it had been left alone.

python tests/soak/kills.py --count 20
"""

# ruff: noqa: E402

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import torch
from tiny_data import write_data

from common import cli
from models.checkpoint import read_checkpoint

TRAIN = """train.py --model tiny --head pyramid --weights none --imgsz 64 32 --batch 2 --lr 0.01
    --device cpu"""


def command(data: Path, out_dir: Path, workers: int, epochs: int, *flags: str) -> list[str]:
    numbers = ["--epochs", str(epochs), "--workers", str(workers)]
    places = ["--data", str(data), "--out-dir", str(out_dir)]
    tiny = [sys.executable, str(ROOT / "tests/run_tiny.py"), *TRAIN.split()]
    return [*tiny, *numbers, *places, *flags]


def run(*arguments: str, seconds: float | None = None) -> bool:
    """Run a training to its end, or kill it after some seconds; whether it was killed."""
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode:
        raise SystemExit(f"the training failed: {done.stderr[-2000:]}")
    return False


def check(out_dir: Path) -> int:
    """Load every checkpoint that bears a final name; returns how many there are."""
    paths = list(out_dir.glob("[!.]*.pth"))
    for path in paths:
        read_checkpoint(path)
    return len(paths)


def equal(a: Path, b: Path) -> bool:
    """Whether two runs have the same history and, bit for bit, the same last weights."""
    states = [read_checkpoint(folder / "last.pth")["live_model_state_dict"] for folder in (a, b)]
    return (a / "history.csv").read_bytes() == (b / "history.csv").read_bytes() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--count", type=cli.positive_int, default=20, help="kills, for 0 and for 2")
    parser.add_argument("--epochs", type=cli.positive_int, default=12, help="of each run")
    parser.add_argument("--seed", type=cli.natural, default=0, help="other moments")
    args = parser.parse_args()
    rng, lost = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder / "data")
        started = time.monotonic()
        run(*command(data, folder / "alone", 0, args.epochs))
        alone = time.monotonic() - started
        for workers in (0, 2):
            kills = runs = loaded = 0
            while kills < args.count:
                out_dir, runs = folder / f"{workers}_{runs}", runs + 1
                going = True
                while going:  # a run ends when nobody kills it any more
                    last = out_dir / "last.pth"
                    how = ["--resume"] if last.exists() else ["--overwrite"]
                    wait = rng.uniform(0.3, 1.1) * alone if kills < args.count else None
                    going = run(*command(data, out_dir, workers, args.epochs, *how), seconds=wait)
                    kills += going
                    loaded += check(out_dir) if out_dir.exists() else 0
                lost += not equal(folder / "alone", out_dir)
            print(
                f"{workers} workers: {kills} kills in {runs} runs, {loaded} checkpoints loaded "
                f"after them, {lost} runs that differ from the one left alone",
                flush=True,
            )
    return int(lost > 0)


if __name__ == "__main__":
    cli.run(main)
