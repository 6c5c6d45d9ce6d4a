"""Videos: what goes in must come out, with the masks drawn and nothing else changed."""

import csv
import functools
import http.server
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from house import ROOT
from tiny_video import add_tone, scene, write_video

import inference_video
from common import cli
from common.errors import UserError
from config import ClassTable, ModelConfig
from utils import overlay
from video import pipeline, sources, tinting
from video.clock import Clock
from video.reader import VideoReader
from video.writer import VideoWriter

PATIENCE = 120  # seconds until a test gives up what comes in one on an idle machine
NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)


class BrightIsDisease:
    """A model that takes no time: class 1 where a pixel is brighter than half."""

    classes, device = ClassTable.default(), torch.device("cpu")

    def __init__(self):
        self.images, self.masks = [], []

    def fitted(self, frame):
        return frame

    def frame_scores(self, images):
        self.images += images
        small = [cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA) for image in images]
        bright = torch.from_numpy(np.stack(small)).float().mean(dim=3) / 255 - 0.5
        return torch.stack([-bright, bright], dim=1) * 20

    def mask(self, scores, size):
        mask = scores.argmax(0).byte().numpy()
        self.masks.append(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST))
        return self.masks[-1]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line in this process; returns exit code, what it said, and the model."""

    def run_with(*args, predictor=None):
        predictor = predictor or BrightIsDisease()
        monkeypatch.setattr(
            inference_video.Predictor, "load", classmethod(lambda *_, **__: predictor)
        )
        words = [*map(str, args), "--model", "none.pth", "--out-dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["inference_video.py", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.run(inference_video.main)
        said = capsys.readouterr()
        return exit_.value.code, said.out + said.err, predictor

    return run_with


def probe(path):
    """What PyAV reads back: the stream's facts and all frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [Fraction(frame.pts) * stream.time_base for frame in frames]
        return stream, frames, times


def sound_packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("rate", [NTSC, FILM])
def test_frame_rate_is_exact_and_every_frame_comes_out(run, tmp_path, rate, ending):
    source = write_video(tmp_path / f"walk.{ending}", frames=40, rate=rate)
    code, said, _ = run("--input", source)
    stream, frames, times = probe(tmp_path / "out/walk.mp4")
    assert code == 0, said
    assert stream.average_rate == rate
    assert len(frames) == stream.frames == 40
    assert {b - a for a, b in itertools.pairwise(times)} == {1 / rate}
    assert stream.duration * stream.time_base == 40 / rate
    assert (stream.height, stream.width) == (96, 128)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_time_stamps_of_variable_rate_are_kept(run, tmp_path, ending):
    times = [0, 20, 100, 110, 400, 1500, 1533, 1600, 4000, 4007]
    source = write_video(tmp_path / f"v.{ending}", times=times, rate=Fraction(30))
    code, said, _ = run("--input", source)
    assert code == 0, said
    assert [1000 * t for t in probe(tmp_path / "out/v.mp4")[2]] == times
    with open(tmp_path / "out/v_per_frame.csv", newline="") as file:
        assert [float(row["time"]) for row in csv.DictReader(file)] == [t / 1000 for t in times]


@pytest.mark.parametrize("reordered", ["0", "2"])
def test_frames_that_an_avi_leaves_out_stay_left_out(run, tmp_path, reordered):
    places = [0, 1, 2, 10, 11, 25, 26, 27, 50, 51]
    coded = {"codec": "mpeg4", "options": {"bf": reordered}}
    source = write_video(tmp_path / "v.avi", times=places, tick=Fraction(1, 25), **coded)
    code, said, _ = run("--input", source)
    assert code == 0, said
    assert [25 * t for t in probe(tmp_path / "out/v.mp4")[2]] == places


@pytest.mark.parametrize("ending", ["mkv", "avi", "mp4"])
def test_mp3_is_copied(run, tmp_path, ending):
    source = write_video(tmp_path / f"s.{ending}", frames=50, sound="libmp3lame")
    code, said, _ = run("--input", source)
    assert code == 0, said
    assert sound_packets(tmp_path / "out/s.mp4") == sound_packets(source)


@pytest.mark.parametrize("hours", [0.2, 1.2])
def test_a_recording_that_starts_late_starts_at_zero(run, tmp_path, hours):
    start = int(hours * 3_600_000)
    times = [start + 40 * index for index in range(20)]
    source = write_video(tmp_path / "v.mkv", times=times)
    code, said, _ = run("--input", source)
    assert code == 0, said
    stream, _, found = probe(tmp_path / "out/v.mp4")
    assert [1000 * t for t in found] == [40 * index for index in range(20)]
    assert stream.duration * stream.time_base == Fraction(20, 25)


def test_rotation_is_kept_and_the_model_sees_the_picture_upright(run, tmp_path):
    matrix = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    source = write_video(tmp_path / "phone.mp4", matrix=matrix)
    code, _, predictor = run("--input", source)
    (before, shown, _), (after, result, _) = probe(source), probe(tmp_path / "out/phone.mp4")
    assert code == 0
    assert (after.height, after.width) == (before.height, before.width)
    assert shown[0].rotation == result[0].rotation == -90
    upright = np.rot90(shown[0].to_ndarray(format="rgb24"), shown[0].rotation // 90)
    np.testing.assert_array_equal(predictor.images[0], upright)
    # The tint lies on the bright square where it is stored.
    stored = result[0].to_ndarray(format="rgb24").astype(int)
    bright = shown[0].to_ndarray(format="rgb24").min(axis=2) > 150
    inside = cv2.erode(bright.astype(np.uint8), np.ones((9, 9))) > 0
    assert inside.sum() > 100
    assert (stored[inside][:, 0] - stored[inside][:, 1] > 60).all()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turn_follows_ffmpegs_display_matrix_and_back(tmp_path, degrees, mirrored):
    path = tmp_path / "t.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        frame = av.VideoFrame.from_ndarray(scene(0, 48, 64), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with VideoReader(str(path)) as reader:
        turn = tinting.Turn(reader.matrix)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    # FFmpeg documents: a counter-clockwise rotation, and hflip mirrors what is shown.
    shown = np.rot90(image, degrees // 90)
    shown = shown[:, ::-1] if mirrored else shown
    np.testing.assert_array_equal(turn.upright(image), shown)
    np.testing.assert_array_equal(turn.stored(turn.upright(image)), image)
    assert turn.upright_size(48, 64) == shown.shape[:2]


def test_odd_sides_are_lengthened_by_one_repeated_line(run, tmp_path):
    source = write_video(tmp_path / "odd.mp4", size=(47, 63), codec="mpeg4")
    code, said, _ = run("--input", source, "--crf", 1)
    stream, frames, _ = probe(tmp_path / "out/odd.mp4")
    assert code == 0, said
    assert (stream.height, stream.width, len(frames)) == (48, 64, 20)
    luma = frames[0].to_ndarray()[:48].astype(int)
    assert np.abs(luma[47] - luma[46]).max() <= 4
    assert np.abs(luma[:, 63] - luma[:, 62]).max() <= 4


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_aac_is_copied_to_the_byte(run, tmp_path, ending):
    # A broadcast begins at any time; the file made of it begins at zero.
    late = {"output_ts_offset": "10"} if ending == "ts" else {}
    source = write_video(tmp_path / f"s.{ending}", frames=50, sound="aac", container_options=late)
    code, said, _ = run("--input", source)
    assert code == 0, said
    assert probe(tmp_path / "out/s.mp4")[2][0] < Fraction(1, 10)
    copied, original = sound_packets(tmp_path / "out/s.mp4"), sound_packets(source)
    if ending == "ts":  # every packet there carries a header of 7 bytes, which mp4 has once
        original = [packet[7:] for packet in original]
    assert copied == original
    assert abs(sound_lag(tmp_path / "out/s.mp4") - sound_lag(source)) < Fraction(1, 1000)


def sound_lag(path):
    """Seconds from the first frame to the first sound, or the priming samples before it."""
    with av.open(str(path)) as container:
        first = {}
        for packet in container.demux():
            if packet.pts is not None:
                first.setdefault(packet.stream.type, []).append(packet.pts * packet.time_base)
    return min(first["audio"]) - min(first["video"])


@pytest.mark.parametrize(("sound", "ending"), [("pcm_s16le", "mov"), ("pcm_s16le", "mkv")])
def test_pcm_becomes_aac_of_the_same_length(run, tmp_path, sound, ending):
    source = write_video(tmp_path / f"s.{ending}", frames=50, sound=sound)
    code, said, _ = run("--input", source)
    assert code == 0, said
    with av.open(str(tmp_path / "out/s.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        pieces = list(container.decode(audio=0))
    samples = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
    assert abs(len(samples) - 2 * 44100) <= 2048
    assert 0.2 < np.abs(samples[4096:-4096]).max() < 0.3  # the tone, 8000 of 32768


def test_index_stands_before_the_data_so_that_it_plays_while_loading(run, tmp_path):
    run("--input", write_video(tmp_path / "a.mp4"))
    data = (tmp_path / "out/a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_colour_tags_are_those_of_the_source(run, tmp_path):
    tags = {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}
    source = write_video(tmp_path / "c.mp4", tags=tags)
    run("--input", source)
    context = probe(tmp_path / "out/c.mp4")[0].codec_context
    assert {name: int(getattr(context, name)) for name in tags} == tags


@pytest.mark.parametrize(
    ("pix_fmt", "tags"),
    [
        ("yuv420p", {}),
        ("yuv420p", {"colorspace": 1, "color_range": 1}),
        ("yuv420p", {"colorspace": 1, "color_range": 2}),
        ("yuv444p", {"colorspace": 1}),
        ("yuv422p10le", {}),
        ("rgb24", {}),
    ],
)
def test_a_tint_in_yuv_looks_like_the_overlay_of_pictures(pix_fmt, tags):
    image = np.full((64, 96, 3), (60, 140, 50), np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 32:80] = 1
    converted = av.VideoFrame.from_ndarray(image, "rgb24").reformat(
        format=pix_fmt,
        dst_colorspace=tags.get("colorspace"),
        dst_color_range=tags.get("color_range"),
    )
    for name, value in tags.items():
        setattr(converted, name, value)
    tinted = tinting.Tinter(ClassTable.default(), tinting.Turn(None)).draw(converted, mask)
    full_range, matrix = tinting.colours_of(converted)
    seen = tinted.reformat(
        format="rgb24", src_colorspace=matrix, src_color_range=full_range, dst_color_range=2
    ).to_ndarray()
    wanted = overlay(image, mask, ClassTable.default()).astype(int)
    flat = cv2.dilate(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3))), np.ones((5, 5)))
    assert np.abs(seen.astype(int) - wanted)[flat == 0].max() <= 4


def test_one_frame_is_a_video_too_and_gives_the_mask_of_its_picture(run, tmp_path):
    from inference.predictor import Predictor
    from segmentation_model import FasterViT

    torch.manual_seed(0)
    model = FasterViT(
        dim=16,
        in_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=[7] * 4,
        ct_size=2,
        mlp_ratio=4,
        num_classes=2,
    )
    predictor = Predictor(model.eval(), ModelConfig(input_size=(64, 64)), ClassTable.default())
    image = cv2.resize(np.random.default_rng(1).integers(0, 255, (8, 10, 3), np.uint8), (100, 80))
    lossless = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"qp": "0"}}
    one = {"frames": 1, "size": (80, 100), "draw": lambda *_: image}
    source = write_video(tmp_path / "one.mkv", **one, **lossless)
    seen, mask = [], predictor.mask
    predictor.mask = lambda *args: seen.append(mask(*args)) or seen[-1]
    code, said, _ = run("--input", source, predictor=predictor)
    assert code == 0, said
    assert len(probe(tmp_path / "out/one.mp4")[1]) == 1
    expected = predictor.masks([image])[0]
    assert 0.01 < expected.mean() < 0.99
    np.testing.assert_array_equal(seen[0], expected)


def test_batches_change_nothing(run, tmp_path):
    source = write_video(tmp_path / "b.mp4", frames=11, sound="aac")
    one = run("--input", source)[2].masks
    table = (tmp_path / "out/b_per_frame.csv").read_text()
    four = run("--input", source, "--batch", 4)[2].masks
    assert len(one) == len(four) == 11
    assert all(np.array_equal(a, b) for a, b in zip(one, four, strict=True))
    assert (tmp_path / "out/b_per_frame.csv").read_text() == table


def test_the_table_and_the_plot_hold_every_frames_shares(run, tmp_path):
    source = write_video(tmp_path / "p.mp4", frames=12)
    _, _, predictor = run("--input", source, "--plot")
    with open(tmp_path / "out/p_per_frame.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(12))
    for row, mask in zip(rows, predictor.masks, strict=True):
        assert float(row["share_disease"]) == pytest.approx((mask == 1).mean(), abs=1e-6)
        assert float(row["share_background"]) == pytest.approx((mask == 0).mean(), abs=1e-6)
    assert cv2.imread(str(tmp_path / "out/p_per_frame.png")) is not None


def test_smoothing_calms_a_still_scene_and_starts_anew_at_a_cut(run, tmp_path):
    rng = np.random.default_rng(0)
    ramp = np.linspace(90, 165, 128)[None, :, None]

    def noisy(index, height, width):
        image = np.broadcast_to(ramp if index < 20 else 255 - ramp[:, ::-1] * 1.4, (96, 128, 3))
        blotches = cv2.resize(rng.normal(0, 12, (12, 16)), (width, height))[..., None]
        return np.clip(image + blotches, 0, 255).astype(np.uint8)

    source = write_video(tmp_path / "still.mp4", frames=30, draw=noisy, options={"crf": "1"})

    def flicker(masks):
        return np.mean([(a != b).mean() for a, b in itertools.pairwise(masks[:20])])

    raw = run("--input", source)[2].masks
    calm = run("--input", source, "--smooth", 0.8)[2].masks
    assert flicker(raw) > 0.02
    assert flicker(calm) < flicker(raw) / 3
    np.testing.assert_array_equal(calm[20], raw[20])  # nothing of the scene before the cut
    assert not np.array_equal(calm[25], raw[25])


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("sound", [None, "aac"])
def test_a_cut_off_video_yields_what_could_be_read_and_says_where_it_broke(
    run, tmp_path, ending, sound
):
    def noise(index, height, width):
        return np.random.default_rng(index).integers(0, 255, (height, width, 3), np.uint8)

    options = {"movflags": "faststart"} if ending == "mp4" else {}
    source = tmp_path / f"whole.{ending}"
    write_video(source, frames=100, size=(48, 64), draw=noise, sound=sound)
    if options:  # the index must come first, or nothing can be read
        remux(source, options)
    data = source.read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(data[: len(data) * 6 // 10])
    code, said, _ = run("--input", tmp_path / f"cut.{ending}")
    frames = probe(tmp_path / "out/cut.mp4")[1]
    assert code == 1
    assert 50 <= len(frames) <= 65 or (sound and 20 <= len(frames) <= 65)
    assert "is damaged at" in said
    broke_at = float(said.split("is damaged at ")[1].split(" s")[0])
    assert broke_at == pytest.approx(len(frames) / 25, abs=0.2)


def remux(path, options):
    moved = path.with_suffix(".tmp.mp4")
    with av.open(str(path)) as source, av.open(str(moved), "w", options=options) as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    moved.replace(path)


def test_what_is_no_video_is_refused_in_one_sentence(run, tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    (tmp_path / "notes.txt").write_text("FFmpeg would draw this as a video\n" * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        add_tone(container, container.add_stream("aac", rate=44100), 44100)
    write_video(tmp_path / "frameless.avi", frames=0)
    cases = {
        "text.mp4": "cannot be opened as a video",
        "empty.mp4": "cannot be opened as a video",
        "notes.txt": "no video stream",
        "sound.mp4": "no video stream",
        "folder": "is a folder",
        "missing.mp4": "does not exist",
        "frameless.avi": "no ",
    }
    for name, words in cases.items():
        code, said, _ = run("--input", tmp_path / name)
        assert (code, words in said, said.count("\n")) == (2, True, 1), (name, said)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_one_broken_video_of_several_is_skipped_and_named(run, tmp_path):
    good, bad = write_video(tmp_path / "good.mp4"), tmp_path / "bad.mp4"
    bad.write_text("nothing")
    code, said, _ = run("--input", bad, good)
    assert code == 1
    assert "skipped" in said
    assert "bad.mp4" in said
    assert [p.name for p in sorted((tmp_path / "out").glob("*.mp4"))] == ["good.mp4"]


def test_no_input_is_overwritten_and_no_output_shared(run, tmp_path):
    a = write_video(tmp_path / "a.mp4")
    (tmp_path / "b").mkdir()
    b = shutil.copy(a, tmp_path / "b/A.mkv")
    code, said, _ = run("--input", a, b)
    assert code == 2
    assert "would both be written" in said
    (tmp_path / "out").mkdir()
    own = shutil.copy(a, tmp_path / "out/a.mp4")
    code, said, _ = run("--input", own)
    assert code == 2
    assert "its own result" in said
    assert Path(own).read_bytes() == a.read_bytes()
    # The user's own cut beside the recording is no result of ours.
    recording = shutil.copy(a, tmp_path / "out/a.mov")
    code, said, _ = run("--input", recording)
    assert code == 2
    assert "may be your own" in said
    assert Path(own).read_bytes() == a.read_bytes()


def test_an_error_of_any_stage_ends_the_run_and_leaves_nothing(run, tmp_path, monkeypatch):
    source = write_video(tmp_path / "e.mp4", frames=30)

    class Failing(BrightIsDisease):
        def frame_scores(self, images):
            if len(self.images) == 5:
                raise UserError("the model fails here.")
            return super().frame_scores(images)

    code, said, _ = run("--input", source, predictor=Failing())
    assert code == 2
    assert "the model fails here." in said

    def full(*_):
        raise OSError(28, "No space left on device", "out")

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", full)
        code, said, _ = run("--input", source)
    assert code == 2
    assert "No space left" in said
    assert not list((tmp_path / "out").glob("[!.]*"))
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no os.kill with SIGINT")
def test_ctrl_c_closes_a_file_that_plays(run, tmp_path):
    source = write_video(tmp_path / "long.mp4", frames=100, sound="aac")

    class Interrupting(BrightIsDisease):
        def frame_scores(self, images):
            if len(self.images) == 40:
                os.kill(os.getpid(), signal.SIGINT)
            return super().frame_scores(images)

    code, said, _ = run("--input", source, predictor=Interrupting())
    frames = probe(tmp_path / "out/long.mp4")[1]
    assert code == 130
    assert "holds what was done and plays" in said
    assert 25 <= len(frames) < 100
    assert len((tmp_path / "out/long_per_frame.csv").read_text().splitlines()) == len(frames) + 1


def test_stages_work_at_the_same_time():
    meeting = threading.Barrier(3)

    def stage(items, number):
        for item in items:
            if item + number == 5:  # the first has gone on to 5 while the last is at 3
                meeting.wait(timeout=PATIENCE)
            yield item

    chain = range(9)
    for number in range(3):
        chain = pipeline.ahead(stage(chain, number), 2, threading.Event())
    assert list(chain) == list(range(9))


def test_a_stage_never_runs_far_ahead():
    made, four = [], threading.Event()

    def make():
        for index in range(20):
            made.append(index)
            if len(made) == 4:
                four.set()
            yield index

    leads = []
    for item in pipeline.ahead(make(), 2, threading.Event()):
        assert four.wait(PATIENCE)
        time.sleep(0.005)  # enough to make more, were it allowed; nothing waits for this
        leads.append(len(made) - item)
    # Two wait in the queue, one is being put there and one is in the reader's hands.
    assert leads[0] == max(leads) == 4


def test_damaged_bytes_are_read_or_refused_and_never_crash(tmp_path):
    rng = np.random.default_rng(6)
    originals = {}
    for ending in ("mp4", "mkv", "avi", "ts"):
        path, small = tmp_path / f"o.{ending}", {"frames": 5, "size": (32, 48)}
        originals[ending] = write_video(path, **small, sound="aac", codec="mpeg4").read_bytes()
    counts = {"read": 0, "refused": 0}
    for number in range(80):
        ending = list(originals)[number % 4]
        data = bytearray(originals[ending])
        for position in rng.integers(0, len(data), rng.integers(1, 12)):
            data[position] = rng.integers(256)
        path = tmp_path / f"m.{ending}"
        path.write_bytes(data)
        try:
            with VideoReader(str(path)) as reader:
                for _ in reader.batches(2):
                    pass
            counts["read"] += 1
        except UserError:
            counts["refused"] += 1
    assert counts["read"] >= 40
    assert sum(counts.values()) == 80


@pytest.mark.parametrize(("cores", "expected"), [(8, 5), (2, 1)])
def test_beside_a_model_no_stage_has_more_threads_than_it_leaves_free(
    run, tmp_path, monkeypatch, cores, expected
):
    """Else its threads wait for a core while a frame is drawn or encoded."""
    own = set(range(cores))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: own, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before, seen = cv2.getNumThreads(), {}
    add, pick = VideoWriter._add_video, VideoReader._pick_stream

    class Watching(BrightIsDisease):
        def mask(self, scores, size):
            seen["draws"] = cv2.getNumThreads()
            return super().mask(scores, size)

    monkeypatch.setattr(VideoWriter, "_add_video", lambda *given: seen.setdefault("w", add(*given)))
    monkeypatch.setattr(
        VideoReader, "_pick_stream", lambda *given: seen.setdefault("r", pick(*given))
    )
    source = write_video(tmp_path / "s.mp4", frames=3)
    assert run("--input", source, predictor=Watching())[0] == 0
    assert seen["draws"] == seen["w"].codec_context.thread_count == expected
    assert seen["r"].codec_context.thread_count == expected
    assert cv2.getNumThreads() == before


HEAPS = """
import ctypes, sys, threading
import numpy as np
from video.pipeline import keep_memory

libc, allowed = ctypes.CDLL(None), sys.argv[1] == "many"
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
allowed or keep_memory()
meeting = threading.Barrier(4)

def work():
    meeting.wait()
    held = bytearray(1000), np.ones(100_000)
    meeting.wait()
    meeting.wait()

threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
meeting.wait()
meeting.wait()
libc.malloc_info(0, out)
libc.fflush(out)
meeting.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_threads_keep_memory_where_they_are_told_to():
    """By glibc's own account of its heaps; a heap a thread costs the model page faults."""
    command = [sys.executable, "-c", HEAPS]
    heaps = {}
    for word in ("many", "one"):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
            environment.pop(name, None)
        told = subprocess.run(
            [*command, word], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        heaps[word] = told.stdout.count("<heap nr=")
    assert heaps["one"] == 1 < heaps["many"]


def test_a_track_that_cannot_be_written_falls_silent_and_is_reported(run, tmp_path, monkeypatch):
    source = write_video(tmp_path / "s.mkv", frames=50, sound="pcm_s16le")

    def refuse(*_):
        raise ValueError("Frame does not match AudioResampler setup.")

    real = VideoWriter._add_sound

    class Refusing:
        def __init__(self, stream):
            self.encode = refuse
            self.stream = stream

    def add(writer, stream):
        track = real(writer, stream)
        track.stream = Refusing(track.stream)
        return track

    monkeypatch.setattr(VideoWriter, "_add_sound", add)
    code, said, _ = run("--input", source)
    assert code == 1
    assert "its sound breaks off" in said
    assert len(probe(tmp_path / "out/s.mp4")[1]) == 50


def test_a_damaged_clock_never_runs_backwards():
    clock = Clock(Fraction(1, 1000), Fraction(25), Fraction(0))
    stamps = [0, 40, None, 120, 90, -5, 1 << 50, 400]
    times = [clock.time_of(pts) for pts in stamps]
    assert [float(t) for t in times] == [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.4]


def test_a_window_is_refused_where_there_is_none(run, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def no_window(*_):
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", no_window)
    code, said, _ = run("--input", write_video(tmp_path / "a.mp4"), "--show")
    assert code == 2
    assert "--show needs" in said


def test_cameras_and_addresses_are_named_without_their_passwords():
    assert sources.output_stem("0") == "camera0"
    assert sources.output_stem("rtsp://me:secret@10.0.0.2:554/live/leaf.sdp") == "10_0_0_2_leaf"
    assert "secret" not in sources.shown_name("rtsp://me:secret@10.0.0.2/live")
    assert sources.output_stem("/a/b/walk.one.MP4") == "walk.one"


def test_an_address_is_read_like_a_file(run, tmp_path):
    write_video(tmp_path / "net.ts", frames=10)
    with served(tmp_path) as address:
        code, said, _ = run("--input", f"{address}/net.ts")
    assert code == 0, said
    assert len(probe(tmp_path / "out/127_0_0_1_net.mp4")[1]) == 10


class served:
    """Serve a folder on this machine; what a page posts is kept in `posts`."""

    def __init__(self, folder):
        self.posts, self.came = [], threading.Event()
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_POST(self):
                outer.posts.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()
                outer.came.set()

            def log_message(self, *_):
                """Say nothing."""

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.address

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


PAGE = """<!doctype html><video id=v muted autoplay src="leaf.mp4"></video><script>
const say = what => fetch("/", {method: "POST", body: what});
v.onended = () => say([v.videoWidth, v.videoHeight, v.duration.toFixed(2),
  v.getVideoPlaybackQuality().totalVideoFrames > 0].join(" "));
v.onerror = () => say("error " + v.error.message);
</script>"""


def test_a_browser_plays_it_to_the_end(run, tmp_path, chromium):
    matrix = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    run("--input", write_video(tmp_path / "leaf.mp4", frames=25, sound="aac", matrix=matrix))
    (tmp_path / "out/page.html").write_text(PAGE)
    server = served(tmp_path / "out")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with server as address:
        # A page that is to stay open: without a port for a debugger the browser would end at once.
        command = [*chromium, "--remote-debugging-port=0", f"{address}/page.html"]
        browser = subprocess.Popen(command, start_new_session=True, **silent)
        try:
            assert server.came.wait(PATIENCE)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    width, height, duration, drawn = server.posts[0].split()
    assert (width, height, drawn) == ("96", "128", "true")  # upright
    assert float(duration) == pytest.approx(1.0, abs=0.06)
