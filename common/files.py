"""Writing files so that nothing is ever half-written: temporary name, flush, rename."""

import csv
import errno
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TextIO

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks; two runs on one folder are not noticed there
    fcntl = None
TAKEN = (errno.EACCES, errno.EAGAIN)  # what a lock that another process holds is answered with
MEANWHILE = "{}/ was removed meanwhile; start the command again."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name of `path`, whole.

    Until then the old file stays, and on any error the temporary one is removed. The data reaches
    the disk before the rename, so that a power cut leaves either the old file or the new one.
    The temporary name keeps the ending, because writers choose the format by it.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short prefix: the final name may already be as long as the file system allows. Not mkstemp,
    # whose files nobody else in a shared folder may read: this one has the mode of any new file.
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}{path.suffix}")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        ours = isinstance(error, OSError) and temporary.name in str(error.filename or "")
        unnamed = type(error) is OSError and error.filename is None  # as a full disk's is
        if ours or unnamed:
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, str(path)) from error  # the name the user knows
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing(path) as temporary:
        # File names need not be Unicode; one that is not must not cost all other lines.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: Path, head: Iterable, rows: Iterable[Iterable]) -> None:
    """Write a table whole or not at all, a head above its rows, which may come one at a time."""
    with (
        replacing(path) as temporary,
        # As in `write_text`: a name that is not Unicode must not cost all other lines.
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def without_nan(metrics: dict) -> dict:
    """None where a figure does not exist: JSON knows no NaN."""

    def plain(value):
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in metrics.items()}


@contextmanager
def lock_folder(folder: Path, mine: bool = True) -> Iterator[str]:
    """Keep a folder for one process while the block runs; not `mine`: another one of us does.

    The system drops the lock with the process that holds it, so a killed run blocks nobody: it is a
    lock of the process, which its children do not inherit, as they would one of the open file.
    A folder that was made here and in which nothing was written goes again when the block fails:
    a refused command leaves nothing behind.

    Yields:
        a text that the lock's file holds for as long, and no other file does; empty if not `mine`.

    Raises:
        UserError: another process holds it, or a file is in its place.
    """
    if not mine:
        yield ""
        return
    missing = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} is or lies in a file, not a folder; choose another --out-dir."
        ) from error
    with _opened(folder / ".lock") as file:
        _lock(file, folder)
        text = f"{os.getpid()} {secrets.token_hex(8)}\n"
        file.truncate(0)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        _remove_leftovers(folder)
        # Nobody here may open the file again: closing it anywhere would drop the lock.
        try:
            yield text
        except BaseException:
            if missing:
                _remove_unused(folder, missing)
            raise


def _remove_unused(folder: Path, made: list[Path]) -> None:
    """Remove a folder in which nothing but the lock lies, which is still held.

    Args:
        made: it and those above it that were made for it, the deepest first.
    """
    with suppress(OSError):  # something lies there, or the system (Windows) keeps open files
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            for path in made:
                path.rmdir()


def _opened(path: Path) -> TextIO:
    try:
        return open(path, "a+")
    except FileNotFoundError as error:  # a refused run has just removed its folder
        raise UserError(MEANWHILE.format(path.parent)) from error


def _lock(file: TextIO, folder: Path) -> None:
    """Take the lock.

    Raises:
        UserError: another process holds it, or has just removed the folder with it.
    """
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in TAKEN:  # some network disks have no locks
            print(f"{folder}/ cannot be locked: keep other runs away.", file=sys.stderr)
            return
        file.seek(0)
        owner = file.read(20).split()[:1]
        raise UserError(
            f"{folder}/ is in use by another run (process {' '.join(owner)}); wait for it, or "
            "choose another --out-dir."
        ) from error
    path = folder / ".lock"
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        raise UserError(MEANWHILE.format(folder))


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-written; an hour is more than any write takes."""
    for path in folder.glob(".tmp-*"):
        with suppress(OSError):
            ours = re.fullmatch(r"\.tmp-[a-z0-9_]{8}(\.\w+)?", path.name)
            if ours and time.time() - path.stat().st_mtime > 3600:
                path.unlink()
