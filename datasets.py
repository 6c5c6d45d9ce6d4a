"""From a folder of photographs and masks to batches for the network.

Look at a data set before training on it:
    python datasets.py input/my_leaves
    python datasets.py input/my_leaves --fix-list bad_files.txt
    python tools/preview.py input/my_leaves       # its masks over its photographs, to look through

Order and augmentation depend on (seed, epoch, index) alone, never on the number of workers, so that
a run can be repeated, and resumed in its middle.
"""

import multiprocessing
import os
import random
import signal
import threading

# albumentations would ask the network for its newest version when it is imported.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import synchronize
from pathlib import Path
from types import FrameType

import common.environment  # noqa: F401 - first, to say what is not installed

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common import cli
from common.errors import UserError
from config import IGNORE_INDEX, DataChoices, Size
from data.checks import check_data_set
from data.crops import Box, CropSampler, PhotoStore, tile_boxes
from data.images import map_files, read_picture, resize_image, resize_mask
from data.masks import MaskReader
from data.pairs import Pair

# The strong augmentation shows pictures at these factors of their size. At half their size small
# lesions vanish: 0.5 to 2 learnt less on leaves than 0.75 to 1.5 (docs/results_log.csv).
MIN_SCALE, MAX_SCALE = 0.75, 1.5


def input_size(sizes: list[Size], pixels: int) -> Size:
    """The (height, width) of about `pixels` that distorts most photographs least.

    Sides are multiples of 32, in the median photograph's proportions.

    Args:
        sizes: (height, width) of the photographs.
    """
    ratio = float(np.median([width / height for height, width in sizes]))
    sides = (pixels / ratio) ** 0.5, (pixels * ratio) ** 0.5
    height, width = (max(32, 32 * round(side / 32)) for side in sides)
    return height, width


class UnreadableError(UserError):
    """A file that went bad while training.

    An error leaves a worker process as the text of its traceback, from which torch makes a new one:
    only the sentence at the end is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit("UnreadableError: ", 1)[-1].strip())


def make_augmentation(
    name: str, size: Size, fill: tuple[int, int, int], *, crops: bool = False
) -> A.Compose | None:
    """The random changes of a training picture, made together on photograph and mask.

    All start from a picture that is already resized (see `SegmentationDataset`): on a photograph of
    4000 px a rotation would cost thirty times as much for the same result.

    Args:
        name: "article" (flip, brightness and contrast, rotation), "strong" (random scale and crop
            to `size` as well, upside down, colour, blur), or "none".
        size: (height, width) of the result.
        fill: RGB where the picture does not reach; the mask becomes 255 there, not background.
        crops: pictures are crops of `size` already, at random scales (see `CropDataset`).
    """
    if name == "none":
        return None
    edges = {"border_mode": cv2.BORDER_CONSTANT, "fill": fill, "fill_mask": IGNORE_INDEX}
    flip, rotate = A.HorizontalFlip(p=0.5), A.Rotate(limit=25, p=0.5, **edges)
    if name == "article":
        return A.Compose([flip, A.RandomBrightnessContrast(p=0.2), rotate])
    # Pictures arrive MAX_SCALE times as large as the input, so they are only ever shrunk.
    smallest = MIN_SCALE / MAX_SCALE
    scale_and_crop = [
        A.RandomScale((smallest - 1, 0), area_for_downscale="image", p=1),
        A.RandomCrop(*size, pad_if_needed=True, pad_position="random", **edges),
    ]
    return A.Compose(
        [
            *([] if crops else scale_and_crop),
            flip,
            A.VerticalFlip(p=0.5),
            rotate,
            A.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05), p=0.8),
            A.GaussianBlur(sigma_limit=(0.1, 1.5), p=0.2),
        ]
    )


class SegmentationDataset(Dataset):
    """Pictures and class indices at the network's size.

    Each pair is resized first (to `size`; for the strong augmentation to MAX_SCALE times
    that), then augmented; so what the cache keeps is what is read without one.

    Args:
        pairs: from a data source, checked.
        reader: how masks are read.
        size: (height, width) of the network's input.
        mean: RGB in [0, 1], which is seen where a picture does not reach.
        augment: see `make_augmentation`.
        seed: of the augmentation.
        cache: "ram" keeps the resized pictures in memory, once for all workers; else "none".
    """

    def __init__(
        self,
        pairs: list[Pair],
        reader: MaskReader,
        size: Size,
        mean: tuple[float, float, float],
        *,
        augment: str = "article",
        seed: int = 0,
        cache: str = "none",
    ):
        self.pairs, self.reader, self.size = pairs, reader, size
        self.fill = tuple(round(value * 255) for value in mean)
        self.augmentation = make_augmentation(augment, size, self.fill)
        factor = MAX_SCALE if augment == "strong" else 1
        self.base_size = round(size[0] * factor), round(size[1] * factor)
        self.seed, self.cache = seed, cache
        self._images = self._targets = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        """One sample by (epoch, index).

        Returns:
            image (3, H, W) uint8 RGB; target (H, W) uint8, 255 = ignore; index. They are
            normalised on the device (`Precision.to_device`): a fifth of the bytes travels.

        Raises:
            UnreadableError: the file changed since it was checked.
        """
        epoch, index = key
        image, target = self._look(epoch, index)
        if self.augmentation is not None:
            # One stream for all changes of a sample. (set_random_seed would give each change the
            # same stream, and a picture would be rotated just when it is flipped.)
            seed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2)
            self.augmentation.set_random_state(
                np.random.default_rng(seed[0]), random.Random(int(seed[1]))
            )
            changed = self.augmentation(image=image, mask=target)
            image, target = changed["image"], changed["mask"]
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.from_numpy(target), index

    def _look(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """What is augmented: a photograph HWC uint8 RGB and its mask (H, W) uint8."""
        if self._images is not None:
            return self._images[index].numpy(), self._targets[index].numpy()
        return self._read(index)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photograph HWC uint8 RGB and mask (H, W) uint8, resized for the augmentation."""
        pair = self.pairs[index]
        try:
            image, header = read_picture(pair.image)
            target = self.reader.read(pair, self.base_size, header)
            return resize_image(image, self.base_size), target
        except UserError as error:
            raise UnreadableError(str(error)) from error

    def cache_gib(self) -> float:
        """GiB that `cache="ram"` takes, known before anything is read."""
        height, width = self.base_size
        return len(self.pairs) * height * width * 4 / 2**30 if self.cache == "ram" else 0.0

    def fill_cache(self) -> None:
        """Read everything once, before workers start: they share these pages with each other.

        Raises:
            UserError: the memory is too small.
        """
        if self.cache != "ram" or self._images is not None:
            return
        free = _free_memory_gib()
        if free is not None and self.cache_gib() > 0.9 * free:
            raise UserError(
                f"--cache ram takes {self.cache_gib():.1f} GiB and {free:.1f} GiB are free; use "
                "--cache none or a smaller --imgsz."
            )
        count, (height, width) = len(self.pairs), self.base_size
        images = torch.empty((count, height, width, 3), dtype=torch.uint8)
        targets = torch.empty((count, height, width), dtype=torch.uint8)

        def keep(index: int) -> None:
            image, target = self._read(index)
            images[index], targets[index] = torch.from_numpy(image), torch.from_numpy(target)

        map_files(keep, list(range(count)), "Filling the cache")
        self._images, self._targets = images, targets

    def class_pixels(self) -> np.ndarray:
        """Pixels of each class over all masks at their own size, (K,) int64."""
        return sum(map_files(self.reader.class_pixels, self.pairs, "Counting pixels"))


class CropDataset(SegmentationDataset):
    """Crops of photographs at one scale: random ones to learn from, or tiles to measure on.

    To learn from, each photograph gives one crop an epoch; with the strong augmentation it shows
    the photograph at random factors of that scale. To measure on, each gives the tiles of
    `tile_boxes`, the same in every epoch.

    Args:
        look: pairs, reader, size and mean, as `SegmentationDataset` takes them.
        photo_size: the photographs' longer side, None for their own resolution.
        rare_share: of the crops, that are centred on a rare class; None for tiles.
    """

    def __init__(
        self,
        *look,
        augment: str = "article",
        seed: int = 0,
        photo_size: int | None = None,
        rare_share: float | None = 0.33,
    ):
        super().__init__(*look, seed=seed)
        size = self.size
        self.augmentation = make_augmentation(augment, size, self.fill, crops=True)
        self.store = PhotoStore(self.pairs, self.reader, photo_size)
        scales = (MIN_SCALE, MAX_SCALE) if augment == "strong" else (1.0, 1.0)
        self.sampler = None if rare_share is None else CropSampler(size, rare_share, scales)
        self.tiles: list[tuple[int, Box]] = []
        if self.sampler is None:
            for index, view in enumerate(self.store.sizes):
                self.tiles += [(index, box) for box in tile_boxes(view, size)]

    def __len__(self) -> int:
        return len(self.tiles) or len(self.pairs)

    def _look(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self.sampler is None:
            photograph, box = self.tiles[index]
        else:  # a stream of its own: the augmentation draws from (seed, epoch, index)
            rng = np.random.default_rng([self.seed, epoch, index, 1])
            photograph, box = index, self.sampler.draw(self.store, index, rng)
        try:
            image, target = self.store.read(photograph, box, self.fill)
        except UserError as error:
            raise UnreadableError(str(error)) from error
        return resize_image(image, self.size), resize_mask(target, self.size)

    def cache_gib(self) -> float:
        """GiB that the decoded photographs take on the disk."""
        return self.store.gib()

    def fill_cache(self) -> None:
        """Decode every photograph once, before workers start."""
        self.store.fill()

    def class_pixels(self) -> np.ndarray:
        """Pixels of each class over all masks at the photographs' scale, (K,) int64."""
        self.store.fill()
        return self.store.class_pixels


def _free_memory_gib() -> float | None:
    """Memory that can be had without swapping, where the system tells."""
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
        return int(facts["MemAvailable"].split()[0]) / 2**20
    except (OSError, KeyError, ValueError):
        return None


@dataclass(eq=False)
class EpochBatches(Sampler):
    """Batches of (epoch, index), shared out among the processes of a run.

    For training the order is shuffled by (seed, epoch) and every process gets equally many, so that
    none waits for a partner that has finished; for validation each picture comes exactly once.

    Args:
        count: pictures of the data set.
        train: shuffle, and repeat a few pictures where `count` does not divide.
        rank, world_size: this process among those that share the run.
        drop_last: leave out a last batch of a single picture, on which BatchNorm could not train.
    """

    count: int
    batch_size: int
    train: bool
    seed: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass; validation has but one."""
        self.epoch = epoch if self.train else 0

    def _batches(self) -> list[list[int]]:
        order = list(range(self.count))
        if self.train:
            seed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            order = torch.randperm(self.count, generator=generator).tolist()
            missing = -self.count % self.world_size
            order += (order * self.world_size)[:missing]
        mine = order[self.rank :: self.world_size]
        batches = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
        if self.drop_last and len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()
        return batches

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._batches():
            yield [(self.epoch, index) for index in batch]


def _start_worker(_: int) -> None:
    """A worker is one of several: it keeps to one thread, and leaves Ctrl-C to the main process.

    Schedulers send SIGTERM to all processes at once. A worker that it killed would look like a
    fault to the main process, which is about to end the run in good order, so it leaves with 0.
    When the main process is killed without a word, as that of a run that starts again by itself
    may be, its workers go with it.
    """
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    """End a worker, but never while it may hold a lock without which the main one cannot end."""
    while frame and frame.f_code.co_filename != synchronize.__file__:
        frame = frame.f_back
    if not frame:
        os._exit(0)
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def _end_with_the_main_process() -> None:
    """Torch looks at the parent's number alone, which stays the same where a server forks."""
    multiprocessing.parent_process().join()
    os._exit(0)


def make_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    workers: int,
    *,
    train: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
) -> DataLoader:
    """Make the loader of a split; fills the cache where there is to be one.

    Call `loader.batch_sampler.set_epoch(epoch)` before each training epoch. Batches are images
    (B, 3, H, W) uint8 RGB, targets (B, H, W) uint8 and indices (B,).

    Args:
        batch_size, workers: per process.
        rank, world_size, drop_last: see `EpochBatches`.
    """
    dataset.fill_cache()
    shares = rank, world_size, drop_last
    batches = EpochBatches(len(dataset), batch_size, train, seed, *shares)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        # So that a loader draws nothing from the run's own numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set")
    parser.add_argument(
        "--fix-list", type=Path, metavar="FILE", help="write the names of the files to put right"
    )
    cli.add_shared(parser, "--no-file-cache")
    cli.add_data_flags(parser)
    args = parser.parse_args()
    choices = DataChoices(**cli.data_choices(args))
    look = {"choices": choices, "cache": not args.no_file_cache}
    return 1 if check_data_set(args.root, args.fix_list, **look) else 0


if __name__ == "__main__":
    cli.run(main)
