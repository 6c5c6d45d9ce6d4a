"""A few pictures of a data set, as somebody has them who corrected that many.

    python tools/few_pictures.py --data input/coffee_leaf --count 10 --seed 1 --out-dir input/ten

They are drawn from the training pictures; the second and each fifth after it validate, as on the
page. The masks are the data set's own.
"""

import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common.environment  # noqa: E402, F401 - first, to say what is not installed

from common import cli  # noqa: E402
from data.source import open_source  # noqa: E402
from page.corrections import EVERY  # noqa: E402
from tools.convert import write_data  # noqa: E402


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: 1)")
    parser.add_argument("--out-dir", type=Path, required=True)
    args = parser.parse_args()
    source = open_source(args.data)
    pairs = sorted(source.pairs["train"], key=lambda pair: pair.image.name)
    if not 2 <= args.count <= len(pairs):
        parser.error(
            f"--count is {args.count}; {args.data} has {len(pairs)} training pictures, of which "
            "two or more can be drawn"
        )
    if args.out_dir.exists():
        parser.error(f"{args.out_dir} exists already; choose another --out-dir")
    drawn = random.Random(args.seed).sample(pairs, args.count)
    splits = {"train": [], "valid": []}
    for number, pair in enumerate(drawn, start=1):
        splits["valid" if number % EVERY == 2 else "train"].append(pair)
    write_data(args.out_dir, splits, source.reader)
    print(f"{args.out_dir}: {args.count} of {len(pairs)} pictures")


if __name__ == "__main__":
    cli.run(main)
