"""One epoch: accumulation, clipping, averages, and losses that are not finite."""

import copy
import os
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from tiny_world import together
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import DataLoader, Subset

import engine
from common import cli, distributed
from common.errors import UserError
from engine import NonFiniteWatch
from metrics import ConfusionMatrix
from training.losses import Loss
from training.precision import Precision
from training.state import TrainingState

CPU, CROSS_ENTROPY = Precision(torch.device("cpu")), Loss("ce")
WEIGHTS = torch.tensor([1.0, 3.0])


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
    return engine.train(model, loader, CROSS_ENTROPY, optimizer, CPU, 2, **options)


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
            (CROSS_ENTROPY(logits, data.targets[i : i + 2]) / len(halves)).backward()
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
    figures = engine.validate(model, DataLoader(data, 4), CROSS_ENTROPY, CPU, 2)
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


def test_the_average_of_the_weights_counts_the_steps_of_the_whole_run():
    model, steps = make_model(), []
    ema = SimpleNamespace(update=lambda averaged, step: steps.append((averaged is model, step)))
    run(model, Data(5), batch=1, accumulate=2, ema=ema, steps_before=6)
    assert steps == [(True, 7), (True, 8), (True, 9)]


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
        engine.train(model, loader, CROSS_ENTROPY, optimizer, precision, 2, watch=watch)


def test_fp16_finds_its_scale_after_an_overflow_and_again_after_the_next(capsys):
    model, scales = make_model(), []
    before = copy.deepcopy(model.state_dict())
    precision = Precision(torch.device("cpu"), torch.float16)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = (DataLoader(Data(40), 1), CROSS_ENTROPY, optimizer, precision, 2)
    seen = {"set_lr": lambda _: scales.append(precision.scaler.get_scale())}
    figures = engine.train(model, *loop, ema=ModelEmaV3(model), **seen)
    turns = [a < b for a, b in pairwise(scales) if a != b]  # whether it rose
    assert turns[:5] == [False] * 5
    first = turns.index(True)
    assert False in turns[first:]
    assert "not finite" not in capsys.readouterr().out  # a search is no fault of a picture
    assert figures["loss"] == figures["loss"]
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, before[name])
    # A run that goes on need not search again.
    state = TrainingState(model, optimizer, precision)
    saved = state.to_plain() | {"history": [{"valid_miou": 0.0}]}
    optimizer.param_groups[0] |= {"base_lr": 0.1}
    again = Precision(torch.device("cpu"), torch.float16)
    TrainingState(model, optimizer, again).restore(saved)
    assert again.scaler.get_scale() == precision.scaler.get_scale() != 2.0**16


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


# What is answered on the host: bincount asks for extremes, a choice by a mask for its length.
ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "unique")


class Waits(TorchDispatchMode):
    """Counts how often a device would have to be waited for."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        # One that is written on the host already, like a batch's indices, needs no waiting.
        for name in ("item", "tolist", "__bool__", "__float__"):
            monkeypatch.setattr(torch.Tensor, name, self.counting(getattr(torch.Tensor, name)))

    def counting(self, ask):
        def counted(tensor):
            floating = tensor.is_floating_point() or tensor.dtype == torch.bool
            self.count += floating
            with _disable_current_modes():  # the same question would be counted twice
                return ask(tensor)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [t for t in (args[1] if name == "index" else ()) if t is not None]
        chosen = any(mask.dtype in (torch.bool, torch.uint8) for mask in masks)
        self.count += chosen or any(word in name for word in ASKING)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_a_step_waits_once_for_the_device_to_be_judged(monkeypatch, accumulate, weights):
    """A number of a floating-point tensor or a truth is on the host when it has been computed."""
    waits = Waits(monkeypatch)
    criterion, model = Loss("ce+dice+focal", weights), make_model(norm=True)
    ema = ModelEmaV3(model)

    def waits_of(pictures):
        waits.count = 0
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        loop = (DataLoader(Data(pictures), 1), criterion, optimizer, CPU, 2)
        with waits:
            engine.train(model, *loop, accumulate=accumulate, clip_grad=1.0, ema=ema)
        return waits.count

    assert waits_of(6) - waits_of(3) == 3 // accumulate  # the figures of an epoch left out


def test_validation_waits_for_its_figures_alone(monkeypatch):
    waits = Waits(monkeypatch)

    def waits_of(pictures):
        waits.count = 0
        with waits:
            engine.validate(make_model(), DataLoader(Data(pictures), 1), Loss("ce+dice"), CPU, 2)
        return waits.count

    assert waits_of(6) == waits_of(3) > 0


# --- Several processes ---


def dealt(data, rank, size, batch):
    """The pictures of one process of several, as EpochBatches deals them."""
    mine = range(rank, len(data), size)
    batches = [mine[first : first + batch] for first in range(0, len(mine), batch)]
    return DataLoader(data, batch_sampler=batches)


def uneven(count):
    """Pictures of which very different shares count, and of which some lack a class."""
    data = Data(count)
    for index, target in enumerate(data.targets):
        target[: 1 + index % 7] = 255
        if index % 3 == 0:
            target[target == 1] = 0
    return data


def test_the_loss_of_a_split_depends_neither_on_batches_nor_on_processes(tmp_path):
    model, data = make_model().eval(), uneven(7)
    losses = [Loss(names, WEIGHTS) for names in ("ce", "dice", "focal")]

    def measure(size, rank):
        calls = [(loss, dealt(data, rank, size, batch)) for loss in losses for batch in (1, 3, 5)]
        figures = [engine.validate(model, loader, loss, CPU, 2) for loss, loader in calls]
        return torch.tensor([row["loss"] for row in figures]).view(3, 3)

    found = [measure(1, 0)]
    for size in (2, 3):
        found += together(size, tmp_path / str(size), partial(measure, size))
    with torch.no_grad():
        expected = torch.stack([loss(model(data.images), data.targets) for loss in losses])
    assert len(set(expected.tolist())) == 3
    for table in found:
        assert torch.allclose(table, expected[:, None].expand(3, 3), rtol=1e-6, atol=0)


def five_steps(data, accumulate, size, rank):
    """Weights and their average after five steps, with a stop after the third."""
    precision, batch = Precision(torch.device("cpu")), 6 // size
    saved = None
    for first, last in ((0, 3), (3, 5)):
        torch.manual_seed(first)
        model = make_model()
        optimizer = torch.optim.SGD(
            [{"params": model.parameters(), "lr": 0.5, "base_lr": 0.5, "weight_decay": 0.1}],
            momentum=0.9,
        )
        state = TrainingState(model, optimizer, precision, ModelEmaV3(model, decay=0.5))
        if saved is not None:
            state.restore(saved)
        part = Subset(data, range(6 * accumulate * first, 6 * accumulate * last))
        part.pairs = data.pairs
        wrapped = distributed.wrap(model, precision.device)
        loop = (dealt(part, rank, size, batch), Loss("ce+dice+focal", WEIGHTS))
        options = {"accumulate": accumulate, "clip_grad": 0.5, "ema": state.ema}
        figures = engine.train(wrapped, *loop, optimizer, precision, 2, **options)
        state.history.append({"valid_miou": 0.0})
        saved = copy.deepcopy(state.to_plain())
    return {"loss": torch.tensor(figures["loss"]), **saved["live_model_state_dict"]} | {
        f"ema.{name}": value for name, value in saved["ema"].items()
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_several_processes_train_as_one_with_as_many_times_the_batch(tmp_path, accumulate):
    data = uneven(30 * accumulate)
    alone = five_steps(data, accumulate, 1, 0)
    start = make_model().state_dict()
    assert not any(torch.allclose(alone[name], value, atol=1e-3) for name, value in start.items())
    for size in (2, 3):
        work = partial(five_steps, data, accumulate, size)
        for state in together(size, tmp_path / str(size), work):
            for name, value in alone.items():
                assert torch.allclose(value, state[name], atol=1e-6), (size, name)


def test_one_process_with_a_bad_picture_spoils_the_step_of_all_and_names_it(tmp_path, capfd):
    data = Data(4, poison=[1])

    def train(rank):
        model = distributed.wrap(make_model(), CPU.device)
        before = copy.deepcopy(model.module.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine.train(model, dealt(data, rank, 2, 2), CROSS_ENTROPY, optimizer, CPU, 2)
        after = model.module.state_dict()
        return {name: torch.equal(value, after[name]) for name, value in before.items()}

    for same in together(2, tmp_path / "two", train):
        assert all(same.values())
    said = capfd.readouterr().out
    assert "not finite on train_images/1.jpg, train_images/3.jpg:" in said
    assert "not finite on the pictures of another process:" in said


def test_a_process_that_is_left_alone_says_so_in_a_sentence(tmp_path):
    def meet(rank):
        if rank == 1:
            os._exit(0)
        try:
            distributed.sum_over_processes(torch.zeros(1))
        except Exception as error:
            return cli.explain(error)

    said, _ = together(2, tmp_path / "two", meet)
    assert said == "Another process of this run has ended, and without it this one cannot go on."


def test_gradients_wait_for_their_step_inside_torch_compile_too(tmp_path):
    def train(_):
        model, calls = DistributedDataParallel(make_model()), []
        no_sync = model.no_sync
        model.no_sync = lambda: calls.append(1) or no_sync()
        compiled = torch.compile(model, backend="eager")
        run(compiled, Data(6), batch=1, accumulate=3, ema=ModelEmaV3(make_model(), decay=0.5))
        return len(calls)

    assert together(1, tmp_path / "one", train) == [4]


def test_the_moving_average_follows_the_weights():
    model = make_model()
    ema = ModelEmaV3(model, decay=0.5)
    start = ema.module[0].weight.clone()
    run(model, Data(2), batch=2, ema=ema, steps_before=5)  # timm's copies at the very first
    assert torch.allclose(ema.module[0].weight, 0.5 * start + 0.5 * model[0].weight, atol=1e-6)


def test_bf16_autocast_trains_close_to_fp32():
    plain, mixed = make_model(), make_model()
    bf16 = Precision.choose("bf16", torch.device("cpu"))
    loader = DataLoader(Data(), 2)
    results = []
    for model, precision in ((plain, CPU), (mixed, bf16)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        results.append(engine.train(model, loader, CROSS_ENTROPY, optimizer, precision, 2)["loss"])
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
