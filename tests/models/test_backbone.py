"""The backbone computes what the authors' package computes, at every size.

The oracle is the package `fastervit`, as `literal.py` wraps it.
"""

import copy

import literal
import pytest
import torch
from literal import SMALL, learnt, level_maps, randomise, relative_error
from narrow import EVERYTHING, NO_CARRIERS, narrow_model, same_weights
from torch import nn

from models.backbone import PositionTable, window_without_padding
from models.heads import is_head
from models.variants import VARIANTS, weights_url
from segmentation_model import FasterViT, build_model

FEATURE_TOLERANCE = 1e-5


# --- The backbone against the package -------------------------------------------------------------


def assert_features_agree(settings: dict, size: tuple[int, int], batch: int = 2) -> None:
    reference = literal.package.FasterViT(resolution=list(size), **settings)
    randomise(reference).eval()
    with torch.device("meta"):
        model = FasterViT(**settings)
    model = same_weights(model.to_empty(device="cpu"), reference).eval()
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        expected = level_maps(reference, images)
        last, actual = model.forward_features(images)
        normalised = reference.norm(expected[-1])
    assert [x.shape for x in actual] == [x.shape for x in expected]
    errors = [relative_error(a, b) for a, b in zip(actual, expected, strict=True)]
    assert max(errors) < FEATURE_TOLERANCE, errors
    assert relative_error(last, normalised) < FEATURE_TOLERANCE


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        pytest.param((512, 512), {"depths": (2, 3, 6, 5)}, id="as deep as variant 0"),
        pytest.param((224, 224), EVERYTHING, id="layer scale, propagation"),
        pytest.param((256, 256), EVERYTHING, id="layer scale, propagation, padded"),
        pytest.param((256, 256), EVERYTHING | {"ct_size": 3}, id="3x3 carriers"),
        pytest.param((448, 448), {"hat": None}, id="carriers at both levels"),
        pytest.param((256, 256), {"qkv_bias": False, "qk_scale": 0.7}, id="attention settings"),
        pytest.param((131, 131), {}, id="not a multiple of 32"),
        pytest.param(
            (224, 224), EVERYTHING | NO_CARRIERS | {"window_size": (7, 7, 14, 7)}, id="21k 224"
        ),
        pytest.param(
            (400, 400), EVERYTHING | NO_CARRIERS | {"window_size": (7, 7, 24, 12)}, id="21k 384"
        ),
        pytest.param((112, 112), EVERYTHING, id="one window, carriers rest"),
        pytest.param((96, 96), {}, id="one padded window"),
        pytest.param((33, 33), {}, id="smallest"),
        # Not square, but within what the package does right: no carriers, or none at work.
        pytest.param((320, 160), NO_CARRIERS, id="no carriers, 320x160"),
        pytest.param((97, 131), NO_CARRIERS, id="no carriers, 97x131"),
        pytest.param((64, 112), {}, id="one window, 64x112"),
    ],
)
def test_features_of_small_models_agree_with_the_authors(size, changes):
    assert_features_agree(SMALL | changes, size)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name].file])
def test_every_variant_of_the_paper_is_the_packages(variant):
    """Names, shapes, numbers of parameters, window sizes, drop path and propagation."""
    spec = VARIANTS[variant]
    reference = literal.package_variant(variant, spec.resolution)
    with torch.device("meta"):
        model = build_model(variant)
    own = {k: v.shape for k, v in model.state_dict().items() if not is_head(k)}
    assert own == {name: tensor.shape for name, tensor in learnt(reference).items()}
    numbers = [p.numel() for name, p in model.named_parameters() if not is_head(name)]
    assert sum(numbers) == sum(parameter.numel() for parameter in reference.parameters())

    def rates(model):
        drop_paths = [module for module in model.modules() if type(module).__name__ == "DropPath"]
        return sorted({round(path.drop_prob, 5) for path in drop_paths if path.drop_prob})

    assert rates(model) == rates(reference)
    assert max(rates(model)) == pytest.approx(spec.drop_path_rate)
    for level in (2, 3):
        block, theirs = model.levels[level].blocks[-1], reference.levels[level].blocks[-1]
        assert block.window == theirs.window_size
        assert block.propagate == theirs.do_propagation


def test_variants_know_the_authors_files():
    files = [f"fastervit_{number}_224_1k.pth.tar" for number in range(7)]
    windows = ("224_w14", "384_w24", "512_w32", "768_w48")
    files += [f"fastervit_4_21k_{name}.pth.tar" for name in windows]
    urls = [weights_url(name) for name in VARIANTS if name not in ("tiny", "faster_vit_tiny")]
    assert weights_url("faster_vit_tiny") is None
    assert urls == [f"https://huggingface.co/ahatamiz/FasterViT/resolve/main/{f}" for f in files]


# --- Any height, any width ------------------------------------------------------------------------


def transposed(model: FasterViT) -> FasterViT:
    """The same model for pictures whose rows and columns are exchanged."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4:
                parameter.copy_(parameter.mT.clone())
            elif name.endswith("cpb_mlp.0.weight"):
                parameter.copy_(parameter.flip(1))  # its inputs are (row, column)
    return model


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((320, 160), {}),
        ((256, 352), EVERYTHING),
        ((97, 131), EVERYTHING | {"ct_size": 3}),
        ((112, 240), EVERYTHING),  # one window high, three wide
        ((64, 400), EVERYTHING | NO_CARRIERS),
        ((448, 240), EVERYTHING | {"hat": None}),
        ((33, 47), {}),
    ],
)
def test_no_result_depends_on_which_axis_is_called_height(size, changes):
    model = narrow_model(**changes).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)
        assert relative_error(transposed(model)(images.mT).mT, expected) < 1e-9
        # The test can fail: without the exchange the result is another one.
        assert relative_error(model(images.mT).mT, expected) > 1e-3


def test_pictures_of_a_batch_do_not_see_each_other():
    model = narrow_model(**EVERYTHING)
    images = torch.randn(3, 3, 160, 256)
    with torch.no_grad():
        together = model(images)
        for image, expected in zip(images, together, strict=True):
            assert relative_error(model(image[None])[0], expected) < 1e-5


WINDOWS = {(160, 320): 5, (224, 224): 7, (512, 512): 8, (256, 256): 8}
WINDOWS |= {(192, 256): 6, (32, 32): 5, (320, 320): 5}


@pytest.mark.parametrize("size", WINDOWS)
def test_the_window_that_pads_least(size):
    assert window_without_padding(size) == WINDOWS[size]


# --- Position tables ------------------------------------------------------------------------------


def position_weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "cpb_mlp" in name]


def test_position_tables_carry_gradients_to_their_weights():
    model = narrow_model().train()
    model(torch.randn(1, 3, 160, 160)).square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in position_weights(model))


def test_position_tables_are_not_among_what_is_saved():
    model = narrow_model()
    with torch.no_grad():
        model(torch.randn(1, 3, 160, 224))
    assert not [name for name in model.state_dict() if name.endswith(literal.CACHES)]


def test_position_tables_keep_the_precision_of_the_weights_under_autocast():
    model, tables = narrow_model(), []
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.register_forward_hook(lambda module, inputs, table: tables.append(table))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 3, 160, 224))
    with torch.no_grad():
        model.bfloat16()(torch.randn(1, 3, 160, 224, dtype=torch.bfloat16))
    half = len(tables) // 2
    assert {table.dtype for table in tables[:half]} == {torch.float32}
    assert {table.dtype for table in tables[half:]} == {torch.bfloat16}
