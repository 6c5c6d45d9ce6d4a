"""Show the photographs of a data set with their masks over them: a page to look through.

    python tools/preview.py input/my_leaves        # then open outputs/preview/preview.html

Any format of docs/data.md; what cannot be used is left out, and told by `python datasets.py`.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import numpy as np
from tqdm import tqdm

from common import cli
from common.files import lock_folder
from common.text import counted, printable
from config import DEFAULT_OUT_DIR, DataChoices
from data.checks import problem_of, survey
from data.images import encode_jpeg, read_image, resize_mask, shrink
from data.masks import MaskReader
from data.pairs import Pair
from metrics import SeverityTable
from reporting.gallery import GalleryRow, write_gallery
from utils import overlay

THUMBNAIL = 320  # pixels of the longer side
PAGE = "preview.html"


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set")
    cli.add_shared(parser, "--out-dir", default=DEFAULT_OUT_DIR / "preview")
    cli.add_shared(parser, "--no-file-cache")
    cli.add_data_flags(parser)
    args = parser.parse_args()
    choices = DataChoices(**cli.data_choices(args))
    source = survey(args.root, choices=choices, cache=not args.no_file_cache)
    print(source.describe())
    pairs = {
        split: [pair for pair in own if not problem_of(pair, source)]
        for split, own in source.pairs.items()
    }
    names = source.reader.classes.names
    with lock_folder(args.out_dir):
        write_gallery(
            args.out_dir / PAGE,
            title=f"Masks of {printable(source.root.resolve().name)}",
            classes=source.reader.classes,
            rows=cards(pairs, source.reader),
            note=painted_share(names),
        )
    shown = sum(map(len, pairs.values()))
    left_out = sum(map(len, source.pairs.values())) - shown
    left_out += sum(len(own.without_mask) + len(own.ambiguous) for own in source.found.values())
    left_out = f"; {left_out} cannot be used, see datasets.py" if left_out else ""
    print(f"{args.out_dir / PAGE} shows {counted(shown, 'photograph|photographs')}{left_out}.")
    return 0


def painted_share(names: tuple[str, ...]) -> str:
    """What the cards are sorted by, in a sentence: of several symptoms all count, as few as one."""
    table = SeverityTable.of(names)
    if len(table.symptoms) < 2:
        return table.describe(names)
    symptoms = ", ".join(names[i] for i in table.symptoms)
    return f"The share of {symptoms} together in {table.whole_in_words(names)}."


def cards(splits: dict[str, list[Pair]], reader: MaskReader) -> Iterator[GalleryRow]:
    """What the page shows of each pair, one at a time: only thumbnails are drawn."""
    severities = SeverityTable.of(reader.classes.names)
    pairs = [(split, pair) for split, own in splits.items() for pair in own]
    for split, pair in tqdm(pairs, "Drawing the masks", unit="picture", delay=2):
        labels, image = reader.read(pair), shrink(read_image(pair.image), THUMBNAIL)
        drawn = overlay(image, resize_mask(labels, image.shape[:2]), reader.classes)
        pixels = np.bincount(labels.ravel(), minlength=256)[: len(reader.classes)]
        shares = (pixels / max(1, pixels.sum())).tolist()
        painted = severities.shares(pixels).sum() if severities.symptoms else math.nan
        facts = float(painted), shares, encode_jpeg(drawn, quality=75), None
        yield GalleryRow(f"{split}: {printable(pair.stem)}", *facts)


if __name__ == "__main__":
    cli.run(main)
