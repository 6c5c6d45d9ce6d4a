"""A run that was killed goes on where it stopped, and ends as one that was left alone."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_model import save_tiny

import inference_image
from common.errors import UserError
from inference.journal import Journal, Result, stamp_of
from inference.pictures import read_ahead
from inference.results import ResultFolder
from reporting.gallery import GalleryRow

COLUMNS = ["file", "width", "severity"]
NAMES = ["a", "b\nc", 'd"e', "ü,f", os.fsdecode(b"g\xff")]


class Killed(BaseException):
    """What stands for SIGKILL: nothing catches it, and nobody tidies up."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture
def photos(tmp_path):
    return draw(tmp_path / "in", range(30))


def draw(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        noise = np.random.default_rng(number).integers(0, 255, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02d}.png")
    return folder


def go(model, photos, out, *flags):
    command = f"inference_image.py --device cpu --model {model} --input {photos} --out-dir {out}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command.split(), *map(str, flags)])
        return inference_image.main()


def killed_at(count, model, photos, out, *flags):
    """Run until so many rows are written, and die in the middle of the next one."""
    original, turns = Journal.append, []

    def append(journal, result):
        original(journal, result)
        turns.append(result.name)
        if len(turns) > count:
            part = max((out / ".results").glob("*.csv"))
            part.write_bytes(part.read_bytes()[:-9])
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(Killed):
            go(model, photos, out, *flags)


def counted(model, photos, out, *flags):
    """Go on; the exit code, and the names of the pictures that were segmented anew."""
    original, names = ResultFolder.write, []

    def write(folder, name, *rest):
        names.append(name)
        return original(folder, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultFolder, "write", write)
        return go(model, photos, out, "--resume", *flags), sorted(names)


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_a_run_that_is_killed_twice_ends_as_one_that_was_left_alone(model, photos, tmp_path):
    assert go(model, photos, tmp_path / "alone", "--save", "overlay", "mask", "cvat") == 0
    out, flags = tmp_path / "out", ["--save", "mask", "cvat", "overlay"]
    killed_at(7, model, photos, out, *flags)
    assert not (out / "results.csv").exists()
    killed_at(12, model, photos, out, "--resume", *flags)
    code, names = counted(model, photos, out, *flags)
    assert code == 0
    assert names == [f"{number:02d}" for number in range(7 + 12, 30)]
    one, two = content(tmp_path / "alone"), content(out)
    for files in (one, two):
        del files[".lock"], files["cvat.zip"]  # an archive notes the time
    assert one == two
    assert len(one["results.csv"].splitlines()) == 31


def test_only_what_is_new_changed_or_incomplete_is_done_again(model, photos, tmp_path):
    out = tmp_path / "out"
    go(model, photos, out)
    assert counted(model, photos, out) == (0, [])
    before = content(out)
    draw(photos, [40])
    draw(photos, [5])
    os.utime(photos / "05.png", ns=(0, 0))
    (out / "07_mask.png").unlink()
    (photos / "08.png").write_text("no picture any more")
    assert counted(model, photos, out) == (1, ["05", "07", "40"])
    assert (out / "results.csv").read_text().count("\n") == 31  # 08 has no row any more
    (photos / "08.png").unlink()
    (photos / "40.png").unlink()
    draw(photos, [8])
    assert counted(model, photos, out) == (0, ["08"])
    assert content(out)["results.csv"] == before["results.csv"]


def test_results_of_other_flags_or_another_model_are_not_mixed(model, photos, tmp_path):
    out = tmp_path / "out"
    go(model, photos, out)
    for flags, text in {
        ("--tile", "32"): "--tile None, now it is 32",
        ("--tta",): "--tta False, now it is True",
        ("--save", "mask"): r"--save \['mask', 'overlay'\]",
        ("--imgsz", "64", "32"): r"now it is \[32, 64\]",
        ("--mm-per-pixel", "0.5"): "--mm-per-pixel None",
    }.items():
        with pytest.raises(UserError, match=text):
            go(model, photos, out, "--resume", *flags)
    other = tmp_path / "model.pth"
    shutil.copy(model, other)
    assert counted(other, photos, out, "--batch", "3") == (0, [])  # the same weights elsewhere
    save_tiny(other, epoch=7)
    with pytest.raises(UserError, match=r"--model \['[0-9a-f]{20,}, now it is"):
        go(other, photos, out, "--resume")
    (out / ".results/run.json").write_text("[[[")
    with pytest.raises(UserError, match="is damaged"):
        go(model, photos, out, "--resume")
    assert go(model, photos, out) == 0  # begins anew
    assert counted(model, photos, out) == (0, [])


def test_who_interrupts_a_run_is_told_how_it_goes_on(model, photos, tmp_path, capsys):
    original, turns = Journal.append, []

    def append(journal, result):
        original(journal, result)
        turns.append(result)
        if len(turns) == 4:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        assert go(model, photos, out) == 130
    assert "The same command with --resume goes on." in capsys.readouterr().err
    code, names = counted(model, photos, out)
    assert (code, len(names)) == (0, 26)
    assert "4 of 30 pictures were finished before." in capsys.readouterr().out


@pytest.mark.parametrize(("size", "workers"), [(1, 1), (1, 4), (3, 2), (40, 4)])
def test_as_many_pictures_are_read_ahead_as_there_are_workers(size, workers):
    class Pool:
        asked = 0

        def submit(self, *_):
            self.asked += 1

    pool, seen = Pool(), 0
    for group in read_ahead([("", "")] * 50, size, workers, pool):
        assert pool.asked == min(50, seen + size + workers)
        seen += len(group)
    assert seen == 50


def filled(folder, rows=5):
    """A journal with a row of each of the strangest names, and the photographs behind them."""
    journal, named = Journal(folder, COLUMNS), {}
    journal.begin({}, False, {}, bool)
    (folder / "photo.png").write_bytes(b"1234")
    for name in NAMES[:rows]:
        named[name] = folder / "photo.png"
        card = GalleryRow(name, 0.5, [0.5, 0.5], name.encode(errors="replace"), None)
        result = Result(name, [str(named[name]), 4, 0.1], card, {"x": name[:1].encode()})
        result.stamp = stamp_of(named[name])
        journal.append(result)
    return journal, named


def test_rows_cards_and_pieces_come_back_under_any_name(tmp_path):
    journal, named = filled(tmp_path)
    entries = journal.added()
    assert list(entries) == NAMES
    for name, entry in entries.items():
        assert journal.row(entry) == [str(named[name]), "4", "0.1"]
        assert journal.card(entry).thumbnail == name.encode(errors="replace")
        assert journal.piece(entry, "x") == name[:1].encode()


def test_a_part_is_read_up_to_wherever_it_was_torn(tmp_path):
    journal, named = filled(tmp_path)
    part = tmp_path / ".results/0001-0.csv"
    whole, ends = part.read_bytes(), [entry.stop for entry in journal.added().values()]
    near = {end + step for end in ends for step in (-2, -1, 0, 1)}
    for length in sorted({*range(0, len(whole), 37), *near}):
        part.write_bytes(whole[:length])
        found = Journal(tmp_path, COLUMNS).begin({}, True, named, lambda name: True)
        assert list(found) == NAMES[: sum(end <= length for end in ends)], length
    part.write_bytes(whole[: ends[2]] + bytes(500))  # as a power cut leaves it
    assert len(journal.added()) == 3
    part.write_bytes(whole)
    pieces = part.with_suffix(".pieces")
    pieces.write_bytes(pieces.read_bytes()[:-1])
    assert len(journal.added()) == 4
    pieces.unlink()
    assert not journal.added()


def test_each_start_has_parts_of_its_own(tmp_path):
    _, named = filled(tmp_path, 2)
    again = Journal(tmp_path, COLUMNS)
    assert len(again.begin({}, True, named, lambda name: name == "a")) == 1
    assert again.run == 2
    assert not again.added()
    card = GalleryRow("n", 0.0, [], b"", None)
    again.append(Result("n", ["n", 1, 0], card, stamp=(0, 0)))
    assert list(again.added()) == ["n"]
    assert sorted(path.name for path in (tmp_path / ".results").glob("*.csv")) == [
        "0001-0.csv",
        "0002-0.csv",
    ]
