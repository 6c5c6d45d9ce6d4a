"""Photographs find their masks, masks mean one thing, samples repeat themselves."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from common import cli
from common.errors import UserError
from config import IMAGENET_MEAN, IMAGENET_STD, ClassTable
from data.checks import check_pairs, report
from data.images import read_image, write_image, write_mask
from data.masks import MaskReader, read_class_table
from data.pairs import data_fingerprint, find_pairs
from datasets import SegmentationDataset, make_augmentation, make_loader

REPO = Path(__file__).parent.parent
REAL = REPO.parent / "shared" / "data"
COFFEE = "background:0,0,0::\nleaf:0,176,0::\nsymptom:255,0,0::\n"


def photo(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def blobs(values=(0, 1), size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A mask of upright stripes, unsymmetrical, with each of `values` in large areas."""
    mask = np.full(size, values[0], np.uint8 if max(values) < 256 else np.uint16)
    for number, value in enumerate(values[1:]):
        mask[4 : size[0] // 2, 4 + 12 * number : 12 + 12 * number] = value
    return mask


def make_data(root: Path, masks: list, labelmap: str | None = None, ending: str = ".png") -> Path:
    """A data set with these masks (arrays, or Pillow pictures) for training and validation."""
    for split in ("train", "valid"):
        for number, mask in enumerate(masks):
            picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            image = root / f"{split}_images" / f"{number:03d}.png"
            write_image(image, photo(number + 100 * (split == "valid"), picture.size[::-1]))
            path = root / f"{split}_masks" / f"{number:03d}{ending}"
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
    if labelmap is not None:
        (root / "labelmap.txt").write_text(labelmap)
    return root


def read_first(root: Path) -> np.ndarray:
    return MaskReader.for_data(root).read(find_pairs(root, "train")[0])


# Pairs


def test_pairs_are_found_by_stem_with_any_ending(tmp_path):
    for image, mask in (("a.JPG", "a_mask.png"), ("b.png", "b.TIF"), ("c.jpeg", "c.bmp"),
                        ("blüte 葉.png", "blüte 葉.png"), ("-x.png", "-x.png"),
                        ("new\nline.png", "new\nline.png"), ("n" * 250 + ".png",) * 2,
                        ("d.png", "d.png"), ("d_mask.png", "d_mask.png")):  # fmt: skip
        (tmp_path / "train_images").mkdir(exist_ok=True)
        (tmp_path / "train_masks").mkdir(exist_ok=True)
        (tmp_path / "train_images" / image).write_bytes(b"x")
        (tmp_path / "train_masks" / mask).write_bytes(b"x")
    (tmp_path / "train_images" / ".tmp-1.png").write_bytes(b"x")
    pairs = find_pairs(tmp_path, "train")
    assert len(pairs) == 9
    assert all(pair.mask.stem.removesuffix("_mask") == pair.stem.removesuffix("_mask")
               for pair in pairs)  # fmt: skip
    assert {pair.image.name: pair.mask.name for pair in pairs}["d.png"] == "d.png"


def test_accents_of_macos_match_those_of_linux(tmp_path):
    for folder, name in (("train_images", "blu\u0308te.png"), ("train_masks", "bl\u00fcte.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"x")
    assert len(find_pairs(tmp_path, "train")) == 1


def test_missing_masks_are_named(tmp_path):
    root = make_data(tmp_path, [blobs()] * 3)
    (root / "train_masks" / "001.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images have no mask; the first is .*001\.png "
                                        r"\(expected .*train_masks/001\.png\)"):  # fmt: skip
        find_pairs(root, "train")
    assert [pair.stem for pair in find_pairs(root, "train", skip_bad=True)] == ["000", "002"]


def test_two_masks_of_one_name_are_refused(tmp_path):
    root = make_data(tmp_path, [blobs()])
    Image.fromarray(blobs()).save(root / "train_masks" / "000_mask.png")
    with pytest.raises(UserError, match=r"000\.png and 000_mask\.png claim"):
        find_pairs(root, "train")


def test_missing_and_empty_folders_are_said(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        find_pairs(tmp_path / "missing", "train")
    with pytest.raises(UserError, match="no folder train_images"):
        find_pairs(tmp_path, "train")
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_masks").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        find_pairs(tmp_path, "train")
    with pytest.raises(UserError, match="holds no masks"):
        MaskReader.for_data(tmp_path)
    (tmp_path / "data.zip").write_bytes(b"x")
    with pytest.raises(UserError, match="unpack"):
        find_pairs(tmp_path / "data.zip", "train")


def make_cvat(root: Path, names: list[str], lists: dict[str, list[str]]) -> Path:
    """A CVAT export of the format "Segmentation mask 1.1"."""
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, members in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(members) + "\n")
    for name in names:
        write_image(root / "JPEGImages" / f"{name}.jpg", photo())
        write_mask(root / "SegmentationClass" / f"{name}.png", blobs((0, 2)),
                   ((0, 0, 0), (0, 176, 0), (255, 0, 0)))  # fmt: skip
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + COFFEE)
    return root


def test_a_cvat_export_with_its_own_splits_is_read(tmp_path):
    names = ["a", "b", "sub/c", "d"]
    root = make_cvat(tmp_path, names, {"train": names[:2], "val": names[2:3], "test": names[3:]})
    found = {split: [pair.stem for pair in find_pairs(root, split)]
             for split in ("train", "valid", "test")}  # fmt: skip
    assert found == {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}
    assert np.unique(read_first(root)).tolist() == [0, 2]


def test_a_cvat_export_with_one_list_is_split_by_name(tmp_path):
    names = [f"leaf {n}" for n in range(20)]
    root = make_cvat(tmp_path, names, {"default": names})
    train, valid = (find_pairs(root, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (17, 3)
    assert sorted(pair.stem for pair in train + valid) == sorted(names)
    assert valid == find_pairs(root, "valid")
    assert {pair.stem for pair in valid} != set(sorted(names)[:3]), "the first are no random share"
    assert "15% of the pictures" in MaskReader.for_data(root).describe()
    with pytest.raises(UserError, match="no test split"):
        find_pairs(root, "test")


def test_a_cvat_export_without_photographs_says_where_they_go(tmp_path):
    root = make_cvat(tmp_path, ["a", "b"], {"default": ["a", "b"]})
    (root / "JPEGImages").rename(root / "elsewhere")
    with pytest.raises(UserError, match="JPEGImages"):
        find_pairs(root, "train")


def test_names_in_a_cvat_list_cannot_lead_out_of_the_folder(tmp_path):
    write_image(tmp_path / "secret.jpg", photo())
    root = make_cvat(
        tmp_path / "export", ["a", "b"], {"train": ["../../secret", "a"], "val": ["b"]}
    )
    assert [pair.stem for pair in find_pairs(root, "train")] == ["a"]


def test_the_fingerprint_knows_other_data(tmp_path):
    root = make_data(tmp_path, [blobs()] * 3)
    pairs = find_pairs(root, "train")
    before = data_fingerprint(root, [pairs, pairs])
    assert before == data_fingerprint(root, [list(pairs), pairs])
    assert before != data_fingerprint(root, [pairs[:2], pairs])
    write_image(pairs[0].image, photo(9, (50, 64)))
    assert before != data_fingerprint(root, [pairs, pairs])


# The class table


def table_of(tmp_path: Path, content: bytes) -> ClassTable:
    (tmp_path / "labelmap.txt").write_bytes(content)
    return read_class_table(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "# label:color_rgb:parts:actions\nsoil:0,0,0::\nblüte:0,176,0::\n".encode(),
        "\ufeffsoil:0,0,0::\r\n\r\nblüte: 0, 176, 0::\r\n".encode(),
        "soil:0,0,0::\nblüte:0,176,0".encode("latin-1"),
    ],
)
def test_labelmaps_of_any_encoding_are_read(tmp_path, content):
    table = table_of(tmp_path, content)
    assert table.names == ("soil", "blüte")
    assert table.colors == ((0, 0, 0), (0, 176, 0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a:0,0,0::\na:1,1,1::\n", "name 'a' twice"),
        (b"a:0,0,0::\nb:0,0,0::\n", r"colour \(0, 0, 0\) twice"),
        (b"a:0,0,0::\nb:0,0,256::\n", "line 2"),
        (b"a:0,0,0::\nb:0,0::\n", "line 2"),
        (b"a:0,0,0::\nb:x,0,0::\n", "line 2"),
        (b"a:0,0,0::\nb\n", "line 2"),
        (b":0,0,0::\nb:1,1,1::\n", "line 1"),
        (b"a\x1b[31m:0,0,0::\nb:1,1,1::\n", "control characters"),
        (b"a:0,0,0::\nvoid:1,1,1::\n", "names 1 classes"),
        (b"", "names 0 classes"),
    ],
)
def test_bad_labelmaps_are_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        table_of(tmp_path, content)


def test_without_a_labelmap_the_classes_are_those_of_config(tmp_path):
    assert read_class_table(tmp_path) == ClassTable.default()


def test_only_the_first_class_may_be_black_in_overlays(tmp_path):
    table = table_of(tmp_path, b"a:0,0,0::\nb:255,40,90::\n")
    assert table.vis_colors == ((0, 0, 0), (255, 40, 90))
    table = table_of(tmp_path, b"a:255,40,90::\nb:0,0,0::\n")
    assert any(table.vis_colors[1])
    assert table.vis_colors[1] != table.vis_colors[0]
    assert table.colors[1] == (0, 0, 0)


# Masks


def palette_picture(colors: list, mask: np.ndarray) -> Image.Image:
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(bytes(np.array(colors, np.uint8)))
    return picture


COLORS = np.array([(0, 0, 0), (0, 176, 0), (255, 0, 0)], np.uint8)
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
    assert "255 (white) is ignored" in MaskReader.for_data(root).describe()
    white = make_data(tmp_path / "b", [blobs((0, 255))],
                      "a:0,0,0::\nb:255,255,255::\n")  # fmt: skip
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
    reader = MaskReader.for_data(root)
    assert reader.grey == "binary"
    assert "every value but 0 is 'disease'" in reader.describe()


def test_one_wrong_mask_does_not_change_how_the_others_are_read(tmp_path):
    good = palette_picture(COLORS[[0, 2, 1]], blobs((0, 2, 1)))
    wrong = palette_picture([(0, 0, 0), (7, 7, 7), (8, 8, 8)], blobs((0, 2, 1)))
    root = make_data(tmp_path, [good, good, wrong], COFFEE)
    reader, pairs = MaskReader.for_data(root), find_pairs(root, "train")
    np.testing.assert_array_equal(reader.read(pairs[0]), blobs((0, 1, 2)))
    with pytest.raises(UserError, match=r"002\.png has the colour \(8, 8, 8\)"):
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
        MaskReader.for_data(root).read(find_pairs(root, "train")[1])


def test_an_unknown_index_is_named(tmp_path):
    bad = blobs((0, 1, 7))
    root = make_data(tmp_path, [blobs((0, 1, 2)), bad], COFFEE)
    with pytest.raises(UserError, match=rf"value 7 on {(bad == 7).sum()} pixels.*lines 0 to 2"):
        MaskReader.for_data(root).read(find_pairs(root, "train")[1])


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
    assert "JPEG" in MaskReader.for_data(root).describe()
    foreign = np.array([(0, 0, 0), (0, 0, 255), (255, 0, 0)], np.uint8)[blobs((1, 0, 2))]
    root = make_data(tmp_path / "b", [foreign], COFFEE, ending=".jpg")
    with pytest.raises(UserError, match="JPEG mask with colours far from every class"):
        read_first(root)


def with_exif(path: Path, image: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_painted_before_exif_rotation_are_turned(tmp_path, orientation):
    root, mask = make_data(tmp_path, [blobs()]), blobs()
    with_exif(root / "train_images" / "000.png", np.dstack([mask * 255] * 3), orientation)
    displayed = read_image(root / "train_images" / "000.png")[..., 0] // 255
    Image.fromarray(mask).save(root / "train_masks" / "000.png")
    np.testing.assert_array_equal(read_first(root), displayed)  # painted as stored
    Image.fromarray(displayed).save(root / "train_masks" / "000.png")
    np.testing.assert_array_equal(read_first(root), displayed)  # painted as displayed


def test_masks_of_another_size_are_resized_if_their_proportions_agree(tmp_path):
    root = make_data(tmp_path, [blobs()])
    pair = find_pairs(root, "train")[0]
    write_image(pair.image, photo(0, (480, 643)))
    reader = MaskReader.for_data(root)
    assert reader.read(pair).shape == (48, 64)
    assert reader.read(pair, (480, 643)).shape == (480, 643)
    write_image(pair.image, photo(0, (480, 700)))
    with pytest.raises(UserError, match=r"64x48 px, its image 000\.png 700x480"):
        reader.read(pair)


# Checks and the report


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_the_check_stops_at_a_broken_file_or_leaves_it_out(tmp_path, capsys):
    root = make_data(tmp_path, [blobs()] * 4)
    pairs = find_pairs(root, "train")
    spoil(pairs[1].image)
    spoil(pairs[2].mask)
    reader = MaskReader.for_data(root)
    with pytest.raises(UserError, match=r"train_images/001\.png is cut off"):
        check_pairs(pairs, reader)
    assert check_pairs(pairs, reader, skip_bad=True) == [pairs[0], pairs[3]]
    printed = capsys.readouterr().out
    assert "2 of 4 pairs are left out" in printed
    assert "train_masks/002.png" in printed
    with pytest.raises(UserError):
        check_pairs(pairs[1:3], reader, skip_bad=True)


def test_a_clean_data_set_has_no_problems(tmp_path, capsys):
    root = make_data(tmp_path, [blobs()] * 2)
    assert report(root) == 0
    printed = capsys.readouterr().out
    assert "No problems." in printed
    share = (blobs() == 1).mean()
    assert f"{share:.2%}" in printed


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
    with_exif(images / "009.png", photo(9, (64, 48)), 6)
    Image.fromarray(np.rot90(masks[0])).save(labels / "009.png")
    large = Image.fromarray(COLORS[blobs((0, 1, 2), (480, 640))])
    large.resize((300, 225), Image.Resampling.BILINEAR).save(labels / "010.png")
    (labels / "011.png").rename(labels / "evil\n\x1b[31m.png")
    problems = report(root, tmp_path / "fix.txt")
    printed = capsys.readouterr().out
    for words in ("train_images/000.png is cut off", "2 images without a mask",
                  "2 masks without an image", "has the value 9 on", "64x48",
                  "1 masks with nothing but the first class", "the same picture in two splits",
                  "the same picture twice in one split", "009.png was painted on the photograph",
                  "010.png has the colour", "It looks resized with smoothing",
                  "\\n\\x1b[31m.png", "symptom", "12 PNG"):  # fmt: skip
        assert words in printed, words
    assert "\x1b" not in printed
    fixes = (tmp_path / "fix.txt").read_text().splitlines()
    assert problems == len(fixes) == 9
    assert "train_masks/evil\\n\\x1b[31m.png" in fixes


def test_smoothed_binary_masks_are_reported(tmp_path, capsys):
    small = Image.fromarray(blobs((0, 255)))
    root = make_data(tmp_path, [small.resize((256, 192), Image.Resampling.BICUBIC)])
    assert report(root) == 2
    assert "rare values along its edges" in capsys.readouterr().out


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
    spoil(root / "train_images" / "000.png")
    assert exit_code(monkeypatch, root, "--fix-list", tmp_path / "fix.txt") == 1
    assert "1 problems in 1 files" in capsys.readouterr().out
    assert (tmp_path / "fix.txt").read_text() == "train_images/000.png\n"
    assert exit_code(monkeypatch, tmp_path / "missing") == 2
    assert capsys.readouterr().err.count("\n") == 1


# Samples


def make_set(root: Path, count: int = 7, **options) -> SegmentationDataset:
    """A data set of photographs, each with a bright rectangle that its mask marks."""
    if not root.exists():
        make_data(root, [blobs((0, 1), (60 + 4 * n, 80)) for n in range(count)])
    reader, pairs = MaskReader.for_data(root), find_pairs(root, "train")
    return SegmentationDataset(pairs, reader, (32, 64), IMAGENET_MEAN, IMAGENET_STD, **options)


def test_a_sample_is_normalised_rgb_and_its_mask(tmp_path):
    dataset = make_set(tmp_path / "a", augment="none")
    image, target, index = dataset[0, 3]
    assert (image.shape, image.dtype) == ((3, 32, 64), torch.float32)
    assert (target.shape, target.dtype, index) == ((32, 64), torch.int64, 3)
    pixels = read_image(dataset.pairs[3].image)
    pixels = cv2.resize(pixels, (64, 32), interpolation=cv2.INTER_AREA) / 255
    expected = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("augment", ["article", "strong"])
def test_samples_depend_on_seed_epoch_and_index_alone(tmp_path, augment):
    first = make_set(tmp_path / "a", augment=augment, seed=3)
    again = make_set(tmp_path / "a", augment=augment, seed=3)
    for index in (6, 0, 5):  # another order
        again[1, index]
    for key in ((1, 0), (1, 5), (2, 5)):
        assert all(map(torch.equal, map(torch.as_tensor, first[key]),
                       map(torch.as_tensor, again[key])))  # fmt: skip
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
        row = image[0, 16]  # through the centre, where 25 degrees change no side
        seen.add((bool((target == 255).any()), bool(row[8:24].mean() > row[40:56].mean())))
    assert len(seen) == 4


def test_what_rotation_uncovers_is_ignored_and_nothing_else(tmp_path):
    augmentation = make_augmentation("article", (64, 64), (1, 2, 3))
    seen = 0
    for _ in range(40):
        changed = augmentation(image=np.full((64, 64, 3), 200, np.uint8),
                               mask=np.ones((64, 64), np.uint8))  # fmt: skip
        assert set(np.unique(changed["mask"])) <= {1, 255}
        uncovered = cv2.erode((changed["mask"] == 255).astype(np.uint8), np.ones((3, 3)))
        if uncovered.any():
            seen += 1
            assert (changed["image"][uncovered == 1] == (1, 2, 3)).all()
    assert seen > 5


@pytest.mark.parametrize("augment", ["article", "strong"])
def test_photograph_and_mask_stay_aligned(tmp_path, augment):
    """The photograph shows its own mask in white: after all changes it still does."""
    root = make_data(tmp_path, [blobs((0, 1), (96, 192))])
    pair = find_pairs(root, "train")[0]
    write_image(pair.image, np.dstack([blobs((0, 255), (96, 192))] * 3))
    dataset = SegmentationDataset([pair], MaskReader.for_data(root), (48, 96), (0, 0, 0), (1, 1, 1),
                                  augment=augment)  # fmt: skip
    for epoch in range(25):
        image, target, _ = dataset[epoch, 0]
        assert image.shape == (3, 48, 96)
        seen = (image.mean(0) > 0.5).numpy().astype(np.uint8)
        labels = target.numpy()
        inner = cv2.erode((labels == 1).astype(np.uint8), np.ones((5, 5)))
        outer = cv2.dilate((labels != 0).astype(np.uint8), np.ones((5, 5)))
        assert (seen[inner == 1] == 1).mean() > 0.95 if inner.any() else True
        assert (seen[outer == 0] == 0).all()


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
        loaders = [make_loader(dataset, 2, 0, train=train, seed=1, rank=rank, world_size=world_size)
                   for rank in range(world_size)]  # fmt: skip
        found = [[i for batch in loader.batch_sampler for _, i in batch] for loader in loaders]
        assert [len(loader) for loader in loaders] == [-(-len(part) // 2) for part in found]
        return found

    assert sorted(chain(*indices(train=False))) == list(range(7))
    shares = indices(train=True)
    assert {len(part) for part in shares} == {-(-7 // world_size)}
    assert set(chain(*shares)) == set(range(7))


def test_a_last_batch_of_one_can_be_left_out(tmp_path):
    dataset = make_set(tmp_path / "a")
    sizes = {
        (batch, drop): [len(b) for b in make_loader(dataset, batch, 0, train=True, seed=0,
                                                    drop_last=drop).batch_sampler]
        for batch in (3, 4, 7) for drop in (False, True)
    }  # fmt: skip
    assert sizes[3, False] == [3, 3, 1]
    assert sizes[3, True] == [3, 3]
    assert sizes[4, True] == [4, 3]
    assert sizes[7, True] == [7]


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


def test_the_script_asks_no_network(tmp_path):
    root = make_data(tmp_path / "data", [blobs()])
    code = (
        "import runpy, socket, sys\n"
        "def refuse(*_): raise SystemExit('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "runpy.run_path('datasets.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, root], cwd=REPO, env={}, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("folder", "names"),
    [("leaf_disease_segmentation/orig_data", ["background", "disease"]),
     ("coffee_leaf", ["background", "leaf", "symptom"])],
)  # fmt: skip
def test_real_photographs_are_read(folder, names):
    root = REAL / folder
    if not root.is_dir():
        pytest.skip("the real photographs are not beside the repository")
    pairs = find_pairs(root, "valid")[:5]
    reader = MaskReader(read_class_table(root))
    assert list(reader.classes.names) == names
    labels = [reader.read(pair) for pair in check_pairs(pairs, reader)]
    assert set(np.unique(np.concatenate([mask.ravel() for mask in labels]))) == {*range(len(names))}


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 1024), (160, 320)), ((3000, 4000), (192, 256)), ((70, 70), (224, 224)),
     ((1024, 512), (320, 160)), ((10, 4000), (32, 4512))],
)  # fmt: skip
def test_the_networks_input_follows_the_photographs_shape(tmp_path, size, expected):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths[:2]:
        Image.new("L", size[::-1]).save(path)
    Image.new("L", (50, 40)).save(paths[2])  # one of another shape changes nothing
    assert datasets.input_size(paths, 320 * 160) == expected
