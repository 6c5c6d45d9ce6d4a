"""Groups of weights, and learning rates as functions of the epoch."""

import pytest
import torch
from run_tiny import add_tiny
from torch import nn

from segmentation_model import build_model
from training.flags import make_parser
from training.optimisation import OPTIMIZERS, lr_factor, make_optimizer


def one_weight():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize("flags", [["--scheduler"], ["--scheduler", "multistep"]])
def test_multistep_is_pytorchs(flags):
    args = make_parser().parse_args([*flags, "--scheduler-epochs", "3", "5"])
    optimizer = one_weight()
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], 0.1)
    for epoch in range(8):
        ours = lr_factor(epoch, 50, args.scheduler, milestones=args.scheduler_epochs)
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["cosine", "poly"])
def test_cosine_and_poly_are_pytorchs(name):
    optimizer = one_weight()
    schedulers = torch.optim.lr_scheduler
    if name == "cosine":
        theirs = schedulers.CosineAnnealingLR(optimizer, 10)
    else:
        theirs = schedulers.PolynomialLR(optimizer, 10, 0.9)
    for epoch in range(10):
        assert lr_factor(epoch, 10, name) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warmup_rises_to_the_full_rate():
    factors = [lr_factor(done, 10, warmup=2) for done in (0, 0.5, 1, 2, 5)]
    assert 0 < factors[0] < 0.01
    assert factors[1:] == pytest.approx([0.25, 0.5, 1, 1], abs=0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_spares_norms_biases_position_mlps_and_layer_scale(optimizer):
    add_tiny()
    model = build_model("tiny", "pyramid", layer_scale=1e-5)
    groups = make_optimizer(model, optimizer, 1.0, 0.1, 2.0).param_groups
    where = {id(p): group for group in groups for p in group["params"]}
    assert len(where) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = where[id(parameter)]
        spared = parameter.ndim == 1 or "cpb_mlp" in name
        assert (group["weight_decay"] == 0) == spared, name
        assert group["lr"] == (2 if name.startswith("pyramid_head") else 1), name
