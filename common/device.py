"""Where numbers are computed: the device, the seeds, and a line that says which machine it is."""

import os
import platform
import random
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device a flag asks for; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else other
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} cannot be used here; try --device cpu.") from error
    return device


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
