"""Pictures are read whole, as a person sees them, or refused with one sentence."""

import base64
import os
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from common.errors import UserError
from common.text import printable
from data import decoding
from data.images import (
    image_size,
    is_image_name,
    list_images,
    read_header,
    read_image,
    read_mask_raw,
    resize_image,
    resize_mask,
    write_image,
    write_mask,
)

# pytest undoes the filter that decoding.py sets when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth, unsymmetrical picture, HWC uint8."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (64, 40), interpolation=cv2.INTER_CUBIC)


def refused(path: Path, *words: str) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(UserError) as info:
        read_image(path)
    text = str(info.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    return text


LOSSLESS = [
    "a.png",
    "a.PNG",
    "a.bmp",
    "a.tif",
    "a.TIFF",
    "a.tga",
    "a.ppm",
    "a.sgi",
    "a.qoi",
    "a.pcx",
]


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_return_the_pixels_that_were_written(tmp_path, picture, name):
    Image.fromarray(picture).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), picture)
    assert image_size(tmp_path / name) == picture.shape[:2]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp", "a.avif", "a.jp2", "a.gif", "a.mpo"])
def test_lossy_formats_return_nearly_the_pixels_that_were_written(tmp_path, picture, name):
    Image.fromarray(picture).save(tmp_path / name)
    difference = np.abs(read_image(tmp_path / name).astype(int) - picture)
    assert difference.mean() < 12


def test_modes_become_rgb(tmp_path, picture):
    rgb = Image.fromarray(picture)
    grey = np.asarray(rgb.convert("L"))
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tif"), picture)
    rgb.convert("L").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    transparent = rgb.convert("RGBA")
    transparent.putalpha(0)
    transparent.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), picture)
    palette = rgb.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB"))
    )
    rgb.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}


def test_16_bits_keep_their_upper_8(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "grey.png"), values[..., 0])
    cv2.imwrite(str(tmp_path / "rgb.png"), values[..., ::-1])
    cv2.imwrite(str(tmp_path / "rgba.tif"), np.dstack([values[..., ::-1], values[..., :1]]))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[..., 1], values[..., 0] >> 8)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), values >> 8)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.tif"), values >> 8)


@pytest.mark.parametrize("name", ["grey.png", "rgb.png", "rgba.png", "grey.tif", "rgb.tif"])
def test_12_bits_in_16_are_no_dark_picture(tmp_path, name):
    values = np.random.default_rng(1).integers(0, 4096, (20, 30, 3), dtype=np.uint16)
    stored = values[..., ::-1] if "rgb" in name else values[..., 0]
    stored = np.dstack([stored, np.full((20, 30), 65535, np.uint16)]) if "rgba" in name else stored
    cv2.imwrite(str(tmp_path / name), stored)
    expected = values >> 4 if "rgb" in name else np.repeat(values[..., :1] >> 4, 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)


# Red, green above blue, grey, 64x40: made once by libheif; the second says "turn by 90 degrees".
HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAA
AAAAACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAG0AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAA
AA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNw
AAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFz
wIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAKAAAAAEAAAAAAAAA
Av///+gAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAHVtZGF0AAAAaSgBr1iKfhLd/9GL
/16SGe6zOw5lufgpRyrWDHkkZHUfqBvq40T4ON9X7hb/mobzzv3qqB674aL3d6ictEfIcUW7SYIbotKVH8jxVT3Md3uOgIDn
UFNjESZVsoBkZCwviPm646YzNP4cYA==
"""
TURNED_HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAA
AAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAG0AAgAAAAACWQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVp
bmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZo
dmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAA
AwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAA
AAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAKAAAAAEAAAAAAAAAAv///+gAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90
AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAJltZGF0AAAAaSgBr1iKfhLd
/9GL/16SGe6zOw5lufgpRyrWDHkkZHUfqBvq40T4ON9X7hb/mobzzv3qqB674aL3d6ictEfIcUW7SYIbotKVH8jxVT3Md3uO
gIDnUFNjESZVsoBkZCwviPm646YzNP4cYAAAAAZFeGlmAABNTQAqAAAACAABARIAAwAAAAEABgAAAAAAAA==
"""


@pytest.mark.skipif("HEIF" not in Image.OPEN, reason="needs pi-heif (requirements-heic.txt)")
def test_heic_of_phones_is_read_as_it_is_displayed(tmp_path):
    flat = np.array([[(200, 30, 30), (30, 180, 40)], [(30, 40, 200), (120, 120, 120)]])
    for name, text, expected in (
        ("a.heic", HEIC, flat),
        ("b.HEIF", TURNED_HEIC, np.rot90(flat, 3)),
    ):
        (tmp_path / name).write_bytes(base64.b64decode(text))
        image = read_image(tmp_path / name)
        size = (64, 40) if name[0] == "b" else (40, 64)
        assert image.shape[:2] == image_size(tmp_path / name) == size
        corners = image[:: size[0] - 1, :: size[1] - 1].astype(int)
        assert np.abs(corners - expected).max() < 6
    assert len(list_images(tmp_path)) == 2
    (tmp_path / "cut.heic").write_bytes(base64.b64decode(HEIC)[:-60])
    refused(tmp_path / "cut.heic", "cut off or damaged")


def without_heif(monkeypatch) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    formats = tuple(name for name in decoding.PILLOW_FORMATS if name != "HEIF")
    monkeypatch.setattr(decoding, "PILLOW_FORMATS", formats)


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    without_heif(monkeypatch)
    (tmp_path / "a.heic").write_bytes(base64.b64decode(HEIC))
    refused(tmp_path / "a.heic", "pip install -r requirements-heic.txt")


@pytest.mark.parametrize(("top", "scale"), [(1.0, 255), (200.0, 1), (60000.0, 1 / 257)])
def test_floats_are_scaled_by_their_range(tmp_path, top, scale):
    values = np.linspace(0, top, 200, dtype=np.float32).reshape(10, 20)
    Image.fromarray(values).save(tmp_path / "grey.tif")
    cv2.imwrite(str(tmp_path / "rgb.tif"), np.dstack([values] * 3))  # Pillow cannot read this one
    expected = (values * scale).round()
    for name in ("grey.tif", "rgb.tif"):
        assert np.abs(read_image(tmp_path / name)[..., 0] - expected).max() <= 1


def test_radiance_is_read_by_opencv(tmp_path):
    cv2.imwrite(str(tmp_path / "a.hdr"), np.full((7, 9, 3), 0.5, np.float32))
    assert image_size(tmp_path / "a.hdr") == (7, 9)
    assert np.abs(read_image(tmp_path / "a.hdr").astype(int) - 128).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_exif_rotation_is_applied_as_pillow_does(tmp_path, picture, orientation, name):
    path, exif = tmp_path / name, Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]
    assert read_header(path).orientation == orientation
    assert read_header(path).stored_size == picture.shape[:2]


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + content
    chunk = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert image_size(tmp_path / "a.png") == read_image(tmp_path / "a.png").shape[:2] == (64, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_size_is_read_without_decoding(tmp_path, picture, name, monkeypatch):
    Image.fromarray(picture).save(tmp_path / name)
    kind = type(Image.open(tmp_path / name))
    monkeypatch.setattr(kind, "load", lambda _: pytest.fail("it was decoded"))
    assert image_size(tmp_path / name) == picture.shape[:2]


def test_broken_exif_turns_nothing(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == picture.shape


def test_an_animation_gives_its_first_frame(tmp_path, picture):
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.abs(read_image(tmp_path / name).astype(int) - picture).mean() < 12


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_thin_pictures_are_pictures(tmp_path, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


ENDINGS = "jpg png gif bmp tif webp avif jp2 tga ppm sgi qoi pcx dds"
FORMATS = [f"a.{ending}" for ending in ENDINGS.split()]


@pytest.mark.parametrize("name", FORMATS)
def test_no_part_of_a_cut_off_picture_is_returned(tmp_path, picture, name):
    Image.fromarray(picture).save(tmp_path / name)
    whole, data = read_image(tmp_path / name), (tmp_path / name).read_bytes()
    cuts = [*range(1, 20), *(len(data) - n for n in range(1, 20)), len(data) // 3, len(data) // 2]
    outcomes = []
    for cut in cuts:
        (tmp_path / name).write_bytes(data[:cut])
        try:  # a file whose last bytes carry no pixels may still be whole
            np.testing.assert_array_equal(read_image(tmp_path / name), whole)
            outcomes.append("whole")
        except UserError:
            outcomes.append("refused")
    assert outcomes[-1] == outcomes[-2] == "refused"


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_photograph_without_its_last_bytes_is_refused(tmp_path, picture, name):
    Image.fromarray(picture).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for lost in (1, 2, 5, 12):
        (tmp_path / name).write_bytes(data[:-lost])
        refused(tmp_path / name, "cut off")
    (tmp_path / name).write_bytes(data + b"a film that the phone appended")
    assert read_image(tmp_path / name).shape == picture.shape


def test_a_progressive_jpeg_cut_between_its_scans_is_refused(tmp_path, picture):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, progressive=True)
    data = path.read_bytes()
    last_scan = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last_scan])
    refused(path, "cut off")


def test_bad_files_are_refused_with_a_sentence(tmp_path, picture):
    refused(tmp_path / "missing.jpg", "missing.jpg", "cannot be found")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "0 bytes")
    (tmp_path / "text.jpg").write_text("this is no picture " * 50)
    refused(tmp_path / "text.jpg", "text.jpg", "no picture")
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "png.jpg")
    refused(tmp_path / "png.jpg", "PNG", ".jpg")
    refused(tmp_path / ("a" * 300 + ".jpg"), "cannot be found")
    refused(tmp_path / "nul\0.jpg", "cannot be found")


def test_a_pipe_never_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "regular file")
    with pytest.raises(UserError):
        image_size(tmp_path / "pipe.png")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png", "cannot be found")


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and that has hardly any pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_giant_header_is_refused_before_memory_is_taken(tmp_path, recwarn):
    (tmp_path / "a.png").write_bytes(png_claiming(100_000, 100_000))
    refused(tmp_path / "a.png", "100000x100000", "200 million")
    with pytest.raises(UserError, match="200 million"):
        image_size(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png_claiming(14_000, 14_000))
    assert image_size(tmp_path / "b.png") == (14_000, 14_000)
    cv2.imwrite(str(tmp_path / "c.tif"), np.zeros((2, 3, 3), np.float32))
    data = bytearray((tmp_path / "c.tif").read_bytes())
    width = data.index(struct.pack("<HHI", 256, 3, 1))  # the tag ImageWidth
    data[width : width + 12] = struct.pack("<HHII", 256, 4, 1, 2**31)
    (tmp_path / "c.tif").write_bytes(data)
    refused(tmp_path / "c.tif", "200 million")
    assert not recwarn.list


def test_mutated_files_are_decoded_or_refused(tmp_path, picture):
    rng, outcomes = random.Random(0), {"decoded": 0, "refused": 0}
    for name in FORMATS:
        Image.fromarray(picture).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        for _ in range(40):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            (tmp_path / name).write_bytes(changed)
            try:
                image = read_image(tmp_path / name)
                read_mask_raw(tmp_path / name)
                assert image.ndim == 3
                assert image.dtype == np.uint8
                outcomes["decoded"] += 1
            except UserError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_many_threads_read_the_same(tmp_path, picture):
    for number in range(20):
        Image.fromarray(picture + np.uint8(number)).save(tmp_path / f"{number:02d}.png")
    paths = list_images(tmp_path) * 5
    with ThreadPoolExecutor(8) as pool:
        for path, image in zip(paths, pool.map(read_image, paths), strict=True):
            np.testing.assert_array_equal(image, picture + np.uint8(int(path.stem)))


def test_hard_names_are_listed_and_read(tmp_path, picture):
    names = ["with space.png", "blüte 葉.png", "new\nline.png", "-rf.png", "quo'te\".png"]
    names += ["x" * 251 + ".PNG", "a.b.c.Jpg"]
    for name in names:
        write_image(tmp_path / name, picture)
    for hidden in (".tmp-1.png", "._a.jpg", "notes.txt"):
        (tmp_path / hidden).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert sorted(path.name for path in list_images(tmp_path)) == sorted(names)
    for path in list_images(tmp_path):
        assert read_image(path).shape == picture.shape


def test_folders_are_searched_once_whatever_their_links(tmp_path, picture):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write_image(inner / "x.png", picture)
    (inner / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(inner)
    assert [path.name for path in list_images(tmp_path, recursive=True)] == ["x.png"]
    assert list_images(tmp_path) == []
    with pytest.raises(UserError, match="not a folder"):
        list_images(tmp_path / "missing")


def test_image_names():
    assert all(map(is_image_name, ["a.jpg", "b.JPG", "c.Tiff", "-d.png"]))
    assert not any(map(is_image_name, ["a.txt", ".jpg", "._a.jpg", ".tmp-1.png", "jpg"]))


def test_printed_names_hold_no_control_characters():
    assert printable("a\n\x1b[31mred\u202e.png") == "a\\n\\x1b[31mred\\u202e.png"
    assert printable("blüte 葉.png") == "blüte 葉.png"
    printable(os.fsdecode(b"latin-\xe9.jpg")).encode()  # can be printed


def test_masks_are_written_as_palette_png_and_read_back(tmp_path):
    mask = np.random.default_rng(2).choice([0, 1, 2, 255], (9, 7)).astype(np.uint8)
    write_mask(tmp_path / "a.png", mask, ((0, 0, 0), (0, 176, 0), (255, 0, 0)))
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == "P"
        np.testing.assert_array_equal(np.asarray(written), mask)
        assert written.getpalette()[:9] == [0, 0, 0, 0, 176, 0, 255, 0, 0]
    raw = read_mask_raw(tmp_path / "a.png")
    np.testing.assert_array_equal(raw.values, mask)
    np.testing.assert_array_equal(raw.palette[:3], [(0, 0, 0), (0, 176, 0), (255, 0, 0)])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"])
def test_images_are_written_in_the_format_of_their_ending(tmp_path, picture, name):
    write_image(tmp_path / name, picture)
    assert np.abs(read_image(tmp_path / name).astype(int) - picture).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, picture):
    with pytest.raises(UserError, match=r"choose the ending"):
        write_image(tmp_path / "a.xyz", picture)
    with pytest.raises(UserError, match=r"70000x1 px"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_masks_are_resized_without_new_values_and_without_a_shift():
    mask = np.zeros((90, 120), np.uint8)
    mask[30:60, 40:80] = 200
    for size in ((45, 60), (300, 400), (31, 47)):
        small = resize_mask(mask, size)
        assert set(np.unique(small)) == {0, 200}
        rows = np.flatnonzero((small == 200).any(1))
        assert abs((rows[0] + rows[-1] + 1) / 2 / size[0] - 0.5) <= 0.5 / size[0]
    steps = np.arange(8, dtype=np.uint8)[None].repeat(8, axis=0)
    assert resize_mask(steps, (2, 2)).tolist() == [[2, 6], [2, 6]], "the pixel under the centre"


def test_images_shrink_by_averaging():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 254
    assert (resize_image(stripes, (8, 8)) == 127).all()
    assert resize_image(stripes, (64, 64)) is stripes


def test_the_limit_admits_large_scans():
    assert decoding.MAX_PIXELS >= 12_000 * 9_000


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.mp4", b"\0\0\0\x20ftypisom"),
        ("a.mov", b"\0\0\0\x14ftypqt  "),
        ("a.mkv", b"\x1aE\xdf\xa3\x01\0\0\0"),
        ("a.avi", b"RIFF\x10\0\0\0AVI LIST"),
    ],
)
def test_a_video_is_called_one_whether_or_not_heic_can_be_read(tmp_path, monkeypatch, name, head):
    (tmp_path / name).write_bytes(head + bytes(2000))
    refused(tmp_path / name, "is a video and no picture; inference_video.py segments it")
    without_heif(monkeypatch)
    refused(tmp_path / name, "is a video and no picture")
