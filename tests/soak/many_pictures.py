"""Many pictures, two processes and two SIGKILLs: the same results, and memory that does not grow.

python tests/soak/many_pictures.py --count 20000

Segments pictures of 32 pixels once with one process that is left alone, and once with two that are
killed after a third and after two thirds, and compares every file. The alone run's peak memory is
compared with that of 200 pictures.
"""

# ruff: noqa: E402

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import numpy as np
import psutil
from PIL import Image
from tiny_model import save_tiny

from common import cli

FEW, LIMIT = 200, 50  # pictures, MiB
# A process begins with the size of the one that started it, so a small one stands in between.
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def draw(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        blocks = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / f"{number:06d}.png")


def command(model: Path, pictures: Path, out_dir: Path, *flags: str) -> list[str]:
    script = [str(ROOT / "tests/run_tiny.py"), "inference_image.py", "--device", "cpu"]
    places = ["--model", str(model), "--input", str(pictures), "--out-dir", str(out_dir)]
    return [*script, *places, "--save", "mask", *flags]


def peak_mebibytes(*arguments: str) -> float:
    """The largest resident size of a run that is left alone."""
    watched = [sys.executable, "-c", WATCH, sys.executable, *arguments]
    done = subprocess.run(watched, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return int(done.stdout) / 1024


def rows(out_dir: Path) -> int:
    """How many pictures the parts of a run hold."""
    parts = (out_dir / ".results").glob("*.csv")
    return sum(max(0, part.read_bytes().count(b"\n") - 1) for part in parts)


def run_until(arguments: list[str], out_dir: Path, count: int) -> None:
    """Run, and kill all processes as soon as so many pictures are finished."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = psutil.Popen(arguments, cwd=ROOT, **quiet)
    while process.poll() is None and rows(out_dir) < count:
        time.sleep(0.2)
    if process.poll() is not None:
        raise SystemExit(f"the run ended with {process.returncode} before it was killed")
    # torchrun's processes are no group, and outlive it.
    killed = [*process.children(recursive=True), process]
    for each in killed:
        each.kill()
    psutil.wait_procs(killed)


def content(out_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out_dir.glob("[!.]*")}


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--count", type=cli.number(int, FEW), default=20_000, help="pictures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        model = save_tiny(folder / "model.pth")
        draw(folder / "in", args.count)
        draw(folder / "few", FEW)
        few = peak_mebibytes(*command(model, folder / "few", folder / "out_few"))
        many = peak_mebibytes(*command(model, folder / "in", folder / "alone"))
        middle, out = time.monotonic(), folder / "out"
        shared = [*TORCHRUN, *command(model, folder / "in", out, "--resume")]
        found = []
        for share in (1 / 3, 2 / 3):
            run_until(shared, out, round(share * args.count))
            found.append(rows(out))
        done = subprocess.run(shared, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the last run failed: {done.stderr[-2000:]}")
        one, two = content(folder / "alone"), content(out)
        differ = sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))
        lines = one["results.csv"].count(b"\n") - 1
    print(
        f"{args.count} pictures: {lines} rows, {len(one)} files, {len(differ)} of them differ "
        f"after SIGKILLs at {found[0]} and {found[1]} rows; {many:.0f} MiB, {many - few:+.0f} "
        f"to {FEW} pictures; {middle - started:.0f} and {time.monotonic() - middle:.0f} s"
    )
    return int(bool(differ) or lines != args.count or many - few > LIMIT)


if __name__ == "__main__":
    cli.run(main)
