"""What a video is read from, a file, a camera or a stream: opening it, and its name."""

import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import av

from common.errors import UserError
from common.text import printable

# Formats that name other files to be played: a stranger's could name any.
LISTS = {"concat", "hls", "dash", "imf"}


def is_live(source: str) -> bool:
    """Whether `source` is a camera or an address rather than a file."""
    return source.isdecimal() or source.startswith("video=") or "://" in source


def shown_name(source: str) -> str:
    """A source's name for people: an address without the password it may hold."""
    if source.isdecimal():
        return f"camera {source}"
    return printable(re.sub(r"(?<=://)[^/@]*@", "", source))


def output_stem(source: str) -> str:
    """The name of a source's results: a file's stem, or what names a camera or an address."""
    if not is_live(source):
        # Leaves space for the endings of the results in the 255 bytes of a name.
        return os.fsencode(Path(source).stem)[:230].decode(errors="ignore")
    if source.isdecimal():
        return f"camera{source}"
    parts = urlsplit(shown_name(source)) if "://" in source else None
    text = f"{parts.hostname or ''}_{Path(parts.path).stem}" if parts else source[len("video=") :]
    return re.sub(r"[^\w-]+", "_", text).strip("_")[:100] or "stream"


def open_source(source: str, name: str) -> av.container.InputContainer:
    """Open for reading; local files may name no other files and no network.

    Raises:
        UserError: there is nothing there, or it is no video.
    """
    live = is_live(source)
    if live:
        address, kind = _device(source)
        settings = {"format": kind, "timeout": (20, 30)}
    else:
        path = Path(source)
        if path.is_dir():
            raise UserError(f"{name} is a folder; give the videos in it by name.")
        if not path.exists():
            raise UserError(f"{name} does not exist; give the path of a video.")
        address, settings = f"file:{path}", {"options": {"protocol_whitelist": "file"}}
    try:
        container = av.open(address, metadata_errors="replace", **settings)
    except PermissionError as error:
        raise UserError(f"{name} may not be read; change its permissions.") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        fault = f"{name} cannot be opened as a video ({reason_of(error)})"
        check = "check that it is on" if live else "try whether a player can"
        raise UserError(f"{fault}; {check}.") from error
    if not live and LISTS & set(container.format.name.split(",")):
        container.close()
        raise UserError(f"{name} is a list of other files, not a video; give the videos.")
    return container


def _device(source: str) -> tuple[str, str | None]:
    """What FFmpeg opens for a camera's number or name on this system, and by which of its ways."""
    if source.isdecimal():
        if sys.platform == "darwin":
            return source, "avfoundation"
        if sys.platform == "win32":
            raise UserError(
                f"--input {source}: Windows knows cameras by name; "
                'give --input "video=NAME", the name as the Device Manager shows it.'
            )
        return f"/dev/video{source}", "v4l2"
    return source, "dshow" if source.startswith("video=") else None


def reason_of(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
