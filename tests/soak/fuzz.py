"""Mutated pictures, videos, checkpoints and label maps: each is decoded or refused with a sentence.

python tests/soak/fuzz.py --count 20000
"""

# ruff: noqa: E402

import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[up]) for up in (1, 2)]

from test_fuzz import fuzz

from common import cli


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--count", type=cli.positive_int, default=20_000, help="inputs")
    parser.add_argument("--seed", type=cli.natural, default=2, help="other seed, other inputs")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for inputs that failed")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    outcomes = fuzz(args.count, args.seed, args.keep)
    return int(outcomes["failures"] > 0 or 2 * outcomes["past the header"] < args.count)


if __name__ == "__main__":
    cli.run(main)
