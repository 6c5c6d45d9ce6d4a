"""Copies of a trained model that only predict: the same outputs for less work."""

import copy
from collections import Counter
from collections.abc import Collection
from functools import partial

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import Size
from models.backbone import AttentionLevel, FixedPositions


@torch.no_grad()
def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy for inference whose BatchNorms are part of the convolutions before them.

    In evaluation both are affine, so one convolution does the work of the two; so are the parallel
    branches of timm's re-parameterised models (RepVGG, Ding et al. 2021). The copy gives the same
    logits up to rounding, and cannot be trained. Where it does not, because a convolution's output
    goes elsewhere, too, the model is copied as it is.
    """
    whole = copy.deepcopy(model).eval()
    folded = reparameterize_model(whole)
    for (conv_name, conv), (norm_name, norm) in conv_norm_pairs(folded):
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's norms bring the activation that follows them.
        folded.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.to(next(whole.parameters()).device)
    expected, logits = whole(images), folded(images)
    close = torch.allclose(logits, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())
    return folded if close else whole


def conv_norm_pairs(model: nn.Module) -> list[tuple[tuple[str, nn.Module], tuple[str, nn.Module]]]:
    """Each convolution whose output a BatchNorm takes as it is, seen by a run on a small picture.

    The order in which modules are listed says nothing of the order in which they run.
    """
    made: dict[int, tuple[str, nn.Module]] = {}
    outputs, pairs, calls = [], [], Counter()

    def after_conv(name: str, conv: nn.Module, output: Tensor) -> None:
        outputs.append(output)  # kept, so that no other tensor gets its address
        made[id(output)] = name, conv
        calls[name] += 1

    def before_norm(name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[name] += 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], (name, norm)))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hook = partial(after_conv, name)
            hooks.append(module.register_forward_hook(lambda m, _, y, hook=hook: hook(m, y)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(partial(before_norm, name)))
    model(torch.zeros(1, 3, 64, 64, device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name, _ in pair)]


@torch.no_grad()
def fix_positions(model: nn.Module, sizes: Collection[Size]) -> nn.Module:
    """A copy for inference that holds its position tables for inputs of these sizes.

    They are functions of the weights and the size alone, so every bit of the output stays. Inputs
    of other sizes have theirs computed as before.
    """
    model = copy.deepcopy(model).eval()
    for index, level in enumerate(getattr(model, "levels", ())):  # other people's have none
        if not isinstance(level, AttentionLevel):
            continue
        stride, window = 4 * 2**index, {(level.window, level.window)}
        maps = [(-(-height // stride), -(-width // stride)) for height, width in sizes]
        for block in level.blocks:
            block.pos_embed = FixedPositions(block.pos_embed, window)
            block.attn.pos_emb_funct = FixedPositions(block.attn.pos_emb_funct, window)
            if level.global_tokenizer is not None:
                grids = {level.global_tokenizer.grid(*size) for size in maps}
                block.hat_pos_embed = FixedPositions(block.hat_pos_embed, grids)
                block.hat_attn.pos_emb_funct = FixedPositions(block.hat_attn.pos_emb_funct, grids)
    return model
