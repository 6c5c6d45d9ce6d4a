"""Photographs find their masks, in folders and in exports of CVAT."""

from pathlib import Path

import numpy as np
import pytest
from data_sets import COFFEE, COLORS, blobs, find_pairs, make_data, photo, read_first, reader_of
from PIL import Image

from common.errors import UserError
from data.images import write_image, write_mask
from data.pairs import data_fingerprint


def test_pairs_are_found_by_stem_with_any_ending(tmp_path):
    names = [("a.JPG", "a_mask.png"), ("b.png", "b.TIF"), ("c.jpeg", "c.bmp")]
    alike = ["blüte 葉", "-x", "new\nline", "n" * 250, "d", "d_mask"]
    for image, mask in names + [(f"{name}.png",) * 2 for name in alike]:
        (tmp_path / "train_images").mkdir(exist_ok=True)
        (tmp_path / "train_masks").mkdir(exist_ok=True)
        (tmp_path / "train_images" / image).write_bytes(b"x")
        (tmp_path / "train_masks" / mask).write_bytes(b"x")
    (tmp_path / "train_images" / ".tmp-1.png").write_bytes(b"x")
    pairs = find_pairs(tmp_path, "train")
    assert len(pairs) == 9
    for pair in pairs:
        assert pair.mask.stem.removesuffix("_mask") == pair.stem.removesuffix("_mask")
    assert {pair.image.name: pair.mask.name for pair in pairs}["d.png"] == "d.png"


def test_accents_of_macos_match_those_of_linux(tmp_path):
    for folder, name in (("train_images", "blu\u0308te.png"), ("train_masks", "bl\u00fcte.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"x")
    assert len(find_pairs(tmp_path, "train")) == 1


def test_missing_masks_are_named(tmp_path):
    root = make_data(tmp_path, [blobs()] * 3)
    (root / "train_masks" / "001.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 3 images has no mask; the first is .*001\.png"
    ) as no:
        find_pairs(root, "train")
    expected = (
        f"(expected {root}/train_masks/001.png); add it, or leave such images out with --skip"
    )
    assert expected in str(no.value)
    assert [pair.stem for pair in find_pairs(root, "train", skip_bad=True)] == ["000", "002"]


def test_where_no_image_has_a_mask_skip_bad_is_no_advice(tmp_path):
    root = make_data(tmp_path, [blobs()])
    (root / "train_masks" / "000.png").unlink()
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=r"1 of 1 image has no mask.*000\.png\)\.$"):
            find_pairs(root, "train", skip_bad=skip_bad)


def test_a_test_split_that_is_not_there_is_called_so(tmp_path):
    root = make_data(tmp_path, [blobs()])
    with pytest.raises(UserError, match=r"has no test split \(no folder test_images\)") as no:
        find_pairs(root, "test")
    assert str(no.value).endswith("into test_images and test_masks, or use --split valid.")


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
        write_mask(root / "SegmentationClass" / f"{name}.png", blobs((0, 2)), COLORS)
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + COFFEE)
    return root


def test_a_cvat_export_with_its_own_splits_is_read(tmp_path):
    names = ["a", "b", "sub/c", "d"]
    root = make_cvat(tmp_path, names, {"train": names[:2], "val": names[2:3], "test": names[3:]})
    splits = ("train", "valid", "test")
    found = {split: [pair.stem for pair in find_pairs(root, split)] for split in splits}
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
    assert "train.py sets a share of the pictures aside" in reader_of(root).describe()
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
