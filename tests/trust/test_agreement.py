"""Agreement of severities, against a published worked example and other people's code."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.regression import ConcordanceCorrCoef

from config import ClassTable
from metrics import ConfusionMatrix
from trust import agreement as of
from trust.agreement import (
    agreement,
    concordance_interval,
    describe,
    describe_all,
    lin_concordance,
    severity_agreement,
)

# Peak expiratory flow of 17 people by two meters (Bland and Altman 1986, Lancet 327: 307, table),
# for which Stata's `concord` (Steichen and Cox 2002, Stata Journal 2: 183) prints the figures.
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]


def test_the_figures_of_the_published_example():
    figures = agreement(np.array(MINI), np.array(LARGE))
    assert figures["concordance"] == pytest.approx(0.943, abs=5e-4)
    assert figures["precision"] == pytest.approx(0.943, abs=5e-4)
    assert figures["accuracy"] == pytest.approx(0.999, abs=5e-4)
    assert figures["bias"] == pytest.approx(-2.118, abs=5e-4)
    assert figures["limits_low"] == pytest.approx(-78.097, abs=5e-3)
    assert figures["limits_high"] == pytest.approx(73.861, abs=5e-3)


def test_the_same_as_torchmetrics_and_scipy():
    rng = np.random.default_rng(0)
    true = rng.random(40)
    predicted = 0.8 * true + 0.1 + 0.1 * rng.random(40)
    concordance, precision, accuracy = lin_concordance(true, predicted)
    theirs = ConcordanceCorrCoef()(torch.tensor(predicted), torch.tensor(true))
    assert concordance == pytest.approx(float(theirs), rel=0.03)  # theirs divides by n - 1 in part
    assert precision == pytest.approx(stats.pearsonr(true, predicted)[0])
    assert concordance == pytest.approx(precision * accuracy)


def test_pictures_that_are_all_alike_have_no_concordance():
    flat = np.zeros(5)
    assert all(np.isnan(value) for value in lin_concordance(flat, flat))
    assert lin_concordance(flat, np.arange(5.0))[0] == 0
    assert all(np.isnan(value) for value in concordance_interval(flat, flat))
    assert np.isnan(agreement(flat[:1], flat[:1])["limits_low"])


def test_the_interval_of_groups_is_that_of_scipys_bootstrap_of_groups():
    rng = np.random.default_rng(2)
    level, shift = rng.random(20), 0.15 * rng.normal(size=20)  # of 20 plants
    own = [slice(3 * plant, 3 * plant + 3) for plant in range(20)]
    true = np.repeat(level, 3) + 0.02 * rng.normal(size=60)
    predicted = true + np.repeat(shift, 3)

    def concordance(plants):
        x, y = (np.concatenate([v[own[int(p)]] for p in plants]) for v in (true, predicted))
        return lin_concordance(x, y)[0]

    options = {"vectorized": False, "method": "percentile", "n_resamples": 2000, "rng": rng}
    theirs = stats.bootstrap((np.arange(20),), concordance, **options).confidence_interval
    groups = [f"plant {number // 3}" for number in range(60)]
    interval = concordance_interval(true, predicted, groups)
    assert interval == pytest.approx(theirs, abs=0.03)
    single = concordance_interval(true, predicted)
    assert single[1] - single[0] < 0.75 * (interval[1] - interval[0])


def test_the_interval_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(1)
    true = rng.random(30)
    predicted = true + 0.15 * rng.normal(size=30)
    theirs = stats.bootstrap(
        (true, predicted),
        lambda x, y: lin_concordance(x, y)[0],
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=rng,
    ).confidence_interval
    assert concordance_interval(true, predicted) == pytest.approx(theirs, abs=0.02)


def test_each_symptom_has_its_own_agreement_and_file_column(tmp_path):
    names = ("ground", "leaf", "rust", "mildew")
    grey = ((0, 0, 0),) * 4
    counts = [np.diag([5, 6, i, 2]) for i in range(4)]
    counts[3][2, 3] = 4  # rust called mildew
    areas = [ConfusionMatrix.of(c).areas.numpy() for c in counts]
    records = [{"file": f"{i}.jpg", "areas": one} for i, one in enumerate(areas)]
    table = severity_agreement(records, ClassTable(names, grey, grey))
    assert [symptom["class"] for symptom in table] == ["rust", "mildew"]
    assert table[0]["true"] == pytest.approx([0, 1 / 9, 2 / 10, 7 / 15])
    assert table[1]["predicted"] == pytest.approx([2 / 8, 2 / 9, 2 / 10, 6 / 15])
    assert table[0]["bias"] == pytest.approx(-1 / 15)
    of.write_severities(tmp_path / "severity.csv", table)
    lines = (tmp_path / "severity.csv").read_text().splitlines()
    assert lines[0] == "file,true_rust,predicted_rust,true_mildew,predicted_mildew"
    assert lines[4] == "3.jpg,0.466667,0.200000,0.133333,0.400000"


def test_a_symptom_that_is_nowhere_is_left_out_and_named(tmp_path):
    names = ("ground", "leaf", "rust", "mildew", "blight")
    classes = ClassTable(names, *(((0, 0, 0),) * 5,) * 2)
    counts = np.diag([5, 6, 0, 2, 0])
    counts[1, 2] = 1  # rust is predicted, though it is nowhere
    records = [
        {"file": f"{i}.jpg", "areas": ConfusionMatrix.of(counts).areas.numpy()} for i in "ab"
    ]
    table = severity_agreement(records, classes)
    assert [symptom["class"] for symptom in table] == ["rust", "mildew"]
    said = describe_all(table, classes).splitlines()
    assert len(said) == 3
    assert said[-1] == ("No severity of blight: neither in the masks nor predicted in any picture.")
    of.write_severities(tmp_path / "severity.csv", table)
    of.write_severities(tmp_path / "severity.csv", [])
    assert not (tmp_path / "severity.csv").exists()


def test_what_a_single_picture_cannot_tell_is_said_in_words():
    alone = agreement(np.array([0.2]), np.array([0.3])) | {"class": "spot"}
    assert (
        describe(alone)
        == "Severity of spot: bias +10.00%; one picture is too few for an agreement."
    )
    some = agreement(np.array([0.1, 0.2, 0.4]), np.array([0.1, 0.3, 0.5])) | {"class": "spot"}
    assert "bias +6.67%, 95 % of the errors within" in describe(some)
    assert "nan" not in describe(alone) + describe(some)
