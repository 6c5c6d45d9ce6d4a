"""YOLO's text files, with the descriptions that people have."""

import numpy as np
import pytest
from tiny_annotations import all_pairs, filled, labels, open_all, square, write_photo

from common.errors import UserError
from config import DataChoices
from data.source import open_source

SIZE = (20, 40)


def line(label: int, *points: float) -> str:
    numbers = [value / (SIZE[1], SIZE[0])[number % 2] for number, value in enumerate(points)]
    return f"{label} {' '.join(f'{number:.6f}' for number in numbers)}\n"


LEAF, SPOT = line(0, *square(4, 4, 20, 16)), line(1, 6, 6, 12, 6, 12, 12, 9, 14, 6, 12)


def write(root, description, folders=("images/train", "images/val"), text=LEAF + SPOT):
    for number, folder in enumerate(folders):
        name = "ab"[number]
        write_photo(root / folder / f"{name}.jpg", SIZE, seed=number)
        label = root / folder.replace("images", "labels") / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    if description:
        (root / "data.yaml").write_text(description)
    return root


NAMES = "names: [leaf, spot]\n"
NUMBERED = "names:\n  0: leaf\n  1: spot\n"
SPLIT_FIRST, PLACE_FIRST = ("train/images", "valid/images"), ("images/train", "images/val")


@pytest.mark.parametrize(
    ("description", "folders"),
    [
        ("train: images/train\nval: images/val\n" + NAMES, PLACE_FIRST),
        ("train: ../train/images\nval: ../valid/images\n" + NAMES, SPLIT_FIRST),
        ("path: C:\\me\\my set\ntrain: images/train\nval: images/val\n" + NUMBERED, PLACE_FIRST),
        ("train: F:\\my\\images/train/\nval: F:\\my\\images/val/\n" + NAMES, PLACE_FIRST),
        ("train: [images/train]\nval: [images/val]\n" + NAMES, PLACE_FIRST),
    ],
)
def test_photographs_are_found_beside_the_description(tmp_path, description, folders):
    root = write(tmp_path, description, folders)
    source = open_source(root)
    assert [pair.stem for pairs in source.pairs.values() for pair in pairs] == ["a", "b"]
    assert source.reader.classes.names == ("background", "leaf", "spot")
    expected = filled(SIZE, (1, 4, 4, 20, 16))
    expected[6:12, 6:12] = 2
    agreed = labels(root)[:12] == expected[:12]
    assert agreed.all()
    assert not source.divided


def test_a_list_of_names_is_followed(tmp_path):
    root = write(tmp_path, "train: train.txt\nval: val.txt\n" + NAMES)
    (root / "train.txt").write_text("./images/train/a.jpg\n")
    (root / "val.txt").write_text("images/val/b.jpg\n")
    assert [pair.stem for pair in open_source(root).pairs["valid"]] == ["b"]


def test_one_folder_for_both_splits_is_no_division(tmp_path):
    root = write(tmp_path, "train: images\nval: images\n" + NAMES)
    assert open_all(root).divided


def test_without_a_description_names_come_from_classes_txt(tmp_path):
    root = write(tmp_path, None)
    assert open_all(root).reader.classes.names == ("background", "class 0", "class 1")
    (root / "classes.txt").write_text("leaf\nspot\n")
    assert open_all(root).reader.classes.names == ("background", "leaf", "spot")


def test_boxes_among_outlines_count_nowhere_and_empty_files_are_background(tmp_path):
    root = write(tmp_path, "train: images/train\nval: images/val\n" + NAMES)
    (root / "labels/train/a.txt").write_text(SPOT + "0 0.25 0.5 0.3 0.5\n")
    (root / "labels/val/b.txt").write_text("")
    source = open_source(root)
    assert "1 box without an outline" in source.reader.describe()
    assert "1 picture without a label file or with an empty one" in source.reader.describe()
    mask, box = labels(root), np.s_[5:15, 4:16]
    assert (mask == 255).sum() == (mask[box] == 255).sum() == (mask[box] != 2).sum() > 0
    assert (mask[6:12, 6:12] == 2).all()
    assert not labels(root, "b").any()
    (root / "labels/val/b.txt").unlink()
    assert not labels(root, "b").any()


def test_boxes_alone_are_refused(tmp_path):
    root = write(tmp_path, "train: images/train\nval: images/val\n" + NAMES, text="0 .5 .5 .2 .2\n")
    with pytest.raises(UserError, match="boxes only"):
        open_source(root)


def test_four_corners_are_refused_unless_something_says_that_they_are_outlines(tmp_path):
    root = write(tmp_path, "train: images/train\nval: images/val\n" + NAMES, text=LEAF)
    with pytest.raises(UserError, match="--polygons"):
        open_source(root)
    assert labels(root, choices=DataChoices(polygons=True))[10, 10] == 1
    (root / "labels/train/a.txt").write_text(LEAF + SPOT)  # five corners are an outline
    assert labels(root)[15, 18] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 a b\n", "line 1 is '0 a b'"),
        ("0 0.1 0.2 0.3\n", "line 1 has 4 numbers"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7\n", "line 1 has 8 numbers"),
        ("7 0.1 0.1 0.5 0.1 0.5 0.5\n", "line 1: its class is 7"),
        ("-1 0.1 0.1 0.5 0.1 0.5 0.5\n", "line 1 has the class -1"),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5\n", "line 1 has the class 0.5"),
        ("inf 0.1 0.1 0.5 0.1 0.5 0.5\n", "line 1 has the class inf"),
        (SPOT + "0 nan 0.1 0.5 0.1\n", "line 2: a coordinate is not a finite number"),
        (SPOT + "0 nan 0.1 0.5 0.1 0.5 0.5\n", "line 2: a coordinate is not a finite number"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(tmp_path, text, reason):
    root = write(tmp_path, "train: images/train\nval: images/val\n" + NAMES, text=SPOT)
    (root / "labels/train/a.txt").write_text(text)
    with pytest.raises(UserError, match=rf"a.txt.*{reason}"):
        open_source(root)
    write_photo(root / "images/train/c.jpg", SIZE)
    source = open_source(root, skip_bad=True)
    assert [pair.stem for pair in source.pairs["train"]] == ["c"]


def test_outlines_beyond_the_picture_are_clipped_and_counted(tmp_path):
    text = line(1, 20, -5, 60, -5, 60, 30, 30, 35, 20, 30)
    root = write(tmp_path, "train: images/train\nval: images/val\n" + NAMES, text=text)
    assert np.array_equal(labels(root), filled(SIZE, (2, 20, 0, 40, 20)))
    assert "2 shapes that reach beyond" in open_source(root).reader.describe()
    assert len(all_pairs(open_source(root))) == 2


def test_without_a_description_a_photographs_own_name_puts_it_into_no_split(tmp_path):
    for number, name in enumerate(("test plant 3", "valid_0001", "leaf")):
        write_photo(tmp_path / "images" / f"{name}.jpg", SIZE, seed=number)
        label = tmp_path / "labels" / f"{name}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(LEAF + SPOT)
    source = open_all(tmp_path)
    assert source.divided
    assert len(all_pairs(source)) == 3
