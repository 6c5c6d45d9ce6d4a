"""One object opens a data set in any layout, with what a person decided about it."""

import numpy as np
from data_sets import COFFEE, blobs, make_data
from tiny_annotations import all_pairs, coco, open_all, square, write_json, write_photo

from config import DataChoices
from data.source import open_source


def test_classes_are_merged_and_ignored_when_masks_are_read(tmp_path):
    root = make_data(tmp_path, [blobs((0, 1, 2))], COFFEE)
    before = open_source(root)
    mask = before.reader.read(before.pairs["train"][0])
    merged = open_source(root, choices=DataChoices(merge=("symptom=leaf",)))
    assert merged.reader.classes.names == ("background", "leaf")
    assert np.array_equal(merged.reader.read(merged.pairs["train"][0]), mask > 0)
    ignored = open_source(root, choices=DataChoices(ignore=("symptom",)))
    expected = np.where(mask == 2, 255, mask)
    assert np.array_equal(ignored.reader.read(ignored.pairs["train"][0]), expected)
    assert ignored.unmerged.classes == before.reader.classes


def test_painted_masks_are_merged_too_and_painted_once(tmp_path):
    for number, name in enumerate("ab"):
        write_photo(tmp_path / f"{name}.jpg", seed=number)
    shapes = [
        {"segmentation": [square(1, 1, 9, 9)]},
        {"segmentation": [square(12, 1, 15, 9)], "category_id": 2},
    ]
    write_json(tmp_path / "all.json", coco(shapes, images=("a.jpg", "b.jpg")))
    plain = open_all(tmp_path)
    merged = open_all(tmp_path, choices=DataChoices(merge=("leaf,spot=plant",), ignore=()))
    assert {pair.mask for pair in all_pairs(plain)} == {pair.mask for pair in all_pairs(merged)}
    for pair in all_pairs(plain):
        assert np.array_equal(merged.reader.read(pair), plain.reader.read(pair) > 0)


def test_without_the_users_cache_nothing_is_left_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, name in enumerate("ab"):
        write_photo(tmp_path / "set" / f"{name}.jpg", seed=number)
    content = coco([{"segmentation": [square(1, 1, 9, 9)]}], images=("a.jpg", "b.jpg"))
    root = write_json(tmp_path / "set" / "all.json", content).parent
    source = open_all(root, cache=False)
    assert all(pair.mask.is_file() for pair in all_pairs(source))
    assert not list(tmp_path.glob("cache/**/masks"))
