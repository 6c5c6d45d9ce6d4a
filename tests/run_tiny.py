"""Run a script with one more variant, `tiny`, so that tests train real models in a second.

python tests/run_tiny.py train.py --model tiny --head pyramid ...

RANK_WEIGHTS=FOLDER writes each process's own weights there after each epoch's training.
DYING_RANK=N ends process N with an error after the first epoch.
KILLED_IN="A B ..." kills process 1 in the middle of epoch A, once torchrun has begun anew of B, ...
STOPS_IN=A stops a process in the middle of epoch A, for a test to look at it and to kill it.
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


def disturb() -> None:
    """As the environment asks: process 1 is killed without a word, or each stops."""
    if epoch := os.environ.get("STOPS_IN"):
        signal_in_the_middle(int(epoch), signal.SIGSTOP)
    killed = os.environ.get("KILLED_IN", "").split()
    killed = killed[int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) :]
    if killed and os.environ.get("RANK") == "1":
        signal_in_the_middle(int(killed[0]), signal.SIGKILL)


def signal_in_the_middle(epoch: int, number: signal.Signals) -> None:
    """Hook into each step: a signal comes before the second one of an epoch."""
    set_epoch, step, done = EpochBatches.set_epoch, engine._step, [0, 0]

    def counted_epoch(batches, begun) -> None:
        set_epoch(batches, begun)
        done[:] = begun, 0

    def counted_step(*args):
        done[1] += 1
        if done == [epoch, 2]:
            os.kill(os.getpid(), number)
        return step(*args)

    EpochBatches.set_epoch, engine._step = counted_epoch, counted_step


def run_script(*command: str) -> None:
    """Run a script of this project as the command line would."""
    torch.set_num_threads(1)
    add_tiny()
    look_into_ranks()
    disturb()
    sys.argv = [*command]
    gc.freeze()  # as in conftest.py: each epoch's plots ask for a collection of what was imported
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")


if __name__ == "__main__":
    run_script(*sys.argv[1:])
