"""Label Studio's JSON export."""

import numpy as np
import pytest
from tiny_annotations import all_pairs, filled, labels, open_all, write_json, write_photo

from common.errors import UserError

SIZE = (20, 40)


def result(kind: str, value: dict, label="leaf", **more) -> dict:
    value = value | ({f"{kind}labels": [label]} if label else {})
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"id": f"{kind}1", "type": f"{kind}labels", "value": value} | size | more


def polygon(left, top, right, bottom, label="leaf", **more) -> dict:
    ends = [(left, top), (right, top), (right, bottom), (left, bottom)]
    points = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in ends]
    return result("polygon", {"points": points}, label, **more)


def task(results, name="/data/upload/8/1a2b3c4d-a.jpg", **more) -> dict:
    annotation = {"result": results, "was_cancelled": False, "updated_at": "2024-01-01T00:00:00Z"}
    return {"id": 1, "annotations": [annotation], "predictions": [], "data": {"image": name}} | more


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate("ab"):
        write_photo(tmp_path / "images" / f"{name}.jpg", SIZE, seed=number)
    return tmp_path


def write(root, *tasks):
    last = task([polygon(1, 1, 5, 5)], "b.jpg", id=2)
    write_json(root / "project.json", [*tasks, last])
    return root


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/8/1a2b3c4d-a.jpg",
        "/data/local-files/?d=images%2Fa.jpg",
        "a.jpg",
        "images\\a.jpg",
        "http://localhost:8080/data/upload/8/1a2b3c4d-a.jpg",
        "s3://bucket/a.jpg",
    ],
)
def test_photographs_are_found_by_the_names_that_it_gives_them(root, name):
    write(root, task([polygon(2, 2, 20, 10)], name))
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 20, 10)))


def test_shapes_are_per_cent_and_painted_in_order(root):
    box = {"x": 25, "y": 20, "width": 25, "height": 40, "rotation": 0}
    write(root, task([polygon(2, 2, 30, 16), result("rectangle", box, "spot")]))
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 30, 16), (2, 10, 4, 20, 12)))


def test_rectangles_turn_around_their_corner_and_ellipses_around_their_centre(root):
    box = {"x": 50, "y": 20, "width": 10, "height": 50, "rotation": 90}  # 4 x 10 px at (20, 4)
    write(root, task([result("rectangle", box)]))
    assert np.array_equal(labels(root), filled(SIZE, (1, 10, 4, 20, 8)))
    ellipse = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 90}  # 8 x 4 px
    write(root, task([result("ellipse", ellipse)]))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = ((x - 20) / 4) ** 2 + ((y - 10) / 8) ** 2 < 1
    assert (labels(root).astype(bool) ^ inside).sum() <= 4


def test_labels_may_stand_in_a_result_of_their_own(root):
    area = polygon(2, 2, 20, 10, None) | {"id": "x", "type": "polygon"}
    name = {"id": "x", "type": "labels", "value": {"labels": ["leaf"]}}
    write(root, task([area, name]))
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 20, 10)))


def test_the_newest_finished_annotation_counts_and_no_prediction(root):
    def annotation(right, when, **more):
        return {"result": [polygon(2, 2, right, 10)], "updated_at": when} | more

    first = task([]) | {
        "annotations": [
            annotation(20, "2024-02-01"),
            annotation(10, "2024-01-01"),
            annotation(30, "2024-03-01", was_cancelled=True),
        ],
        "predictions": [annotation(35, "2024-04-01")],
    }
    source = open_all(write(root, first))
    assert "1 task with several annotations (the newest is taken)" in source.reader.describe()
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 20, 10)))


def test_an_empty_annotation_is_background_and_a_task_without_one_is_left_out(root):
    write_photo(root / "images" / "c.jpg", SIZE)
    open_task = task([], "c.jpg") | {"annotations": [{"result": [], "was_cancelled": True}]}
    source = open_all(write(root, task([]), open_task))
    assert sorted(pair.stem for pair in all_pairs(source)) == ["a", "b"]
    assert not labels(root).any()
    assert "1 task without a finished annotation" in source.reader.describe()


def pack(mask: np.ndarray) -> list[int]:
    """The brush's packing by its description: runs of 3, 4, 8 or 16 bits, repeated or not."""
    values = np.repeat((mask.astype(np.uint8) * 255).ravel(), 4)
    bits = f"{values.size:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    place = 0
    while place < values.size:
        end = place + 1
        while end < values.size and values[end] == values[place]:
            end += 1
        count = end - place
        if count < 8:  # as they are
            bits += f"0{0:02b}{count - 1:03b}" + "".join(f"{v:08b}" for v in values[place:end])
        else:
            bits += f"1{3:02b}{count - 1:016b}{values[place]:08b}"
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_a_brush_is_the_fourth_channel_by_rows(root):
    mask = np.random.default_rng(0).random(SIZE) < 0.5
    mask[5:9] = True
    write(root, task([result("brush", {"format": "rle", "rle": pack(mask)})]))
    assert np.array_equal(labels(root), mask)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([0, 0, 0], "cut off"),
        ([0, 0, 0, 9, 56, 0, 0, 0, 0, 0], "has 9 values"),
        ([300], "list of bytes"),
        ("abc", "list of bytes"),
        (None, "list of bytes"),
    ],
)
def test_a_damaged_brush_is_named(root, value, reason):
    write(root, task([result("brush", {"rle": value})]))
    with pytest.raises(UserError, match=rf"project.json, task 1: result brush1: .*{reason}"):
        open_all(root)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (polygon(1, 1, 5, 5, original_width=0), "size"),
        (polygon(1, 1, 5, 5, image_rotation=90), "turned"),
        (polygon(1, 1, 5, 5, None), "0 labels"),
        (result("rectangle", {"x": 1, "y": 1, "width": "w", "height": 1}), "width"),
    ],
)
def test_a_result_that_cannot_be_meant_is_named(root, bad, reason):
    with pytest.raises(UserError, match=rf"task 1: result .*{reason}"):
        open_all(write(root, task([bad])))


def test_predictions_that_nobody_corrected_are_no_truth_and_called_so(root):
    told = {"id": 1, "data": {"image": "a.jpg"}, "predictions": [{"result": []}]}
    write_json(root / "labelstudio.json", [told, told | {"data": {"image": "b.jpg"}}])
    with pytest.raises(UserError, match="predictions alone; correct them in Label Studio"):
        open_all(root)
