"""The page that shows a data set's masks over its photographs."""

import base64
import io
import re
import sys

import numpy as np
from PIL import Image
from tiny_annotations import coco, square, write_json, write_photo
from tiny_data import write_data

from tools import preview


def run(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", ["preview.py", *map(str, flags)])
    assert preview.main() == 0


def test_each_mask_is_drawn_where_it_lies(tmp_path, monkeypatch, capsys):
    spot = {"segmentation": [square(0, 0, 100, 400)]}
    root = tmp_path / "set"
    write_json(root / "all.json", coco([spot], (400, 600), images=("a.jpg", "b.jpg", "c.jpg")))
    for name in "abc":
        Image.new("RGB", (600, 400), (90, 90, 90)).save(root / f"{name}.jpg")
    run(monkeypatch, root, "--out-dir", tmp_path / "out")
    assert capsys.readouterr().out.endswith("preview.html shows 3 photographs.\n")
    page = (tmp_path / "out/preview.html").read_text()
    assert sorted(re.findall(r">(?:train|valid): ([abc])<", page)) == ["a", "b", "c"]
    pictures = [
        np.array(Image.open(io.BytesIO(base64.b64decode(text))), int)
        for text in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    ]
    assert [picture.shape for picture in pictures] == [(213, 320, 3)] * 3
    tinted = [np.ptp(picture, axis=2) > 40 for picture in pictures]  # grey has no colour
    [drawn] = [area for area in tinted if area.any()]
    assert drawn[:, :50].mean() > 0.97
    assert not drawn[:, 57:].any()


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, monkeypatch, capsys):
    root = write_data(tmp_path / "set", train=3, valid=2)
    photo = next((root / "train_images").iterdir())
    photo.write_bytes(photo.read_bytes()[:-9])
    run(monkeypatch, root, "--out-dir", tmp_path / "out")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith("shows 4 photographs; 1 cannot be used, see datasets.py.")
    assert f"train: {photo.stem}" not in (tmp_path / "out/preview.html").read_text()


def test_a_photograph_without_a_mask_is_no_harm(tmp_path, monkeypatch, capsys):
    root = write_data(tmp_path / "set", train=3, valid=2)
    write_photo(root / "train_images/zzz.jpg")
    run(monkeypatch, root, "--out-dir", tmp_path / "out")
    assert "shows 5 photographs; 1 cannot be used" in capsys.readouterr().out


def test_where_several_classes_are_painted_all_of_them_sort_the_page(tmp_path, monkeypatch):
    """The last class may be on no picture: a page sorted by it would be sorted by nothing."""
    painted = [
        {"image_id": image, "segmentation": [square(0, 0, right, 40)]}
        for image, right in ((1, 10), (2, 30))
    ]
    size, pictures = (40, 60), ("a.jpg", "b.jpg", "c.jpg")
    content = coco(painted, size, names=("berry", "bird"), images=pictures)
    write_json(tmp_path / "set/all.json", content)
    for name in "abc":
        write_photo(tmp_path / f"set/{name}.jpg", (40, 60), seed=ord(name))
    run(monkeypatch, tmp_path / "set", "--out-dir", tmp_path / "out")
    page = (tmp_path / "out/preview.html").read_text()
    assert re.findall(r"<b>([\d.]+)%</b><span[^>]*>(?:train|valid): ([abc])<", page) == [
        ("50.00", "b"),
        ("16.67", "a"),
        ("0.00", "c"),
    ]
    assert re.search(r"The share of berry, bird together in the picture\.", page)
