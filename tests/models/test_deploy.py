"""Copies for inference: the same outputs, whatever the model and the size."""

import copy
import pickle

import pytest
import torch
from literal import relative_error
from narrow import EVERYTHING, NO_CARRIERS, narrow_model
from torch import nn

from models.backbone import PositionTable
from models.deploy import fix_positions, fold_batchnorm

SIZES = [(160, 224), (64, 112), (97, 131)]


def logits(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        return model(images)


def forbid_computing(monkeypatch) -> None:
    for kind in PositionTable.__subclasses__():
        monkeypatch.setattr(kind, "compute", None)


def test_folding_batchnorm_keeps_the_logits_and_the_model():
    model = narrow_model(segmentation_head="pyramid")
    folded = fold_batchnorm(model)
    assert relative_error(logits(folded, (64, 64)), logits(model, (64, 64))) < 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("changes", [{}, NO_CARRIERS, EVERYTHING | {"hat": None, "ct_size": 3}])
def test_fixed_positions_give_the_bits_of_computed_ones(changes, monkeypatch):
    model = narrow_model(**changes)
    fixed = fix_positions(model, SIZES[:2])
    expected = [logits(model, size) for size in SIZES]
    assert torch.equal(logits(fixed, SIZES[2]), expected[2])  # another size
    forbid_computing(monkeypatch)
    for size, wanted in zip(SIZES[:2], expected, strict=False):
        assert torch.equal(logits(fixed, size), wanted)
    with pytest.raises(TypeError):
        logits(model, SIZES[0])  # is left as it was


def test_fixed_positions_stay_in_the_weights_precision_under_autocast():
    model = narrow_model()
    fixed = fix_positions(model, [(160, 224)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(fixed, (160, 224)), logits(model, (160, 224)))


def test_fixed_positions_travel_with_copies(monkeypatch):
    fixed = fix_positions(narrow_model(), [(160, 224)])
    expected = logits(fixed, (160, 224))
    forbid_computing(monkeypatch)
    for twin in (copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        assert torch.equal(logits(twin, (160, 224)), expected)


def test_a_model_without_position_tables_is_copied():
    model = nn.Conv2d(3, 2, 1)
    assert torch.equal(logits(fix_positions(model, SIZES), (8, 8)), logits(model, (8, 8)))
