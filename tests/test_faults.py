"""Bad input, faults and strangers' files: one sentence, nothing half-written, nothing lost."""

import argparse
import csv
import gc
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import torch
from data_sets import find_pairs, reader_of
from house import modules
from PIL import Image
from run_tiny import add_tiny
from tiny_data import write_data
from tiny_model import save_tiny
from tiny_video import write_video

import app
import datasets
import evaluate
import export
import inference_image
import inference_video
import train
from common import cli, files
from common.errors import UserError
from common.text import read_text
from data.checks import check_data_set
from data.classes import read_class_table
from data.images import read_image
from data.inputs import find_inputs, result_path
from data.pairs import data_fingerprint
from inference.journal import Journal
from inference.results import ENDINGS
from models.checkpoint import read_checkpoint
from segmentation_model import load_model
from tools import benchmark, convert, learning_curve, sample_data
from training.flags import as_flags

pytest.importorskip("fcntl", reason="full disks, permissions and locks are tested as Unix has them")

ROOT = Path(__file__).resolve().parent.parent
WRITERS = (train, evaluate, inference_image, inference_video)
SCRIPTS = (*WRITERS, export, app, datasets, benchmark, convert, learning_curve, sample_data)
TINY = "--model tiny --head pyramid --weights none --imgsz 32 32 --batch 3 --workers 0"


@pytest.fixture(autouse=True)
def tiny_variant():
    add_tiny()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a model, pictures, a short video, and things that are none of these."""
    folder = tmp_path_factory.mktemp("place")
    write_data(folder / "data", train=3, valid=2)
    save_tiny(folder / "model.pth")
    write_video(folder / "video.mp4", frames=12, size=(64, 96))
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        noise = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{name}.png")
    (folder / "empty").mkdir()
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("weights, honestly")
    (folder / "blank.txt").write_text("\n\n")
    (folder / "text.mp4").write_text("a film, honestly")
    return folder


def call(script, *flags) -> int:
    """Run a script's `main` as its command line does; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            cli.run(script.main)
    return stop.value.code


def flags_for(script, place, out_dir) -> list:
    """A call of each script that works."""
    data, model = ["--data", place / "data"], ["--model", place / "model.pth"]
    out, cpu = ["--out-dir", out_dir], ["--device", "cpu"]
    pictures, clip = ["--input", place / "pictures"], ["--input", place / "video.mp4"]
    return {
        train: [*TINY.split(), *data, *out, *cpu, "--epochs", "1"],
        evaluate: [*model, *data, *out, *cpu],
        inference_image: [*model, *pictures, *out, *cpu, "--save", *inference_image.KINDS],
        inference_video: [*model, *clip, *out, *cpu, "--plot"],
        export: [*model, *out],
        sample_data: [*out, "--train", "1", "--valid", "1"],
        datasets: [place / "data"],
    }[script]


# --- Bad input ------------------------------------------------------------------------------------


def parser_of(script) -> cli.Parser:
    """The parser that a script makes for itself."""

    class Stop(Exception):
        pass

    def stop(parser, *_):
        raise Stop(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Parser, "parse_args", stop)
        with pytest.raises(Stop) as stopped:
            script.main()
    return stopped.value.args[0]


# What each flag that takes a number refuses, beside what is no number at all.
OUT_OF_RANGE = {
    "--imgsz": ["0", "31", "-64", "16385", "64.5"],
    "--sizes": ["0", "31", "-64", "1e3"],
    "--window": ["1", "65"],
    "--tile": ["0", "31", "-1", "8193"],
    "--valid-share": ["-0.1", "1.1", "0", "1"],
    "--folds": ["-1", "1.5"],
    "--fold": ["-1", "1.5"],
    "--photo-size": ["0", "31", "16385"],
    "--crop-rare": ["-0.1", "1.1"],
    "--batch": ["0", "-1", "1.5"],
    "--epochs": ["0", "-1"],
    "--workers": ["-1", "0.5"],
    "--seed": ["-1", "1.5"],
    "--patience": ["0", "-3"],
    "--max-non-finite": ["0"],
    "--accumulate": ["0", "-1"],
    "--repeats": ["0"],
    "--train": ["0", "-1"],
    "--valid": ["0", "-1"],
    "--scheduler-epochs": ["0", "-1", "2.5"],
    "--lr": ["0", "-1"],
    "--head-lr-mult": ["0", "-1"],
    "--clip-grad": ["-1", "nan"],
    "--mm-per-pixel": ["0", "-1", "1e7"],
    "--video-seconds": ["0", "-1"],
    "--weight-decay": ["-0.1"],
    "--warmup": ["-1"],
    "--drop-path": ["-0.1", "1.1"],
    "--ema": ["-0.1", "1"],
    "--overlap": ["-0.1", "0.95"],
    "--coverage": ["0.4", "1"],
    "--simplify": ["-1", "1001"],
    "--port": ["0", "65536"],
    "--crf": ["-1", "52"],
    "--smooth": ["-0.1", "1"],
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_flag_refuses_numbers_out_of_range(script, capsys):
    parser = parser_of(script)
    for action in parser._actions:
        assert action.type not in (int, float), action.dest  # these let nan and -1 pass
        if not getattr(action.type, "__qualname__", "").startswith("number."):
            continue
        flag = action.option_strings[0]
        for text in [*OUT_OF_RANGE[flag], "nan", "inf", "-inf", "1e999", "abc", "", " "]:
            values = [f"{flag}={text}"] if action.nargs is None else [flag, text, text]
            capsys.readouterr()
            with pytest.raises(SystemExit) as stop:
                parser.parse_args(values)
            assert stop.value.code == 2
            # The flag of a negative number that looks like another flag is named, too.
            assert f"argument {flag}" in capsys.readouterr().err, (flag, text)
        for value in np.atleast_1d([] if action.default is None else action.default):
            assert action.type(str(value)) == value


BAD = [
    (train, ["--data", "PLACE/missing"], "missing is not a folder"),
    (train, ["--data", "PLACE/empty"], "holds no data set that is known"),
    (train, ["--data", "PLACE/model.pth"], "is a file"),
    (train, ["--weights", "PLACE/missing"], "is not a file"),
    (train, ["--weights", "PLACE/empty"], "is not a file"),
    (train, ["--weights", "PLACE/text.pth"], "damaged or no checkpoint"),
    (train, ["--weights", "PLACE/empty.pth"], "damaged or no checkpoint"),
    (train, ["--resume", "PLACE/missing"], "no run to resume"),
    (train, ["--resume", "PLACE/text.pth"], "damaged or no checkpoint"),
    (train, ["--resume", "PLACE/model.pth"], "weights only"),
    (train, ["--class-weights", "1,nan"], "not auto or 2 positive numbers"),
    (train, ["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    (train, ["--device", "toaster"], "--device toaster cannot be used"),
    (evaluate, ["--model", "PLACE/missing"], "is not a file"),
    (evaluate, ["--model", "PLACE/data"], "is not a file"),
    (evaluate, ["--split", "test"], "no folder test_images"),
    (inference_image, ["--model", "PLACE/empty.pth"], "damaged or no checkpoint"),
    (inference_image, ["--model", "PLACE/pictures/a.png"], "damaged or no checkpoint"),
    (inference_image, ["--model", "x" * 300], "too long"),
    (inference_image, ["--input", "PLACE/missing"], "is not there"),
    (inference_image, ["--input", "PLACE/*.bmp"], "holds no picture"),
    (inference_image, ["--input", "PLACE/empty"], "holds no picture"),
    (inference_image, ["--input", "PLACE/blank.txt"], "holds no picture"),
    (inference_image, ["--input", ""], "holds no picture"),
    (inference_image, ["--input", "x" * 5000], "too long"),
    (inference_image, ["--input", "a\0b"], "is not there"),
    (inference_video, ["--input", "PLACE/missing"], "does not exist"),
    (inference_video, ["--input", "PLACE/empty"], "is a folder"),
    (inference_video, ["--input", "PLACE/text.mp4"], "cannot be opened as a video"),
    (inference_video, ["--input", "PLACE/empty.pth"], "cannot be opened as a video"),
    (inference_video, ["--input", "PLACE/model.pth"], "video"),
    (sample_data, ["--out-dir", "PLACE/data"], "already holds files"),
    (datasets, ["--fix-list", "PLACE/empty"], "PLACE/empty: Is a directory"),
]
IN_THE_WAY = [
    (script, ["--out-dir", f"PLACE/model.pth{below}"], "")
    for script in (*WRITERS, sample_data)
    for below in ("", "/x")
]


@pytest.mark.parametrize(("script", "flags", "expected"), BAD + IN_THE_WAY)
def test_bad_input_is_one_sentence_and_exit_code_2(
    place, tmp_path, capsys, script, flags, expected
):
    flags = [flag.replace("PLACE", str(place)) for flag in flags]
    assert call(script, *flags_for(script, place, tmp_path / "out"), *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected.replace("PLACE", str(place)) in lines[0]
    assert "unexpected" not in lines[0]
    assert not list(tmp_path.rglob("*.pth"))


@contextmanager
def without_privileges():
    """Root may read and write everything; for a moment be nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def locked():
    """A folder that may be entered and not be written, with a file that may not be read."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))  # tmp_path's parents are closed
    (folder / "secret").write_bytes(b"x")
    (folder / "secret").chmod(0)
    (folder / "closed").mkdir(mode=0)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_without_permission_there_is_a_sentence_with_the_name(locked):
    def sentence(function, *arguments):
        with pytest.raises((UserError, OSError)) as caught, without_privileges():
            function(*arguments)
        return cli.explain(caught.value)

    def lock(folder):
        with files.lock_folder(folder):
            pass

    for function, *arguments in (
        (read_image, locked / "secret"),
        (read_checkpoint, locked / "secret"),
        (read_text, locked / "secret"),
        (find_pairs, locked / "closed", "train"),
        (find_inputs, [str(locked / "closed")], True),
        (files.write_text, locked / "new.csv", "x"),
        (lock, locked / "new"),
        (lock, locked),
    ):
        text = sentence(function, *arguments)
        assert str(locked) in text
        assert "unexpected" not in text
    assert sorted(path.name for path in locked.iterdir()) == ["closed", "secret"]


def test_a_name_that_is_no_unicode_loses_nothing(place, tmp_path, capsys):
    source = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    try:
        shutil.copy(os.fsencode(place / "pictures/a.png"), source)
    except OSError:
        pytest.skip("this file system knows no such names")
    flags = flags_for(inference_image, place, tmp_path / "out")
    assert call(inference_image, *flags, "--input", tmp_path, place / "pictures") == 0
    rows = (tmp_path / "out/results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4
    assert any("\\udcff\\udcfe.png" in row for row in rows)
    assert_whole(tmp_path / "out")


def test_lists_of_pictures_in_any_encoding_are_read_or_refused_line_by_line(place, tmp_path):
    good = place / "pictures/a.png"
    content = f"{good}\r\n/\n.\n../bl\u00e4tt.png\na\0b\na\0b/c\n"
    for encoding in ("utf-8-sig", "latin-1"):
        (tmp_path / "list.txt").write_bytes(content.encode(encoding))
        out = tmp_path / encoding
        flags = flags_for(inference_image, place, out)
        assert call(inference_image, *flags, "--input", tmp_path / "list.txt") == 1
        assert len((out / "skipped.txt").read_text().splitlines()) == 5
        assert len((out / "results.csv").read_text().splitlines()) == 2


# --- Faults ---------------------------------------------------------------------------------------


@contextmanager
def disk_full_at(name: str, after: int = 0):
    """Let the disk be full for the one file of this name; none that another thread writes.

    The temporary file is a link to /dev/full: whoever writes, in Python or in C, can open it and
    is refused the bytes by the system itself, with the error of a full disk.

    Args:
        after: how many files of that name are written before.
    """
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is Linux's")
    original, turns = files.replacing, itertools.count()

    @contextmanager
    def replacing(path):
        with original(path) as temporary:
            full = Path(path).name == name and next(turns) == after
            if full:
                temporary.unlink()
                temporary.symlink_to("/dev/full")
            yield temporary
            assert not full, f"the writer of {name} did not notice that the disk was full"

    with pytest.MonkeyPatch.context() as patch:
        for module in list(sys.modules.values()):
            if getattr(module, "replacing", None) is original:
                patch.setattr(module, "replacing", replacing)
        yield
    assert next(turns) > after, f"no {name} was written"


def assert_whole(folder: Path) -> None:
    """Every file that bears a final name is whole, and no temporary one is left."""
    assert not list(folder.rglob(".tmp-*"))
    for path in filter(Path.is_file, folder.rglob("*")):
        if path.suffix == ".pth":
            read_checkpoint(path)
        elif path.suffix in (".jpg", ".png"):
            Image.open(path).load()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            text = path.read_text(encoding="utf-8", errors="surrogatepass")
            assert text.endswith("\n"), path
            assert len({len(row) for row in csv.reader(text.splitlines())}) == 1, path
        elif path.suffix == ".mp4":
            with av.open(str(path)) as container:
                assert sum(1 for _ in container.decode(video=0)) == 12
        elif path.suffix == ".npz":
            assert np.isfinite(np.load(path)["probabilities"]).all()
        elif path.suffix == ".xml":
            ElementTree.parse(path)
        elif path.suffix == ".zip":
            assert zipfile.ZipFile(path).testzip() is None
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        else:
            names = ".lock", "skipped.txt", "data.yaml"
            assert path.name in names or path.suffix == ".pieces" or "yolo" in path.parts, path


WRITTEN = {
    inference_image: "a_overlay.jpg b_mask.png a_colour.png b_prob.npz results.csv legend.png "
    "cvat.zip coco.json a.json b.txt data.yaml labelstudio.json labelstudio.xml summary.html",
    evaluate: "metrics.json per_image.csv confusion_matrix.png run.json report.html",
    inference_video: "video.mp4 video_per_frame.csv video_per_frame.png",
    train: "best_model_iou.pth history.csv epoch_001.jpg last.pth",
}


@pytest.mark.parametrize(
    ("script", "name"),
    [(script, name) for script, names in WRITTEN.items() for name in names.split()],
)
def test_a_disk_that_is_full_in_the_middle_of_a_file_loses_that_file_only(
    place, tmp_path, capsys, script, name
):
    out = tmp_path / "out"
    with disk_full_at(name):
        assert call(script, *flags_for(script, place, out)) == 2
    errors = capsys.readouterr().err
    assert re.search(rf"^error: .*/{re.escape(name)}: .*[Nn]othing was half-written", errors, re.M)
    assert "unexpected" not in errors
    assert not list(out.rglob(name))
    assert_whole(out)


def test_training_goes_on_after_a_full_disk_as_if_nothing_had_been(place, tmp_path, capsys):
    flags = [*flags_for(train, place, tmp_path / "whole"), "--epochs", "2"]
    assert call(train, *flags) == 0
    out = tmp_path / "out"
    flags = [*flags_for(train, place, out), "--epochs", "2"]
    with disk_full_at("last.pth", after=1):
        assert call(train, *flags) == 2
    assert f"python train.py --out-dir {out} --resume" in capsys.readouterr().err
    assert_whole(out)
    assert read_checkpoint(out / "last.pth")["epoch"] == 1
    assert call(train, *flags, "--resume") == 0
    assert (out / "history.csv").read_bytes() == (tmp_path / "whole/history.csv").read_bytes()
    gone_on, whole = (read_checkpoint(run / "last.pth") for run in (out, tmp_path / "whole"))
    for name, value in whole["live_model_state_dict"].items():
        assert torch.equal(gone_on["live_model_state_dict"][name], value), name


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB: room for two checkpoints of 2.4 MiB, not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full_or_read_only(place, small_disk, capsys):
    def remount(option):
        subprocess.run(["mount", "-o", f"remount,{option}", str(small_disk)], check=True)

    out = small_disk / "out"
    flags = flags_for(train, place, out)
    assert call(train, *flags) == 2
    assert "most likely because the disk is full" in capsys.readouterr().err
    assert_whole(out)
    gc.collect()  # PyTorch's writer that failed holds its file until it is collected
    remount("size=64m")
    remount("ro")
    for script in WRITERS:
        assert call(script, *flags_for(script, place, small_disk / "new")) == 2
        assert re.search(r"^error: .*Read-only file system", capsys.readouterr().err, re.M)
    remount("rw")
    assert call(train, *flags) == 2  # what is there is not replaced unasked
    assert "pass --overwrite to replace it" in capsys.readouterr().err
    assert call(train, *flags, "--overwrite") == 0
    assert_whole(out)


def test_what_an_output_folder_lost_when_it_was_deleted_is_named_and_made_again(
    place, tmp_path, capsys
):
    original, out = Journal.append, tmp_path / "out"

    def append(journal, result):
        if result.name == "b":
            shutil.rmtree(out)
        original(journal, result)

    flags = [*flags_for(inference_image, place, out), "--save", "overlay"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        assert call(inference_image, *flags) == 1
    assert "a.png has no result any more" in capsys.readouterr().err
    assert len((out / "skipped.txt").read_text().splitlines()) == 2
    assert_whole(out)
    assert call(inference_image, *flags, "--resume") == 0
    assert len((out / "results.csv").read_text().splitlines()) == 3
    assert (out / "a_overlay.jpg").exists()


def test_a_training_whose_folder_is_deleted_goes_on(place, tmp_path, capsys):
    original, out = train.engine.validate, tmp_path / "out"

    def validate(*arguments):
        if (out / "model.pth").exists():
            shutil.rmtree(out)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.engine, "validate", validate)
        code = call(train, *flags_for(train, place, out), "--epochs", "2")
    assert "unexpected" not in capsys.readouterr().err
    assert code == 0
    assert (out / "best_model_iou.pth").exists()  # though the best epoch may lie before
    assert read_checkpoint(out / "last.pth")["epoch"] == 2
    assert_whole(out)


def test_two_runs_on_one_folder_the_second_is_refused(place, tmp_path, capsys):
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from common.files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command, pipe = [sys.executable, "-c", code, str(out)], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for script in (*WRITERS, sample_data, export):
            more = ["--overwrite"] if script is sample_data else []
            assert call(script, *flags_for(script, place, out), *more) == 2
            assert f"in use by another run (process {other.pid})" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [".lock"]
        other.kill()
    # The lock of the dead process still lies there, and is no obstacle.
    assert call(evaluate, *flags_for(evaluate, place, out)) == 0


# --- Strangers ------------------------------------------------------------------------------------


def forged(place, path, change) -> Path:
    content = torch.load(place / "model.pth", weights_only=True)
    change(content)
    torch.save(content, path)
    return path


WEIGHT = "patch_embed.conv_down.0.weight"


FORGERIES = "sparse complex meta bool huge scalar names colours mean size"


@pytest.mark.parametrize("kind", FORGERIES.split())
def test_a_forged_checkpoint_is_refused_before_anything_is_allocated(place, tmp_path, kind):
    def change(content):
        state = content["model_state_dict"]
        weight = state[WEIGHT]
        if kind in ("huge", "scalar"):  # as the article's, whose classes are counted
            content.clear()
            huge = torch.zeros(1).expand(10**12, 512, 1, 1)  # four bytes in the file
            state = {"upsample_and_classify.13.weight": huge if kind == "huge" else weight.sum()}
            content["model_state_dict"] = state
        elif kind in ("sparse", "complex", "meta", "bool"):
            kinds = {"complex": torch.complex64, "meta": "meta", "bool": torch.bool}
            state[WEIGHT] = weight.to_sparse() if kind == "sparse" else weight.to(kinds[kind])
        else:
            config, classes = content["model_config"], content["classes"]
            classes["names"] = ["a\x1b[2Jb", "c"] if kind == "names" else classes["names"]
            classes["colors"] = [[0, 0, 0], [0, 0, 999]] if kind == "colours" else classes["colors"]
            config["mean"] = [math.nan] * 3 if kind == "mean" else config["mean"]
            config["input_size"] = [10**6, 10**6] if kind == "size" else config["input_size"]

    with pytest.raises(UserError, match=r"forged\.pth"):
        load_model(forged(place, tmp_path / "forged.pth", change))


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused_unread(place, tmp_path):
    with zipfile.ZipFile(place / "model.pth") as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in members.items():
            bomb.writestr(name, bytes(1 << 26) if name.endswith("data/0") else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", None)
        with pytest.raises(UserError, match="more than it holds"):
            load_model(tmp_path / "bomb.pth")


def test_records_shorter_than_their_tensors_are_refused(place, tmp_path):
    source = zipfile.ZipFile(place / "model.pth")
    with source, zipfile.ZipFile(tmp_path / "short.pth", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:4] if "/data/" in name else content)
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "short.pth")


def test_no_path_from_inside_a_checkpoint_is_written_to(place, tmp_path):
    harm = {"out_dir": str(tmp_path / "harm"), "overwrite": True, "debug": True, "epochs": 7}
    harm["data"] = "data"

    def change(content):
        content |= {"optimizer": {}, "train_args": harm}

    forged(place, tmp_path / "last.pth", change)
    args, _ = train.parse_args(["--resume", str(tmp_path / "last.pth"), "--out-dir", "mine"])
    assert (args.out_dir, args.overwrite, args.debug) == (Path("mine"), False, False)
    assert args.epochs == 7


def test_no_path_from_inside_a_cvat_export_leads_out_of_it(place, tmp_path):
    root = tmp_path / "export"
    shutil.copytree(place / "data/train_images", root / "JPEGImages")
    shutil.copytree(place / "data/train_masks", root / "SegmentationClass")
    shutil.copytree(place / "data", tmp_path / "outside")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    outside = "../../outside/valid_images/valid0"
    (lists / "train.txt").write_text(f"train0\n{outside}\n{tmp_path}/outside/valid_images/valid1\n")
    (lists / "val.txt").write_text("train1\n")
    pairs = find_pairs(root, "train")
    assert [pair.stem for pair in pairs] == ["train0"]
    (lists / "train.txt").write_text(f"{outside}\n")
    with pytest.raises(UserError, match=r"holds none of the split \w+ \(1 photograph,"):
        find_pairs(root, "train")


def test_results_of_a_list_with_dots_in_its_paths_stay_in_the_output_folder(place, tmp_path):
    (tmp_path / "in/below").mkdir(parents=True)
    path = f"{tmp_path}/in/below/../../pictures/a.png"
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    (tmp_path / "list.txt").write_text(f"{path}\n")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    flags = flags_for(inference_image, place, out)
    assert call(inference_image, *flags, "--input", tmp_path / "list.txt") == 0
    assert [p for p in sorted(tmp_path.rglob("*")) if p != out and out not in p.parents] == before
    assert (out / "a_mask.png").is_file()


def test_names_from_strangers_are_text_on_every_page(place, tmp_path):
    name = "<script>alert(1)</script>"

    def change(content):
        content["classes"]["names"] = ["ground", name]

    model = forged(place, tmp_path / "forged.pth", change)
    (tmp_path / "in").mkdir()
    shutil.copy(place / "pictures/a.png", tmp_path / 'in/"onload="x"<b>.png')
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data/labelmap.txt").write_text(f"ground:0,0,0::\n{name}:1,1,1::\n")
    out = tmp_path / "out"
    flags = flags_for(inference_image, place, out)
    assert call(inference_image, *flags, "--model", model, "--input", tmp_path / "in") == 0
    flags = flags_for(evaluate, place, out)
    assert call(evaluate, *flags, "--model", model, "--data", tmp_path / "data") == 0
    for page in ("summary.html", "report.html"):
        text = (out / page).read_text()
        assert "&lt;" in text
        assert "<script>alert" not in text
        assert '"onload="' not in text


def test_messages_show_what_would_control_a_terminal():
    assert cli.explain(UserError("a\x1b[2J\u202eb\n c.png")) == r"a\x1b[2J\u202eb c.png"


# `model.eval()` is none of these: what stands after a dot or a letter is another name.
DANGEROUS = re.compile(
    r"(?<![\w.])(os\.system|os\.popen|shell=True|eval\(|exec\(|pickle\.load|yaml\.(?!safe_load|YAML))"
)
# Who starts programs, by a list of words and never through a shell: our own scripts.
STARTS_SCRIPTS = ("page.desk", "page.training", "tools.bench_", "tools.learning_curve")


def test_no_module_runs_a_shell_or_a_strangers_code():
    for line in ("x = eval(text)", "os.system(text)", "yaml.load(text)", "run(line, shell=True)"):
        assert DANGEROUS.search(line)
    for line in ("model.eval()", "yaml.safe_load(text)"):
        assert not DANGEROUS.search(line)
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert not DANGEROUS.search(text), path
        assert name.startswith(STARTS_SCRIPTS) or not re.search(r"^import subprocess", text, re.M)


# --- What one more reading found ------------------------------------------------------------------


def test_a_mistyped_flag_beside_overwrite_costs_nothing(place, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.glob("[!.]*.*") if path.is_file()}
    for wrong in (["--data", "nowhere"], ["--weights", "nowhere.pth"]):
        assert call(train, *flags_for(train, place, out), "--overwrite", *wrong) == 2
    after = {path.name: path.read_bytes() for path in out.glob("[!.]*.*") if path.is_file()}
    assert after == before


def test_a_run_without_a_finished_epoch_is_not_offered_to_be_resumed(place, tmp_path, capsys):
    (tmp_path / "history.csv").write_text("of another program\n1\n")
    assert call(train, *flags_for(train, place, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "another program" in said
    assert "--overwrite" in said
    assert "--resume" not in said


def test_sigterm_is_answered_like_ctrl_c(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == 130
    assert "start the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "forged",
    [
        {"out-dir": "harm"},
        {"help": True},
        {"imgsz": [32, 32, "--out-dir=harm"]},
        {"lr --out-dir": "harm"},
    ],
)
def test_no_flag_hides_among_a_checkpoints_flags(forged):
    try:
        flags = as_flags(forged)
    except UserError:
        return
    assert flags == []


# Nothing that can be compared with a size; it loads as weights do.
STRANGE = {"variant": "tiny", "head": "pyramid", "input_size": torch.ones(2, 3)}


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A run of one epoch, to be copied and not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert call(train, *flags_for(train, place, out)) == 0
    return out


@pytest.fixture
def resumed(place, finished, tmp_path, capsys):
    """Go on with that run after a change of its last checkpoint; what was said of it."""

    def resume(change) -> str:
        out = shutil.copytree(finished, tmp_path / "out")
        content = torch.load(out / "last.pth", weights_only=True)
        change(content)
        torch.save(content, out / "last.pth")
        assert call(train, *flags_for(train, place, out), "--epochs", "2", "--resume") == 2
        return capsys.readouterr().err

    return resume


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_config", {}),
        ("model_config", STRANGE),
        ("history", [{}]),
        ("history", None),
        ("random_states", 3),
        ("optimizer", {}),
        ("live_model_state_dict", {}),
        ("data_fingerprint", None),
    ],
)
def test_a_run_with_a_damaged_checkpoint_is_refused(resumed, key, value):
    said = resumed(lambda content: content.update({key: value}))
    assert "unexpected" not in said
    assert "error: " in said


def test_weights_that_are_not_finite_are_not_trained_on(resumed):
    def spoil(content):
        next(iter(content["live_model_state_dict"].values()))[:] = math.nan

    assert "not finite" in resumed(spoil)


def test_lists_that_hold_each_other_are_refused_in_a_short_sentence(place, tmp_path):
    nested = ["x"]
    for _ in range(18):
        nested = [nested, nested]

    def variant(content):
        content["model_config"]["variant"] = nested

    def name(content):
        content["classes"]["names"][0] = nested

    def number(content):
        content["format"] = nested

    for change in (variant, name, number):
        with pytest.raises(UserError) as error:
            load_model(forged(place, tmp_path / "a.pth", change))
        assert len(str(error.value)) < 500


def test_names_that_are_cut_alike_are_two_results(tmp_path):
    for end in "12":
        Image.new("L", (2, 2)).save(tmp_path / f"{'n' * 250}{end}.png")
    named = find_inputs([str(tmp_path)], False)
    for kind in ("mask", "overlay"):
        assert len({result_path(Path(), name, ENDINGS[kind]) for name in named}) == 2


def test_a_videos_long_name_leaves_room_for_its_results(tmp_path):
    name = inference_video.output_stem(f"{'ä' * 125}.mp4")
    (tmp_path / f"{name}_per_frame.csv").touch()
    names = [f"{'n' * 250}{end}.mp4" for end in "12"]
    with pytest.raises(UserError, match="both be written"):
        inference_video.check_outputs(names, tmp_path)


def test_a_picture_longer_than_a_jpeg_can_be_loses_no_other(place, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "az":
        shutil.copy(place / "pictures/a.png", tmp_path / f"in/{name}.png")
    Image.new("RGB", (70_000, 1)).save(tmp_path / "in/m.png")
    flags = flags_for(inference_image, place, tmp_path / "out")
    assert call(inference_image, *flags, "--input", tmp_path / "in") == 0
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 4
    assert Image.open(tmp_path / "out/m_mask.png").size == (70_000, 1)


def test_a_mask_of_the_users_own_beside_the_photograph_is_not_replaced(place, tmp_path, capsys):
    shutil.copy(place / "pictures/a.png", tmp_path / "a.png")
    (tmp_path / "a_mask.png").write_bytes(b"mine")
    flags = flags_for(inference_image, place, tmp_path)
    assert call(inference_image, *flags, "--input", tmp_path / "a.png") == 2
    assert (tmp_path / "a_mask.png").read_bytes() == b"mine"
    assert "your own" in capsys.readouterr().err


def test_a_pattern_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pattern"):
        find_inputs([f"{tmp_path}/a**/x.png"], False)


def test_names_that_are_no_unicode_have_a_fingerprint(tmp_path):
    root = write_data(tmp_path)
    for part in ("images", "masks"):
        folder = os.fsencode(root / f"train_{part}")
        os.rename(folder + b"/train0.png", folder + b"/\xff.png")
    assert data_fingerprint(root, [find_pairs(root, "train")])


def test_a_labelmap_that_is_no_plain_file_is_refused(tmp_path):
    path = tmp_path / "labelmap.txt"
    links = [partial(path.symlink_to, target) for target in (path, "gone", "/dev/zero")]
    for make in (*links, partial(os.mkfifo, path), path.mkdir):
        make()
        with pytest.raises(UserError):
            read_class_table(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()
    voids = "".join(f"void:{i // 250},{i % 250},7::\n" for i in range(300))
    path.write_text(f"a:0,0,0::\n{voids}b:255,0,0::\n")
    with pytest.raises(UserError, match="more than 254 lines"):
        read_class_table(tmp_path)


def test_a_name_in_two_lists_of_an_export_is_a_leak(tmp_path, capsys):
    data, root = write_data(tmp_path / "data"), tmp_path / "export"
    shutil.copytree(data / "train_images", root / "JPEGImages")
    shutil.copytree(data / "train_masks", root / "SegmentationClass")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("train0\ntrain1\n")
    (lists / "val.txt").write_text("train1\ntrain2\n")
    assert check_data_set(root) == 1
    assert "another split has, too" in capsys.readouterr().out


def test_test_images_without_masks_are_reported(tmp_path, capsys):
    root = write_data(tmp_path)
    (root / "test_images").mkdir()
    shutil.copy(root / "valid_images/valid0.png", root / "test_images/t.png")
    assert check_data_set(root) > 0
    assert "1 image without a mask" in capsys.readouterr().out


def test_one_wrong_value_among_two_classes_is_found(tmp_path):
    root = write_data(tmp_path)
    masks = sorted((root / "train_masks").iterdir())
    wrong = np.array(Image.open(masks[2]))
    wrong[0, 0] = 37
    Image.fromarray(wrong).save(masks[2])
    ignored = np.array(Image.open(masks[0]))
    ignored[0] = 255
    Image.fromarray(ignored).save(masks[0])
    reader = reader_of(root)
    pairs = find_pairs(root, "train")
    assert (reader.read(pairs[0])[0] == 255).all()
    with pytest.raises(UserError, match=r"value 37 on 1 pixel;.*nearest is 'disease'"):
        reader.read(pairs[2])


def test_pairs_left_out_are_counted_and_listed(tmp_path, capsys):
    root = write_data(tmp_path)
    (root / "train_masks/train3.png").unlink()
    assert len(find_pairs(root, "train", skip_bad=True)) == 5
    assert "1 photograph without one clear mask is left out: train3.png" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cat.mp4", "ffconcat version 1.0\nfile video.mp4\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_video_that_only_names_other_files_is_refused(place, tmp_path, capsys, name, text):
    shutil.copy(place / "video.mp4", tmp_path / "video.mp4")
    (tmp_path / name).write_text(text.format(video=tmp_path / "video.mp4"))
    flags = flags_for(inference_video, place, tmp_path / "out")
    assert call(inference_video, *flags, "--input", tmp_path / name) == 2
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_one_picture_a_step_on_maps_of_one_pixel_is_refused(place, tmp_path, capsys):
    flags = flags_for(train, place, tmp_path / "out")
    assert call(train, *flags, "--batch", "1") == 2
    assert "--batch 2" in capsys.readouterr().err


def test_whole_numbers_of_any_length_are_refused_in_a_sentence():
    with pytest.raises(argparse.ArgumentTypeError):
        cli.positive_int("1" + "0" * 400)
