"""Figures of a split: what the pictures' severities say beside the areas."""

import numpy as np
import pytest

from config import ClassTable
from inference.evaluation import split_metrics
from metrics import severities


def record(name: str, counts: list) -> dict:
    return {"file": name, "counts": np.array(counts), "boundary": np.ones((2, len(counts)), int)}


def test_severity_is_the_last_classs_share_of_the_plant():
    two = np.array([[70, 10], [5, 15]])
    assert severities(two) == (0.2, 0.25)
    three = np.array([[900, 0, 0], [0, 60, 0], [0, 30, 10]])
    assert severities(three) == (0.4, 0.1)
    assert severities(np.array([[9, 0, 0], [0, 0, 0], [0, 0, 0]])) == (0.0, 0.0)


def test_the_worst_picture_and_those_that_are_missed_are_named():
    records = [
        record("good", [[80, 0], [0, 20]]),
        record("missed", [[90, 0], [9, 1]]),
        record("too much", [[60, 20], [0, 20]]),
    ]
    metrics = split_metrics(records, ClassTable.default())
    assert metrics["severity_error"] == pytest.approx((0 + 0.09 + 0.2) / 3)
    assert metrics["severity_worst"] == ("too much", 0.2, 0.4)
    assert [name for name, *_ in metrics["severity_missed"]] == ["missed"]
