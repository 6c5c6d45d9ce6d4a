"""Several processes for a test's own functions, none of which has to import torch again."""

import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import torch
import torch.distributed as dist
from processes import PATIENCE, SERVER, path_for_the_server


def apart(count: int, folder: Path, work: Callable[[int], object]) -> list:
    """What `work(rank)` returns in each of `count` processes; None of one that left in its middle.

    They are no forks of the test's own process: what other tests did there, such as a gradient
    that took another thread, would forbid theirs.

    Args:
        folder: a new one, to exchange files in.
    """
    folder.mkdir()
    results = [folder / f"{rank}.pth" for rank in range(count)]
    jobs = [(cloudpickle.dumps(work), rank, result) for rank, result in enumerate(results)]
    processes = [SERVER.Process(target=_one, args=job) for job in jobs]
    with path_for_the_server():
        for process in processes:
            process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    for result in results:
        print(result.with_suffix(".txt").read_text())
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(path) if path.exists() else None for path in results]


def _one(work: bytes, rank: int, result: Path) -> None:
    torch.set_num_threads(1)
    with open(result.with_suffix(".txt"), "w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        torch.save(cloudpickle.loads(work)(rank), result)


def together(size: int, folder: Path, work: Callable[[int], object]) -> list:
    """As `apart`, in processes that form a group."""

    def joined(rank: int) -> object:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        result = work(rank)
        dist.destroy_process_group()
        return result

    return apart(size, folder, joined)
