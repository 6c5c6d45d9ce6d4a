"""COCO JSON means what its format says, whoever wrote it."""

import numpy as np
import pytest
from tiny_annotations import (
    all_pairs,
    coco,
    filled,
    labels,
    open_all,
    square,
    write_json,
    write_photo,
)

from common.errors import UserError
from config import DataChoices
from data.source import open_source, survey_source

SIZE = (20, 30)


def write(root, content, *photos):
    for number, name in enumerate(photos or ("a.jpg", "b.jpg")):
        write_photo(root / "images" / name, SIZE, seed=number)
    write_json(root / "annotations" / "instances_default.json", content)
    return root


def test_parts_are_one_thing_and_never_holes(tmp_path):
    parts = [square(2, 2, 20, 15), square(5, 5, 10, 10)]
    root = write(tmp_path, coco([{"segmentation": parts}], images=("a.jpg", "b.jpg")))
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 20, 15)))
    assert not labels(root, "b").any()  # a picture without annotations is background


def test_run_lengths_are_painted_whatever_iscrowd_says(tmp_path):
    runs = {"size": [20, 30], "counts": [20, 10, 570]}
    content = coco(
        [{"segmentation": runs, "iscrowd": 1, "category_id": 2}], images=("a.jpg", "b.jpg")
    )
    assert np.array_equal(labels(write(tmp_path, content)), filled(SIZE, (2, 1, 0, 2, 10)))


def test_ids_may_have_gaps_be_texts_and_share_a_name(tmp_path):
    content = coco(
        [
            {"segmentation": [square(1, 1, 5, 5)], "category_id": "7", "image_id": "1"},
            {"segmentation": [square(8, 1, 12, 5)], "category_id": 9},
        ],
        images=("a.jpg", "b.jpg"),
    )
    content["categories"] = [{"id": 7, "name": "leaf"}, {"id": 9, "name": "leaf"}]
    content["images"][0] |= {"height": "20", "width": "30"}
    root = write(tmp_path, content)
    assert open_all(root).reader.classes.names == ("background", "leaf")
    assert np.array_equal(labels(root), filled(SIZE, (1, 1, 1, 5, 5), (1, 8, 1, 12, 5)))


def test_roboflows_unused_category_0_is_no_class(tmp_path):
    content = coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("a.jpg", "b.jpg"))
    content["categories"] = [
        {"id": 0, "name": "plants", "supercategory": "none"},
        {"id": 1, "name": "leaf", "supercategory": "plants"},
    ]
    assert open_all(write(tmp_path, content)).reader.classes.names == ("background", "leaf")


def test_the_smaller_shape_lies_on_top_unless_the_file_decides(tmp_path):
    small, large = square(5, 5, 10, 10), square(2, 2, 20, 15)
    content = coco(
        [{"segmentation": [small], "category_id": 2}, {"segmentation": [large]}],
        images=("a.jpg", "b.jpg"),
    )
    root = write(tmp_path, content)
    assert labels(root)[7, 7] == 2
    assert labels(root, choices=DataChoices(overlap="file"))[7, 7] == 1


def test_what_no_outline_covers_of_a_box_counts_nowhere(tmp_path):
    content = coco(
        [
            {"segmentation": [square(1, 1, 5, 5)]},
            {"segmentation": [], "bbox": [3, 3, 6, 4]},
            {"segmentation": []},
            {"segmentation": [], "bbox": [1, 1, 4, 4], "image_id": 3},
        ],
        images=("a.jpg", "b.jpg", "c.jpg"),
    )
    root = write(tmp_path, content, "a.jpg", "b.jpg", "c.jpg")
    source = open_all(root)
    assert sorted(pair.stem for pair in all_pairs(source)) == ["a", "b"]
    assert "2 boxes without an outline: what no outline covers" in source.reader.describe()
    assert "such as c.jpg" in source.reader.describe()
    expected = filled(SIZE, (255, 3, 3, 9, 7), (1, 1, 1, 5, 5))
    assert np.array_equal(labels(root), expected)
    # What was painted while the file had this box is not taken for what is painted without it.
    del content["annotations"][1]["bbox"]
    write_json(root / "annotations" / "instances_default.json", content)
    assert np.array_equal(labels(root), filled(SIZE, (1, 1, 1, 5, 5)))
    content["annotations"] = [content["annotations"][3]]
    content["images"] = [content["images"][2]]
    write_json(root / "annotations" / "instances_default.json", content)
    with pytest.raises(UserError, match="boxes only"):
        open_all(root)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [([1, 1, 4], "not four numbers"), (7, "not four numbers"), ([1, 1, "x", 4], "no usable")],
)
def test_a_box_that_cannot_be_meant_is_named(tmp_path, bbox, reason):
    shapes = [{"segmentation": [square(1, 1, 5, 5)]}, {"segmentation": [], "bbox": bbox}]
    root = write(tmp_path, coco(shapes, images=("a.jpg", "b.jpg")))
    with pytest.raises(UserError, match=f"a.jpg: annotation 2: .*bbox .*{reason}"):
        open_all(root)


def test_several_files_are_splits(tmp_path):
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        write_photo(tmp_path / "images" / split / f"{name}.jpg", SIZE)
        content = coco([{"segmentation": [square(1, 1, 5, 5)]}], images=(f"{name}.jpg",))
        write_json(tmp_path / "annotations" / f"instances_{split}2017.json", content)
    source = open_source(tmp_path, ("train", "valid", "test"))
    assert {split: [pair.stem for pair in pairs] for split, pairs in source.pairs.items()} == {
        "train": ["a"],
        "valid": ["b"],
        "test": ["c"],
    }
    assert not source.divided


def test_a_single_file_may_be_named(tmp_path):
    root = write(
        tmp_path, coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("a.jpg", "b.jpg"))
    )
    source = open_all(root / "annotations" / "instances_default.json")
    assert len(all_pairs(source)) == 2
    assert source.divided


def test_names_with_folders_find_their_photographs(tmp_path):
    content = coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("x\\a.jpg", "y/a.jpg"))
    for place in ("photos/x", "photos/y"):
        write_photo(tmp_path / place / "a.jpg", SIZE, seed=len(place))
    root = write_json(tmp_path / "all.json", content).parent
    masks = {
        pair.image.parent.name: open_all(root).reader.read(pair).any()
        for pair in all_pairs(open_all(root))
    }
    assert masks == {"x": True, "y": False}


def test_masks_are_painted_once(tmp_path, monkeypatch):
    root = write(
        tmp_path, coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("a.jpg", "b.jpg"))
    )
    before = labels(root)
    monkeypatch.setattr("data.formats.paint.write_mask", None)  # whoever paints again fails
    assert np.array_equal(labels(root), before)


def test_a_damaged_mask_in_the_cache_is_painted_anew(tmp_path):
    root = write(
        tmp_path, coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("a.jpg", "b.jpg"))
    )
    before = labels(root)
    for pair in all_pairs(open_all(root)):
        pair.mask.write_bytes(pair.mask.read_bytes()[:40])
    assert np.array_equal(labels(root), before)


def test_a_changed_annotation_is_another_mask_and_another_run(tmp_path):
    content = coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("a.jpg", "b.jpg"))
    root = write(tmp_path, content)
    source = open_all(root)
    before, mark = labels(root), source.fingerprint(source.pairs.values())
    content["annotations"][0]["segmentation"] = [square(1, 1, 6, 5)]
    write(tmp_path, content)
    source = open_all(root)
    assert not np.array_equal(labels(root), before)
    assert source.fingerprint(source.pairs.values()) != mark


def test_annotations_belong_to_the_upright_picture_or_are_turned_like_it(tmp_path):
    for name, orientation in (("a.jpg", 6), ("b.jpg", 6)):
        write_photo(tmp_path / name, (20, 30), orientation)
    content = coco(
        [
            {"segmentation": [square(0, 0, 5, 2)]},
            {"segmentation": [square(0, 0, 5, 2)], "image_id": 2},
        ],
        images=("a.jpg", "b.jpg"),
    )
    content["images"][0] |= {"height": 30, "width": 20}  # upright, as it is seen
    write_json(tmp_path / "all.json", content)
    assert np.array_equal(labels(tmp_path), filled((30, 20), (1, 0, 0, 5, 2)))
    assert np.array_equal(labels(tmp_path, "b"), filled((30, 20), (1, 18, 0, 20, 5)))


def test_a_photograph_of_other_proportions_is_refused(tmp_path):
    root = write(tmp_path, coco([{"segmentation": [square(1, 1, 5, 5)]}], size=(30, 20)))
    with pytest.raises(
        UserError, match=r"picture a.jpg: .* 20x30 px, and the photograph has 30x20"
    ):
        open_all(root)


def test_a_label_map_beside_it_overrides_order_and_colours(tmp_path):
    root = write(
        tmp_path, coco([{"segmentation": [square(1, 1, 5, 5)]}], images=("a.jpg", "b.jpg"))
    )
    (root / "labelmap.txt").write_text("background:0,0,0\nspot:9,9,9\nleaf:1,200,3\n")
    assert labels(root)[2, 2] == 2
    assert open_all(root).reader.classes.colors[2] == (1, 200, 3)
    (root / "labelmap.txt").write_text("background:0,0,0\nspot:9,9,9\n")
    with pytest.raises(UserError, match="lacks the class 'leaf'"):
        open_all(root)


def test_a_single_picture_can_be_surveyed_and_not_trained_on(tmp_path):
    root = write(tmp_path, coco([{"segmentation": [square(1, 1, 5, 5)]}]), "a.jpg")
    assert list(survey_source(root).pairs) == ["train"]
    with pytest.raises(UserError, match="at least 2"):
        open_all(root)
