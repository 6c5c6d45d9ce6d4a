"""Run a script with one more variant, `tiny`, so that tests train real models in a second.

python tests/run_tiny.py train.py --model tiny --head pyramid ...

RANK_WEIGHTS=FOLDER writes each process's own weights there after each epoch's training.
DYING_RANK=N ends process N with an error after the first epoch.
KILLED_IN="A B ..." kills process 1 in the middle of epoch A, once torchrun has begun anew of B, ...
"""

import gc
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import engine  # noqa: E402
from common import distributed  # noqa: E402
from datasets import EpochBatches  # noqa: E402
from models.variants import VARIANTS, Variant  # noqa: E402

TINY = Variant(8, 8, (1, 1, 1, 1), (1, 1, 2, 2), 0.1, "tiny.pth.tar")


def add_tiny() -> None:
    """Make `tiny` a variant like any other."""
    VARIANTS["tiny"] = TINY


def look_into_ranks() -> None:
    """Hook into the one place where every process stands after an epoch's training."""
    broadcast, epochs = distributed.broadcast_buffers, []

    def broadcast_buffers(model) -> None:
        broadcast(model)
        epochs.append(model)
        rank = distributed.rank()
        if folder := os.environ.get("RANK_WEIGHTS"):
            torch.save(model.state_dict(), Path(folder) / f"{rank}.pth")
        if len(epochs) == 2 and os.environ.get("DYING_RANK") == str(rank):
            raise RuntimeError(f"process {rank} was meant to fail")

    distributed.broadcast_buffers = broadcast_buffers


def kill_in_the_middle(epochs: list[str]) -> None:
    """Hook into each step: before an epoch's second one a process is killed without a word."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if restarts >= len(epochs) or os.environ.get("RANK") != "1":
        return
    set_epoch, step, done = EpochBatches.set_epoch, engine._step, [0, 0]

    def counted_epoch(batches, epoch) -> None:
        set_epoch(batches, epoch)
        done[:] = epoch, 0

    def counted_step(*args):
        done[1] += 1
        if done == [int(epochs[restarts]), 2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    EpochBatches.set_epoch, engine._step = counted_epoch, counted_step


def run_script(*command: str) -> None:
    """Run a script of this project as the command line would."""
    torch.set_num_threads(1)
    add_tiny()
    look_into_ranks()
    kill_in_the_middle(os.environ.get("KILLED_IN", "").split())
    sys.argv = [*command]
    gc.freeze()  # as in conftest.py: each epoch's plots ask for a collection of what was imported
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")


if __name__ == "__main__":
    run_script(*sys.argv[1:])
