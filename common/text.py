"""Text from strangers: read in whatever encoding it has, shown so that no terminal obeys it."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError


def printable(name: object) -> str:
    """A name from a stranger's file as it may be printed: control characters are escaped."""
    return "".join(
        char if unicodedata.category(char)[0] != "C" else char.encode("unicode_escape").decode()
        for char in str(name)
    )


def listed(names: Iterable[object], most: int = 10) -> str:
    """Names as a sentence lists them, `a, b and c`; of more than `most` the first and a number."""
    names = [printable(name) for name in names]
    if len(names) > most:
        names[most - 1 :] = [f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def first_few(lines: Sequence[str], most: int = 5) -> list[str]:
    """The first lines of a list and, where there are more, one that says how many."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return [*lines[:most], *more]


def first_of(problems: Sequence[object], remedy: str = "") -> str:
    """The first of some sentences, how many there are, and what helps against all of them."""
    rest = [f"It is the first of {len(problems)}"] if len(problems) > 1 else []
    rest += [remedy] if remedy else []
    return f"{problems[0]} {'; '.join(rest)}." if rest else str(problems[0])


def agreed(count: int, words: str) -> str:
    """Words that fit a number: of "picture|pictures is|are" the first ones for 1.

    Args:
        words: this program's own; in a stranger's there could be such a mark.
    """
    return re.sub(r"(\w+)\|(\w+)", lambda both: both[1 if count == 1 else 2], words)


def counted(count: int, words: str) -> str:
    """A number with words that fit it, as `agreed` chooses them."""
    return f"{count} {agreed(count, words)}"


def read_text(path: Path) -> str:
    """The text of a small file in UTF-8, with or without a mark, or in Latin-1, which takes all."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{printable(path)} is a device or a pipe, not a list; replace it.")
        if path.stat().st_size > 1 << 24:
            raise UserError(f"{printable(path)} is far too large for a list; replace it.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read ({error.strerror}).") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
