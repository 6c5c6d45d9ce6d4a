"""The data of a training: from a folder to the batches of both splits, each pair checked."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader

from common import distributed
from common.distributed import say
from common.errors import UserError
from config import ClassTable, DataChoices, ModelConfig
from data.checks import check_pairs, unlearnt
from data.masks import MaskReader
from data.pairs import Pair
from data.source import Source, open_source
from data.splits import SPLIT_FILE, everything_of, settle_split
from datasets import CropDataset, SegmentationDataset, make_loader

Split = dict[str, list[Pair]]  # the pairs of "train" and of "valid"


@dataclass(frozen=True)
class Crops:
    """What is learnt from instead of whole pictures: see `CropDataset`."""

    photo_size: int | None
    rare_share: float


@dataclass
class Data:
    """The pairs of both splits, and how they reach the model that `config` describes."""

    reader: MaskReader
    pairs: Split
    fingerprint: str
    config: ModelConfig
    train_loader: DataLoader
    valid_loader: DataLoader

    @property
    def classes(self) -> ClassTable:
        return self.reader.classes


def open_pairs(
    root: Path, choices: DataChoices, *, skip_bad: bool, cache: bool
) -> tuple[Source, Split]:
    """Open the data set and check every pair; returns those that can be used, by split."""
    source = open_source(root, skip_bad=skip_bad, choices=choices, cache=cache)
    say(source.describe())
    say(source.facts.describe())
    return source, check_pairs(source, skip_bad)


def divide(
    source: Source,
    pairs: Split,
    out_dir: Path,
    *,
    share: float,
    groups: str | None,
    seed: int,
    split_file: Path | None,
    resumed: Path | None,
) -> Split:
    """The pairs to train and to validate on, where the data set does not say it by itself.

    Args:
        split_file: a split.csv to go on from, instead of the run's own.
        resumed: the checkpoint that the run goes on from; its split.csv lies beside it.

    Raises:
        UserError: they cannot be divided, or are already.
    """
    if not source.divided:
        typed = "--groups" if groups else "--split-file"
        if groups or split_file:
            raise UserError(
                f"{source.root} says by itself which photographs are for validation, so {typed} "
                "has nothing to divide; leave it out, or take --folds."
            )
        return pairs
    earlier = split_file or (resumed and resumed.with_name(SPLIT_FILE))
    if resumed is not None and not earlier.is_file():
        return pairs  # a run of before there was this file
    look = (source.root, source.reader, share, groups, seed, earlier)
    pairs, remark = settle_split(out_dir, everything_of(pairs), *look, goes_on=resumed is not None)
    say(f"Which photographs are for validation is in {out_dir / SPLIT_FILE}. {remark}")
    return pairs


def make_data(
    source: Source,
    pairs: Split,
    config: ModelConfig,
    crops: Crops | None,
    *,
    augment: str,
    cache: str,
    batch: int,
    workers: int,
    seed: int,
) -> Data:
    """Make the pairs ready for the network.

    Args:
        config: of the model; what crops decide of it is added.
        augment, cache: see `SegmentationDataset`.
        batch: pictures a step, of this process.

    Raises:
        UserError: they are too few for a step.
    """
    if remark := unlearnt(pairs, source.reader):
        say(remark)
    sets = {"augment": augment, "cache": cache, "seed": seed}
    train_set, valid_set = make_sets(pairs, source.reader, config, crops, **sets)
    if crops is not None:
        found = {"crop_side": train_set.store.side(), "photo_size": crops.photo_size}
        config = dataclasses.replace(config, **found)
    height, width = config.input_size
    # On maps of one pixel BatchNorm needs two pictures.
    one_pixel = max(height, width) <= 32 and config.head == "pyramid"
    if one_pixel and min(batch, len(train_set)) == 1:
        raise UserError(
            f"One picture at {width}x{height} is too little for a step; use --batch 2 or a "
            "larger --imgsz."
        )
    shares = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    options = {"batch_size": batch, "workers": workers, "seed": seed, **shares}
    train_loader = make_loader(train_set, train=True, drop_last=one_pixel, **options)
    valid_loader = make_loader(valid_set, train=False, **options)
    fingerprint = source.fingerprint(pairs.values())
    return Data(source.reader, pairs, fingerprint, config, train_loader, valid_loader)


def make_sets(
    pairs: Split,
    reader: MaskReader,
    config: ModelConfig,
    crops: Crops | None,
    *,
    augment: str,
    cache: str,
    seed: int,
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The data sets of both splits: whole pictures, or crops and the tiles that measure them."""
    look = (reader, config.input_size, config.mean)
    if crops is None:
        options = {"seed": seed, "cache": cache}
        train_set = SegmentationDataset(pairs["train"], *look, augment=augment, **options)
        valid_set = SegmentationDataset(pairs["valid"], *look, augment="none", **options)
        if cache == "ram":
            say(f"The cache takes {train_set.cache_gib() + valid_set.cache_gib():.2f} GiB")
        return train_set, valid_set
    options = {"seed": seed, "photo_size": crops.photo_size}
    learnt = {"augment": augment, "rare_share": crops.rare_share}
    train_set = CropDataset(pairs["train"], *look, **learnt, **options)
    valid_set = CropDataset(pairs["valid"], *look, augment="none", rare_share=None, **options)
    gib = train_set.cache_gib() + valid_set.cache_gib()
    say(
        f"Crops of photographs of {train_set.store.side()} pixels (the longer side, their median); "
        f"decoded they take {gib:.2f} GiB of the disk until the training ends"
    )
    return train_set, valid_set
