"""timm's backbones as ours: maps of any kind at any size, and the same logits once merged."""

import pytest
import timm
import torch
from torch import nn

from common.errors import UserError
from models.deploy import fold_batchnorm
from models.timm_backbone import TimmBackbone, is_timm, published
from segmentation_model import build_model

# One small model of every kind: strides from 2, strides from 4, channels last, a plain ViT, one
# whose branches merge for inference, and one that takes pictures of one size alone.
STRIDE_2, STRIDE_4, CHANNELS_LAST, PLAIN, BRANCHES, FIXED = (
    "timm/test_efficientnet",
    "timm/test_convnext",
    "timm/test_mambaout",
    "timm/test_vit.r160_in1k",
    "timm/mobileone_s0",
    "timm/efficientformerv2_s0",
)
KINDS = (STRIDE_2, STRIDE_4, CHANNELS_LAST, PLAIN, BRANCHES, FIXED)


def trained_a_little(variant: str) -> nn.Module:
    """A model whose norms have seen something, so that folding them shows."""
    model = build_model(variant, "pyramid", 3).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 96))
    return model.eval()


@pytest.mark.parametrize("variant", KINDS)
def test_a_model_of_every_kind_segments_a_size_that_no_stride_divides(variant):
    model = build_model(variant, "pyramid", 3)
    logits = model(torch.randn(2, 3, 75, 101))
    assert logits.shape == (2, 3, 75, 101)
    logits.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("variant", KINDS)
def test_a_copy_that_only_predicts_gives_the_same_logits_without_norms(variant):
    model = trained_a_little(variant)
    folded = fold_batchnorm(model)
    images = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        expected, actual = model(images), folded(images)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert len(list(folded.parameters())) < len(list(model.parameters()))


def test_a_model_that_cannot_be_folded_is_copied_as_it_is():
    class Twice(nn.Module):
        """The convolution's output goes to the norm, and past it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.constant_(self.norm.weight, 3.0)

        def forward(self, images):
            x = self.conv(images)
            return self.norm(x) + x

    model = Twice().eval()
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(fold_batchnorm(model)(images), model(images))


def test_maps_are_those_of_timm_itself():
    backbone = TimmBackbone(CHANNELS_LAST).eval()
    images = torch.randn(1, 3, 64, 96)
    whole = timm.create_model("test_mambaout", features_only=True).eval()
    whole.load_state_dict(backbone.net.state_dict())
    with torch.no_grad():
        maps, expected = backbone(images), whole(images)
    assert [x.shape[1] for x in maps] == backbone.channels
    assert [64 // x.shape[2] for x in maps] == backbone.strides
    for actual, theirs in zip(maps, expected, strict=True):
        assert torch.equal(actual, theirs.permute(0, 3, 1, 2))


def test_padding_shows_the_last_pixels_to_models_that_round_down():
    """timm's ConvNeXt never sees the last three columns of a picture 67 pixels wide."""
    model = build_model(STRIDE_4, "pyramid", 3).eval()
    images = torch.randn(1, 3, 64, 67)
    changed = images.clone()
    changed[..., 66] += 5
    with torch.no_grad():
        assert (model(images) - model(changed)).abs().max() > 0


def test_a_picture_too_large_for_a_fixed_size_is_refused():
    model = build_model(FIXED, "pyramid", 2)
    with pytest.raises(UserError, match=r"up to 224x224 and not 300x225; pass --imgsz 224 224"):
        model(torch.zeros(1, 3, 225, 300))


def test_a_backbone_that_begins_too_coarse_is_refused():
    with pytest.raises(UserError, match="shvit_s1 begins at stride 16"):
        TimmBackbone("timm/shvit_s1")


@pytest.mark.parametrize(
    "name",
    [
        "timm/nope",
        "test_vit",
        "timm/hf-hub:someone/model",
        "timm/local-dir:/tmp",
        "timm/../x",
        "timm/a.b.c",
        "timm/",
    ],
)
def test_no_other_name_reaches_timm(name):
    assert not is_timm(name)
    with pytest.raises(UserError):
        build_model(name, "pyramid")


def test_what_is_known_of_weights_is_timms_own_or_refused_with_the_tags_there_are():
    assert published(PLAIN).license == "apache-2.0"
    assert published("timm/tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match=r"no weights 'x' of test_vit; it has test_vit\.r160_in1k"):
        published("timm/test_vit.x")


def test_the_articles_head_and_windows_are_not_for_timms_backbones():
    for head, window in (("article", None), ("pyramid", 8)):
        with pytest.raises(UserError, match="--head pyramid and no --window"):
            build_model(STRIDE_2, head, window=window)
