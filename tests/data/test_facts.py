"""Each file of a data set is decoded once, then known; splits do not change what training sees."""

import json
from collections import Counter

import numpy as np
import pytest
from data_sets import COFFEE, COLORS, blobs, make_data, photo, save_with_exif
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from config import ClassTable, MaskReading
from data import images
from data.cache import FileCache, cache_folder
from data.census import MOST_VALUES, Census
from data.checks import check_data_set, check_pairs
from data.facts import Photo
from data.images import RawMask, write_image
from data.masks import MaskReader
from data.source import open_source


@pytest.fixture
def decoded(monkeypatch):
    """How often each file was decoded, by the last two parts of its path."""
    counts, decode = Counter(), images.decode

    def counted(path, file):
        counts["/".join(path.parts[-2:])] += 1
        return decode(path, file)

    monkeypatch.setattr(images, "decode", counted)
    monkeypatch.setattr("data.cache.SETTLED_NS", -1)  # these files are seconds old
    return counts


def test_a_start_decodes_each_file_once_and_the_next_one_none(tmp_path, decoded):
    root = make_data(tmp_path, [blobs()] * 3)
    files = {"/".join(path.parts[-2:]) for path in root.rglob("*.png")}
    source = open_source(root)
    check_pairs(source)
    sum(source.reader.class_pixels(pair) for pair in source.pairs["train"])
    [source.facts.size_of(pair) for pair in source.pairs["train"]]
    assert decoded == dict.fromkeys(files, 1)
    assert source.facts.describe().startswith("12 files, 12 of them new")
    decoded.clear()
    again = open_source(root)
    check_pairs(again)
    check_data_set(root)
    assert not decoded
    assert again.facts.new == 0
    assert again.reader == source.reader
    Image.fromarray(blobs((0, 1, 255))).save(root / "train_masks" / "001.png")
    assert open_source(root).facts.new == 1
    assert decoded == {"train_masks/001.png": 1}
    decoded.clear()
    assert open_source(root, cache=False).facts.new == 12


def test_facts_of_a_cache_that_lies_are_read_anew(tmp_path, decoded):
    root = make_data(tmp_path, [blobs()])
    open_source(root)
    path = FileCache(cache_folder(), root).path
    content = json.loads(path.read_text())
    for entry in content["files"].values():
        entry[1] = ["not", "what", "it", "was"]
    path.write_text(json.dumps(content))
    assert open_source(root).facts.new == 4


def test_what_is_known_of_a_file_is_what_the_file_says(tmp_path):
    """Through the cache's text and back, masks of every kind and turned photographs included."""
    rgb = COLORS[blobs((0, 1, 2))]
    root = make_data(tmp_path, [palette(COLORS, blobs((0, 1, 2))), rgb, rgb], COFFEE)
    save_with_exif(root / "train_images" / "001.png", photo(1, (64, 48)), 6)
    Image.fromarray(rgb).save(root / "train_masks" / "002.jpg", quality=70)
    (root / "train_masks" / "002.png").unlink()
    source = open_source(root, ("train",))
    pairs = check_pairs(source)["train"]
    for pair in pairs:
        labels = source.reader.read(pair)
        census = Census.from_plain(json.loads(json.dumps(source.facts.masks[pair.mask].to_plain())))
        pixels = source.reader.pixels_of(census)
        np.testing.assert_array_equal(pixels, np.bincount(labels.ravel(), minlength=256))
        seen = source.facts.photos[pair.image]
        assert Photo.from_plain(json.loads(json.dumps(seen.to_plain()))) == seen
        assert seen.header == images.read_header(pair.image)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=10),
)
GOOD = [3, 4, [0, 1], [5, 7], None, True, False, 0, 0, 0, 0]


@given(
    anything
    | st.integers(0, 10).flatmap(lambda i: anything.map(lambda x: [*GOOD[:i], x, *GOOD[i + 1 :]]))
)
def test_no_text_of_a_cache_makes_impossible_facts(plain):
    census = Census.from_plain(plain)
    if census is not None:
        MaskReader(ClassTable.default()).pixels_of(census)
        assert census.counts.sum() <= census.size[0] * census.size[1]
    Photo.from_plain(plain)


def test_a_census_stays_small_whatever_the_mask_is():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for lossy in (False, True):
        census = Census.of(RawMask(noise, None, lossy), ClassTable.default())
        assert len(census.values) <= MOST_VALUES
        assert MaskReader(ClassTable.default()).problem(census, "noise.png")
    levels = rng.integers(0, 2**16, (300, 400)).astype(np.uint16)
    levels[0, 0] = 0
    census = Census.of(RawMask(levels, None, False), ClassTable.default())
    assert len(census.values) == MOST_VALUES
    reader = MaskReader(ClassTable.default(), MaskReading(grey="binary"))
    zeros = int((levels == 0).sum())
    assert reader.pixels_of(census)[:2].tolist() == [zeros, levels.size - zeros]


def test_another_split_never_changes_how_the_training_is_read(tmp_path):
    """Grey 0 and 1 are lines of the table; a test split in black and white made them "not 0"."""
    root = make_data(tmp_path, [blobs((0, 1))])
    alone = open_source(root).reader
    assert alone.reading.grey == "indices"
    for folder in ("images", "masks"):
        (root / f"test_{folder}").mkdir()
    for number in range(5):
        write_image(root / "test_images" / f"{number}.png", photo(number + 9))
        Image.fromarray(blobs((0, 255))).save(root / "test_masks" / f"{number}.png")
    assert open_source(root).reader == alone
    sentence = (
        r"test_masks/0\.png and the masks beside it look as if every value but 0 is 'disease' "
        r"\(255 is 'disease'\), but in the training's masks each value is a line of the class "
        r"table, from 0 \(255 is ignored\); save all masks in the same way\.$"
    )
    with pytest.raises(UserError, match=sentence):
        open_source(root, ("test",))
    assert check_data_set(root) == 1


def palette(colors, mask):
    picture = Image.fromarray(mask)
    picture.putpalette(bytes(np.array(colors, np.uint8)))
    return picture


TABLE, TURNED, OTHER = [(0, 0, 0), (128, 0, 0)], [(128, 0, 0), (0, 0, 0)], [(0, 0, 0), (9, 9, 9)]


@pytest.mark.parametrize(
    ("train", "valid", "agrees"),
    [
        (blobs((0, 1)), blobs((0, 1, 255)), True),
        (blobs((0, 1)), np.zeros((48, 64), np.uint8), True),
        (blobs((0, 255)), np.full((48, 64), 255, np.uint8), True),
        (blobs((0, 38)), blobs((0, 1)), True),
        (blobs((0, 1)), blobs((0, 38)), False),
        (palette(OTHER, blobs()), palette(TURNED, blobs()), False),
        (palette(TABLE, blobs()), blobs(), False),
    ],
)
def test_splits_must_mean_the_same(tmp_path, train, valid, agrees):
    root = make_data(tmp_path, [train])
    path = root / "valid_masks" / "000.png"
    (valid if isinstance(valid, Image.Image) else Image.fromarray(valid)).save(path)
    if agrees:
        check_pairs(open_source(root))
    else:
        with pytest.raises(UserError, match=r"valid_masks/000\.png .*save all masks in the same"):
            open_source(root)


@pytest.mark.parametrize(("level", "agrees"), [(255, True), (38, False)])
def test_grey_jpegs_of_another_level_are_refused(tmp_path, level, agrees):
    root = make_data(tmp_path, [blobs((0, 255), (120, 160))], ending=".jpg")
    Image.fromarray(blobs((0, level), (120, 160))).save(root / "valid_masks" / "000.jpg")
    if agrees:
        open_source(root)
    else:
        with pytest.raises(UserError, match="levels from"):
            open_source(root)


def test_the_reading_that_travels_with_a_model_decides(tmp_path):
    root = make_data(tmp_path, [blobs((0, 1))])
    reading = open_source(make_data(tmp_path / "b", [blobs((0, 255))])).reader.reading
    source = open_source(root, ("valid",), as_trained=reading)
    assert source.reader.reading.grey == "binary"
    other = make_data(tmp_path / "c", [blobs((0, 255))])
    with pytest.raises(UserError, match="in the masks that the model learnt from"):
        open_source(other, ("valid",), as_trained=open_source(root).reader.reading)
