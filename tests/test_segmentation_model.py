"""The whole model computes what the article's computes, and stands what a training does with it.

The oracle is `literal.py`: the package `fastervit` and the article's order of steps.
"""

import copy
import os
from types import SimpleNamespace

import literal
import pytest
import torch
from literal import (
    SMALL,
    assert_gradients_agree,
    forward_literally,
    gradients,
    learnt,
    randomise,
    relative_error,
    training_step,
)
from narrow import NO_CARRIERS, narrow_model, narrowed, same_weights, shallow_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import engine
import segmentation_model
from common.errors import UserError
from segmentation_model import FasterViT, build_model
from training.losses import Loss
from training.precision import Precision

# --- The whole model against the article's --------------------------------------------------------


def test_parameters_count_as_in_the_article():
    with torch.device("meta"):
        model = build_model(num_classes=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 65_036_074


def test_the_articles_function_takes_its_keywords():
    settings = literal.SMALL | {"depths": [1, 1, 3, 1], "hat": [False, False, True, False]}
    with torch.device("meta"):
        model = segmentation_model.faster_vit_0_any_res(
            pretrained=False,
            resolution=[256, 320],
            drop_path_rate=0.4,
            model_path="weights/other.pth.tar",
            **settings,
        )
        other = segmentation_model.faster_vit_0_any_res(num_classes=5)
    assert model.resolution == (256, 320)
    assert model.upsample_and_classify[13].out_channels == model.num_classes == 1000
    assert len(model.levels[2].blocks) == 3
    assert other.upsample_and_classify[13].out_channels == 5
    assert other.head.out_features == 1000


def test_windows_are_the_variants_unless_a_side_is_given():
    with torch.device("meta"):
        models = [build_model(window=side) for side in (None, 5)]
    assert [model.window for model in models] == [None, 5]
    sides = [
        {block.window for level in model.levels[2:] for block in level.blocks} for model in models
    ]
    assert sides == [{7}, {5}]


@pytest.mark.parametrize(("name", "value"), [("variant", "faster_vit_9"), ("head", "unet")])
def test_an_unknown_name_is_answered_with_the_known_ones(name, value):
    with pytest.raises(UserError, match=rf"'{value}'; choose (timm/NAME or )?one of .*, "):
        build_model(**{name: value})


def test_the_whole_model_agrees_with_the_articles():
    reference = randomise(literal.ArticleModel((128, 128), **SMALL)).eval()
    with torch.device("meta"):
        model = FasterViT(**SMALL, num_classes=2)
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(learnt(reference))  # strict: the article's names are all there
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 2, 128, 128)
        assert relative_error(logits, reference(images)) < 1e-4


def test_the_script_prints_parameters_and_shape(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no weights are there, so no 120 MB are read
    # The head takes ten seconds for this one picture, and has its own tests.
    monkeypatch.setattr(
        segmentation_model, "run_article_head", lambda _, maps, size: maps[0].new_zeros(1, 2, *size)
    )
    segmentation_model.main()
    lines = capsys.readouterr().out.splitlines()
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
    # In 64 bits: in 32, rounding decides which gates of ReLU let a gradient through.
    reference = randomise(narrowed(literal.ArticleModel(size, **settings), 2)).double()
    # Random layer by layer is right for the backbone, but would saturate the loss.
    with torch.no_grad():
        reference.upsample_and_classify[13].weight *= 0.3
    model = same_weights(narrow_model(2, **changes).double(), reference)
    images = torch.randn(batch, 3, *size, dtype=torch.float64)
    targets = torch.randint(0, 2, (batch, *size))

    expected_loss, expected = training_step(reference, images, targets)
    actual = {}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    optimizer.register_step_pre_hook(lambda *_: actual.update(gradients(model)))
    dataset = TensorDataset(images, targets, torch.arange(batch))
    dataset.pairs = [SimpleNamespace(image=index) for index in range(batch)]
    loader = DataLoader(dataset, batch_size=batch)
    precision = Precision(torch.device("cpu"))
    figures = engine.train(model, loader, Loss("ce"), optimizer, precision, 2)
    assert figures["loss"] == pytest.approx(expected_loss, rel=1e-5)
    resting = {name: actual.pop(name) for name in actual.keys() - expected.keys()}
    assert not any(gradient.any() for gradient in resting.values())
    assert_gradients_agree(actual, expected, 5e-4)


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
    with torch.inference_mode():
        return model.eval()(images)


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


# --- torch.compile --------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_evaluation_compiles_as_one_graph_that_follows_the_weights():
    model, images = shallow_model(), torch.randn(1, 3, 64, 96)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        before = compiled(images)
        assert relative_error(before, model(images)) < 1e-4
        for weight in model.parameters():
            weight.mul_(1.1)
        assert relative_error(compiled(images), model(images)) < 1e-4
        assert relative_error(compiled(images), before) > 1e-3


# One graph or several is decided by the front end; to make the backward graph takes far longer.
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.soak)])
@pytest.mark.usefixtures("fresh_compiler")
def test_training_compiles_as_one_graph(backend):
    model = shallow_model().train()
    twin = copy.deepcopy(model)
    images = torch.randn(1, 3, 128, 160)
    actual = torch.compile(model, fullgraph=True, backend=backend)(images)
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
