"""A data set as one zip file: unpacked below a folder, and nothing beside it."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from common.errors import UserError

MAX_FILES = 100_000
MAX_BYTES = 4 << 30


def unpack_archive(archive: Path, target: Path) -> Path:
    """Unpack a zip file into a new folder.

    Returns:
        the folder of the data set: `target`, or the one folder that holds all of it.

    Raises:
        UserError: no zip file, one with a path or a link that leads out, or far too large a one.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            entries = [entry for entry in content.infolist() if not entry.is_dir()]
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise UserError("The archive holds more than 100,000 files or 4 GiB; unpack it.")
            for entry in entries:
                _check(entry)
            for entry in entries:
                _extract(content, entry, target / PurePosixPath(entry.filename))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        shutil.rmtree(target, ignore_errors=True)
        what = f"The archive cannot be unpacked ({error}); make it a plain zip."
        raise UserError(what) from error
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    inside = [entry for entry in target.iterdir() if entry.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _check(entry: zipfile.ZipInfo) -> None:
    """Refuse a name that leads elsewhere, on any system, and what is no file."""
    name = entry.filename
    parts = PurePosixPath(name).parts
    foreign = "\\" in name or ":" in name or "\0" in name or name.startswith("/")
    if foreign or not parts or ".." in parts or stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"The archive holds {name[:80]!r}, which leads out of it; pack it anew.")


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
