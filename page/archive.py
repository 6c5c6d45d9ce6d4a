"""A data set as one zip file: unpacked into a folder whole or not at all, and nothing beside it."""

import errno
import lzma
import os
import secrets
import shutil
import stat
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from common.errors import UserError
from page.room import keep_room
from page.workspace import free_name

MAX_FILES = 100_000
MAX_BYTES = 4 << 30
# What an archive that is damaged, or made to do harm, is answered with: names in it may be empty or
# no text, its places lie nowhere, and a file may be in the place of another one, or of a folder.
DAMAGES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)
DAMAGES += (EOFError, ValueError, IndexError, OSError)
FULL = (errno.ENOSPC, errno.EDQUOT)
_naming = threading.Lock()  # two archives of one name may be done at the same moment


def unpack_archive(archive: Path, target: Path) -> Path:
    """Unpack a zip file into a new folder: `target`, or beside it where that is taken by then.

    Returns:
        the folder of the data set: the new one, or the one folder in it that holds all of it.

    Raises:
        UserError: no zip file, one with a path or a link that leads out, or far too large a one.
    """
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as content:
            entries = _entries(content)
            keep_room(temporary, sum(entry.file_size for entry in entries))
            for entry in entries:
                _extract(content, entry, temporary / PurePosixPath(entry.filename))
        with _naming:
            target = free_name(target.parent, target.name)
            os.replace(temporary, target)
    except DAMAGES as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        what = "The archive is damaged, encrypted or no archive; make it a plain zip."
        raise UserError(what) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    inside = [entry for entry in target.iterdir() if entry.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _entries(content: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files that an archive lists, looked through before the first is unpacked."""
    entries = [entry for entry in content.infolist() if not entry.is_dir()]
    if not entries:
        raise UserError("The archive holds no file; pack the folder with the photographs.")
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise UserError("The archive holds more than 100,000 files or 4 GiB; unpack it.")
    for entry in entries:
        _check(entry)
    return entries


def _check(entry: zipfile.ZipInfo) -> None:
    """Refuse a name that leads elsewhere, on any system, and what is no file."""
    name = entry.filename
    parts = PurePosixPath(name).parts
    foreign = "\\" in name or ":" in name or "\0" in name or name.startswith("/")
    if foreign or not parts or ".." in parts or stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"The archive holds {name[:80]!r}, which leads out of it; pack it anew.")
    if len(name) > 1000 or any(len(part.encode()) > 255 for part in parts):
        raise UserError(
            f"The archive holds the name {name[:80]!r}…, which is too long; shorten it."
        )


def _extract(content: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """One file, of no more bytes than the archive's list announced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with content.open(entry) as source, open(path, "xb") as file:
        while chunk := source.read(min(1 << 20, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise UserError(f"The archive holds more of {entry.filename[:80]!r} than it says.")
            file.write(chunk)
