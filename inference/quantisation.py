"""An exported model in 8 bits, the ranges of its numbers taken from photographs.

Static quantisation (Jacob et al. 2018) by onnxruntime: weights per channel, activations by what the
photographs make of them. It needs no training; how much it changes, `export.py` measures.
"""

import logging
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config import ClassTable, ModelConfig
from inference.predictor import Predictor

TILES = 16  # of a picture that passes in tiles


class _Recorder(nn.Module):
    """A model that keeps what it is shown: batches (1, 3, H, W) float32 as the predictor makes."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes, self.seen = num_classes, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.contiguous().numpy())
        return torch.zeros(len(images), self.num_classes, *images.shape[-2:])


def inputs_of(
    pictures: list[np.ndarray], config: ModelConfig, classes: ClassTable
) -> Iterator[np.ndarray]:
    """Pictures HWC uint8 RGB as the predictor feeds them to a network: (1, 3, H, W) float32."""
    recorder = _Recorder(len(classes))
    predictor = Predictor(recorder, config, classes)
    for picture in pictures:
        predictor.frame_scores([picture])  # in tiles where the model was trained on crops
        yield from recorder.seen[:: -(-len(recorder.seen) // TILES)]
        recorder.seen.clear()


def quantise(source: Path, target: Path, inputs: Iterator[np.ndarray]) -> None:
    """Write the ONNX file `source` in 8 bits to `target`, its description included.

    Args:
        inputs: batches (1, 3, H, W) float32 to take the ranges from.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    class Reader:
        """How onnxruntime asks for batches."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(inputs, None)
            return None if batch is None else {"images": batch}

    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime advises on the root logger
    with redirect_stdout(StringIO()):
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
