"""Several processes as one run: who am I, sums and gathers, and a clean end.

Started by `torchrun`, a script finds its place in the environment; started alone, every function
here answers as for a world of one process.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError

T = TypeVar("T")


def init(device: torch.device) -> None:
    """Join the processes of a `torchrun`, if there are any.

    Args:
        device: this process's own, from `choose_device`.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return
    # torchrun ends all when one dies. Waiting for one that works must be possible for long: the
    # main process may download weights while the others wait.
    patience = timedelta(hours=1)
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun keeps its store when it starts all again: who is gone must not be looked for.
        # Of several machines each counts its own restarts; docs/training.md has what helps there.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
    group = {"store": store, "rank": rank, "world_size": size, "timeout": patience}
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", device_id=device, **group)
    else:
        dist.init_process_group("gloo", **group)


def shutdown() -> None:
    """Leave the group, so that no process waits for one that has gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 for the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that prints and writes."""
    return rank() == 0


def say(text: str) -> None:
    """Print, once for all processes."""
    if is_main():
        print(text)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, on every process; integers stay exact."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """As `sum_over_processes`, for a loss that all processes share.

    Each process's own part brings its gradient as many times as there are processes, so that the
    mean which DistributedDataParallel takes is the gradient of the whole.
    """
    if world_size() == 1:
        return tensor
    total = sum_over_processes(tensor.detach().clone())
    return total + world_size() * (tensor - tensor.detach())


def gather(item: object) -> list:
    """Every process's item, in the order of ranks, on every process."""
    if world_size() == 1:
        return [item]
    items: list = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns, done by the main process alone; its error is raised by every process."""
    if world_size() == 1:
        return work()
    outcome: list = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as it trains with others: gradients averaged, on GPUs BatchNorm over all of them.

    Some parameters get no gradient (the article's unused classifier, carrier tokens on maps of one
    window), and which ones depends on the input's size: DistributedDataParallel looks for them.
    """
    if world_size() == 1:
        return model
    ids = None
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # it takes seconds, which most need not

        model = convert_sync_batchnorm(model)  # timm's knows norms that bring activations
        ids = [device.index]
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)


def no_sync(model: nn.Module, wanted: bool = True) -> AbstractContextManager:
    """A context in which gradients stay with their process, where that is `wanted`."""
    model = getattr(model, "_orig_mod", model)  # inside torch.compile
    together = isinstance(model, DistributedDataParallel)
    return model.no_sync() if together and wanted else nullcontext()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile and DistributedDataParallel."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers; BatchNorm's averages differ between them."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
