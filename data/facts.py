"""What a data set's files are, learnt in one pass: each file is decoded once, and then known.

A start of a training needs to know of every file whether it can be read, how large it is and what
occurs in it. Reading 20,000 pairs for that takes minutes, remembering it a second (see
`data.cache`).
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.text import counted
from config import ClassTable, Size
from data.cache import FileCache, cache_folder, file_stamp
from data.census import Census
from data.classes import table_lines
from data.decoding import Header
from data.images import map_files, read_mask_raw, read_picture
from data.pairs import Pair


@dataclass(frozen=True)
class Photo:
    """What is known of a photograph that can be decoded.

    Args:
        digest: of its pixels, in hexadecimal digits: whether two show the same.
    """

    header: Header
    digest: str

    @classmethod
    def read(cls, path: Path) -> "Photo":
        """Decode a photograph.

        Raises:
            UserError: it cannot be read.
        """
        image, header = read_picture(path)
        digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(image)
        return cls(header, digest.hexdigest())

    def to_plain(self) -> list:
        """A list for JSON."""
        header = self.header
        return [*header.size, header.orientation, header.format, header.mode, self.digest]

    @classmethod
    def from_plain(cls, plain: object) -> "Photo | None":
        """A photograph's facts out of a stranger's file; None if they are none."""
        try:
            height, width, orientation, *texts = plain
        except (TypeError, ValueError):
            return None
        numbers = (height, width, orientation)
        if (
            not all(type(number) is int and 0 < number < 2**31 for number in numbers)
            or orientation > 8
            or [type(text) for text in texts] != [str, str, str]
            or max(map(len, texts)) > 40
        ):
            return None
        return cls(Header(height, width, orientation, *texts[:2]), texts[2])


@dataclass(frozen=True)
class Facts:
    """What was learnt of some pairs' files.

    Args:
        photos, masks: by path; a file that cannot be used has its error in place of facts.
        new: how many files had to be read.
    """

    photos: dict[Path, Photo | UserError]
    masks: dict[Path, Census | UserError]
    new: int

    def describe(self) -> str:
        """One line: how many files there are, and how many were new."""
        count = len(self.photos) + len(self.masks)
        many = counted(count, "file|files")
        return f"{many}, {self.new} of them new or changed since they were last looked at"

    def censuses(self, pairs: Iterable[Pair]) -> dict[Path, Census]:
        """The masks of some pairs, without those that cannot be read."""
        found = {pair.mask: self.masks[pair.mask] for pair in pairs}
        return {path: fact for path, fact in found.items() if isinstance(fact, Census)}

    def size_of(self, pair: Pair) -> Size:
        """(height, width) of a photograph that can be read, as displayed."""
        return self.photos[pair.image].header.size


def learn(
    root: Path,
    pairs: Iterable[Pair],
    classes: ClassTable,
    *,
    photographs: bool = True,
    use_cache: bool = True,
) -> Facts:
    """Look into the files of some pairs, on all cores, with a bar from two seconds on.

    What is new is kept for the next start, of an interrupted pass as well.

    Args:
        photographs: look into these too, not into masks alone.
        use_cache: take what is known from the user's cache, and keep what is new there.
    """
    # Of JPEGs in colours the census counts colours of the class table.
    purpose = hashlib.blake2b(repr(table_lines(classes)).encode(), digest_size=16).hexdigest()
    cache = FileCache(cache_folder() if use_cache else None, root, purpose)
    kinds = {pair.mask: Census for pair in pairs}
    kinds |= {pair.image: Photo for pair in pairs} if photographs else {}
    found = {path: kind.from_plain(cache.get(path)) for path, kind in kinds.items()}
    new = [path for path, fact in found.items() if fact is None]

    def look(path: Path) -> Photo | Census | UserError:
        with suppress(OSError):  # reading says so in a better sentence
            stamp = file_stamp(path)
        try:
            photo = kinds[path] is Photo
            fact = Photo.read(path) if photo else Census.of(read_mask_raw(path), classes)
        except UserError as error:
            return error
        cache.put(path, stamp, fact.to_plain())
        return fact

    try:
        found |= zip(new, map_files(look, new, "Reading files that are new"), strict=True)
    finally:
        cache.save()
    masks = {path: fact for path, fact in found.items() if kinds[path] is Census}
    photos = {path: fact for path, fact in found.items() if kinds[path] is Photo}
    return Facts(photos, masks, len(new))
