"""The head's fast order gives what the article's order gives; what was exchanged is what runs."""

import copy

import literal
import pytest
import torch
import torch.nn.functional as F
from literal import (
    assert_gradients_agree,
    forward_literally,
    gradients,
    head_literally,
    relative_error,
)
from narrow import maps_for, narrow_head, narrow_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from models import heads
from models.heads import conv3x3_of_upsampled, is_head, run_article_head


@pytest.fixture
def only_fast(monkeypatch):
    """Whoever takes the literal order fails."""
    monkeypatch.setattr(heads, "_run_literally", None)


# --- The order of the head ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "batch"), [((128, 128), 1), ((160, 96), 3), ((97, 131), 2), ((33, 47), 1)]
)
def test_the_fast_order_has_the_literal_orders_outputs_and_gradients(size, batch, only_fast):
    """In 64 bits; in 32 the rounding of either order opens and shuts gates of ReLU: see below."""
    model = narrow_model().double()
    images = torch.randn(batch, 3, *size, dtype=torch.float64)
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
    assert relative_error(actual, expected) < 1e-9
    assert_gradients_agree(actual_gradients, expected_gradients, 1e-9)


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
        if is_head(name):
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
        channels = module.in_channels, module.out_channels
        return Doubled(*channels, module.kernel_size, padding=module.padding)
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


@pytest.mark.parametrize("index", range(-1, 14))
def test_a_hook_sees_and_changes_its_step(index):
    """Of a module of the head, or, at -1, of the head itself."""
    head, maps, size = narrow_head(), maps_for((45, 70)), (45, 70)
    step = head if index < 0 else head[index]
    expected, seen = run_article_head(head, maps, size), []
    handle = step.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert relative_error(run_article_head(head, maps, size), expected) < 1e-5
    assert len(seen) == 1
    assert (head[12].scale_factor, head[12].size) == (4, None)
    handle.remove()
    step.register_forward_hook(lambda module, inputs, output: output * 0 + 1)
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


def test_the_articles_line_replaces_the_classifier_in_the_fast_order(only_fast):
    model = narrow_model()
    model.upsample_and_classify[13] = nn.Conv2d(16, 5, kernel_size=(1, 1), stride=(1, 1))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 5, 64, 96)
        assert relative_error(logits, forward_literally(model, images)) < 1e-5
