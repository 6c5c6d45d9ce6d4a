"""What spoils a training is found before it, and told to a person."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data_sets import COFFEE, COLORS, blobs, make_data, photo, save_with_exif
from PIL import Image

from common.errors import UserError
from data.checks import check_data_set, check_pairs
from data.images import write_image
from data.pairs import find_pairs
from data.source import open_source


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_the_check_stops_at_a_broken_file_or_leaves_it_out(tmp_path, capsys):
    root = make_data(tmp_path, [blobs()] * 4)
    pairs = find_pairs(root, "train")
    spoil(pairs[1].image)
    spoil(pairs[2].mask)
    source = open_source(root, ("train",))
    with pytest.raises(UserError, match=r"train_images/001\.png is cut off"):
        check_pairs(source)
    assert check_pairs(source, skip_bad=True) == {"train": [pairs[0], pairs[3]]}
    printed = capsys.readouterr().out
    assert "2 of 4 pairs are left out" in printed
    assert "train_masks/002.png" in printed
    with pytest.raises(UserError):
        check_pairs(dataclasses.replace(source, pairs={"train": pairs[1:3]}), skip_bad=True)


def test_a_clean_data_set_has_no_problems(tmp_path, capsys):
    root = make_data(tmp_path, [blobs()] * 2)
    assert check_data_set(root) == 0
    printed = capsys.readouterr().out
    assert "No problems." in printed
    share = (blobs() == 1).mean()
    assert f"{share:.2%}" in printed


SAID = r"""
train_images/000.png is cut off
2 images without a mask
2 masks without an image
has the value 9 on
64x48
1 masks with nothing but the first class
the same picture in two splits
the same picture twice in one split
009.png was painted on the photograph
010.png has the colour
It looks resized with smoothing
\n\x1b[31m.png
symptom
12 PNG
"""


def test_the_report_finds_everything(tmp_path, capsys):
    masks = [blobs((0, 1, 2))] * 12
    root = make_data(tmp_path, masks, COFFEE)
    images, labels = root / "train_images", root / "train_masks"
    spoil(images / "000.png")
    (labels / "001.png").unlink()
    (images / "002.png").unlink()
    Image.fromarray(blobs((0, 1, 9))).save(labels / "003.png")
    Image.fromarray(blobs((0, 1, 2), (48, 48))).save(labels / "004.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(labels / "005.png")
    write_image(images / "006.png", photo(106))  # as valid_images/006.png
    write_image(images / "007.png", photo(8))  # as train_images/008.png
    save_with_exif(images / "009.png", photo(9, (64, 48)), 6)
    Image.fromarray(np.rot90(masks[0])).save(labels / "009.png")
    large = Image.fromarray(COLORS[blobs((0, 1, 2), (480, 640))])
    large.resize((300, 225), Image.Resampling.BILINEAR).save(labels / "010.png")
    (labels / "011.png").rename(labels / "evil\n\x1b[31m.png")
    problems = check_data_set(root, tmp_path / "fix.txt")
    printed = capsys.readouterr().out
    for words in SAID.strip().splitlines():
        assert words in printed, words
    assert "\x1b" not in printed
    fixes = (tmp_path / "fix.txt").read_text().splitlines()
    assert problems == len(fixes) == 9
    assert "train_masks/evil\\n\\x1b[31m.png" in fixes


def test_smoothed_binary_masks_are_reported(tmp_path, capsys):
    small = Image.fromarray(blobs((0, 255)))
    root = make_data(tmp_path, [small.resize((256, 192), Image.Resampling.BICUBIC)])
    assert check_data_set(root) == 2
    assert "rare values along its edges" in capsys.readouterr().out
