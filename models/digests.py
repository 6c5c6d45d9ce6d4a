"""The SHA-256 of files of weights, by which two people know that they have the same."""

import hashlib
from pathlib import Path

from common.errors import UserError
from common.files import replacing
from config import DEFAULT_WEIGHTS_DIR


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_digest(path: Path) -> str:
    """The file's SHA-256, kept beside it from its first use on, so that a change is noticed.

    Raises:
        UserError: the file is not the one that was used first.
    """
    digest, record = sha256(path), path.with_name(path.name + ".sha256")
    if record.is_file():
        first = record.read_text(encoding="utf-8", errors="replace").split()[:1]
        if first != [digest]:
            raise UserError(
                f"{path} is not the file that was first used: its SHA-256 is {digest[:16]}…, and "
                f"{record} says {first}; delete {record} if you changed the file yourself."
            )
    elif path.parent.resolve() == DEFAULT_WEIGHTS_DIR.resolve():
        try:
            with replacing(record) as temporary:
                temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
        except OSError as error:  # a folder that many share may be closed to writing
            why = f"{record} cannot be written ({error.strerror})"
            print(f"{why}: a change of the file would not be noticed.")
    return digest
