"""Photographs and masks under other names than this program's."""

import numpy as np
import pytest
from tiny_annotations import all_pairs, open_all, write_photo

from common.errors import UserError
from data.checks import check_pairs
from data.images import write_mask
from data.source import open_source

SIZE = (20, 30)


def write(root, *pairs, size=SIZE):
    """Photographs with masks, each a pair of paths."""
    for number, (photo, mask) in enumerate(pairs, start=1):
        write_photo(root / photo, SIZE, seed=number)
        labels = np.zeros(size, np.uint8)
        labels[:number] = 1
        write_mask(root / mask, labels, ((0, 0, 0), (128, 0, 0)))
    return root


@pytest.mark.parametrize(
    "pairs",
    [
        (("images/a.jpg", "masks/a.png"), ("images/b.jpg", "masks/b.png")),
        (("set/images/a.jpg", "set/targets/a.png"), ("set/images/b.jpg", "set/targets/b.png")),
        (("images/a.jpg", "labels/a_mask.png"), ("images/b.jpg", "labels/b_mask.png")),
        (("a.jpg", "a_mask.png"), ("b.jpg", "b_mask.png")),
        (("images/x/a.jpg", "masks/a.png"), ("images/y/b.jpg", "masks/b.png")),
        (("images/image_1.jpg", "masks/gt_1.png"), ("images/image_2.jpg", "masks/gt_2.png")),
        (
            ("segmentation/images/a.jpg", "segmentation/masks/a.png"),
            ("segmentation/images/b.jpg", "segmentation/masks/b.png"),
        ),
        (("x/images/a.jpg", "x/masks/a.png"), ("y/images/a.jpg", "y/masks/a.png")),
    ],
)
def test_photographs_find_their_masks(tmp_path, pairs):
    source = open_all(write(tmp_path, *pairs))
    found = {pair.image: pair.mask for pair in all_pairs(source)}
    assert found == {tmp_path / photo: tmp_path / mask for photo, mask in pairs}
    assert source.divided


def test_folders_named_after_splits_are_splits(tmp_path):
    pairs = [("train/images/a.jpg", "train/masks/a.png"), ("images/val/b.jpg", "masks/val/b.png")]
    write(tmp_path, *pairs, ("test/images/c.jpg", "test/masks/c.png"))
    source = open_source(tmp_path, ("train", "valid", "test"))
    found = [[pair.stem for pair in pairs] for pairs in source.pairs.values()]
    assert found == [["a"], ["b"], ["c"]]
    assert not source.divided


def test_photographs_without_a_mask_are_refused_or_left_out(tmp_path):
    pairs = [(f"images/{name}.jpg", f"masks/{name}.png") for name in "ab"]
    root = write(tmp_path, *pairs)
    write_photo(root / "images/c.jpg", SIZE)
    with pytest.raises(UserError, match=r"c.jpg .*masks/c.png"):
        open_all(root)
    assert len(all_pairs(open_all(root, skip_bad=True))) == 2


def test_a_mask_of_other_proportions_is_refused(tmp_path):
    pairs = [(f"images/{name}.jpg", f"masks/{name}.png") for name in "ab"]
    source = open_all(write(tmp_path, *pairs, size=(30, 20)))
    with pytest.raises(UserError, match="20x30 px, its image"):
        check_pairs(source)


def test_datumaros_class_table_is_read(tmp_path):
    root = write(tmp_path, ("images/a.jpg", "masks/a.png"), ("images/b.jpg", "masks/b.png"))
    (root / "dataset_meta.json").write_text(
        '{"label_map": {"1": "leaf", "0": "Void"}, "background_label": "0", '
        '"segmentation_colors": [[0, 0, 0], [128, 0, 0]]}'
    )
    assert open_all(root).reader.classes.names == ("Void", "leaf")
    (root / "dataset_meta.json").write_text('{"label_map": {"1": "leaf"}}')
    with pytest.raises(UserError, match="no class table of Datumaro"):
        open_all(root)


def test_roboflows_class_table_is_read(tmp_path):
    root = write(tmp_path, ("train/a.jpg", "train/a_mask.png"), ("valid/b.jpg", "valid/b_mask.png"))
    for split in ("train", "valid"):
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, leaf\n")
    source = open_source(root)
    assert source.reader.classes.names == ("background", "leaf")
    assert np.unique(source.reader.read(source.pairs["valid"][0])).tolist() == [0, 1]
    (root / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n7, leaf\n")
    with pytest.raises(UserError, match=r"_classes.csv line 3 is '7, leaf'"):
        open_source(root)


def test_a_folder_of_nothing_known_is_refused_and_photographs_alone_may_be_painted(tmp_path):
    for name, advice in (("notes.md", False), ("below/a.jpg", True)):
        write_photo(tmp_path / "below/a.jpg").rename(tmp_path / name)
        with pytest.raises(UserError, match="holds no data set that is known") as no:
            open_all(tmp_path)
        assert str(no.value).endswith("that `python app.py` opens.") == advice
        assert ("in the section Photographs" in str(no.value)) == advice


def test_missing_masks_are_counted_among_all_photographs(tmp_path):
    root = write(tmp_path, *((f"images/{n}.jpg", f"masks/{n}.png") for n in range(12)))
    for number in range(3):
        (root / f"masks/{number}.png").unlink()
    with pytest.raises(UserError, match="3 of 12 images have no mask"):
        open_all(root)
