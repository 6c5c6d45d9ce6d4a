"""The sample data: exact masks, the same bytes from the same seed, and nobody's files lost."""

import sys

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from tools import sample_data


def run_main(monkeypatch, out_dir, *flags):
    small = ("--train", "2", "--valid", "1", "--video-seconds", "0.2")
    argv = ["sample_data.py", "--out-dir", str(out_dir), *small, *flags]
    monkeypatch.setattr(sys, "argv", argv)
    sample_data.main()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("sample") / "demo"
    sample_data.write_dataset(out_dir, train=3, valid=2, seed=5)
    return out_dir


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("valid", 3)])
def test_a_picture_depends_on_seed_split_and_index_alone(split, index):
    image, mask = sample_data.draw_sample(1, split, index)
    np.random.seed(index)  # the global generator must not matter
    again_image, again_mask = sample_data.draw_sample(1, split, index)
    assert np.array_equal(image, again_image)
    assert np.array_equal(mask, again_mask)


def test_another_seed_split_or_index_gives_another_picture():
    drawn = [("train", 0, 0), ("train", 1, 0), ("valid", 0, 0), ("train", 0, 1)]
    pictures = {sample_data.draw_sample(s, n, i)[0].tobytes() for n, s, i in drawn}
    assert len(pictures) == len(drawn)


def test_files_are_the_same_bytes_however_many_pictures_are_asked_for(written, tmp_path):
    sample_data.write_dataset(tmp_path, train=1, valid=1, seed=5)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes()


@pytest.mark.parametrize("seed", range(6))
def test_no_lesion_touches_the_ground(seed):
    canvas = sample_data.draw_scene(np.random.default_rng(seed), (200, 260), leaves=1 + seed % 3)
    lesion, leaf = canvas[..., sample_data.LESION], canvas[..., sample_data.LEAF]
    assert (lesion >= 0.5).any()
    ground = leaf < 0.999  # not 1: where leaves overlap, blending rounds
    beside = cv2.dilate(ground.astype(np.uint8), np.ones((3, 3), np.uint8)) == 1
    assert ground.any()
    assert not lesion[ground].any()
    assert lesion[beside].max() < 0.5


def test_the_mask_is_where_the_lesions_changed_the_picture(monkeypatch):
    """The oracle is the painting itself: without its lesion's colour, only masked pixels differ."""
    kept = sample_data.infect

    def unpainted(rng, albedo, edge, scale):
        painted, cover = kept(rng, albedo, edge, scale)
        inside = (cover >= 0.5)[..., None]
        return np.where(inside, np.float32([1, 0, 1]), painted), cover

    def scene():
        return sample_data.draw_scene(np.random.default_rng(3), (160, 200), leaves=3)

    plain = scene()
    monkeypatch.setattr(sample_data, "infect", unpainted)
    changed = np.abs(scene()[..., :3] - plain[..., :3]).max(-1) > 0.02
    mask = plain[..., sample_data.LESION] >= 0.5
    assert mask.sum() > 100
    assert (changed & mask).sum() / mask.sum() > 0.99
    assert (changed & ~mask).sum() / mask.sum() < 0.01


def test_healthy_pictures_have_an_empty_mask():
    for seed in range(3):
        image, mask = sample_data.draw_picture(np.random.default_rng(seed), 120, 160, healthy=True)
        assert image.shape == (120, 160, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.shape == (120, 160)
        assert not mask.any()


def test_a_share_of_the_training_pictures_is_healthy_and_no_validation_picture():
    last = sample_data.HEALTHY_EVERY - 1
    assert not sample_data.draw_sample(0, "train", last)[1].any()
    assert sample_data.draw_sample(0, "train", 0)[1].any()
    larger = 0
    for index in range(12):
        mask = sample_data.draw_sample(0, "valid", index)[1]
        sizes = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA]
        assert len(sizes), f"valid_{index:04d} shows no lesion"
        larger += sizes.max() > 0.004 * mask.size
    assert larger > 6


def test_layout_names_sizes_and_palette(written):
    labelmap = (written / "labelmap.txt").read_text()
    header = "# label:color_rgb:parts:actions"
    assert labelmap.splitlines() == [header, "background:0,0,0::", "disease:128,0,0::"]
    stems = {}
    for split, count in (("train", 3), ("valid", 2)):
        images = sorted((written / f"{split}_images").iterdir())
        masks = sorted((written / f"{split}_masks").iterdir())
        assert [p.stem for p in images] == [p.stem for p in masks]
        assert {p.suffix for p in images} == {".jpg"}
        assert {p.suffix for p in masks} == {".png"}
        assert len(images) == count
        stems[split] = {p.stem for p in images}
        for image_path, mask_path in zip(images, masks, strict=True):
            with Image.open(image_path) as image, Image.open(mask_path) as mask:
                assert image.mode == "RGB"
                assert mask.mode == "P"
                assert image.size == mask.size
                assert 320 <= max(image.size) <= 640
                assert mask.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
                assert set(np.unique(np.asarray(mask))) <= {0, 1}
                colours = np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0)
                assert {tuple(c) for c in colours.tolist()} <= {(0, 0, 0), (128, 0, 0)}
    assert not stems["train"] & stems["valid"]


def test_pictures_come_in_landscape_portrait_and_square(monkeypatch):
    shapes = []
    monkeypatch.setattr(
        sample_data, "draw_picture", lambda rng, h, w, healthy: shapes.append((h, w))
    )
    for index in range(40):
        sample_data.draw_sample(0, "train", index)
    assert {np.sign(h - w) for h, w in shapes} == {-1, 0, 1}
    assert len(set(shapes)) > 30


def test_the_video_is_h264_at_25_frames_a_second_and_moves(tmp_path):
    path = tmp_path / "sample_video.mp4"
    sample_data.write_video(path, seconds=0.6, seed=0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 25
        assert (stream.width, stream.height) == (640, 360)
        frames = [f for f in container.decode(stream)]
        assert {f.format.name for f in frames} == {"yuv420p"}
    assert len(frames) == 15
    first, last = (frames[i].to_ndarray(format="gray").astype(int) for i in (0, -1))
    assert np.abs(first - last).mean() > 5


def test_a_folder_that_holds_something_is_refused(tmp_path, monkeypatch):
    note = tmp_path / "my_notes.txt"
    note.write_text("mine")
    with pytest.raises(UserError, match=r"already holds files.*--overwrite.*--out-dir"):
        run_main(monkeypatch, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"my_notes.txt", ".lock"}
    with pytest.raises(UserError, match="is a file"):
        run_main(monkeypatch, note, "--overwrite")
    assert note.read_text() == "mine"


def test_overwrite_replaces_its_own_files_and_keeps_all_others(tmp_path, monkeypatch):
    (tmp_path / "train_images").mkdir()
    foreign = [tmp_path / "my_notes.txt", tmp_path / "train_images" / "mine.jpg"]
    own = tmp_path / "train_images" / "train_0000.jpg"
    for path in (*foreign, own):
        path.write_text("old")
    run_main(monkeypatch, tmp_path, "--overwrite")
    assert [path.read_text() for path in foreign] == ["old", "old"]
    assert Image.open(own).format == "JPEG"
    made = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert made == {
        *("my_notes.txt", "train_images/mine.jpg", "labelmap.txt", "sample_video.mp4", ".lock"),
        *(f"train_images/train_000{i}.jpg" for i in range(2)),
        *(f"train_masks/train_000{i}.png" for i in range(2)),
        *("valid_images/valid_0000.jpg", "valid_masks/valid_0000.png"),
    }
