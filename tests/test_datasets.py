"""Samples repeat themselves, and the script says what is wrong with a data set."""

import multiprocessing
import os
import signal
import sys
import time
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_sets import blobs, find_pairs, make_data, reader_of
from tiny_world import apart

import datasets
from common import cli
from common.errors import UserError
from config import IMAGENET_MEAN, IMAGENET_STD
from data import images
from data.checks import check_pairs
from data.images import Normalisation, read_image, write_image
from data.source import open_source
from datasets import SegmentationDataset, make_augmentation, make_loader
from training.precision import Precision

REPO = Path(__file__).parent.parent
REAL = REPO.parent / "shared" / "data"


def make_set(root: Path, count: int = 7, **options) -> SegmentationDataset:
    """A data set of photographs, each with a bright rectangle that its mask marks."""
    if not root.exists():
        make_data(root, [blobs((0, 1), (60 + 4 * n, 80)) for n in range(count)])
    reader, pairs = reader_of(root), find_pairs(root, "train")
    return SegmentationDataset(pairs, reader, (32, 64), IMAGENET_MEAN, **options)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_go_to_the_device_and_become_normalised_rgb_there(tmp_path, channels_last):
    dataset = make_set(tmp_path / "a", augment="none")
    image, target, index = dataset[0, 3]
    assert (image.shape, image.dtype) == ((3, 32, 64), torch.uint8)
    assert (target.shape, target.dtype, index) == ((32, 64), torch.uint8, 3)
    look = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    precision = Precision(torch.device("cpu"), channels_last=channels_last, **look)
    images, targets = precision.to_device(image[None], target[None])
    assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=order)
    by_hand = Normalisation(IMAGENET_MEAN, IMAGENET_STD)(image.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(images[0].numpy(), by_hand, atol=1e-6)
    assert torch.equal(targets[0].byte(), target)
    pixels = read_image(dataset.pairs[3].image)
    pixels = cv2.resize(pixels, (64, 32), interpolation=cv2.INTER_AREA) / 255
    expected = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=0.01)


@pytest.mark.parametrize("augment", ["article", "strong"])
def test_samples_depend_on_seed_epoch_and_index_alone(tmp_path, augment):
    first = make_set(tmp_path / "a", augment=augment, seed=3)
    again = make_set(tmp_path / "a", augment=augment, seed=3)
    for index in (6, 0, 5):  # another order
        again[1, index]
    for key in ((1, 0), (1, 5), (2, 5)):
        assert torch.equal(first[key][0], again[key][0])
        assert torch.equal(first[key][1], again[key][1])
    epochs = [first[epoch, 5][0] for epoch in range(4)]
    assert not all(torch.equal(epochs[0], other) for other in epochs[1:])
    other = make_set(tmp_path / "a", augment=augment, seed=4)
    assert not all(torch.equal(first[e, 5][0], other[e, 5][0]) for e in range(4))


def test_the_changes_of_a_sample_are_independent(tmp_path):
    """Seeding each change alike would rotate a picture just when it flips it."""
    dataset = make_set(tmp_path / "a", count=1, augment="article")
    half = np.zeros((60, 80, 3), np.uint8)
    half[:, :40] = 200
    write_image(dataset.pairs[0].image, half)
    seen = set()
    for epoch in range(40):
        image, target, _ = dataset[epoch, 0]
        row = image[0, 16].float()  # through the centre, where 25 degrees change no side
        seen.add((bool((target == 255).any()), bool(row[8:24].mean() > row[40:56].mean())))
    assert len(seen) == 4


def test_what_rotation_uncovers_is_ignored_and_nothing_else(tmp_path):
    augmentation = make_augmentation("article", (64, 64), (1, 2, 3))
    augmentation.set_random_seed(0)
    image, mask = np.full((64, 64, 3), 200, np.uint8), np.ones((64, 64), np.uint8)
    seen = 0
    for _ in range(40):
        changed = augmentation(image=image, mask=mask)
        assert set(np.unique(changed["mask"])) <= {1, 255}
        uncovered = cv2.erode((changed["mask"] == 255).astype(np.uint8), np.ones((3, 3)))
        if uncovered.any():
            seen += 1
            assert (changed["image"][uncovered == 1] == (1, 2, 3)).all()
    assert seen > 5


@pytest.mark.parametrize("augment", ["article", "strong"])
def test_photograph_and_mask_stay_aligned(tmp_path, augment):
    """The photograph shows its own mask in white: after all changes it still does."""
    mask = np.zeros((96, 192), np.uint8)
    mask[8:60, 20:120] = mask[60:80, 90:120] = 1
    root = make_data(tmp_path, [mask])
    pair = find_pairs(root, "train")[0]
    write_image(pair.image, np.dstack([mask * 255] * 3))
    plain = (48, 96), (0, 0, 0)
    dataset = SegmentationDataset([pair], reader_of(root), *plain, augment=augment)
    seen_inside = 0
    for epoch in range(25):
        image, target, _ = dataset[epoch, 0]
        assert image.shape == (3, 48, 96)
        seen = (image.float().mean(0) > 127).numpy().astype(np.uint8)
        labels = target.numpy()
        inner = cv2.erode((labels == 1).astype(np.uint8), np.ones((5, 5)))
        outer = cv2.dilate((labels != 0).astype(np.uint8), np.ones((5, 5)))
        assert (seen[outer == 0] == 0).all()
        if inner.any():
            seen_inside += 1
            assert (seen[inner == 1] == 1).mean() > 0.95
    assert seen_inside == 25


@pytest.mark.parametrize("augment", ["article", "strong", "none"])
def test_the_cache_changes_no_sample(tmp_path, augment):
    plain = make_set(tmp_path / "a", augment=augment)
    cached = make_set(tmp_path / "a", augment=augment, cache="ram")
    scale = 1.5 if augment == "strong" else 1
    assert cached.cache_gib() == pytest.approx(7 * 32 * 64 * scale**2 * 4 / 2**30)
    assert plain.cache_gib() == 0
    cached.fill_cache()
    for path in (tmp_path / "a" / "train_images").iterdir():
        path.rename(path.with_suffix(".gone"))
    images = {index: cached[2, index] for index in range(7)}
    for path in (tmp_path / "a" / "train_images").iterdir():
        path.rename(path.with_suffix(".png"))
    for index, (image, target, _) in images.items():
        assert torch.equal(image, plain[2, index][0])
        assert torch.equal(target, plain[2, index][1])


def test_a_cache_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_free_memory_gib", lambda: 1e-6)
    dataset = make_set(tmp_path / "a", cache="ram")
    with pytest.raises(UserError, match="--cache none"):
        make_loader(dataset, 2, 0, train=True, seed=0)


def test_a_sample_opens_its_photograph_and_its_mask_once(tmp_path, monkeypatch):
    dataset, opened, open_file = make_set(tmp_path / "a"), [], images.open_file
    monkeypatch.setattr(images, "open_file", lambda path: opened.append(path) or open_file(path))
    dataset[1, 2]
    assert opened == [dataset.pairs[2].image, dataset.pairs[2].mask]


def epoch_of(loader, epoch: int) -> list[tuple]:
    loader.batch_sampler.set_epoch(epoch)
    return [tuple(part.clone() for part in batch) for batch in loader]


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_change_neither_order_nor_pictures(tmp_path, cache):
    dataset = make_set(tmp_path / "a", augment="strong", cache=cache)
    alone = make_loader(dataset, 3, 0, train=True, seed=5)
    helped = make_loader(dataset, 3, 2, train=True, seed=5)
    state = torch.get_rng_state()
    for epoch in (1, 2):
        for one, other in zip(epoch_of(alone, epoch), epoch_of(helped, epoch), strict=True):
            assert all(map(torch.equal, one, other))
    assert torch.equal(state, torch.get_rng_state()), "a loader draws from its own numbers only"
    orders = [torch.cat([batch[2] for batch in epoch_of(alone, e)]).tolist() for e in (1, 2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == list(range(7))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_counts_each_file_once_and_training_shares_evenly(tmp_path, world_size):
    dataset = make_set(tmp_path / "a", augment="none")

    def indices(train: bool) -> list[list[int]]:
        options = {"train": train, "seed": 1, "world_size": world_size}
        loaders = [make_loader(dataset, 2, 0, rank=r, **options) for r in range(world_size)]
        found = [[i for batch in loader.batch_sampler for _, i in batch] for loader in loaders]
        assert [len(loader) for loader in loaders] == [-(-len(part) // 2) for part in found]
        return found

    assert sorted(chain(*indices(train=False))) == list(range(7))
    shares = indices(train=True)
    assert {len(part) for part in shares} == {-(-7 // world_size)}
    assert set(chain(*shares)) == set(range(7))


def test_a_last_batch_of_one_can_be_left_out(tmp_path):
    dataset = make_set(tmp_path / "a")

    def sizes(batch: int, drop: bool) -> list[int]:
        loader = make_loader(dataset, batch, 0, train=True, seed=0, drop_last=drop)
        return [len(indices) for indices in loader.batch_sampler]

    assert sizes(3, False) == [3, 3, 1]
    assert sizes(3, True) == [3, 3]
    assert sizes(4, True) == [4, 3]
    assert sizes(7, True) == [7]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_while_training_ends_in_one_sentence(tmp_path, workers):
    dataset = make_set(tmp_path / "a")
    dataset.pairs[4].image.unlink()
    with pytest.raises(UserError) as info:
        list(make_loader(dataset, 2, workers, train=True, seed=0))
    assert str(info.value) == (
        f"{dataset.pairs[4].image} cannot be found (No such file or directory); check the path."
    )


def test_class_pixels_are_counted_at_the_masks_own_size(tmp_path):
    dataset = make_set(tmp_path / "a", count=2)
    expected = sum(np.bincount(blobs((0, 1), (60 + 4 * n, 80)).ravel()) for n in range(2))
    np.testing.assert_array_equal(dataset.class_pixels(), expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 1024), (160, 320)),
        ((3000, 4000), (192, 256)),
        ((70, 70), (224, 224)),
        ((1024, 512), (320, 160)),
        ((10, 4000), (32, 4512)),
    ],
)
def test_the_networks_input_follows_the_photographs_shape(size, expected):
    other = (40, 50)  # one of another shape changes nothing
    assert datasets.input_size([size, size, other], 320 * 160) == expected


def exit_code(monkeypatch, *arguments: object) -> int:
    """What `python datasets.py ...` returns."""
    monkeypatch.setattr(sys, "argv", ["datasets.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as info:
        cli.run(datasets.main)
    return info.value.code


def test_the_command_line_returns_0_1_or_2(tmp_path, monkeypatch, capsys):
    root = make_data(tmp_path / "a b", [blobs()] * 2)
    assert exit_code(monkeypatch, root) == 0
    assert capsys.readouterr().err == ""
    (root / "train_images" / "000.png").write_bytes(b"no picture")
    assert exit_code(monkeypatch, root, "--fix-list", tmp_path / "fix.txt") == 1
    assert "1 problem in 1 file" in capsys.readouterr().out
    assert (tmp_path / "fix.txt").read_text() == "train_images/000.png\n"
    assert exit_code(monkeypatch, tmp_path / "missing") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("folder", ["leaf_disease_segmentation/orig_data", "coffee_leaf"])
def test_real_photographs_are_read(folder):
    root, names = REAL / folder, ["background", "disease"]
    if folder == "coffee_leaf":
        names = ["background", "leaf", "symptom"]
    if not root.is_dir():
        pytest.skip("the real photographs are not beside the repository")
    source = open_source(root, ("valid",))
    assert list(source.reader.classes.names) == names
    labels = [source.reader.read(pair) for pair in check_pairs(source)["valid"][:3]]
    assert set(np.unique(np.concatenate([mask.ravel() for mask in labels]))) == {*range(len(names))}


def test_a_worker_leaves_at_a_signal_but_with_no_lock(tmp_path):
    """The lock of torch's event, in which the main process tells the workers to end."""

    def work(_):
        datasets._start_worker(0)
        event, done = multiprocessing.Event(), tmp_path / "done"

        class Flag:
            def acquire(self, _):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
                done.write_text("the lock was held to its end")

        event._flag = Flag()
        event.is_set()
        while True:
            time.sleep(0.01)  # until it leaves

    assert apart(1, tmp_path / "worker", work) == [None]
    assert (tmp_path / "done").exists()


def test_loaders_that_are_still_at_work_do_not_hold_up_the_end(tmp_path):
    dataset = make_set(tmp_path / "a")

    def work(_):
        batches = iter(make_loader(dataset, 2, 1, train=True, seed=0))
        next(batches)
        datasets.at_work = batches  # as an error's traceback may hold them
        return "ended"

    assert apart(1, tmp_path / "world", work) == ["ended"]
