"""What was learnt of a data set's files, kept for the next start outside the data set.

The folder is `$XDG_CACHE_HOME/fastervit-segmentation`, or `~/.cache/fastervit-segmentation`; anyone
may delete it at any time, and nothing but time is lost. What lies there is data, never code, and
never trusted: whoever reads it checks it as a stranger's file.

Who keeps files of a kind of its own (masks painted from polygons, for instance) makes a folder for
them, `cache_folder() / "KIND"`, and writes each with `common.files.replacing`, so that two
processes at once do no harm. The file's name is a digest of all that its content depends on:
`file_stamp` of every source, the options, and a number that is raised when the code changes.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from tqdm import tqdm

from common.files import write_text
from common.text import printable

# Raised when what is kept of a file changes its meaning.
VERSION = 1
# Of a photograph and its mask about 300 bytes are kept: this is more than a million pairs.
MAX_BYTES = 512 * 2**20
# A file that changed this short a time before it was read may change again within one tick of the
# file system's clock, and look the same.
SETTLED_NS = 2 * 10**9

Stamp = tuple[int, int, int]


def cache_folder() -> Path | None:
    """The user's cache for this program, which may not be there yet; None where there is no home.

    A relative XDG_CACHE_HOME is ignored, as the XDG base directory specification demands.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "fastervit-segmentation"


def file_stamp(path: Path) -> Stamp:
    """Size in bytes and times of the last change of content and of entry, in nanoseconds.

    Raises:
        OSError: the file is not there.
    """
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


class FileCache:
    """What is known of files, by path, for as long as they do not change.

    Args:
        folder: from `cache_folder`; None keeps nothing beyond this object's life.
        root: the data set; each has a file of its own in the cache.
        purpose: all that the facts depend on beside the file, such as the class table.

    What is kept of a file is a plain value for JSON. Whoever gets it checks that it is what it
    ought to be, and calls it unknown if it is not.
    """

    def __init__(self, folder: Path | None, root: Path, purpose: str = ""):
        self.path = self._key = None
        self._known: dict[str, tuple[Stamp, object]] = {}
        self._used: set[str] = set()
        self._changed = False
        if folder is not None:
            place = os.fsencode(os.path.realpath(root))
            name = hashlib.blake2b(place, digest_size=16).hexdigest()
            self.path = folder / "files" / f"{name}.json"
            self._key = [VERSION, os.fsdecode(place), purpose]
            self._known = self._load()

    def get(self, path: Path) -> object | None:
        """What is known of a file as it is now, or None."""
        name = os.path.abspath(path)
        self._used.add(name)
        stamp, facts = self._known.get(name, (None, None))
        try:
            return facts if stamp is not None and stamp == file_stamp(path) else None
        except OSError:
            return None

    def put(self, path: Path, stamp: Stamp, facts: object) -> None:
        """Keep what was learnt of a file.

        Args:
            stamp: of the file, taken before it was read.
        """
        if time.time_ns() - max(stamp[1:]) > SETTLED_NS:
            self._known[os.path.abspath(path)] = stamp, facts
            self._changed = True

    def save(self) -> None:
        """Write what is new; a cache that cannot be written costs time at the next start, no more.

        Of two processes that write at once one is forgotten. Files that are gone are left out.
        """
        if self.path is None or not self._changed:
            return
        files = {
            name: entry
            for name, entry in self._known.items()
            if name in self._used or os.path.lexists(name)
        }
        try:
            write_text(self.path, json.dumps({"key": self._key, "files": files}))
        except OSError as error:
            why = error.strerror or error
            tqdm.write(f"The cache {printable(self.path)} cannot be written ({why}); going on.")
        else:
            self._changed = False

    def _load(self) -> dict[str, tuple[Stamp, object]]:
        """The entries of the cache's file; none if it is not there, of other things or damaged."""
        try:
            with open(self.path, "rb") as file:
                facts = os.fstat(file.fileno())
                if hasattr(os, "getuid") and facts.st_uid != os.getuid():
                    raise ValueError("another user's")
                if facts.st_size > MAX_BYTES:
                    raise ValueError("too large")
                content = json.loads(file.read())
            if content["key"] != self._key:
                return {}
            return {
                name: (_stamp(stamp), facts) for name, (stamp, facts) in content["files"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"[:80]
            tqdm.write(f"The cache {printable(self.path)} is not used ({printable(why)}).")
            return {}


def _stamp(plain: object) -> Stamp:
    """A stamp out of a file, or ValueError."""
    size, changed, moved = plain
    if not all(type(number) is int for number in (size, changed, moved)):
        raise ValueError("no stamp")
    return size, changed, moved
