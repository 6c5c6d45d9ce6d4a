"""A model that tests load: a second's work, random weights."""

from pathlib import Path

import torch
from run_tiny import add_tiny

from config import ClassTable, ModelConfig
from models.checkpoint import save_checkpoint
from segmentation_model import build_model


def save_tiny(path: Path, size=(32, 32), classes: ClassTable | None = None, **rest) -> Path:
    """Write a checkpoint of two classes, both of which occur in what it predicts."""
    add_tiny()
    torch.manual_seed(0)
    model = build_model("tiny", "pyramid", 2)
    torch.nn.init.normal_(model.pyramid_head.classifier.weight, std=5.0)
    config = ModelConfig("tiny", "pyramid", 2, size)
    save_checkpoint(path, model, config, classes or ClassTable.default(), **rest)
    return path
