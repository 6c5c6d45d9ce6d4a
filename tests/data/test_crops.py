"""Crops and tiles of photographs: where they lie, what they hold, and what is left behind."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from data_sets import find_pairs, reader_of
from PIL import Image

from config import IMAGENET_MEAN
from data import crops
from data.crops import Box, PhotoStore, cut, tile_boxes, view_size
from datasets import CropDataset, make_loader

SIZES = [(90, 120), (40, 30), (200, 70)]


def maps(size) -> np.ndarray:
    """A picture whose every pixel says where it lies: row, column, their sum."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.dstack([rows, columns, (rows + columns) // 2]).astype(np.uint8)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three photographs of three sizes; a lesion of 12 pixels in a corner of each."""
    for part in ("images", "masks"):
        (tmp_path / f"train_{part}").mkdir()
    for number, size in enumerate(SIZES):
        mask = np.zeros(size, np.uint8)
        mask[-4:-1, 3:7] = 1
        Image.fromarray(maps(size)).save(tmp_path / f"train_images/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"train_masks/{number}.png")
    return tmp_path


def make(root: Path, size=(32, 48), **options) -> CropDataset:
    pairs, reader = find_pairs(root, "train"), reader_of(root)
    options = {"augment": "none", "rare_share": 0.0} | options
    dataset = CropDataset(pairs, reader, size, IMAGENET_MEAN, **options)
    dataset.fill_cache()
    return dataset


def looks(dataset, index: int, epochs: int = 60) -> list:
    return [dataset._look(epoch, index) for epoch in range(epochs)]


@pytest.mark.parametrize("stored", [True, False])
def test_a_crop_is_a_part_of_its_photograph_and_mask_at_their_own_resolution(
    root, monkeypatch, stored
):
    disk = SimpleNamespace(free=1 << 40 if stored else 0)
    monkeypatch.setattr(crops.shutil, "disk_usage", lambda _: disk)
    dataset = make(root)
    assert dataset.store.stored == (3 if stored else 0)
    whole = maps(SIZES[0])
    starts = set()
    for image, target in looks(dataset, 0):
        top, left = int(image[0, 0, 0]), int(image[0, 0, 1])
        starts.add((top, left))
        np.testing.assert_array_equal(image, whole[top : top + 32, left : left + 48])
        lesion = np.zeros(SIZES[0], np.uint8)
        lesion[-4:-1, 3:7] = 1
        expected = lesion[top : top + 32, left : left + 48]
        np.testing.assert_array_equal(target, expected)
    assert len(starts) > 40
    tops, lefts = (np.array(values) for values in zip(*starts, strict=True))
    assert tops.min() < 10
    assert tops.max() > 48
    assert lefts.min() < 12
    assert lefts.max() > 60


def test_a_photograph_smaller_than_a_crop_is_padded_and_the_padding_is_ignored(root):
    image, target = looks(make(root), 1, 1)[0]
    np.testing.assert_array_equal(image[:, :30], maps(SIZES[1])[image[0, 0, 0] :][:32])
    assert (target[:, 30:] == 255).all()
    assert (target[:, :30] != 255).all()
    mean = np.round(np.array(IMAGENET_MEAN) * 255)
    assert (image[:, 30:] == mean).all()


def test_photographs_are_scaled_to_one_longer_side(root):
    dataset = make(root, photo_size=60)
    assert dataset.store.sizes == [(45, 60), (60, 45), (60, 21)]
    expected = cv2.resize(maps(SIZES[0]), (60, 45), interpolation=cv2.INTER_AREA)
    image, _ = dataset.store.read(0, Box(5, 7, 20, 30), (0, 0, 0))
    np.testing.assert_array_equal(image, expected[5:25, 7:37])
    assert view_size((3000, 4000), 1024) == (768, 1024)
    assert view_size((3000, 4000), None) == (3000, 4000)


def test_a_third_of_the_crops_is_centred_on_a_rare_class(root):
    def share(dataset) -> float:
        return np.mean([(target == 1).any() for _, target in looks(dataset, 0, 300)])

    by_chance = share(make(root))
    assert by_chance < 0.25
    # A class is drawn by how rare it is: background is 1,500 times as frequent as lesions.
    assert share(make(root, rare_share=1.0)) > 0.98
    third = share(make(root, rare_share=0.33))
    assert 0.33 + 0.67 * by_chance == pytest.approx(third, abs=0.08)


def test_a_photograph_of_one_class_gives_crops_too(root):
    Image.fromarray(np.zeros(SIZES[0], np.uint8)).save(root / "train_masks/0.png")
    dataset = make(root, rare_share=1.0)
    assert all((target == 0).all() for _, target in looks(dataset, 0, 20))
    Image.fromarray(np.full(SIZES[0], 255, np.uint8)).save(root / "train_masks/0.png")
    assert len(looks(make(root, rare_share=1.0), 0, 3)) == 3  # nothing but ignored pixels


def test_the_strong_augmentation_shows_the_photograph_at_many_scales(root):
    dataset = make(root, size=(32, 32), augment="strong")
    steps = [np.ptp(image[..., 1].astype(int)) / 31 for image, _ in looks(dataset, 0)]
    assert 0.6 < min(steps) < 0.75  # 1.5 times as large: two thirds of a column a pixel
    assert 1.25 < max(steps) < 1.4
    image, target, _ = dataset[1, 0]
    assert image.shape[-2:] == target.shape == (32, 32)


def test_crops_depend_on_seed_epoch_and_index_alone(root):
    first, again = (make(root, augment="strong", rare_share=0.33, seed=3) for _ in range(2))
    again[1, 2]
    for key in ((1, 0), (1, 2), (5, 1)):
        assert torch.equal(first[key][0], again[key][0])
        assert torch.equal(first[key][1], again[key][1])
    assert not torch.equal(first[1, 0][0], first[2, 0][0])
    loader = make_loader(first, 3, 2, train=True, seed=0)  # read by other processes
    for images, _, indices in loader:
        for image, index in zip(images, indices.tolist(), strict=True):
            assert torch.equal(image, again[0, index][0])


def test_validation_sees_every_pixel_once_and_no_more_tiles_than_told(root):
    dataset = make(root, rare_share=None)
    assert len(dataset) == 3 * 3 + 2 * 1 + 7 * 2
    seen = [np.zeros(size, int) for size in SIZES]
    for number in range(len(dataset)):
        image, target = dataset._look(0, number)
        shown = image[target != 255]
        np.add.at(seen[dataset.tiles[number][0]], (shown[:, 0], shown[:, 1]), 1)
    assert all((counts == 1).all() for counts in seen)
    boxes = tile_boxes((3000, 4000), (256, 256))
    assert len(boxes) == len(set(boxes)) == crops.MAX_TILES
    assert {boxes[0].top, boxes[-1].top} == {0, 11 * 256}


@pytest.mark.parametrize("box", [Box(0, 0, 9, 9), Box(7, 5, 4, 9), Box(9, 9, 1, 1)])
def test_what_lies_outside_is_filled(box):
    array = np.full((10, 10, 2), 7, np.uint8)
    part = cut(array, box, (1, 2))
    assert part.shape == (box.height, box.width, 2)
    inside = min(10 - box.top, box.height) * min(10 - box.left, box.width)
    assert (part == 7).all(2).sum() == inside
    assert (part == (1, 2)).all(2).sum() == box.height * box.width - inside


def test_only_the_region_of_a_crop_is_read(root, monkeypatch):
    dataset = make(root)
    monkeypatch.setattr(crops, "read_image", None)  # nothing is decoded again
    opened = []
    load = np.load

    def spy(path, **options):
        opened.append(load(path, **options))
        return opened[-1]

    monkeypatch.setattr(crops.np, "load", spy)
    dataset._look(0, 0)
    assert isinstance(opened[0], np.memmap)


def test_decoded_photographs_are_gone_when_their_store_is(root):
    pairs, reader = find_pairs(root, "train"), reader_of(root)
    store = PhotoStore(pairs, reader, None)
    store.fill()
    folder = store.folder
    assert len(list(folder.glob("*.npy"))) == 3
    assert store.class_pixels.tolist() == [sum(h * w for h, w in SIZES) - 36, 36]
    del store
    gc.collect()
    assert not folder.exists()


def test_what_a_killed_training_left_is_removed_and_what_is_in_use_is_not(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr(crops.tempfile, "tempdir", str(tmp_path))
    living, killed, foreign = make(root).store, tmp_path / "photographs-x", tmp_path / "photographs"
    for folder in (killed, foreign):
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "0.npy").touch()
    for lock in tmp_path.glob("photographs*/lock"):
        os.utime(lock, (0, 0))
    again = make(root).store
    assert not killed.exists()
    assert foreign.exists()
    assert living.folder.exists()
    assert again.folder.exists()
