"""Any bytes are decoded or refused with a sentence; any mask and any label map survive the way."""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_annotations import coco, square, write_photo
from tiny_model import save_tiny
from tiny_video import write_video

from common.errors import UserError
from config import ClassTable
from data.census import Census
from data.classes import read_class_table
from data.formats.detect import read_annotations
from data.formats.paint import class_table, paint
from data.images import (
    read_header,
    read_image,
    read_mask_raw,
    resize_image,
    resize_mask,
    write_image,
    write_mask,
)
from data.masks import MaskReader
from inference.predictor import _starts
from segmentation_model import load_model
from video.reader import VideoReader

COUNT = 500  # in every test run; `make soak` tries 20,000
# Of every hundred inputs, how many are of which kind; the slow ones are the fewest.
SHARES = {"image": 48, "labelmap": 14, "annotation": 20, "video": 13, "checkpoint": 5}
# Bytes at the beginning that most mutations leave alone.
HEADER = {"image": 48, "labelmap": 0, "annotation": 0, "video": 600, "checkpoint": 64}


# --- Mutations of valid files ---------------------------------------------------------------------

TURNED = Image.Exif()
TURNED[0x0112] = 6
PICTURES = {
    "a.jpg": ("RGB", {"exif": TURNED}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "cmyk.jpg": ("CMYK", {}),
    "a.png": ("RGB", {}),
    "alpha.png": ("RGBA", {}),
    "palette.png": ("P", {}),
    "deep.png": ("I;16", {}),
    "a.webp": ("RGB", {}),
    "a.bmp": ("RGB", {}),
    "a.gif": ("P", {}),
    "a.tif": ("RGB", {"compression": "tiff_lzw"}),
    "a.ppm": ("RGB", {}),
    "a.tga": ("RGB", {"compression": "tga_rle"}),
    "a.jp2": ("RGB", {}),
}
VIDEOS = {"a.mp4": "libx264", "a.mkv": "libx264", "a.avi": "mpeg4", "a.ts": "libx264"}


def valid_pictures() -> dict[str, bytes]:
    """One small picture in all kinds of file."""
    rough = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(rough).resize((40, 32), Image.Resampling.BICUBIC)
    found = {}
    for name, (mode, options) in PICTURES.items():
        buffer = BytesIO()
        made = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
        made.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        found[name] = buffer.getvalue()
    return found


def valid_files(folder: Path) -> dict[str, dict[str, bytes]]:
    """Small valid files: bytes by kind and name."""
    videos = {}
    for name, codec in VIDEOS.items():
        videos[name] = write_video(folder / name, frames=4, size=(32, 48), codec=codec).read_bytes()
    table = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:0,128,0::\nvoid:1,2,3::\n"
    return {
        "image": valid_pictures(),
        "labelmap": {"labelmap.txt": table.encode()},
        "annotation": valid_annotations(folder),
        "video": videos,
        "checkpoint": {"a.pth": save_tiny(folder / "a.pth", epoch=3).read_bytes()},
    }


def valid_annotations(folder: Path) -> dict[str, bytes]:
    """A small file of every annotation format, each in a folder of its own with a photograph."""
    for name in ("coco", "labelme", "studio", "cvat", "yolo"):
        write_photo(folder / name / "a.png", (20, 30))
    corners = [[2, 2], [20, 2], [20, 15], [2, 15]]
    shapes = [
        {"segmentation": [square(2, 2, 20, 15)]},
        {"segmentation": {"size": [20, 30], "counts": [20, 10, 570]}},
    ]
    value = {"points": [[10, 10], [60, 10], [60, 70]], "polygonlabels": ["leaf"]}
    size = {"original_width": 30, "original_height": 20}
    task = {"annotations": [{"result": [{"value": value} | size]}], "data": {"image": "a.png"}}
    labelme = {
        "shapes": [{"label": "leaf", "points": corners, "shape_type": "polygon"}],
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": 20,
        "imageWidth": 30,
    }
    cvat = """<annotations><image name="a.png" width="30" height="20">
        <polygon label="leaf" points="2,2;20,2;20,15" z_order="1"/>
        <mask label="leaf" rle="1,2,3" left="3" top="4" width="3" height="2"/></image>
        </annotations>"""
    return {
        "coco/all.json": json.dumps(coco(shapes, images=("a.png",))).encode(),
        "labelme/a.json": json.dumps(labelme).encode(),
        "studio/project.json": json.dumps([task]).encode(),
        "cvat/annotations.xml": cvat.encode(),
        "yolo/a.txt": b"0 0.1 0.1 0.7 0.1 0.7 0.8\n1 0.2 0.2 0.4 0.2 0.4 0.4 0.3 0.5 0.2 0.4\n",
    }


def mutate(rng: random.Random, data: bytes, header: int) -> bytes:
    """Change a few bytes, cut the end off, insert, repeat or blank a block."""
    start = 0 if rng.random() < 0.1 else min(header, len(data) - 1)
    place, length = rng.randrange(start, len(data)), rng.randint(1, 40)
    way = rng.randrange(6)
    if way == 0:
        return data[:place]
    if way == 1:
        return data[:place] + rng.randbytes(length) + data[place:]
    if way == 2:
        return data[:place] + data[max(0, place - length) :]
    if way == 3:
        return data[:place] + bytes(min(length, len(data) - place)) + data[place + length :]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        changed[rng.randrange(start, len(data))] = rng.randrange(256)
    return bytes(changed)


def read_any_image(path: Path) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[:2] == read_header(path).size
    assert read_mask_raw(path).values.shape[:2] == image.shape[:2]


def read_any_video(path: Path) -> None:
    with VideoReader(str(path)) as reader:
        items = [item for batch in reader.batches(4) for item in batch]
    times = [item.time for item in items if hasattr(item, "image")]
    assert times
    assert times == sorted(set(times))


def read_any_annotation(path: Path) -> None:
    found = read_annotations(path.parent, polygons=True, keep=lambda content, name: path)
    if found is None:
        raise UserError("no annotations")
    classes = class_table(found, path.parent)
    for picture in found.pictures:
        mask = paint(picture.shapes, picture.boxes, picture.size or (20, 30), classes)
        assert set(np.unique(mask)) <= {*range(len(classes)), 255}


READERS: dict[str, Callable[[Path], object]] = {
    "image": read_any_image,
    "labelmap": lambda path: read_class_table(path.parent),
    "annotation": read_any_annotation,
    "video": read_any_video,
    "checkpoint": load_model,
}


def passes_header(kind: str, path: Path, changed: bytes, original: bytes) -> bool:
    """Whether a reader gets beyond the first bytes: by the decoder, or because they are equal."""
    if kind != "image":
        return changed[: HEADER[kind]] == original[: HEADER[kind]]
    try:
        read_header(path)
    except UserError:
        return False
    return True


def fuzz(count: int, seed: int, keep: Path | None = None) -> Counter:
    """Read `count` mutated files; how often what came of it.

    Args:
        keep: a folder for the inputs that neither were decoded nor refused with a sentence.

    Returns:
        counts by "KIND decoded", "KIND refused", "past the header", "failures"; the failures'
        descriptions are printed.
    """
    rng, outcomes, slowest = random.Random(seed), Counter(), 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = valid_files(folder)
        for kind, samples in files.items():
            for sample, data in samples.items():  # what is not mutated is decoded
                (folder / sample).write_bytes(data)
                READERS[kind](folder / sample)
        for number in range(count):
            (kind,) = rng.choices(list(SHARES), SHARES.values())
            sample = rng.choice(list(files[kind]))
            original = files[kind][sample]
            changed = mutate(rng, original, HEADER[kind])
            path = folder / sample
            path.write_bytes(changed)
            outcomes["past the header"] += passes_header(kind, path, changed, original)
            started = time.monotonic()
            try:
                READERS[kind](path)
                outcomes[f"{kind} decoded"] += 1
            except UserError:
                outcomes[f"{kind} refused"] += 1
            except Exception as error:
                outcomes["failures"] += 1
                print(f"input {number}, {sample}: {type(error).__name__}: {error}", file=sys.stderr)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}_{Path(sample).name}").write_bytes(changed)
            slowest = max(slowest, time.monotonic() - started)
    print(f"{count} inputs: {dict(sorted(outcomes.items()))}; the slowest took {slowest:.2f} s")
    return outcomes


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF
def test_mutated_files_are_decoded_or_refused_with_a_sentence(tmp_path, record_property):
    outcomes = fuzz(COUNT, seed=1, keep=tmp_path / "failures")
    record_property("counted", f"{COUNT} mutated files: {dict(sorted(outcomes.items()))}")
    assert outcomes["failures"] == 0
    assert outcomes["past the header"] >= COUNT / 2
    for kind in SHARES:
        assert outcomes[f"{kind} decoded"] > 0, kind
        assert outcomes[f"{kind} refused"] > 0, kind


CUT = "a.jpg progressive.jpg a.png palette.png a.webp a.bmp a.ppm"


@pytest.mark.parametrize("name", CUT.split())
def test_a_picture_that_was_cut_off_anywhere_is_never_half_a_picture(tmp_path, name):
    data, path = valid_pictures()[name], tmp_path / name
    for length in np.linspace(0, len(data) - 3, 25).astype(int):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=name):
            read_image(path)


# --- Properties -----------------------------------------------------------------------------------

QUICK = settings(max_examples=40)
sides = st.integers(1, 70)
colors = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def tables(draw) -> ClassTable:
    """Class tables of 2 to 6 classes, no two of one colour and none white."""
    distinct = colors.filter(lambda color: color != (255, 255, 255))
    found = draw(st.lists(distinct, min_size=2, max_size=6, unique=True))
    names = tuple(f"class {index}" for index in range(len(found)))
    return ClassTable(names, tuple(found), tuple(found))


@st.composite
def labelled(draw) -> tuple[ClassTable, np.ndarray]:
    """A class table and a mask of its classes, each of which occurs."""
    table, height, width = draw(tables()), draw(st.integers(3, 20)), draw(st.integers(3, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.integers(0, len(table), (height, width)).astype(np.uint8)
    mask.flat[: len(table)] = range(len(table))
    return table, mask


@QUICK
@given(labelled(), st.sampled_from(["palette", "colours", "indices"]))
def test_a_mask_means_the_same_however_it_is_stored(case, way):
    table, mask = case
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.png"
        if way == "palette":
            write_mask(path, mask, table.colors)
        elif way == "colours":
            write_image(path, np.array(table.colors, np.uint8)[mask])
        else:
            Image.fromarray(mask).save(path)
        raw = read_mask_raw(path)
    census = Census.of(raw, table)
    reader = MaskReader.decide(table, [census])
    greys = [color[0] for color in table.colors if len(set(color)) == 1]
    if way == "indices" and set(greys) >= set(range(len(table))):
        return  # these levels are colours of the table, too
    assert np.array_equal(reader.decode(raw, path), mask)
    assert np.array_equal(reader.pixels_of(census), np.bincount(mask.ravel(), minlength=256))


@QUICK
@given(tables(), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_a_label_map_is_read_as_it_was_meant(table, newline, encoding):
    lines = ["# label:color_rgb:parts:actions"]
    for name, color in zip(table.names, table.colors, strict=True):
        lines.append(f"{name}é:{','.join(map(str, color))}::")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labelmap.txt"
        path.write_bytes(newline.join(lines).encode(encoding))
        read = read_class_table(Path(folder))
    assert read.names == tuple(f"{name}é" for name in table.names)
    assert read.colors == table.colors


@QUICK
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_bytes_as_a_label_map_are_a_table_or_a_sentence(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "labelmap.txt").write_bytes(content)
        try:
            table = read_class_table(Path(folder))
        except UserError:
            return
    assert 2 <= len(table) == len(set(table.names)) == len(set(table.colors))


@QUICK
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
def test_resizing_keeps_classes_and_the_range_of_colours(height, width, h, w, seed):
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 7, 255], (height, width)).astype(np.uint8)
    resized = resize_mask(mask, (h, w))
    assert resized.shape == (h, w)
    assert set(np.unique(resized)) <= set(np.unique(mask))
    image = rng.integers(90, 110, (height, width, 3), dtype=np.uint8)
    resized = resize_image(image, (h, w))
    assert resized.shape == (h, w, 3)
    assert image.min() <= resized.min() <= resized.max() <= image.max()


@QUICK
@given(st.integers(1, 5000), st.integers(32, 512), st.floats(0, 0.9))
def test_tiles_cover_every_pixel_and_none_lies_outside(length, side, overlap):
    step = max(1, round(side * (1 - overlap)))
    starts = _starts(length, side, step)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert all(after - before <= step for before, after in pairwise(starts))
    assert starts[-1] + side >= length
    assert length <= side or starts[-1] + side == length
