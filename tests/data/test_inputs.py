"""Which pictures are meant, and that no two of them write one result."""

import os
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from data import inputs
from data.inputs import find_inputs


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_folders_are_kept_and_two_inputs_never_write_one_output(tmp_path):
    for name in ("x/leaf.png", "y/leaf.png", "leaf.png", "leaf.jpg"):
        touch(tmp_path / "in" / name)
    named = find_inputs([str(tmp_path / "in")], recursive=True)
    assert sorted(named) == ["leaf", "leaf_png", "x/leaf", "y/leaf"]
    again = find_inputs([str(tmp_path / "in/x"), str(tmp_path / "in/y")], recursive=False)
    assert len(again) == 2
    assert sorted(again) == ["leaf", "leaf_png"]
    by_pattern = find_inputs([f"{tmp_path}/in/**/*.png"], recursive=False)
    assert sorted(by_pattern) == ["leaf", "x/leaf", "y/leaf"]
    assert len(find_inputs([str(tmp_path / "in/x"), f"{tmp_path}/in/y/../x/leaf.png"], False)) == 1


def test_folders_are_looked_up_not_pictures(tmp_path, monkeypatch):
    for number in range(60):
        touch(tmp_path / str(number % 3) / f"{number}.png")
    asked, realpath = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(path) or realpath(path))
    monkeypatch.setattr(Path, "resolve", None)
    assert len(find_inputs([str(tmp_path)], True, tmp_path / "results")) == 60
    assert len(asked) == len(set(asked)) == 5


def test_results_within_the_input_are_no_photographs(tmp_path):
    for name in ("a.png", "b/a.png", "results/a_overlay.png", "results/b/a_overlay.png"):
        touch(tmp_path / name)
    results = tmp_path / "results"
    for given in (str(tmp_path), f"{tmp_path}/**/*.png"):
        assert sorted(find_inputs([given], True, results)) == ["a", "b/a"]
    # A folder of results that holds the photographs themselves is no reason to leave them out.
    assert sorted(find_inputs([f"{tmp_path}/b/**/*.png"], True, tmp_path)) == ["a"]
    assert len(find_inputs([str(tmp_path)], True, tmp_path)) == 4
    # Asked for by name they are pictures like any other.
    assert sorted(find_inputs([str(results)], True, results)) == ["a_overlay", "b/a_overlay"]


def test_a_thousand_pictures_of_one_name_are_told_apart_without_a_search(tmp_path, monkeypatch):
    asked = []
    name_of = inputs.result_path
    monkeypatch.setattr(
        inputs, "result_path", lambda *args: (asked.append(args), name_of(*args))[1]
    )
    for name in ("leaf", "l" * 245, "\udcb0" * 80):
        asked.clear()
        pictures = [(Path(f"{i}/{name}.png"), Path(f"{name}.png")) for i in range(1000)]
        monkeypatch.setattr(inputs, "_pictures", lambda *_, p=pictures: iter(p))
        named = find_inputs(["list"], False)
        assert len(named) == 1000
        assert len({name_of(tmp_path, name, "_mask.png") for name in named}) == 1000
        assert len(asked) < 4000


def test_inputs_are_files_folders_patterns_and_lists(tmp_path, monkeypatch):
    for name in ("a.png", "b.PNG", "c.jpg", "d.txt.png"):
        touch(tmp_path / "in" / name.lower())
    touch(tmp_path / "in/rest.bin")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/in/a.png\n\n{tmp_path}/in/c.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert sorted(find_inputs(["in"], False)) == ["a", "b", "c", "d.txt"]
    assert sorted(find_inputs(["in/[ab].png"], False)) == ["a", "b"]
    assert sorted(find_inputs([f"{tmp_path}/in/*.jpg"], False)) == ["c"]
    assert sorted(find_inputs(["list.txt"], False)) == ["a", "c"]
    assert sorted(find_inputs(["in/a.png", "in"], False)) == ["a", "b", "c", "d.txt"]
    for wrong in ("nowhere", "nowhere/*.png"):
        with pytest.raises(UserError, match="nowhere"):
            find_inputs([wrong], False)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.txt", "JPEG")
    with pytest.raises(UserError, match=r"photo\.txt is a picture and no list"):
        find_inputs(["photo.txt"], False)
