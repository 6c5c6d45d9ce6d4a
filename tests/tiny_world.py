"""Several processes, forked from the test, so that none has to import torch again."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

PATIENCE = 600  # seconds: what takes two alone may take far longer on a busy machine


def apart(count: int, folder: Path, work: Callable[[int], object]) -> list:
    """What `work(rank)` returns in each of `count` processes; None of one that left in its middle.

    Args:
        folder: a new one, to exchange files in.
    """
    if sys.platform != "linux":
        pytest.skip("a process that uses torch can be forked on Linux alone")
    folder.mkdir()
    results = [folder / f"{rank}.pth" for rank in range(count)]

    def one(rank: int) -> None:
        torch.save(work(rank), results[rank])

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(path) if path.exists() else None for path in results]


def together(size: int, folder: Path, work: Callable[[int], object]) -> list:
    """As `apart`, in processes that form a group."""

    def joined(rank: int) -> object:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        result = work(rank)
        dist.destroy_process_group()
        return result

    return apart(size, folder, joined)
