"""Run a script with one more variant, `tiny`, so that tests train real models in a second.

python tests/run_tiny.py train.py --model tiny --head pyramid ...
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import segmentation_model  # noqa: E402

TINY = segmentation_model.Variant(8, 8, (1, 1, 1, 1), (1, 1, 2, 2), 0.1, "tiny.pth.tar")


def add_tiny() -> None:
    """Make `tiny` a variant like any other."""
    segmentation_model.VARIANTS["tiny"] = TINY


if __name__ == "__main__":
    torch.set_num_threads(1)
    add_tiny()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_path(str(ROOT / script), run_name="__main__")
