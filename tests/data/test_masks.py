"""Masks of every kind mean one thing, or are refused by name."""

import numpy as np
import pytest
from data_sets import (
    COFFEE,
    COLORS,
    blobs,
    find_pairs,
    make_data,
    photo,
    read_first,
    reader_of,
    save_with_exif,
)
from PIL import Image

from common.errors import UserError
from data.classes import read_class_table
from data.images import read_image, write_image


def palette_picture(colors: list, mask: np.ndarray) -> Image.Image:
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(bytes(np.array(colors, np.uint8)))
    return picture


TWO = [
    ("index", blobs((0, 1))),
    ("palette in the table's colours", palette_picture([(0, 0, 0), (128, 0, 0)], blobs((0, 1)))),
    ("palette in other colours", palette_picture([(0, 0, 0), (9, 99, 9)], blobs((0, 1)))),
    ("grey 38", blobs((0, 38))),
    ("grey 128", blobs((0, 128))),
    ("grey 255", blobs((0, 255))),
    ("bits", Image.fromarray(blobs((0, 255))).convert("1")),
    ("16 bits index", blobs((0, 1)).astype(np.uint16)),
    ("16 bits white", blobs((0, 65535))),
    ("16 bits anything", blobs((0, 300))),
    ("grey in three channels", np.dstack([blobs((0, 255))] * 3)),
    ("colour", np.array([(0, 0, 0), (128, 0, 0)], np.uint8)[blobs((0, 1))]),
    ("colour with alpha", np.array([(0, 0, 0, 9), (128, 0, 0, 0)], np.uint8)[blobs((0, 1))]),
    ("grey with alpha", Image.fromarray(blobs((0, 1))).convert("LA")),
]


@pytest.mark.parametrize("mask", [m for _, m in TWO], ids=[name for name, _ in TWO])
def test_every_kind_of_mask_of_two_classes(tmp_path, mask):
    root = make_data(tmp_path, [mask, mask])
    np.testing.assert_array_equal(read_first(root), blobs((0, 1)))


THREE = [
    ("index", blobs((0, 1, 2))),
    ("palette in another order", palette_picture(COLORS[[0, 2, 1]], blobs((0, 2, 1)))),
    ("palette in other colours", palette_picture(COLORS + np.uint8(5), blobs((0, 1, 2)))),
    ("colour", COLORS[blobs((0, 1, 2))]),
    ("16 bits", blobs((0, 1, 2)).astype(np.uint16)),
]


@pytest.mark.parametrize("mask", [m for _, m in THREE], ids=[name for name, _ in THREE])
def test_every_kind_of_mask_of_three_classes(tmp_path, mask):
    root = make_data(tmp_path, [mask], COFFEE)
    np.testing.assert_array_equal(read_first(root), blobs((0, 1, 2)))


def test_grey_colours_of_the_table_come_before_indices(tmp_path):
    labelmap = "a:2,2,2::\nb:1,1,1::\nc:0,0,0::\n"
    root = make_data(tmp_path, [blobs((0, 1, 2))], labelmap)
    np.testing.assert_array_equal(read_first(root), blobs((2, 1, 0)))


def test_8_bits_stretched_to_16_are_the_same_greys(tmp_path):
    labelmap = "a:0,0,0::\nb:100,100,100::\nc:255,255,255::\n"
    root = make_data(tmp_path, [blobs((0, 100 * 257, 65535))], labelmap)
    np.testing.assert_array_equal(read_first(root), blobs((0, 1, 2)))


def test_255_is_ignored_where_no_class_is_white(tmp_path):
    mask = blobs((0, 1, 255))
    root = make_data(tmp_path / "a", [mask])
    np.testing.assert_array_equal(read_first(root), mask)
    assert "255 (white) is ignored" in reader_of(root).describe()
    labelmap = "a:0,0,0::\nb:255,255,255::\n"
    white = make_data(tmp_path / "b", [blobs((0, 255))], labelmap)
    np.testing.assert_array_equal(read_first(white), blobs((0, 1)))
    rgb = np.array([(0, 0, 0), (0, 176, 0), (255, 255, 255)], np.uint8)[blobs((0, 1, 2))]
    np.testing.assert_array_equal(
        read_first(make_data(tmp_path / "c", [rgb], COFFEE)), blobs((0, 1, 255))
    )


def test_a_void_class_keeps_its_line_and_is_not_counted(tmp_path):
    labelmap = "a:0,0,0::\nVoid:9,9,9::\nb:128,0,0::\n"
    root = make_data(tmp_path / "index", [blobs((0, 1, 2))], labelmap)
    assert len(read_class_table(root)) == 2
    np.testing.assert_array_equal(read_first(root), blobs((0, 255, 1)))
    rgb = np.array([(0, 0, 0), (9, 9, 9), (128, 0, 0)], np.uint8)[blobs((0, 1, 2))]
    root = make_data(tmp_path / "colour", [rgb], labelmap)
    np.testing.assert_array_equal(read_first(root), blobs((0, 255, 1)))


def test_the_reading_is_decided_over_all_masks(tmp_path):
    """One mask alone, 0 and 1, would be an index mask; the other shows that it is none."""
    root = make_data(tmp_path, [blobs((0, 1)), blobs((0, 38))])
    reader = reader_of(root)
    assert reader.reading.grey == "binary"
    assert "every value but 0 is 'disease'" in reader.describe()


def test_one_wrong_mask_does_not_change_how_the_others_are_read(tmp_path):
    good = palette_picture(COLORS[[0, 2, 1]], blobs((0, 2, 1)))
    wrong = palette_picture([(0, 0, 0), (7, 7, 7), (8, 8, 8)], blobs((0, 2, 1)))
    root = make_data(tmp_path, [good, good, wrong], COFFEE)
    reader, pairs = reader_of(root), find_pairs(root, "train")
    np.testing.assert_array_equal(reader.read(pairs[0]), blobs((0, 1, 2)))
    with pytest.raises(UserError, match=r"002\.png has the colour \(7, 7, 7\)"):
        reader.read(pairs[2])


def test_an_unknown_colour_is_named_with_the_nearest_class(tmp_path):
    rgb = COLORS[blobs((0, 1, 2))]
    bad = rgb.copy()
    bad[10:15, 5:10] = (12, 176, 3)
    root = make_data(tmp_path, [rgb, bad], COFFEE)
    sentence = (
        r"001\.png has the colour \(12, 176, 3\) on 25 pixels; the nearest class is 'leaf' "
        r"\(0, 176, 0\)\. Fix the mask or add the class to labelmap\.txt\.$"
    )
    with pytest.raises(UserError, match=sentence):
        reader_of(root).read(find_pairs(root, "train")[1])


def test_an_unknown_index_is_named(tmp_path):
    bad = blobs((0, 1, 7))
    root = make_data(tmp_path, [blobs((0, 1, 2)), bad], COFFEE)
    with pytest.raises(UserError, match=rf"value 7 on {(bad == 7).sum()} pixels.*lines 0 to 2"):
        reader_of(root).read(find_pairs(root, "train")[1])


@pytest.mark.parametrize("level", [38, 128, 255])
def test_grey_jpeg_masks_survive_their_noise(tmp_path, level):
    mask = blobs((0, level), (120, 160))
    root = make_data(tmp_path, [mask], ending=".jpg")
    labels = read_first(root)
    assert len(np.unique(Image.open(root / "train_masks" / "000.jpg"))) > 2, "no noise, no test"
    assert (labels != blobs((0, 1), (120, 160))).mean() < 0.002


def test_colour_jpeg_masks_take_the_nearest_class(tmp_path):
    truth = blobs((0, 1, 2), (160, 240))
    root = make_data(tmp_path / "a", [COLORS[truth]], COFFEE, ending=".jpg")
    assert (read_first(root) != truth).mean() < 0.01
    assert "JPEG" in reader_of(root).describe()
    foreign = np.array([(0, 0, 0), (0, 0, 255), (255, 0, 0)], np.uint8)[blobs((1, 0, 2))]
    root = make_data(tmp_path / "b", [foreign], COFFEE, ending=".jpg")
    with pytest.raises(UserError, match="JPEG mask with colours far from every class"):
        read_first(root)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_painted_before_exif_rotation_are_turned(tmp_path, orientation):
    root, mask = make_data(tmp_path, [blobs()]), blobs()
    save_with_exif(root / "train_images" / "000.png", np.dstack([mask * 255] * 3), orientation)
    displayed = read_image(root / "train_images" / "000.png")[..., 0] // 255
    Image.fromarray(mask).save(root / "train_masks" / "000.png")
    np.testing.assert_array_equal(read_first(root), displayed)  # painted as stored
    Image.fromarray(displayed).save(root / "train_masks" / "000.png")
    np.testing.assert_array_equal(read_first(root), displayed)  # painted as displayed


def test_masks_of_another_size_are_resized_if_their_proportions_agree(tmp_path):
    root = make_data(tmp_path, [blobs()])
    pair = find_pairs(root, "train")[0]
    write_image(pair.image, photo(0, (480, 643)))
    reader = reader_of(root)
    assert reader.read(pair).shape == (48, 64)
    assert reader.read(pair, (480, 643)).shape == (480, 643)
    write_image(pair.image, photo(0, (480, 700)))
    with pytest.raises(UserError, match=r"64x48 px, its image 000\.png 700x480"):
        reader.read(pair)
