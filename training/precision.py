"""How numbers are kept on a device: type, order in memory, scale of the gradients."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Precision:
    """How numbers are kept on a device.

    Args:
        dtype: of the matrix products under autocast, None for fp32 throughout.
        scaler: scales the loss so that fp16 gradients do not vanish; does nothing otherwise.
        channels_last: memory order of the images, and of the convolutions' weights.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    channels_last: bool = False
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self):
        enabled = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=enabled)

    @property
    def exact(self) -> torch.dtype:
        """What sums are kept in: Apple's GPUs have no 64-bit floats."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def order(self) -> torch.memory_format:
        """The memory order of images and of the model that they go through."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @classmethod
    def choose(cls, name: str, device: torch.device, channels_last: bool = False) -> "Precision":
        """Resolve "auto": bf16 on a GPU that has it, fp16 on other GPUs, fp32 on the CPU."""
        if name == "auto":
            name = "off"
            if device.type == "cuda":
                name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        return cls(device, dtype, channels_last)

    def autocast(self):
        """The context for a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def to_device(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) on the device, in its memory order."""
        return images.to(self.device, non_blocking=True, memory_format=self.order)
