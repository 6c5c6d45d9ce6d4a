"""A long training of short steps: neither memory nor open files grow.

python tests/soak/training.py --count 2000
"""

# ruff: noqa: E402

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[up]) for up in (1, 2)]

import psutil
import torch
from run_tiny import add_tiny
from tiny_data import write_data

import engine
import train
from common import cli

BATCHES = 50  # steps an epoch
TRAIN = "train.py --model tiny --head pyramid --weights none --imgsz 32 32 --batch 2 --device cpu"


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--count", type=cli.number(int, 200), default=2000, help="steps")
    parser.add_argument("--workers", type=cli.natural, default=2, help="processes that load data")
    args = parser.parse_args()
    torch.set_num_threads(1)
    add_tiny()
    process, seen = psutil.Process(), []
    validate = engine.validate

    def watched(*arguments) -> dict:
        figures = validate(*arguments)
        family = [process, *process.children(recursive=True)]
        memory, files = zip(*((p.memory_full_info().uss, p.num_fds()) for p in family), strict=True)
        seen.append((sum(memory) / 2**20, sum(files)))
        return figures

    engine.validate = watched
    epochs, started = args.count // BATCHES, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name) / "data", train=2 * BATCHES, valid=4)
        sys.argv = [*TRAIN.split(), "--workers", str(args.workers), "--epochs", str(epochs)]
        sys.argv += ["--data", str(data), "--out-dir", f"{name}/out"]
        code = train.main()
    quarter = max(1, len(seen) // 4)
    memory, files = zip(*seen, strict=True)
    growth, more = (max(v[-quarter:]) - max(v[quarter : 2 * quarter]) for v in (memory, files))
    print(
        f"{epochs * BATCHES} steps in {epochs} epochs, {args.workers} workers, "
        f"{time.monotonic() - started:.0f} s: memory of all processes at most "
        f"{max(memory):.0f} MiB, {growth:+.0f} MiB from the second quarter to the last; "
        f"open files {files[0]} at first, {files[-1]} at the end"
    )
    return int(code or growth > 20 or more > 0)


if __name__ == "__main__":
    cli.run(main)
