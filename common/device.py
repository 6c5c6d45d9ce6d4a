"""Where and how numbers are computed: device, numerics, seeds, and which machine it is."""

import os
import platform
import random
from pathlib import Path

import numpy as np
import torch

from common.cli import unusable_device


def choose_device(name: str) -> torch.device:
    """The device a flag asks for; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Every script comes by here, so here stands how a GPU computes for all of them, and a model has
    the same figures in each: products of matrices and convolutions in TF32, and never the
    convolution that a race found to be the fastest this time.

    Of the processes that torchrun starts, each takes its own GPU, before it touches any: all would
    otherwise open the first one, which costs its memory half a gigabyte a process.

    Raises:
        UserError: no such device here.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else other
    if name.startswith("cuda") and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise unusable_device(name) from error
    return device


def spare_cores(device: torch.device) -> int:
    """How many threads other work may have beside a model, so that the model need not wait.

    On a CPU those of its cores that PyTorch does not use, or a quarter of them where it uses all;
    from 1 to 16, since a decoder holds a frame for each and x265 refuses more.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # a batch system may lend some of them alone
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    free = max(cores // 4, cores - torch.get_num_threads()) if device.type == "cpu" else cores
    return min(16, max(1, free))


def compute_repeatably() -> None:
    """Give the same bits in every run on the same GPU; call it before anything is computed.

    Operations without such a form end the run with a sentence. The CPU needs none of this.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def machine() -> str:
    """The machine, its threads and the versions that figures depend on, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else name
    parts = [f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    versions = f"Python {platform.python_version()}", f"torch {torch.__version__}"
    return ", ".join([*parts, platform.system(), *versions])
