"""Several processes of one run, forked from the test, so that none has to import torch again."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

PATIENCE = 600  # seconds: what takes two alone may take far longer on a busy machine


def together(size: int, folder: Path, work: Callable[[int], object]) -> list:
    """What `work(rank)` returns in each of `size` processes that form a group, by rank."""
    if sys.platform != "linux":
        pytest.skip("a process that uses torch can be forked on Linux alone")
    folder.mkdir()

    def one(rank: int) -> None:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        torch.save(work(rank), folder / f"{rank}.pth")
        dist.destroy_process_group()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pth") for rank in range(size)]
