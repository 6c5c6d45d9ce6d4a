"""What was learnt of files is kept while they stay as they are, and is never trusted."""

import json
import os
import threading
from pathlib import Path

import pytest

from data.cache import SETTLED_NS, FileCache, cache_folder, file_stamp


def settled(path: Path, content: str = "x") -> Path:
    """A file that changed long ago."""
    path.write_text(content)
    past = path.stat().st_mtime_ns - 10 * SETTLED_NS
    os.utime(path, ns=(past, past))
    return path


@pytest.fixture(autouse=True)
def all_settled(monkeypatch):
    """A test has no two seconds to wait for the time of an entry's change, which nobody can set."""
    monkeypatch.setattr("data.cache.SETTLED_NS", -1)


def keep(folder: Path, root: Path, path: Path, facts: object, purpose: str = "") -> FileCache:
    cache = FileCache(folder, root, purpose)
    cache.put(path, file_stamp(path), facts)
    cache.save()
    return cache


def test_facts_outlive_the_process_until_the_file_changes(tmp_path):
    path = settled(tmp_path / "a\udc80.png")
    keep(tmp_path / "cache", tmp_path, path, {"size": [3, 4]})
    assert FileCache(tmp_path / "cache", tmp_path).get(path) == {"size": [3, 4]}
    assert FileCache(tmp_path / "cache", tmp_path, "another purpose").get(path) is None
    assert FileCache(tmp_path / "cache", tmp_path / "other").get(path) is None
    same_time = path.stat().st_mtime_ns
    stamp = file_stamp(path)
    while file_stamp(path) == stamp:  # until the file system's clock has moved on
        path.write_text("y")
        os.utime(path, ns=(same_time, same_time))  # of the same size and, it says, as old
    assert FileCache(tmp_path / "cache", tmp_path).get(path) is None
    path.unlink()
    assert FileCache(tmp_path / "cache", tmp_path).get(path) is None


def test_without_a_folder_nothing_is_written(tmp_path):
    path = settled(tmp_path / "a.png")
    assert keep(None, tmp_path, path, 1).get(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cache.SETTLED_NS", 3600 * 10**9)
    path = settled(tmp_path / "a.png")
    assert keep(tmp_path / "cache", tmp_path, path, 1).get(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[" * 100_000,
        b"[1, 2]",
        b'{"key": 1}',
        b'{"files": {"a": [[1, 2, 3], 4]}}',
        b'KEY, "files": [1]}',
        b'KEY, "files": {"a": [[1, 2], 4]}}',
        b'KEY, "files": {"a": [["1", 2, 3], 4]}}',
        b'KEY, "files": {"a": 7}}',
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, capsys, content):
    path = settled(tmp_path / "a.png")
    cache = keep(tmp_path / "cache", tmp_path, path, 1)
    key = json.dumps(json.loads(cache.path.read_text())["key"])
    cache.path.write_bytes(content.replace(b"KEY", f'{{"key": {key}'.encode()))
    again = FileCache(tmp_path / "cache", tmp_path)
    assert again.get(path) is None
    assert "is not used" in capsys.readouterr().out or b'"key": 1' in content
    keep(tmp_path / "cache", tmp_path, path, 2)
    assert FileCache(tmp_path / "cache", tmp_path).get(path) == 2


def test_another_users_cache_is_ignored(tmp_path, monkeypatch, capsys):
    path = settled(tmp_path / "a.png")
    keep(tmp_path / "cache", tmp_path, path, 1)
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert FileCache(tmp_path / "cache", tmp_path).get(path) is None
    assert "another user's" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    path = settled(tmp_path / "a.png")
    assert keep(tmp_path / "cache", tmp_path, path, 1).get(path) == 1
    assert "cannot be written" in capsys.readouterr().out


def test_only_files_that_are_gone_are_forgotten(tmp_path):
    paths = [settled(tmp_path / f"{name}.png") for name in "abc"]
    cache = FileCache(tmp_path / "cache", tmp_path)
    for path in paths:
        cache.put(path, file_stamp(path), path.name)
    cache.save()
    paths[0].unlink()
    keep(tmp_path / "cache", tmp_path, paths[1], "new")
    files = json.loads(cache.path.read_text())["files"]
    assert {Path(name).name: facts for name, (_, facts) in files.items()} == {
        "b.png": "new",
        "c.png": "c.png",
    }


def test_two_writers_at_once_leave_a_whole_file(tmp_path):
    paths = [settled(tmp_path / f"{name}.png") for name in "abcd"]
    jobs = [(tmp_path / "cache", tmp_path, path, "x" * 10_000) for path in paths]
    threads = [threading.Thread(target=keep, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = FileCache(tmp_path / "cache", tmp_path)
    assert any(cache.get(path) for path in paths)
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 1


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fastervit-segmentation"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "fastervit-segmentation"
