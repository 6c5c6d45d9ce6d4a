"""Copies of a trained model that only predict: the same outputs for less work."""

import copy
import itertools
from collections.abc import Collection

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import Size
from models.backbone import AttentionLevel, ConvBlock, FixedPositions


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy for inference whose BatchNorms are part of the convolutions before them.

    In evaluation both are affine, so one convolution does the work of the two; the copy gives the
    same logits up to rounding, and cannot be trained.
    """
    model = copy.deepcopy(model).eval()
    for parent in model.modules():
        if not isinstance(parent, nn.Sequential | ConvBlock):
            continue
        for (name, conv), (next_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, nn.Identity())
    return model


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
