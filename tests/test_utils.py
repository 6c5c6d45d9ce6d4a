"""What is drawn shows what it was given."""

import numpy as np
from PIL import Image

from utils import plot_curves


def test_a_graph_shows_both_splits_each_with_its_own_course(tmp_path):
    plot_curves(tmp_path / "loss.png", [0.9, 0.5, 0.1], [0.1, 0.5, 0.9], "loss")
    # Without the frame, in whose upper middle the legend may lie.
    picture = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))[60:-60, 120:-120]
    for color, sign in (((31, 119, 180), 1), ((214, 39, 40), -1)):  # training falls
        rows, columns = np.nonzero(np.abs(picture.astype(int) - color).max(-1) < 30)
        left, right = columns < 200, columns > picture.shape[1] - 200
        assert np.sign(rows[right].mean() - rows[left].mean()) == sign
