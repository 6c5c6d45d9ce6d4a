"""What the options of train.py cost in time and memory, by hand (not part of the tests).

    python tools/sample_data.py --out-dir input/demo
    python tools/bench_training.py --data input/demo [--epochs 2] [--rounds 3] [--slow]

Each option trains in a process of its own, all in turns; the base is the first line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common.environment  # noqa: E402, F401 - first, to say what is not installed

from common import cli  # noqa: E402

BASE = (
    "--head pyramid --weights none --batch 4 --optimizer adamw --cache ram --workers 1 --overwrite"
)
OPTIONS = ("--augment strong", "--loss ce+dice", "--ema 0.99", "--clip-grad 1")
OPTIONS += ("--batch 2 --accumulate 2", "--channels-last", "--cache none")
# Minutes an epoch, or before the first one, on a CPU without 16-bit arithmetic.
SLOW = ("--amp bf16", "--compile")


def peak_mebibytes(process: subprocess.Popen) -> float:
    """Wait for a process; the largest resident size it ever had, without its workers'."""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{process.args} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_shared(parser, "--data", required=True)
    cli.add_shared(parser, "--imgsz", default=(160, 160))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow", action="store_true", help="bf16 and the compiler instead")
    args = parser.parse_args()
    options = ("", *(SLOW if args.slow else OPTIONS))  # the base first
    common = [*BASE.split(), "--data", str(args.data), "--imgsz", *map(str, args.imgsz[::-1])]
    common += ["--epochs", str(args.epochs)]
    seconds, memory = {name: [] for name in options}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name in options:
                command = [sys.executable, str(ROOT / "train.py"), *common]
                command += ["--out-dir", folder, *name.split()]
                memory[name] = peak_mebibytes(
                    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                )
                log = Path(folder, "log.jsonl").read_text().splitlines()
                # The first epoch starts workers and, with --compile, the compiler.
                seconds[name] += [json.loads(line)["seconds"] for line in log[1:]]
    base = statistics.median(seconds[""])
    print("| option | seconds an epoch | against the base | peak memory |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        shown, times = name or "(base)", f"{median:.1f} | {median / base:.2f}"
        print(f"| `{shown}` | {times} | {memory[name]:.0f} MiB |")


if __name__ == "__main__":
    main()
