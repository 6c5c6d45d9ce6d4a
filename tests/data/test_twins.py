"""Photographs that show the same are found, and no others."""

import io

import numpy as np
from PIL import Image

from data.twins import alike, joined


def scene(seed: int, size=(240, 320)) -> Image.Image:
    """Soft patches of colour, as photographs have."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def test_copies_of_other_size_and_quality_are_alike_and_other_scenes_are_not(tmp_path):
    for number in range(4):
        scene(number).save(tmp_path / f"{number}.png")
    scene(1).save(tmp_path / "1_copy.jpg", quality=50)
    scene(3).resize((100, 70), Image.Resampling.BICUBIC).save(tmp_path / "3_small.png")
    brighter = np.clip(np.asarray(scene(2)).astype(int) + 2, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(tmp_path / "2_next.png")
    paths = sorted(tmp_path.iterdir())
    firsts = alike(paths)
    found = {path.name: paths[first].name for path, first in zip(paths, firsts, strict=True)}
    assert found == {
        "0.png": "0.png",
        "1.png": "1.png",
        "1_copy.jpg": "1.png",
        "2.png": "2.png",
        "2_next.png": "2.png",
        "3.png": "3.png",
        "3_small.png": "3.png",
    }


def test_a_chain_of_likeness_is_one_group_over_blocks_of_comparisons(monkeypatch):
    monkeypatch.setattr("data.twins.BLOCK", 2)
    base = np.random.default_rng(0).normal(128, 60, 768)
    frames = [base + 3 * step for step in range(5)]  # neighbours are alike, the ends are not
    other = np.random.default_rng(1).normal(128, 60, 768)
    small = np.array([other, *frames[::-1], other + 1]).astype(np.float32)
    assert joined(small) == [0, 1, 1, 1, 1, 1, 0]


def test_pictures_of_little_contrast_are_not_all_the_same():
    pale = np.random.default_rng(0).normal(200, 2, (6, 768)).astype(np.float32)
    assert joined(pale) == list(range(6))


def test_a_jpeg_of_the_photographs_own_bytes_is_alike_after_a_turn_by_exif(tmp_path):
    turned, exif = scene(5).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    (tmp_path / "b.jpg").write_bytes(buffer.getvalue())
    scene(5).save(tmp_path / "a.png")
    assert alike([tmp_path / "a.png", tmp_path / "b.jpg"]) == [0, 0]
