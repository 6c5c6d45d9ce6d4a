"""Small annotated data sets that tests write and read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data.source import Source, open_source


def write_photo(path: Path, size=(20, 30), orientation: int = 1, seed: int = 0) -> Path:
    """A photograph of (height, width) as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    rough = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(rough).save(path, exif=exif)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def square(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def coco(annotations: list[dict], size=(20, 30), names=("leaf", "spot"), images=("a.jpg",)) -> dict:
    """COCO's content: each annotation is on the first image unless it says otherwise."""
    return {
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            for number, name in enumerate(images, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0} | annotation
            for number, annotation in enumerate(annotations, start=1)
        ],
    }


def labels(root: Path, name: str = "a", **more) -> np.ndarray:
    """The mask of one photograph of a data set, whatever its split."""
    source = open_all(root, **more)
    (pair,) = [pair for pair in all_pairs(source) if pair.stem == name]
    return source.reader.read(pair)


def open_all(root: Path, **more) -> Source:
    """A data set with another photograph where it has only one: half is to validate."""
    return open_source(root, ("train", "valid"), **more)


def all_pairs(source: Source) -> list:
    return [pair for pairs in source.pairs.values() for pair in pairs]


def filled(size, *parts) -> np.ndarray:
    """A mask with rectangles (value, left, top, right, bottom), the last on top."""
    mask = np.zeros(size, np.uint8)
    for value, left, top, right, bottom in parts:
        mask[top:bottom, left:right] = value
    return mask
