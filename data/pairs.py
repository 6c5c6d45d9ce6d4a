"""What a data folder holds: which photograph belongs to which mask, and to which split.

A folder is laid out as in the article (train_images, train_masks, valid_images, valid_masks, and
test_images, test_masks where there are any) or as CVAT exports it ("Segmentation mask 1.1").
"""

import hashlib
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.text import agreed, counted, listed, printable, read_text
from data.images import list_images

SPLITS = ("train", "valid", "test")
# The lists of names in a CVAT export that make a split.
CVAT_LISTS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
CVAT_VALID_SHARE = 0.15
# What helps where some pictures cannot be used, and others can.
SKIP_BAD = "--skip-bad leaves such pictures out"


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask.

    Args:
        stem: the photograph's name without its ending.
        shapes: the file whose shapes the mask was painted from, where it was.
    """

    image: Path
    mask: Path
    stem: str
    shapes: Path | None = None

    @property
    def mask_name(self) -> str:
        """What a sentence calls the mask: a file that a person can open, and none of the cache."""
        if self.shapes is None:
            return printable(self.mask)
        return f"{printable(self.shapes)}, picture {printable(self.image.name)}"

    @property
    def image_name(self) -> str:
        """What a sentence calls the photograph, also one that lies within an annotation's file."""
        within = self.shapes is not None and self.mask.parent in self.image.parents
        return self.mask_name if within else printable(self.image)

    @property
    def mask_source(self) -> Path:
        """The file to look at for the mask: its own, or the photograph that was drawn on."""
        return self.mask if self.shapes is None else self.image


@dataclass(frozen=True)
class Matching:
    """How the files of a split find their partners.

    Args:
        images: how many photographs there are.
        pairs: those with exactly one mask, sorted.
        without_mask: photographs without one, each with the mask that was expected.
        ambiguous: two files that claim the same name.
        without_image: masks whose photograph is not there.
    """

    images: int
    pairs: list[Pair]
    without_mask: list[tuple[Path, Path]]
    ambiguous: list[tuple[Path, Path]]
    without_image: list[Path]


def usable_pairs(found: Matching, skip_bad: bool = False) -> list[Pair]:
    """The pairs of a split, if every photograph has one mask.

    Args:
        skip_bad: leave out photographs that have no mask or several, with a line that names some.

    Raises:
        UserError: a mask is missing or ambiguous, or no pair is left.
    """
    if found.ambiguous and not skip_bad:
        raise UserError(explain_ambiguous(*found.ambiguous[0]))
    if found.without_mask and not (skip_bad and found.pairs):
        image, expected = found.without_mask[0]
        remedy = "; add it, or leave such images out with --skip-bad" if found.pairs else ""
        raise UserError(
            f"{len(found.without_mask)} of {counted(found.images, 'image|images')} "
            f"{agreed(len(found.without_mask), 'has|have')} no mask; the first is "
            f"{printable(image)} (expected {printable(expected)}){remedy}."
        )
    if not found.pairs:
        raise UserError(explain_ambiguous(*found.ambiguous[0]))
    left_out = [image for image, _ in found.without_mask] + [one for one, _ in found.ambiguous]
    if left_out:
        names = listed((path.name for path in left_out), most=5)
        words = "photograph|photographs without one clear mask is|are left out"
        tqdm.write(f"{counted(len(left_out), words)}: {names}")
    return found.pairs


def explain_ambiguous(first: Path, second: Path) -> str:
    """The sentence about two files that claim one name."""
    return (
        f"{printable(first)} and {printable(second.name)} claim the same partner; remove one of "
        "them, or give it a name of its own."
    )


def match_split(root: Path, split: str) -> Matching:
    """Find the mask of each photograph of a split, and what has no partner.

    `a.jpg` belongs to `a.png` or to `a_mask.png`, with any picture's ending in any case.

    Args:
        split: "train", "valid" or "test".

    Raises:
        UserError: folders are missing, or hold no photographs.
    """
    root = Path(root)
    check_root(root)
    if is_cvat(root):
        return _match_cvat(root, split)
    photos, masks = root / f"{split}_images", root / f"{split}_masks"
    if split == "test" and not photos.is_dir():
        raise UserError(
            f"{printable(root)} has no test split (no folder test_images); put pictures into "
            "test_images and test_masks, or use --split valid."
        )
    # Test photographs without any mask are a finding about them, not about the folder's layout.
    for folder in (photos,) if split == "test" else (photos, masks):
        if not folder.is_dir():
            raise UserError(
                f"{printable(root)} has no folder {folder.name}; it needs train_images, "
                "train_masks, valid_images and valid_masks, or a CVAT export."
            )
    images = _by_name(list_images(photos), photos)
    if not images:
        raise UserError(f"{printable(photos)} holds no pictures; put the photographs there.")
    labels = _by_name(list_images(masks), masks) if masks.is_dir() else {}
    return _match(images, labels, masks)


def check_root(root: Path) -> None:
    """Refuse what is no folder.

    Raises:
        UserError: it is a file (an export that was not unpacked), or not there.
    """
    if root.is_file():
        raise UserError(f"{printable(root)} is a file; unpack it and give the folder.")
    if not root.is_dir():
        raise UserError(f"{printable(root)} is not a folder; give the folder of your data.")


def _by_name(paths: list[Path], base: Path) -> dict[str, list[Path]]:
    """Files by their names without ending; macOS and Linux write the same accents differently."""
    names: dict[str, list[Path]] = {}
    for path in paths:
        name = path.relative_to(base).with_suffix("").as_posix()
        names.setdefault(unicodedata.normalize("NFC", name), []).append(path)
    return names


def _match(images: dict[str, list[Path]], masks: dict[str, list[Path]], folder: Path) -> Matching:
    """Give each photograph the mask of its name, or of its name and `_mask`."""
    found = Matching(sum(map(len, images.values())), [], [], [], [])
    taken = set()
    for name, photos in images.items():
        names = [name] if f"{name}_mask" in images else [name, f"{name}_mask"]
        own = [mask for key in names for mask in masks.get(key, [])]
        taken.update(names)
        if not own:
            found.without_mask.extend((photo, folder / f"{name}.png") for photo in photos)
        elif len(own) > 1 or len(photos) > 1:
            found.ambiguous.append(tuple((own if len(own) > 1 else photos)[:2]))
        else:
            found.pairs.append(Pair(photos[0], own[0], photos[0].stem))
    found.without_image.extend(
        mask for name, paths in masks.items() if name not in taken for mask in paths
    )
    return found


def is_cvat(root: Path) -> bool:
    """Whether a folder is a CVAT export of the format "Segmentation mask 1.1"."""
    return (Path(root) / "SegmentationClass").is_dir()


def _match_cvat(root: Path, split: str) -> Matching:
    """Pairs of a CVAT export: a list of names, a folder of masks, a folder of photographs.

    Raises:
        UserError: the export has no such split, or no photographs.
    """
    wanted = {unicodedata.normalize("NFC", name) for name in _cvat_names(root, split)}
    photos, masks = root / "JPEGImages", root / "SegmentationClass"
    if not photos.is_dir():
        raise UserError(
            f"{printable(root)} has no photographs: put them into {printable(photos)}, or export "
            "again from CVAT with 'Save images'."
        )
    images, labels = (
        {
            name: paths
            for name, paths in _by_name(list_images(folder, recursive=True), folder).items()
            if name in wanted or name.removesuffix("_mask") in wanted
        }
        for folder in (photos, masks)
    )
    if not images:
        raise UserError(
            f"{printable(photos)} holds none of the split {split} "
            f"({counted(len(wanted), 'photograph|photographs')}, such as "
            f"{printable(min(wanted))}.jpg); put them there."
        )
    return _match(images, labels, masks)


def _cvat_names(root: Path, split: str) -> list[str]:
    """The names of a split: from its own list, or a share of the one list there is.

    Without a list for validation, 15 % of the names are set aside for it, chosen by their
    checksums: the same ones on every machine.

    Raises:
        UserError: no such split, or a list that names nothing.
    """
    lists = {path.stem.lower(): path for path in _cvat_lists(root)}
    own = [lists[name] for name in CVAT_LISTS[split] if name in lists]
    if split == "test" and not own:
        raise UserError(
            f"{printable(root)} has no test split (no list ImageSets/Segmentation/test.txt); add "
            "one, or use --split valid."
        )
    has_valid = any(name in lists for name in CVAT_LISTS["valid"])
    if own and (has_valid or split == "test"):
        return _read_names(own[0])
    rest = [path for name, path in lists.items() if name not in ("test", *CVAT_LISTS["valid"])]
    names = {name for path in rest for name in _read_names(path)}
    names = sorted(names, key=lambda name: zlib.crc32(name.encode("utf-8", "surrogateescape")))
    count = 0 if has_valid else max(1, round(CVAT_VALID_SHARE * len(names)))
    chosen = names[:count] if split == "valid" else names[count:]
    if not chosen:
        raise UserError(
            f"{printable(root)} names {counted(len(names), 'picture|pictures')} in "
            "ImageSets/Segmentation; at least 2 are needed, one of them to validate."
        )
    return chosen


def _cvat_lists(root: Path) -> list[Path]:
    return sorted((Path(root) / "ImageSets" / "Segmentation").glob("*.txt"))


def _read_names(path: Path) -> list[str]:
    """The names in a list, one a line; they say which pictures, never where on the disk."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{printable(path)} names no pictures; export again from CVAT.")
    return names


def data_fingerprint(root: Path, splits: Iterable[list[Pair]]) -> str:
    """Hex digest of the names and sizes of all files: whether a run resumes on the same data."""
    root, digest = Path(root), hashlib.sha256()
    for number, pairs in enumerate(splits):
        for pair in pairs:
            for path in (pair.image, pair.mask):
                # What lies elsewhere, in the cache, is named after what it holds.
                name = path.relative_to(root) if path.is_relative_to(root) else path.name
                line = f"{number} {name} {path.stat().st_size}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def has_split(root: Path, split: str) -> bool:
    """Whether a data set has a split; training and validation must be there."""
    if split != "test":
        return True
    if is_cvat(root):
        return (Path(root) / "ImageSets" / "Segmentation" / "test.txt").is_file()
    return (Path(root) / "test_images").is_dir()


def split_remark(root: Path) -> tuple[str, ...]:
    """Says so where a data set does not say what is for validation."""
    lists = {path.stem.lower() for path in _cvat_lists(root)} if is_cvat(root) else {"val"}
    if lists & set(CVAT_LISTS["valid"]):
        return ()
    return ("it has no list for validation: train.py sets a share of the pictures aside",)
