"""Nothing is half-written, and a folder belongs to one run at a time."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import files
from common.errors import UserError
from common.files import lock_folder, replacing, write_text


def test_an_error_while_writing_keeps_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "result.csv"
    write_text(path, "old\n")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the ne")
        raise RuntimeError
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_a_new_file_may_be_read_by_others_as_the_umask_says(tmp_path, monkeypatch, mask):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.delattr(os, "umask")  # another thread's file would be open to the world meanwhile
            write_text(tmp_path / "a.csv", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_temporary_file_of_a_killed_run_is_cleared_away_later(tmp_path):
    with replacing(tmp_path / "a.csv") as temporary:
        os.utime(temporary, (time.time() - 4000,) * 2)
        with lock_folder(tmp_path):
            assert not temporary.exists()
        temporary.touch()


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    write_text(path, "x")
    assert path.read_text() == "x"


def test_the_ending_stays_since_writers_choose_the_format_by_it(tmp_path):
    with replacing(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")


def test_what_a_killed_run_left_half_written_goes_an_hour_later(tmp_path):
    names = {".tmp-abcd_123.pth": 4000, ".tmp-abcd_124.pth": 10}
    names |= {".tmp-mine.pth": 4000, "model.pth": 4000}
    for name, age in names.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with lock_folder(tmp_path):
        left = sorted(path.name for path in tmp_path.glob("*.pth"))
        assert left == [".tmp-abcd_124.pth", ".tmp-mine.pth", "model.pth"]


def test_a_disk_without_locks_is_used_all_the_same(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("common.files.fcntl.lockf", refuse)
    with lock_folder(tmp_path):
        write_text(tmp_path / "a.csv", "x")
    assert "cannot be locked" in capsys.readouterr().err


def test_a_second_run_on_a_folder_is_refused_and_a_dead_ones_lock_is_no_obstacle(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from common.files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n"
        "    if os.fork(): print('held', flush=True)\n"  # the child is a worker that lives on
        "    sys.stdin.read()"
    )
    command, root = [sys.executable, "-c", code, str(tmp_path)], Path(__file__).parents[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen(command, cwd=root, start_new_session=True, **pipes)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=str(holder.pid)), lock_folder(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_refused_command_leaves_no_new_folder_but_every_old_one(tmp_path):
    def refuse(folder, *written):
        with lock_folder(folder):
            for name in written:
                (folder / name).touch()
            raise UserError("refused")

    (tmp_path / "old").mkdir()
    for folder, *written in (["new"], ["worked", "a.txt"], ["old"], ["over/it/new"]):
        with pytest.raises(UserError, match="refused"):
            refuse(tmp_path / folder, *written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "worked"]


def test_a_lock_whose_folder_was_removed_is_no_lock(tmp_path, monkeypatch):
    """What a second process finds that opened the file before the first removed it."""
    folder = tmp_path / "out"
    original = files.fcntl.lockf

    def removed_meanwhile(*call):
        (folder / ".lock").unlink()
        folder.rmdir()
        return original(*call)

    monkeypatch.setattr(files.fcntl, "lockf", removed_meanwhile)
    with pytest.raises(UserError, match="removed meanwhile"), lock_folder(folder):
        raise AssertionError("it was taken")
