"""The benchmark measures what it says: the article's order, operations, memory, and all of it."""

import copy
import csv
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from processes import SERVER, path_for_the_server
from run_tiny import add_tiny

from segmentation_model import build_model
from tools import benchmark
from tools.benchmark import Case, LiteralArticle


@pytest.fixture(autouse=True)
def tiny_variant():
    add_tiny()


def tiny_case(**changes) -> Case:
    usual = Case("eager", "tiny", "article", 2, (32, 32), 1, "inference", "cpu", "off")
    return replace(usual, **changes)


@pytest.mark.parametrize("size", [(32, 64), (97, 71)])
def test_the_literal_order_gives_the_same_logits(size):
    model = build_model("tiny", "article", 3).eval()
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        literal, fast = LiteralArticle(model)(images), model(images)
    torch.testing.assert_close(literal, fast, atol=1e-5, rtol=1e-5)


def test_the_counted_operations_are_those_of_the_convolutions():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 2, 1))
    counted = benchmark.warm_up(benchmark.make_step(layers, tiny_case()), tiny_case())
    assert counted == pytest.approx(2 * 32 * 32 * (3 * 8 * 9 + 8 * 2) / 1e9)


def test_the_fast_order_needs_fewer_operations_than_the_literal_one():
    model = build_model("tiny", "article", 2)
    fast, literal = (
        benchmark.warm_up(benchmark.make_step(m, tiny_case()), tiny_case())
        for m in (model, LiteralArticle(model))
    )
    assert 1.2 < literal / fast < 2


def test_a_training_step_changes_the_weights_and_an_inference_does_not():
    for mode, changes in (("inference", False), ("train", True)):
        model = build_model("tiny", "pyramid", 2)
        before = copy.deepcopy(model.pyramid_head.state_dict())
        case = tiny_case(head="pyramid", mode=mode, batch=2)
        benchmark.make_step(model, case)()
        assert benchmark.warm_up(benchmark.make_step(model, case), case) > 0
        after = model.pyramid_head.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) != changes


def test_peak_memory_is_that_of_a_fresh_process(monkeypatch):
    # One that has imported everything already, and nothing of what is here.
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", {"spawn": SERVER}.get)
    block = torch.ones(2**30, dtype=torch.uint8)  # 1 GiB here must not count there
    case = tiny_case(variant="timm/test_vit", head="pyramid", size=(32, 32))
    with path_for_the_server():
        peak = benchmark.peak_memory(case)
    assert block[-1] == 1
    if peak is None:
        pytest.skip("this system does not tell a process's largest size")
    assert 0.1 * 2**30 < peak < 1.1 * 2**30


def test_one_command_prints_the_table_and_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "peak_memory", lambda case: 3 * 2**20)
    out = tmp_path / "new" / "table.csv"
    flags = "--model tiny --head article pyramid --compare --merged --mode inference --sizes 32 64"
    flags += f" --repeats 1 --device cpu --out {out}"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags.split()])
    benchmark.main()
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["size"], row["mode"], row["run"], row["head"], row["batch"]) for row in rows] == [
        (size, "inference", *run, "1")
        for size in ("32x32", "64x64")
        for run in (
            *product(("eager", "merged"), ("article",)),
            *product(("eager", "merged"), ("pyramid",)),
            ("literal", "article"),
        )
    ]
    for row in rows:
        assert float(row["gflop"]) >= 0
        assert float(row["images_per_second"]) == pytest.approx(
            int(row["batch"]) / float(row["milliseconds"]) * 1e3, rel=0.02
        )
        assert row["peak_memory_mib"] == "3"
    printed = capsys.readouterr().out
    assert "threads" in printed
    assert "torch" in printed
    for head in ("article", "pyramid"):
        assert f"32x32 inference: merged / {head} head eager: time " in printed
        assert f"32x32 inference: literal / {head} head eager: time " in printed
        assert f"{head} head, inference: time per pixel at 64x64 / 32x32" in printed
    assert len({row["parameters"] for row in rows}) == 2  # the literal order has the article's
