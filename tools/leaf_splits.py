"""Four data sets of one, with disjoint validation pictures, for docs/results.md.

    python tools/leaf_splits.py --data input/orig_data --out-dir input/splits

`0` validates on the pictures that the data set names; `1` to `3` on as many drawn from its training
pictures, and each trains on all the others.
"""

import random
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common.environment  # noqa: E402, F401 - first, to say what is not installed

from common import cli  # noqa: E402
from data.source import open_source  # noqa: E402


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()
    train, fixed = open_source(args.data).pairs.values()
    if len(train) < 3 * len(fixed):
        parser.error(
            f"{args.data} has {len(train)} training pictures, too few for three more validation "
            f"sets of {len(fixed)}"
        )
    drawn = random.Random(0).sample(train, 3 * len(fixed))
    parts = [fixed] + [
        drawn[start : start + len(fixed)] for start in range(0, len(drawn), len(fixed))
    ]
    for index, valid in enumerate(parts):
        folder = args.out_dir / str(index)
        for pair in train + fixed:
            # The two splits number their pictures alike.
            prefix, split = ("v" if pair in fixed else "t"), ("valid" if pair in valid else "train")
            for path, kind in ((pair.image, "images"), (pair.mask, "masks")):
                target = folder / f"{split}_{kind}"
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / f"{prefix}_{path.name}")
        if (args.data / "labelmap.txt").is_file():
            shutil.copyfile(args.data / "labelmap.txt", folder / "labelmap.txt")
        print(f"{folder}: {len(train + fixed) - len(valid)} to train on, {len(valid)} to validate")


if __name__ == "__main__":
    cli.run(main)
