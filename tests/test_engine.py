"""One epoch: accumulation, clipping, averages, and losses that are not finite."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

import engine
from common.errors import UserError
from engine import NonFiniteWatch
from metrics import ConfusionMatrix
from training.losses import cross_entropy
from training.precision import Precision

CPU = Precision(torch.device("cpu"))


@dataclass
class FakePair:
    image: Path


class Data(torch.utils.data.Dataset):
    """Six small pictures whose class is their sign."""

    def __init__(self, count=6, poison=()):
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(count, 3, 8, 8, generator=generator)
        self.targets = (self.images.mean(1) > 0).long()
        self.targets[:, 0] = 255
        for index in poison:
            self.images[index, 0, 0, 0] = float("nan")
        self.pairs = [FakePair(Path(f"train_images/{index}.jpg")) for index in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index], index


def make_model(norm=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )


def run(model, data, batch=2, lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = DataLoader(data, batch)
    return engine.train(model, loader, cross_entropy, optimizer, CPU, 2, **options)


@pytest.mark.parametrize("pictures", [6, 5])  # 5: the last batch has but one
def test_accumulated_batches_are_one_large_batch(pictures):
    large, small = make_model(), make_model()
    data = Data(pictures)
    data.targets[:] = (data.images.mean(1) > 0).long()  # equally many pixels count everywhere
    run(large, data, batch=6)
    run(small, data, batch=2, accumulate=3)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_incomplete_last_group_counts_as_much_as_a_whole_one():
    literal, ours = make_model(), make_model()
    data = Data(6)
    optimizer = torch.optim.SGD(literal.parameters(), lr=0.1)
    for first, last in ((0, 4), (4, 6)):  # groups of two batches of 2, then of one
        optimizer.zero_grad()
        halves = range(first, last, 2)
        for i in halves:
            logits = literal(data.images[i : i + 2])
            (cross_entropy(logits, data.targets[i : i + 2]) / len(halves)).backward()
        optimizer.step()
    run(ours, data, batch=2, accumulate=2)
    for a, b in zip(literal.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_clipping_bounds_the_norm_of_a_step():
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    run(model, Data(2), batch=2, lr=1.0, clip_grad=0.01)
    moved = [a - b for a, b in zip(model.parameters(), before, strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_figures_are_those_of_the_whole_epoch():
    model, data = make_model().eval(), Data()
    figures = engine.validate(model, DataLoader(data, 4), cross_entropy, CPU, 2)
    with torch.no_grad():
        logits = model(data.images)
    matrix = ConfusionMatrix(2)
    matrix.update(logits.argmax(1), data.targets)
    losses = F.cross_entropy(logits, data.targets, ignore_index=255, reduction="none")
    assert figures["miou"] == matrix.miou()
    assert figures["iou"] == matrix.iou()
    assert figures["pixel_accuracy"] == matrix.pixel_accuracy()
    assert figures["loss"] == pytest.approx(losses[data.targets != 255].mean().item(), rel=1e-5)
    assert all(isinstance(value, float | list) for value in figures.values())


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_bar_reaches_its_end(accumulate, capsys):
    run(make_model(), Data(6), batch=1, accumulate=accumulate)
    assert "100%" in capsys.readouterr().err


def test_the_learning_rate_is_set_before_each_step_of_a_group():
    shares = []
    run(make_model(), Data(6), batch=1, accumulate=2, set_lr=shares.append)
    assert shares == pytest.approx([0, 2 / 6, 4 / 6])


def test_a_step_whose_loss_is_not_finite_is_not_applied(capsys):
    model = make_model(norm=True)
    before = copy.deepcopy(model.state_dict())
    figures = run(model, Data(2, poison=[1]), batch=2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert "train_images/0.jpg, train_images/1.jpg" in capsys.readouterr().out
    assert figures["loss"] != figures["loss"]


def test_the_batches_files_are_named_and_training_goes_on(capsys):
    model = make_model(norm=True)
    figures = run(model, Data(6, poison=[2]), batch=2)
    assert "train_images/2.jpg" in capsys.readouterr().out
    assert figures["loss"] == figures["loss"]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_too_many_losses_in_a_row_that_are_not_finite_end_the_run():
    with pytest.raises(UserError, match=r"2 steps in a row.*train_images/3\.jpg"):
        run(make_model(), Data(6, poison=[2, 3]), batch=1, watch=NonFiniteWatch(2))
    # Not in a row: the count starts again.
    run(make_model(), Data(6, poison=[1, 3]), batch=1, watch=NonFiniteWatch(2))


def test_the_count_goes_on_from_epoch_to_epoch():
    model, data, watch = make_model(), Data(1, poison=[0]), NonFiniteWatch(3)
    run(model, data, watch=watch)
    run(model, data, watch=watch)
    with pytest.raises(UserError, match="3 steps in a row"):
        run(model, data, watch=watch)


def test_fp16_that_finds_no_scale_ends_the_run():
    model, watch = make_model(), NonFiniteWatch(5)
    precision = Precision(torch.device("cpu"), torch.float16)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Data(20), 1)
    with pytest.raises(UserError, match="5 steps in a row"):
        engine.train(model, loader, cross_entropy, optimizer, precision, 2, watch=watch)


@pytest.mark.parametrize("bad", [0, 3])
def test_one_bad_batch_spoils_its_whole_step(bad, capsys):
    model = make_model(norm=True)
    before = copy.deepcopy(model.state_dict())
    figures = run(model, Data(4, poison=[bad]), batch=1, accumulate=4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert f"not finite on train_images/{bad}.jpg:" in capsys.readouterr().out
    assert figures["loss"] != figures["loss"]
    assert figures["miou"] != figures["miou"]


def test_a_bad_step_leaves_no_trace_in_the_figures_of_the_others():
    clean, poisoned = make_model(), make_model()
    data = Data(6, poison=[5])
    figures = run(poisoned, data, batch=1, accumulate=2)
    data.images, data.targets = data.images[:4], data.targets[:4]
    assert figures == run(clean, data, batch=1, accumulate=2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_waits_once_for_the_device_to_be_judged(monkeypatch, accumulate):
    """A number of a floating-point tensor or a truth is on the host when it has been computed."""
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        ask = getattr(torch.Tensor, name)

        def counted(tensor, ask=ask, name=name):
            if tensor.is_floating_point() or tensor.dtype == torch.bool:
                waits.append(name)
            return ask(tensor)

        monkeypatch.setattr(torch.Tensor, name, counted)

    def waits_of(pictures):
        waits.clear()
        run(make_model(norm=True), Data(pictures), batch=1, accumulate=accumulate, clip_grad=1.0)
        return len(waits)

    assert waits_of(6) - waits_of(3) == 3 // accumulate  # the figures of an epoch left out


def test_the_moving_average_follows_the_weights():
    model = make_model()
    ema = ModelEmaV3(model, decay=0.5)
    start = ema.module[0].weight.clone()
    run(model, Data(2), batch=2, ema=ema)
    assert torch.allclose(ema.module[0].weight, 0.5 * start + 0.5 * model[0].weight, atol=1e-6)


def test_bf16_autocast_trains_close_to_fp32():
    plain, mixed = make_model(), make_model()
    bf16 = Precision.choose("bf16", torch.device("cpu"))
    loader = DataLoader(Data(), 2)
    results = []
    for model, precision in ((plain, CPU), (mixed, bf16)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        results.append(engine.train(model, loader, cross_entropy, optimizer, precision, 2)["loss"])
    assert results[0] == pytest.approx(results[1], rel=0.02)
    assert results[0] != results[1]
    assert all(p.dtype == torch.float32 for p in mixed.parameters())


def test_auto_precision_is_fp32_on_the_cpu():
    assert Precision.choose("auto", torch.device("cpu")).dtype is None


def test_out_of_memory_is_explained_with_the_batch():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError, match=r"--batch 2 .*--accumulate"):
        run(Full(), Data(2), batch=2)
