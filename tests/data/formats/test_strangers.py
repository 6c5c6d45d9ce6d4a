"""Annotation files from strangers are data: nothing outside the folder is opened or fetched."""

import json
import os

import pytest
from tiny_annotations import all_pairs, coco, open_all, square, write_json, write_photo

from common.errors import UserError
from data.formats import files
from data.formats.detect import read_annotations

SQUARE = [{"segmentation": [square(1, 1, 5, 5)]}]


@pytest.fixture
def root(tmp_path):
    write_photo(tmp_path / "secret.jpg")
    for number, name in enumerate("ab"):
        write_photo(tmp_path / "set" / f"{name}.jpg", seed=number)
    return tmp_path / "set"


def refused(root, *reasons) -> str:
    with pytest.raises(UserError) as error:
        open_all(root)
    for reason in reasons:
        assert reason in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.jpg", "outside the data's folder"),
        ("x/../../secret.jpg", "outside the data's folder"),
        ("..\\secret.jpg", "outside the data's folder"),
        ("/etc/hostname.jpg", "outside the data's folder"),
        ("C:\\me\\a.jpg", "outside the data's folder"),
        ("http://127.0.0.1/a.jpg", "none is fetched"),
        ("file:///etc/a.jpg", "none is fetched"),
        ("a.jpg\0", "is no file name"),
        ("", "is no file name"),
        (7, "is no file name"),
        (None, "is no file name"),
        ("c.jpg", "is not there"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(root, name, reason):
    write_json(root / "all.json", coco(SQUARE, images=(name, "b.jpg")))
    refused(root, "all.json", reason)
    write_json(root / "all.json", coco(SQUARE, images=(name, "a.jpg", "b.jpg")))
    left = open_all(root, skip_bad=True)
    assert len(all_pairs(left)) == 2
    assert "does not list" not in left.reader.describe()  # its annotations go with it, unmentioned
    (root / "all.json").unlink()
    labelme = {"version": "5.0", "imagePath": name, "imageData": None, "shapes": []}
    if name:
        write_json(root / "x.json", labelme)
        refused(root, "x.json", reason)


def test_links_out_of_the_folder_are_not_followed(root):
    os.symlink(root.parent / "secret.jpg", root / "c.jpg")
    write_json(root / "all.json", coco(SQUARE, images=("c.jpg", "b.jpg")))
    refused(root, "link that leads out")
    (root / "c.jpg").unlink()
    write_photo(root.parent / "other" / "c.jpg")
    os.symlink(root.parent / "other", root / "photos")
    write_json(root / "all.json", coco(SQUARE, images=("photos/c.jpg", "b.jpg")))
    refused(root, "link that leads out")


def test_links_within_the_folder_are_files_like_others(root):
    os.symlink(root / "a.jpg", root / "c.jpg")
    write_json(root / "all.json", coco(SQUARE, images=("c.jpg", "b.jpg")))
    assert sorted(pair.stem for pair in all_pairs(open_all(root))) == ["b", "c"]


def test_a_file_that_is_too_large_is_not_read(root, monkeypatch):
    write_json(root / "all.json", coco(SQUARE, images=("a.jpg", "b.jpg")))
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    refused(root, "all.json", "more than the")


def test_two_gigabytes_of_nothing_are_refused_by_their_size(root):
    with open(root / "all.json", "wb") as file:
        file.truncate(2 * 2**30)
    refused(root, "all.json has 2,048 MiB")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a":' * 100_000, "nested too deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"images": [', "no whole JSON"),
        (b"\xff\xfe\x00", "no whole JSON"),
        (b"9" * 10_000, "no whole JSON"),
    ],
)
def test_damaged_json_is_named(root, content, reason):
    (root / "all.json").write_bytes(content)
    refused(root, "all.json", reason)


POINTS = [float(number % 19) for number in range(2_000_000)]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, float("nan"), 5, 5, 5]], "not a finite number"),
        ([[1, 1, float("inf"), 5, 5, 5]], "not a finite number"),
        ([[1, 1, 1e30, 5, 5, 5]], "far outside"),
        ([[1, 1, 10**400, 5, 5, 5]], "no numbers"),
        ([POINTS], "1,000,000 points"),
        ([[1, 1, 2]], "odd"),
        ([["x", "y"] * 3], "no numbers"),
        ("abc", "its segmentation is 'abc'"),
        ({"size": [20, 30], "counts": [5]}, "5 of 600 pixels"),
        ({"size": [20, 30], "counts": [-5, 605]}, "600 of 600 pixels"),
        ({"size": [20, 30], "counts": [10**30]}, "far too large"),
        ({"size": [20, 30], "counts": [0.5]}, "whole numbers"),
        ({"size": [20, 30], "counts": "~"}, "damaged"),
        ({"size": [20, 31], "counts": [620]}, "the picture 30x20"),
        ({"size": [20], "counts": [620]}, "no size"),
        ({"size": [20, "x"], "counts": [620]}, "its mask's size is 'x'"),
        ({"counts": [620]}, "no size"),
    ],
)
def test_a_shape_that_cannot_be_is_named_with_its_file_and_annotation(root, segmentation, reason):
    content = coco([{"segmentation": segmentation, "id": 77}], images=("a.jpg", "b.jpg"))
    write_json(root / "all.json", content)
    refused(root, "all.json, picture a.jpg: annotation 77: ", reason)


def test_a_size_that_would_fill_the_memory_is_refused(root):
    content = coco(SQUARE, size=(200_000, 300_000), images=("a.jpg", "b.jpg"))
    write_json(root / "all.json", content)
    refused(root, "picture a.jpg", "300000x200000 px, which none has")


@pytest.mark.parametrize(
    "change",
    [
        {"categories": []},
        {"categories": [{"id": 1}]},
        {"categories": ["leaf"]},
        {"annotations": ["x"]},
        {"images": ["x", "y"]},
        {"images": []},
        {"images": [{"id": 1, "file_name": "a.jpg", "height": "x", "width": 30}]},
        {"images": [{"id": 1, "file_name": "a.jpg", "height": 1e9, "width": 1e9}]},
    ],
)
def test_lists_of_something_else_end_in_a_sentence(root, change):
    write_json(root / "all.json", coco(SQUARE, images=("a.jpg", "b.jpg")) | change)
    refused(root)


def test_class_names_cannot_speak_to_a_terminal(root):
    content = coco(SQUARE, names=("leaf\x1b[2J",), images=("a.jpg", "b.jpg"))
    write_json(root / "all.json", content)
    assert "\x1b" not in refused(root, "control characters")


def test_yaml_is_never_code_and_does_not_grow(root):
    (root / "data.yaml").write_text("train: !!python/object/apply:os.system ['echo']\nnc: 1\n")
    refused(root, "data.yaml is no valid YAML")
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    (root / "data.yaml").write_text(f"{bomb}train: images\nnames: *u\n")
    refused(root)


def places(content, here=()) -> list[tuple]:
    """The way to every value in a JSON content."""
    items = content.items() if isinstance(content, dict) else ()
    items = enumerate(content) if isinstance(content, list) else items
    return [here, *(place for key, value in items for place in places(value, (*here, key)))]


LABELME = {
    "version": "5.0",
    "imagePath": "a.jpg",
    "imageData": None,
    "imageHeight": 20,
    "imageWidth": 30,
    "shapes": [{"label": "leaf", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}],
}
REGION = {
    "id": "x",
    "original_width": 30,
    "original_height": 20,
    "image_rotation": 0,
    "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "rectanglelabels": ["leaf"]},
}
TASKS = [
    {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [REGION]}]},
    {"id": 2, "data": {"image": "b.jpg"}, "annotations": [{"result": []}]},
]


@pytest.mark.parametrize(
    "files",
    [
        {"all.json": coco(SQUARE, images=("a.jpg", "b.jpg"))},
        {"all.json": TASKS},
        {"a.json": LABELME, "b.json": LABELME | {"imagePath": "b.jpg"}},
        {"b.json": LABELME, "a.json": LABELME | {"imagePath": "b.jpg"}},
    ],
    ids=["coco", "labelstudio", "labelme", "labelme's second"],
)
def test_all_that_json_can_hold_is_a_sentence_or_a_data_set(root, files):
    """Every value of a small file in turn becomes something else."""
    for name, content in files.items():
        write_json(root / name, content)
    assert len(all_pairs(open_all(root))) == 2
    name, content = next(iter(files.items()))
    for place in places(content):
        for value in (None, True, -1, 1e308, "x", [], {}, [[]], [{}]):
            changed = json.loads(json.dumps([content]))
            at = changed
            for key in (0, *place)[:-1]:
                at = at[key]
            at[(0, *place)[-1]] = value
            write_json(root / name, changed[0])
            try:
                read_annotations(root, polygons=False, keep=None)
            except UserError:
                continue
