"""How numbers are kept on a device: type, order in memory, scale of the gradients."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config import IMAGENET_MEAN, IMAGENET_STD
from data.images import Normalisation


@dataclass
class Precision:
    """How numbers are kept on a device.

    Args:
        dtype: of the matrix products under autocast, None for fp32 throughout.
        scaler: scales the loss so that fp16 gradients do not vanish; does nothing otherwise.
        channels_last: memory order of the images, and of the convolutions' weights.
        mean, std: normalisation of RGB scaled to [0, 1].
    """

    device: torch.device
    dtype: torch.dtype | None = None
    channels_last: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self):
        enabled = self.dtype == torch.float16
        look = Normalisation(self.mean, self.std)
        self._look = [torch.from_numpy(part).to(self.device) for part in (look.mean, look.std)]
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
    def choose(
        cls, name: str, device: torch.device, channels_last: bool = False, **look
    ) -> "Precision":
        """Resolve "auto": bf16 on a GPU that has it, fp16 on other GPUs, fp32 on the CPU.

        Args:
            look: mean and std, where they are not ImageNet's.
        """
        if name == "auto":
            name = "off"
            if device.type == "cuda":
                name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        return cls(device, dtype, channels_last, **look)

    def autocast(self):
        """The context for a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def to_device(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, as network and loss take it; bytes travel, floats are made there.

        Args:
            images: (B, 3, H, W), uint8 RGB that is normalised here, or floats that are already.
            targets: (B, H, W), 255 = ignore.

        Returns:
            images as floats in the device's memory order, and targets as int64.
        """
        images = images.to(self.device, non_blocking=True, memory_format=self.order)
        if images.dtype == torch.uint8:
            mean, std = self._look
            images = images.float().sub_(mean).div_(std)
        return images, targets.to(self.device, non_blocking=True).long()
