"""Write a data set of any format in this program's own layout: index masks and labelmap.txt.

    python tools/convert.py --data my_export --out-dir input/my_leaves

Training needs no such step: --data of every script reads the formats of docs/data.md by itself.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

from common import cli
from common.errors import UserError
from common.files import lock_folder, replacing, write_text
from common.text import agreed, printable
from config import DataChoices
from data.classes import IGNORED_NAMES, format_class_table
from data.images import map_files, write_mask
from data.masks import MaskReader
from data.pairs import Pair
from data.source import open_source
from data.splits import usual_split


def main() -> int:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--data", required=True)
    cli.add_shared(parser, "--out-dir", required=True)
    cli.add_data_flags(parser)
    cli.add_shared(parser, "--skip-bad", "--no-file-cache", "--overwrite")
    args = parser.parse_args()
    choices = DataChoices(**cli.data_choices(args))
    look = {"choices": choices, "cache": not args.no_file_cache}
    source = open_source(args.data, None, skip_bad=args.skip_bad, **look)
    print(source.reader.describe())
    pairs = source.pairs
    if source.divided:
        try:
            pairs, remark = usual_split(pairs, source.root, source.reader)
            print(f"The photographs are divided as train.py does it without a flag. {remark}")
        except UserError as error:  # which is no reason to leave them in their format
            alone = "The photographs are divided by their names alone, as train.py would not do it"
            print(f"{alone}: {error}")
    with lock_folder(args.out_dir):
        refuse_if_used(args.out_dir, args.overwrite)
        write_data(args.out_dir, pairs, source.reader)
    counts = ", ".join(f"{len(own)} {split}" for split, own in pairs.items())
    print(f"{args.out_dir}/ has {counts} {agreed(sum(map(len, pairs.values())), 'pair|pairs')}.")
    return 0


def refuse_if_used(out_dir: Path, overwrite: bool) -> None:
    """Leave alone what a folder holds already.

    Raises:
        UserError: it holds something, and --overwrite is not given.
    """
    held = next((path for path in sorted(out_dir.iterdir()) if path.name != ".lock"), None)
    if held is not None and not overwrite:
        raise UserError(
            f"{printable(out_dir)} already holds {printable(held.name)}; choose another --out-dir, "
            "or pass --overwrite."
        )


def write_data(out_dir: Path, splits: dict[str, list[Pair]], reader: MaskReader) -> None:
    """Write a data set, its labelmap.txt last of all."""
    for split, pairs in splits.items():
        write_split(out_dir, split, pairs, reader)
    write_text(out_dir / "labelmap.txt", class_table_text(reader))


def write_split(out_dir: Path, split: str, pairs: list[Pair], reader: MaskReader) -> None:
    """Write the photographs of a split as they are, and their masks, upright."""
    images, masks = out_dir / f"{split}_images", out_dir / f"{split}_masks"
    for folder in (images, masks):
        if folder.is_dir():
            shutil.rmtree(folder)

    def write(job: tuple[str, Pair]) -> None:
        name, pair = job
        with replacing(images / f"{name}{pair.image.suffix}") as temporary:
            shutil.copyfile(pair.image, temporary)
        write_mask(masks / f"{name}.png", reader.read(pair), reader.classes.colors)

    map_files(write, list(zip(free_names(pairs), pairs, strict=True)), f"Writing {split}")


def free_names(pairs: list[Pair]) -> list[str]:
    """A name for each pair that no other has, in whatever case: `a`, else `folder_a`, `a_2`."""
    taken: set[str] = set()
    names = []
    for pair in pairs:
        name, number = pair.stem, 1
        while name.casefold() in taken:
            name = (
                f"{pair.image.parent.name}_{pair.stem}" if number == 1 else f"{pair.stem}_{number}"
            )
            number += 1
        taken.add(name.casefold())
        names.append(name)
    return names


def class_table_text(reader: MaskReader) -> str:
    """The labelmap.txt of a data set, in names that it can hold."""
    text = format_class_table(reader.classes)
    for name in reader.classes.names:
        usable = name.replace(":", "-").lstrip("#").strip() or "class"
        if usable.casefold() in IGNORED_NAMES:  # a class here, and no class in a labelmap.txt
            usable = f"{usable} class"
        text = text.replace(f"\n{name}:", f"\n{usable}:", 1)
    return text


if __name__ == "__main__":
    cli.run(main)
