"""Room on the disk: what is sent here never fills it, since trainings and results need it, too."""

import shutil
from pathlib import Path

from common.errors import UserError

SPARE = 1 << 30  # bytes that stay free


class NoRoomError(UserError):
    """What comes does not fit onto the disk."""


def keep_room(folder: Path, coming: int = 0) -> None:
    """See that a disk takes what comes and has some left.

    Args:
        folder: on the disk that is meant.
        coming: bytes.

    Raises:
        NoRoomError: it does not.
    """
    free = shutil.disk_usage(folder).free
    if free - coming < SPARE:
        raise NoRoomError(
            f"The disk has {free / 2**30:.1f} GiB left, of which {SPARE >> 30} GiB stays free; "
            "remove something, or name the folder where the files lie."
        )
