"""LabelMe's files of versions 3 to 5."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from tiny_annotations import all_pairs, filled, labels, open_all, write_json, write_photo

from common.errors import UserError
from data.images import read_image

SIZE = (20, 30)


def shape(label: str, points, kind="polygon", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind} | more


def write(root, shapes, name="a", **more):
    content = {"version": "5.2.1", "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
    content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | more
    return write_json(root / f"{name}.json", content)


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate("ab"):
        write_photo(tmp_path / f"{name}.png", SIZE, seed=number)
    write(tmp_path, [shape("leaf", [[1, 1], [9, 1], [9, 9], [1, 9]])], "b")
    return tmp_path


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_every_area_is_painted_in_the_files_order(root):
    square = [[2, 2], [20, 2], [20, 15], [2, 15]]
    write(
        root,
        [
            shape("leaf", square),
            shape("spot", [[12, 10], [5, 5]], "rectangle"),
            shape("leaf", [[8, 7], [10, 9]], None),
            shape("tip", [[3, 3]], "point"),
            shape("vein", [[1, 1], [2, 2]], "line"),
            shape("vein", [[1, 1], [2, 2]], "linestrip"),
        ],
    )
    expected = filled(SIZE, (1, 2, 2, 20, 15), (2, 5, 5, 12, 10))
    assert np.array_equal(labels(root), expected)
    assert open_all(root).reader.classes.names == ("background", "leaf", "spot")
    assert "4 points, lines or tags" in open_all(root).reader.describe()
    write(root, [shape("spot", [[12, 10], [5, 5]], "rectangle"), shape("leaf", square, None)])
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 20, 15)))


def test_a_circle_is_its_centre_and_a_point_of_its_edge(root):
    write(root, [shape("leaf", [[15, 10], [15, 2]], "circle")])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = np.hypot(y - 10, x - 15) < 8
    assert (labels(root).astype(bool) ^ inside).sum() <= 4


def test_a_mask_lies_between_its_corners_both_included(root):
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2:5] = 255
    write(root, [shape("leaf", [[10, 5], [15, 8]], "mask", mask=png(mask))])
    assert np.array_equal(labels(root), filled(SIZE, (1, 12, 6, 15, 7)))
    write(root, [shape("leaf", [[10, 5], [16, 8]], "mask", mask=png(mask))])
    with pytest.raises(UserError, match=r"a.json, .*shape 0: its mask has 6x4 px .* 7x4"):
        open_all(root)


@pytest.mark.parametrize("path", ["..\\photos\\a.png", "../photos/a.png", "a.json", "A.PNG"])
def test_the_photograph_is_found_from_the_files_place(tmp_path, path):
    write_photo(tmp_path / "photos" / "a.png", SIZE)
    write_photo(tmp_path / "photos" / "b.png", SIZE, seed=1)
    square = [shape("leaf", [[2, 2], [9, 2], [9, 9], [2, 9]])]
    place = tmp_path / ("photos" if path == "a.json" else "json")
    write(place, square, "a", imagePath=path)
    write(place, square, "b", imagePath="../photos/b.png")
    assert sorted(pair.stem for pair in all_pairs(open_all(tmp_path))) == ["a", "b"]


def test_annotations_belong_to_the_pixels_within_the_file(root):
    other = np.random.default_rng(5).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    write(root, [shape("leaf", [[2, 2], [9, 2], [9, 9]])], imageData=png(other))
    embedded = base64.b64encode((root / "b.png").read_bytes()).decode()
    write(root, [shape("leaf", [[2, 2], [9, 2], [9, 9]])], "b", imageData=embedded)
    source = open_all(root)
    images = {pair.stem: pair.image for pair in all_pairs(source)}
    names = {pair.stem: pair.image_name for pair in all_pairs(source)}
    # No sentence names a file of the cache, which is where a photograph out of a file lies.
    assert names == {"a": f"{root / 'a.json'}, picture a.png", "b": str(root / "b.png")}
    assert np.array_equal(read_image(images["a"]), other)
    assert images["b"] == root / "b.png"  # the same bytes
    assert "1 photograph taken from imageData" in source.reader.describe()
    (root / "b.png").unlink()
    assert len(all_pairs(open_all(root))) == 2


def test_version_3_names_no_size_and_no_kind(root):
    write(root, [])
    write_photo(root / "c.png", SIZE)  # nobody annotated it
    assert "1 photograph without an annotation file" in open_all(root).reader.describe()
    write_json(
        root / "a.json",
        {
            "flags": {},
            "lineColor": [0, 255, 0, 128],
            "imagePath": "a.png",
            "imageData": None,
            "shapes": [{"label": "leaf", "points": [[2, 2], [9, 2], [9, 9], [2, 9]]}],
        },
    )
    assert np.array_equal(labels(root), filled(SIZE, (1, 2, 2, 9, 9)))


def test_two_files_of_one_photograph_are_refused(root):
    write(root, [shape("leaf", [[2, 2], [9, 2], [9, 9]])])
    write(root, [shape("leaf", [[2, 2], [9, 2], [9, 9]])], "copy", imagePath="a.png")
    with pytest.raises(UserError, match="belong to the same photograph"):
        open_all(root)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (shape("leaf", [[1, 1], [2, 2], [3, 3]], "circle"), "has 3 points, not 2"),
        (shape("leaf", [[1, 1], [2, 2]], "cube"), "its kind cube is not known"),
        (shape("x", [[0, 0], [9e5, 9e5]], "mask", mask="AAAA"), "claims 900001x900001 px"),
        (shape("", [[1, 1], [2, 2], [3, 1]]), "no label"),
        (shape("leaf", [[1, 1], [2, 2]], "mask", mask="!!"), "no whole PNG|damaged"),
        (shape("leaf", [[1, 1], [2, 2]], "mask", mask=png(np.zeros((2, 2), np.uint8))[:40]), "PNG"),
        ({"label": "leaf"}, "no points"),
        ("shape", "no points"),
    ],
)
def test_a_shape_that_cannot_be_meant_is_named(root, bad, reason):
    write(root, [bad])
    with pytest.raises(UserError, match=rf"a.json.*shape 0: .*({reason})"):
        open_all(root)


def test_photographs_put_beside_the_files_are_taken_wherever_these_say_they_were(tmp_path):
    """As after `inference_image.py --save labelme`: the files name photographs far away."""
    square = [shape("leaf", [[2, 2], [9, 2], [9, 9], [2, 9]])]
    for name in "ab":
        write(tmp_path / "set", square, name, imagePath=f"../../elsewhere/{name}.png")
    with pytest.raises(UserError, match="outside the data's folder; put it there"):
        open_all(tmp_path / "set")
    for number, name in enumerate("ab"):
        write_photo(tmp_path / "set" / f"{name}.png", SIZE, seed=number)
    assert [pair.image.parent for pair in all_pairs(open_all(tmp_path / "set"))] == [
        tmp_path / "set"
    ] * 2


def test_of_several_pictures_beside_a_file_none_is_guessed(tmp_path):
    """A mask may lie there as well, which is no photograph."""
    root = tmp_path / "links"  # nor does a word in the folder's name decide
    write(root, [shape("leaf", [[2, 2], [9, 2], [9, 9], [2, 9]])], "a", imagePath="renamed.png")
    write_photo(root / "a.png", SIZE)
    write_photo(root / "b.png", SIZE, seed=1)
    write(root, [shape("leaf", [[2, 2], [9, 2], [9, 9], [2, 9]])], "b")
    assert sorted(pair.stem for pair in all_pairs(open_all(root))) == ["a", "b"]
    write_photo(root / "a.tif", SIZE)
    with pytest.raises(UserError, match=r"may be .*a\.png or .*a\.tif; remove one"):
        open_all(root)


def test_a_photographs_own_name_puts_it_into_no_split(tmp_path):
    square = [shape("leaf", [[2, 2], [9, 2], [9, 9], [2, 9]])]
    for number, name in enumerate(("test plant 3", "valid_0001", "leaf")):
        write_photo(tmp_path / f"{name}.png", SIZE, seed=number)
        write(tmp_path, square, name)
    source = open_all(tmp_path)
    assert source.divided
    assert len(all_pairs(source)) == 3
