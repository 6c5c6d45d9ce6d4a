"""How the weights move: the optimizer, and the learning rate as a function of the epoch alone."""

import math

import torch
from torch import nn

from models.heads import is_head

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULERS = ("multistep", "cosine", "poly")


def freeze_backbone(model: nn.Module) -> None:
    """Let only the head learn: the backbone keeps its weights, and no gradient of it is computed.

    `engine.train` keeps what is frozen in evaluation, the statistics of its BatchNorms included.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name))


def make_optimizer(
    model: nn.Module, name: str, lr: float, weight_decay: float = 0.0, head_lr_mult: float = 1.0
) -> torch.optim.Optimizer:
    """An optimizer with four groups of weights: backbone and head, with and without decay.

    Norms, biases, layer scales and the position MLPs do not decay. Each group keeps its own rate
    as "base_lr", which `lr_factor` scales.

    Args:
        name: one of OPTIMIZERS.
        head_lr_mult: the head learns so many times as fast as the backbone.
    """
    groups = {(in_head, decays): [] for in_head in (False, True) for decays in (True, False)}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and ".cpb_mlp." not in key
            groups[is_head(key), decays].append(parameter)
    settings = []
    for (in_head, decays), members in groups.items():
        rate, decay = lr * (head_lr_mult if in_head else 1), weight_decay if decays else 0.0
        if members:
            settings.append({"params": members, "lr": rate, "base_lr": rate, "weight_decay": decay})
    # Fused: one pass over the weights instead of a dozen, a quarter of the time on the CPU.
    if name == "sgd":
        return torch.optim.SGD(settings, momentum=0.9, nesterov=True, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(settings, fused=True)


def lr_factor(
    done: float,
    epochs: int,
    scheduler: str | None = None,
    warmup: float = 0.0,
    milestones: tuple[int, ...] = (),
) -> float:
    """The learning rate's factor after `done` epochs, a fraction within one: a pure function.

    It needs no state, so a resumed run cannot lose it; more `epochs` stretch cosine and poly.

    Args:
        scheduler: one of SCHEDULERS, or None for a rate that stays.
        warmup: epochs over which the rate rises from 0.
        milestones: epochs after which multistep divides the rate by ten.
    """
    rise = min(1.0, (done + 1e-3) / warmup) if warmup else 1.0
    left = max(0.0, 1 - max(0.0, done - warmup) / max(epochs - warmup, 1e-9))
    if scheduler == "multistep":
        return rise * 0.1 ** sum(done >= epoch for epoch in milestones)
    if scheduler == "cosine":
        return rise * 0.5 * (1 - math.cos(math.pi * left))
    if scheduler == "poly":
        return rise * left**0.9
    return rise
