"""The model computes what the authors' package and the article compute, at every size.

The oracle is `literal.py`: the package `fastervit` and the article's order of steps.
"""

import copy
import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import literal
import pytest
import torch
import torch.nn.functional as F
from literal import (
    SMALL,
    assert_gradients_agree,
    forward_literally,
    gradients,
    head_literally,
    learnt,
    level_maps,
    make_head,
    randomise,
    relative_error,
    training_step,
)
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import engine
import segmentation_model
from common.errors import UserError
from models.backbone import PositionTable
from models.heads import conv3x3_of_upsampled, run_article_head
from models.variants import VARIANTS
from segmentation_model import FasterViT, build_model, window_without_padding
from training.losses import cross_entropy

ROOT = Path(segmentation_model.__file__).parent
FEATURE_TOLERANCE = 1e-5
# What only our model has: the head beside a bare backbone, carriers' scales beside a single window.
HEAD = ("upsample_and_classify.", "conv2d_block")
GAMMAS = re.compile(r"\.gamma[12]$")
NO_CARRIERS = {"hat": (False,) * 4}
EVERYTHING = {"layer_scale": 1e-5, "layer_scale_conv": 1e-5, "do_propagation": True}


def same_weights(model: FasterViT, reference: nn.Module) -> FasterViT:
    """Copy all that the reference learnt.

    Built for a single window, the package's model lacks the carriers' weights; in ours they rest.
    """
    result = model.load_state_dict(learnt(reference), strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith(HEAD) or ".hat_" in name or GAMMAS.search(name)
               for name in result.missing_keys), result.missing_keys  # fmt: skip
    return model


def narrow_model(**changes) -> FasterViT:
    """A small model with random weights and a narrow head of the article's structure, 3 classes."""
    with torch.device("meta"):
        model = FasterViT(**(SMALL | {"drop_path_rate": 0.0, "num_classes": 3} | changes))
        model.conv2d_block1 = nn.Conv2d(32, 24, kernel_size=3)
        model.conv2d_block2 = nn.Conv2d(64, 24, kernel_size=3)
        model.upsample_and_classify = make_head(24 + 24 + 128 + 128, 3, (24, 32, 24, 16))
    return randomise(model.to_empty(device="cpu")).eval()


def narrow_head() -> nn.Sequential:
    return randomise(make_head(24 + 24 + 128 + 128, 3, (24, 32, 24, 16)))


def maps_for(size: tuple[int, int], batch: int = 1) -> list[Tensor]:
    """Random maps for `narrow_head`, of the sizes that a picture of `size` has."""
    sides = [tuple(-(-side // stride) for side in size) for stride in (8, 16, 32, 32)]
    sides[:2] = [tuple(max(side, 3) - 2 for side in pair) for pair in sides[:2]]
    return [
        torch.randn(batch, width, *side)
        for width, side in zip((24, 24, 128, 128), sides, strict=True)
    ]


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


@pytest.mark.parametrize("size", [224, 256, 512])
def test_features_of_variant_0_agree_with_the_authors(size):
    spec = VARIANTS["faster_vit_0"]
    settings = {
        "dim": spec.dim, "in_dim": spec.in_dim, "depths": spec.depths, "mlp_ratio": 4,
        "num_heads": spec.num_heads, "window_size": spec.window_size, "ct_size": 2,
    }  # fmt: skip
    assert_features_agree(settings, (size, size), batch=1)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_packages(variant):
    """Names, shapes, numbers of parameters, window sizes, drop path and propagation."""
    spec = VARIANTS[variant]
    reference = literal.package_variant(variant, spec.resolution)
    with torch.device("meta"):
        model = build_model(variant)
    own = {k: v.shape for k, v in model.state_dict().items() if not k.startswith(HEAD)}
    assert own == {name: tensor.shape for name, tensor in learnt(reference).items()}
    numbers = [p.numel() for name, p in model.named_parameters() if not name.startswith(HEAD)]
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
    files += [
        f"fastervit_4_21k_{name}.pth.tar"
        for name in ("224_w14", "384_w24", "512_w32", "768_w48")
    ]  # fmt: skip
    urls = [segmentation_model.weights_url(name) for name in VARIANTS if name != "tiny"]
    assert urls == [f"https://huggingface.co/ahatamiz/FasterViT/resolve/main/{f}" for f in files]


# --- The whole model against the article's --------------------------------------------------------


def test_parameters_count_as_in_the_article():
    with torch.device("meta"):
        model = build_model(num_classes=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 65_036_074


def test_the_articles_function_takes_its_keywords():
    with torch.device("meta"):
        model = segmentation_model.faster_vit_0_any_res(
            pretrained=False, resolution=[256, 320], drop_path_rate=0.4, depths=[1, 1, 3, 1],
            num_heads=[2, 4, 8, 16], window_size=[7, 7, 7, 7], ct_size=2, dim=64, in_dim=64,
            mlp_ratio=4, hat=[False, False, True, False], model_path="weights/other.pth.tar",
        )  # fmt: skip
    assert model.upsample_and_classify[13].out_channels == model.num_classes == 1000
    assert len(model.levels[2].blocks) == 3
    with torch.device("meta"):
        model = segmentation_model.faster_vit_0_any_res(num_classes=5)
    assert model.upsample_and_classify[13].out_channels == 5
    assert model.head.out_features == 1000


@pytest.mark.parametrize(("name", "value"), [("variant", "faster_vit_9"), ("head", "unet")])
def test_an_unknown_name_is_answered_with_the_known_ones(name, value):
    with pytest.raises(UserError, match=rf"'{value}'; choose one of .*, "):
        build_model(**{name: value})


def test_the_whole_model_agrees_with_the_articles():
    reference = literal.ArticleModel((160, 160), dim=64, in_dim=64, depths=[2, 3, 6, 5],
                                     num_heads=[2, 4, 8, 16], window_size=[7] * 4, ct_size=2,
                                     mlp_ratio=4)  # fmt: skip
    randomise(reference).eval()
    with torch.device("meta"):
        model = build_model()
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(learnt(reference))  # strict: the article's names are all there
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 2, 160, 160)
        assert relative_error(logits, reference(images)) < 1e-4


def test_the_script_prints_parameters_and_shape(tmp_path):
    # Run from elsewhere: there are no weights, so no 120 MB are read.
    finished = subprocess.run(
        [sys.executable, str(ROOT / "segmentation_model.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    lines = finished.stdout.splitlines()
    assert finished.returncode == 0, finished.stderr
    assert "No ImageNet weights at" in lines[0]
    assert lines[1].startswith("FasterViT(")
    assert lines[-3:] == [
        "65,036,074 total parameters.",
        "65,036,074 training parameters.",
        "torch.Size([1, 2, 512, 512])",
    ]
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("size", "batch", "changes"),
    [
        pytest.param((64, 64), 2, {}, id="one window"),
        pytest.param((32, 32), 1, {}, id="smallest"),
        pytest.param((128, 128), 1, {"do_propagation": True}, id="carriers, padded"),
        pytest.param((97, 67), 2, NO_CARRIERS, id="not square"),
    ],
)
def test_a_training_step_is_the_articles(size, batch, changes):
    settings = SMALL | {"drop_path_rate": 0.0} | changes
    reference = randomise(literal.ArticleModel(size, **settings))
    # Random layer by layer is right for the backbone, but would saturate the loss.
    with torch.no_grad():
        reference.upsample_and_classify[13].weight *= 0.3
    with torch.device("meta"):
        model = FasterViT(**settings, num_classes=2)
    model = same_weights(randomise(model.to_empty(device="cpu")), reference)
    images, targets = torch.randn(batch, 3, *size), torch.randint(0, 2, (batch, *size))

    expected_loss, expected = training_step(reference, images, targets)
    actual = {}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    optimizer.register_step_pre_hook(lambda *_: actual.update(gradients(model)))
    dataset = TensorDataset(images, targets, torch.arange(batch))
    dataset.pairs = [SimpleNamespace(image=index) for index in range(batch)]
    loader = DataLoader(dataset, batch_size=batch)
    figures = engine.train(model, loader, cross_entropy, optimizer,
                           engine.Precision(torch.device("cpu")), 2)  # fmt: skip
    assert figures["loss"] == pytest.approx(expected_loss, rel=1e-5)
    resting = {name: actual.pop(name) for name in actual.keys() - expected.keys()}
    assert not any(gradient.any() for gradient in resting.values())
    assert_gradients_agree(actual, expected, 5e-4)


# --- The order of the head ------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(512, 512), (256, 256), (320, 160), (97, 131)])
@pytest.mark.parametrize(
    ("dtype", "of_outputs", "of_gradients"),
    [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-5, 5e-4)],
    ids=["float64", "float32"],
)
def test_the_fast_order_has_the_literal_orders_outputs_and_gradients(
    size, batch, dtype, of_outputs, of_gradients
):
    """In 32 bits with a smooth activation; the next test is about ReLU.

    Rounding, of either order, decides whether a pixel at a ReLU's corner passes its gradient, and
    one such pixel moves gradients by 1e-3: the test would measure luck.
    """
    model = narrow_model().to(dtype)
    if dtype == torch.float32:
        for index in (2, 5, 8, 11):
            model.upsample_and_classify[index] = nn.GELU()
    images = torch.randn(batch, 3, *size, dtype=dtype)
    targets = torch.randint(0, 3, (batch, *size))

    def run(forward):
        model.zero_grad()
        images_with_gradient = images.clone().requires_grad_()
        logits = forward(images_with_gradient)
        F.cross_entropy(logits, targets).backward()
        return logits.detach(), gradients(model) | {"images": images_with_gradient.grad}

    expected, expected_gradients = run(lambda x: forward_literally(model, x))
    actual, actual_gradients = run(model)
    assert actual.shape == expected.shape == (batch, 3, *size)
    assert relative_error(actual, expected) < of_outputs
    assert_gradients_agree(actual_gradients, expected_gradients, of_gradients)


def test_in_32_bits_the_fast_order_loses_no_more_than_the_literal_one():
    """With ReLU, both against the literal order in 64 bits.

    The median, since now and then a flipped gate costs either order 3e-3.
    """
    errors = {"fast": [], "literal": []}
    for _ in range(3):
        model = narrow_model()
        precise = copy.deepcopy(model).double()
        images, targets = torch.randn(1, 3, 64, 96), torch.randint(0, 3, (1, 64, 96))
        orders = {
            "precise": (precise, lambda x, model=precise: forward_literally(model, x)),
            "literal": (model, lambda x, model=model: forward_literally(model, x)),
            "fast": (model, model),
        }
        found = {}
        for order, (weights, forward) in orders.items():
            weights.zero_grad()
            dtype = next(weights.parameters()).dtype
            F.cross_entropy(forward(images.to(dtype)), targets).backward()
            found[order] = {name: value.double() for name, value in gradients(weights).items()}
        largest = max(value.norm() for value in found["precise"].values())
        for order in errors:
            errors[order].append(
                max(
                    ((found[order][name] - value).norm() / (value.norm() + 1e-4 * largest)).item()
                    for name, value in found["precise"].items()
                )
            )
    assert sorted(errors["fast"])[1] <= 2 * sorted(errors["literal"])[1], errors
    assert max(errors["fast"]) < 2e-2, errors


@pytest.mark.parametrize(
    ("sizes", "out"),
    [
        ([(1, 1)], (8, 8)),
        ([(5, 3), (2, 7)], (11, 6)),
        ([(8, 8), (16, 4)], (8, 8)),
        ([(9, 9)], (4, 5)),  # smaller than the source
        ([(2, 2)], (1, 1)),
    ],
)
def test_a_convolution_of_upsampled_maps_equals_upsampling_first(sizes, out):
    sources = [
        torch.randn(2, 3 + index, *side, dtype=torch.float64) for index, side in enumerate(sizes)
    ]
    weight = torch.randn(5, sum(x.shape[1] for x in sources), 3, 3, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    together = torch.cat([literal.bilinear(x, out) for x in sources], dim=1)
    expected = F.conv2d(together, weight, bias, padding=1)
    actual = conv3x3_of_upsampled(sources, weight, bias, out)
    assert relative_error(actual, expected) < 1e-12


def test_bfloat16_costs_no_more_accuracy_than_in_the_literal_order():
    head, errors = narrow_head().eval(), {"fast": [], "literal": []}
    for _ in range(4):
        maps = maps_for((160, 128), batch=2)
        with torch.no_grad():
            expected = head_literally(head, maps, (160, 128))
            with torch.autocast("cpu", torch.bfloat16):
                fast = run_article_head(head, maps, (160, 128))
                slow = head_literally(head, maps, (160, 128))
        errors["fast"].append(relative_error(fast.float(), expected))
        errors["literal"].append(relative_error(slow.float(), expected))
    assert min(errors["literal"]) > 1e-4  # bfloat16 was at work
    assert sum(errors["fast"]) <= 1.5 * sum(errors["literal"]), errors


def test_training_under_bfloat16_reaches_every_parameter_of_the_head():
    model = narrow_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(1, 3, 64, 64))
    logits.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(HEAD):
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.dtype == parameter.grad.dtype == torch.float32


class Watched(TorchDispatchMode):
    """Counts convolutions and notes which results of ReLU are still held."""

    def __init__(self):
        super().__init__()
        self.results: list[StorageWeakRef] = []
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.relu.default:
            self.results.append(StorageWeakRef(result.untyped_storage()))
        self.convolutions += func is torch.ops.aten.convolution.default
        return result

    def held(self) -> int:
        return sum(not result.expired() for result in self.results)


def test_training_keeps_half_of_the_heads_maps_and_convolves_nothing_twice():
    head, maps, size = narrow_head(), maps_for((64, 96)), (64, 96)
    with Watched() as literally:
        expected = head_literally(head, maps, size)
    with Watched() as watched:
        logits = run_article_head(head, maps, size)
        assert (len(watched.results), watched.held(), literally.held()) == (4, 0, 4)
        logits.square().mean().backward()
    assert watched.convolutions == 4  # the first one is made of matrix products
    assert relative_error(logits, expected) < 1e-5


def test_what_is_recomputed_has_the_weights_of_its_forward_pass():
    head, maps, size = narrow_head(), maps_for((64, 96)), (64, 96)
    other = {name: value.detach() * 1.5 for name, value in head.named_parameters()}
    expected = {}
    for order in (head_literally, run_article_head):
        given = {name: value.clone().requires_grad_() for name, value in other.items()}
        whole = nn.Module()
        whole.head = head
        whole.forward = lambda x, order=order: order(head, x, size)
        logits = torch.func.functional_call(
            whole, {f"head.{name}": value for name, value in given.items()}, (maps,)
        )
        found = torch.autograd.grad(logits.square().mean(), list(given.values()))
        expected = expected or dict(zip(given, found, strict=True))
    for gradient, reference in zip(found, expected.values(), strict=True):
        assert relative_error(gradient, reference) < 1e-4
    logits = run_article_head(head, maps, size).square().mean()
    with torch.no_grad():
        head[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"changed between|modified by an inplace"):
        logits.backward()


# --- Modules that the user exchanges --------------------------------------------------------------


class Doubled(nn.Conv2d):
    """A convolution of another kind, as quantised or adapted ones are."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def another_module(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return Doubled(module.in_channels, module.out_channels, module.kernel_size,
                       padding=module.padding)  # fmt: skip
    if isinstance(module, nn.GroupNorm):
        return nn.GroupNorm(4, module.num_channels, eps=0.1)
    return nn.GELU()


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13])
def test_an_exchanged_module_of_the_head_is_the_one_that_runs(index):
    head, maps, size = narrow_head(), maps_for((52, 70)), (52, 70)
    before = run_article_head(head, maps, size)
    head[index] = another_module(head[index])
    after = run_article_head(head, maps, size)
    assert relative_error(after, head_literally(head, maps, size)) < 1e-5
    assert relative_error(after, before) > 1e-2


@pytest.mark.parametrize(
    ("index", "module"),
    [
        (0, nn.Conv2d(304, 24, 3, padding=1, bias=False)),
        (0, nn.Conv2d(304, 24, 3, padding=2, dilation=2)),
        (0, nn.Conv2d(304, 24, 3, padding=1, groups=8)),
        (0, nn.Conv2d(304, 24, 3, padding=1, padding_mode="reflect")),
        (0, nn.Conv2d(304, 24, 3, padding="same")),
        (0, nn.Conv2d(304, 24, 1)),
        (0, nn.Conv2d(304, 24, 5, padding=2)),
        (0, nn.Conv2d(304, 24, (3, 1), padding=(1, 0))),
        (0, nn.utils.parametrizations.weight_norm(nn.Conv2d(304, 24, 3, padding=1))),
        (0, nn.Sequential(nn.Dropout2d(0.0), nn.Conv2d(304, 24, 1))),
        (13, nn.Conv2d(16, 7, 1)),
        (13, nn.Conv2d(16, 7, kernel_size=(1, 1), stride=(1, 1))),
        (13, nn.Conv2d(16, 3, 1, bias=False)),
        (13, nn.Conv2d(16, 3, 3, padding=1)),
        (13, nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))),
        (13, nn.Identity()),
    ],
    ids=str,
)
def test_convolutions_of_any_kind_may_stand_first_and_last(index, module):
    head, maps, size = narrow_head(), maps_for((45, 70)), (45, 70)
    head[index] = module
    expected = head_literally(head, maps, size)
    actual = run_article_head(head, maps, size)
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(
    "upsample",
    [
        nn.Upsample(scale_factor=4, mode="nearest"),
        nn.Upsample(size=(64, 96), mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=4, mode="bicubic"),
        nn.UpsamplingNearest2d(scale_factor=4),
        nn.ConvTranspose2d(16, 16, 4, stride=4),
        nn.Sequential(nn.Upsample(scale_factor=4, mode="bilinear"), nn.Tanh()),
    ],
    ids=str,
)
def test_an_exchanged_upsampling_is_the_one_that_runs(upsample):
    head, maps, size = narrow_head(), maps_for((64, 96)), (64, 96)
    head[12] = upsample
    expected = head_literally(head, maps, size, upsample)
    assert relative_error(run_article_head(head, maps, size), expected) < 1e-5


@pytest.mark.parametrize("index", range(14))
def test_a_hook_sees_and_changes_its_step(index):
    head, maps, size = narrow_head(), maps_for((45, 70)), (45, 70)
    expected = run_article_head(head, maps, size)
    seen = []

    def note(module, inputs, output):
        seen.append((inputs[0].shape, output.shape))

    handle = head[index].register_forward_hook(note)
    assert relative_error(run_article_head(head, maps, size), expected) < 1e-5
    assert len(seen) == 1
    handle.remove()
    head[index].register_forward_hook(lambda module, inputs, output: output * 0 + 1)
    assert relative_error(run_article_head(head, maps, size), expected) > 1e-2


def test_hooks_of_the_first_and_last_step_see_the_articles_maps():
    head, maps, size = narrow_head(), maps_for((64, 96)), (64, 96)
    seen = {}
    for index in (0, 12, 13):
        head[index].register_forward_pre_hook(
            lambda module, inputs, index=index: seen.update({index: tuple(inputs[0].shape)})
        )
    run_article_head(head, maps, size)
    assert seen == {0: (1, 304, 16, 24), 12: (1, 16, 16, 24), 13: (1, 16, 64, 96)}


def test_the_articles_line_replaces_the_classifier():
    model = narrow_model()
    model.upsample_and_classify[13] = nn.Conv2d(16, 5, kernel_size=(1, 1), stride=(1, 1))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 5, 64, 96)
        assert relative_error(logits, forward_literally(model, images)) < 1e-5


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


@pytest.mark.parametrize(
    "size", [(32, 32), (33, 47), (32, 128), (160, 40), (97, 131), (225, 113), (64, 512)]
)
def test_any_size_from_32_up_is_segmented_and_trained_on(size):
    model = narrow_model().train()
    images = torch.randn(1, 3, *size)  # one picture, also where a level has one row
    logits = model(images)
    assert logits.shape == (1, 3, *size)
    assert relative_error(logits, forward_literally(model, images)) < 1e-4
    logits.square().mean().backward()
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
    with torch.no_grad():
        assert torch.isfinite(model.eval()(images)).all()


def test_pictures_of_a_batch_do_not_see_each_other():
    model = narrow_model(**EVERYTHING)
    images = torch.randn(3, 3, 160, 256)
    with torch.no_grad():
        together = model(images)
        for image, expected in zip(images, together, strict=True):
            assert relative_error(model(image[None])[0], expected) < 1e-5


# --- What a training does with a model ------------------------------------------------------------


def step(model: nn.Module, size: tuple[int, int] = (64, 64)) -> None:
    """One optimizer step, at a rate that shows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(torch.randn(2, 3, *size)).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def evaluate(model: nn.Module, size: tuple[int, int] = (160, 224)) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(1, 3, *size, generator=generator)
    if model.training:
        model.eval()  # not each time: it would drop what the model remembers
    with torch.inference_mode():
        return model(images).clone()


def test_a_copy_made_after_a_training_step_is_independent():
    model = narrow_model()
    step(model)
    model(torch.randn(2, 3, 160, 160))  # a graph is alive
    twin = copy.deepcopy(model)
    expected = evaluate(model)
    assert torch.equal(evaluate(twin), expected)
    step(twin)
    assert torch.equal(evaluate(model), expected)
    assert not torch.equal(evaluate(twin), expected)


def test_weights_load_after_inference_and_take_effect():
    model, other = narrow_model(), randomise(narrow_model(), seed=1)
    before, expected = evaluate(model), evaluate(other)
    model.load_state_dict(other.state_dict())
    assert torch.equal(evaluate(model), expected)
    assert not torch.equal(before, expected)


def test_training_goes_on_after_an_evaluation_at_another_size():
    model, undisturbed = narrow_model(), narrow_model()
    for trained in (model, undisturbed):
        torch.manual_seed(1)
        step(trained)
        if trained is model:
            evaluate(model, (224, 96))
            evaluate(model, (64, 64))
        step(trained, (64, 64))
        step(trained, (128, 160))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, undisturbed.state_dict()[name]), name


def test_a_model_built_or_loaded_under_inference_mode_predicts():
    with torch.inference_mode():
        model = narrow_model()
        first = evaluate(model)
        assert torch.equal(evaluate(model), first)
        randomise(model, seed=1)
        assert not torch.equal(evaluate(model), first)


# --- Position tables are remembered, never outdated -----------------------------------------------


def position_weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "cpb_mlp" in name]


def change_in_place(model):
    with torch.no_grad():
        for weight in position_weights(model):
            weight.mul_(1.5)


def change_by_loading(model):
    state = model.state_dict()
    model.load_state_dict({k: v * 1.5 if "cpb_mlp" in k else v for k, v in state.items()})


def change_by_an_optimizer(model):
    optimizer = torch.optim.AdamW(position_weights(model), lr=0.1)
    for weight in position_weights(model):
        weight.grad = torch.ones_like(weight)
    optimizer.step()


def change_by_many_at_once(model):
    """As a moving average of weights does it."""
    with torch.no_grad():
        torch._foreach_mul_([tensor.detach() for tensor in position_weights(model)], 1.5)


def change_by_assigning(model):
    for weight in position_weights(model):
        weight.data = weight.data * 1.5


def change_by_new_parameters(model):
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.cpb_mlp[2].weight = nn.Parameter(module.cpb_mlp[2].weight.detach() * 1.5)


CHANGES = [
    change_in_place,
    change_by_loading,
    change_by_an_optimizer,
    change_by_many_at_once,
    change_by_assigning,
    change_by_new_parameters,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_position_tables_follow_their_weights(change):
    model = narrow_model()
    before = evaluate(model)
    change(model)
    after = evaluate(model)
    fresh = narrow_model()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, evaluate(fresh))
    assert relative_error(after, before) > 1e-3


def count_computations(monkeypatch) -> list:
    computed = []
    for kind in PositionTable.__subclasses__():

        def compute(self, height, width, original=kind.compute):
            computed.append((height, width))
            return original(self, height, width)

        monkeypatch.setattr(kind, "compute", compute)
    return computed


def test_position_tables_are_computed_once_a_size_in_evaluation(monkeypatch):
    model, computed = narrow_model(), count_computations(monkeypatch)
    first = evaluate(model)
    once = len(computed)
    assert once > 0
    assert torch.equal(evaluate(model), first)
    assert len(computed) == once
    evaluate(model, (256, 96))
    assert once < len(computed) < 2 * once  # only what depends on the size
    with torch.no_grad():
        model(torch.randn(1, 3, 160, 224))
    model.train()
    model.eval()
    computed.clear()
    assert torch.equal(evaluate(model), first)
    assert len(computed) == once  # dropped when training resumed


def test_position_tables_in_training_carry_gradients_to_their_weights():
    model = narrow_model()
    evaluate(model)
    model.train()(torch.randn(1, 3, 160, 160)).square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in position_weights(model))


def test_remembered_tables_change_no_result_and_no_gradient():
    model = narrow_model()
    evaluate(model)
    evaluate(model)
    images = torch.randn(1, 3, 160, 224)
    with torch.no_grad():
        remembered = model(images)
    computed = model(images)  # gradients are on, so the tables are computed
    assert relative_error(remembered, computed.detach()) < 1e-6
    computed.sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in position_weights(model))


def test_remembered_tables_are_neither_saved_nor_copied():
    model = narrow_model()
    names, size = list(model.state_dict()), len(pickle.dumps(model))
    expected = evaluate(model)
    assert list(model.state_dict()) == names
    assert abs(len(pickle.dumps(model)) - size) < 2000
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(evaluate(again), expected)
    assert torch.equal(evaluate(copy.deepcopy(model)), expected)


def test_a_model_can_be_saved_whole_after_an_evaluation():
    model = narrow_model()
    evaluate(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert not [name for name in state if name.endswith(literal.CACHES)]


def test_position_tables_follow_a_change_of_precision():
    model = narrow_model()
    evaluate(model)
    coarse = model.bfloat16()
    with torch.inference_mode():
        assert coarse(torch.randn(1, 3, 160, 224, dtype=torch.bfloat16)).dtype == torch.bfloat16
    fine = model.float()
    fresh = narrow_model()
    fresh.load_state_dict(fine.state_dict())
    assert torch.equal(evaluate(fine), evaluate(fresh))


def test_remembered_tables_do_not_grow_without_bound():
    model = narrow_model()
    for side in range(128, 1024, 32):
        tokens = torch.zeros(1, 64, side // 16, 7)
        with torch.inference_mode():
            model.levels[2](tokens)
    tables = [module for module in model.modules() if isinstance(module, PositionTable)]
    assert max(len(table._remembered) for table in tables) <= PositionTable.REMEMBERED_SIZES


# --- torch.compile --------------------------------------------------------------------------------


def shallow_model(**changes) -> FasterViT:
    """One block a level: compiling takes its time a block."""
    return narrow_model(depths=(1, 1, 1, 1), **EVERYTHING, **changes)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_evaluation_compiles_as_one_graph_that_follows_the_weights():
    model, images = shallow_model(), torch.randn(1, 3, 128, 160)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = compiled(images)
        assert relative_error(before, model(images)) < 1e-4
        change_in_place(model)
        assert relative_error(compiled(images), model(images)) < 1e-4
        assert relative_error(compiled(images), before) > 1e-3


@pytest.mark.usefixtures("fresh_compiler")
def test_training_compiles_as_one_graph():
    model = shallow_model().train()
    twin = copy.deepcopy(model)
    images = torch.randn(1, 3, 128, 160)
    actual = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    expected = twin(images)
    assert relative_error(actual, expected) < 1e-4
    actual.square().mean().backward()
    expected.square().mean().backward()
    assert_gradients_agree(gradients(model), gradients(twin), 5e-4)


@pytest.mark.soak
@pytest.mark.usefixtures("fresh_compiler")
def test_the_default_compiler_takes_a_level_with_carriers():
    """Inductor once, on the part with the most unusual operations: it needs a minute for all."""
    level, x = shallow_model().levels[2], torch.randn(1, 64, 8, 10)
    with torch.no_grad():
        for actual, expected in zip(torch.compile(level, fullgraph=True)(x), level(x), strict=True):
            assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize(
    ("size", "window"),
    [((160, 320), 5), ((224, 224), 7), ((512, 512), 8), ((256, 256), 8), ((192, 256), 6),
     ((32, 32), 5), ((320, 320), 5)],
)  # fmt: skip
def test_the_window_that_pads_least(size, window):
    assert window_without_padding(size) == window
