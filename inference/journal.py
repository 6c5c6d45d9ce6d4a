"""Pictures' results as they come, so that a run that is killed loses a moment's work and no more.

Each process appends a row a picture to a part of its own, `.results/RUN-RANK.csv`: the picture's
name, what is needed to know it again and to show it, and its row of results.csv. Its thumbnail, and
its pieces of files that cover all pictures, go to a file beside the part, before the row that says
where. A run that goes on begins new parts, so only a part's end can be torn; reading stops there.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common import distributed
from common.errors import UserError
from common.files import write_text
from common.text import printable, read_text
from reporting.gallery import Doubt, GalleryRow

FOLDER, SETTINGS = ".results", "run.json"
# Names need not be Unicode, and must come back from a part as they were.
CODEC = {"encoding": "utf-8", "errors": "surrogatepass"}

Stamp = tuple[int, int]  # a picture's time of change in nanoseconds, and its bytes


@dataclass
class Result:
    """What is kept of one finished picture beside its files.

    Args:
        row: its line of results.csv.
        card: what the gallery shows of it.
        pieces: its part of files that cover all pictures, by their kind.
        stamp: by what the picture was known when it was read.
    """

    name: str
    row: list
    card: GalleryRow
    pieces: dict[str, bytes] = field(default_factory=dict)
    stamp: Stamp | None = None


class Entry(NamedTuple):
    """Where a picture's row stands: in which part, from which byte to which."""

    part: Path
    start: int
    stop: int


def stamp_of(path: Path) -> Stamp | None:
    """By what a picture is known to be unchanged; None where it cannot be looked at."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return facts.st_mtime_ns, facts.st_size


@dataclass
class Journal:
    """The rows of one folder of results.

    Args:
        path: the folder of results.
        columns: of results.csv.
        run: how many times the work on the folder was begun.
    """

    path: Path
    columns: list[str]
    run: int = 1

    def begin(
        self, settings: dict, resume: bool, named: dict[str, Path], is_whole: Callable[[str], bool]
    ) -> dict[str, Entry]:
        """Begin anew, or go on: find the pictures that need not be done again.

        One is done when its row is whole, it has not changed since, and its files are there.

        Args:
            settings: plain values by the names of flags, which must be the same for all rows.
            named: the wanted pictures by name.
            is_whole: whether the files of the picture of that name are there.

        Raises:
            UserError: to go on, but with other settings.
        """
        settings, saved = settings | {"columns": self.columns}, self.path / FOLDER / SETTINGS
        if resume and saved.exists():
            self._check(saved, settings)
            return self._done(named, is_whole)
        saved.unlink(missing_ok=True)  # first, so that what is left is nobody's
        for path in saved.parent.glob("[0-9]*-[0-9]*.*"):  # parts, and pieces beside them
            path.unlink()
        write_text(saved, json.dumps(settings, indent=1) + "\n")
        return {}

    def append(self, result: Result) -> None:
        """Add a finished picture.

        Files are opened each time, so that a folder that is deleted meanwhile is made again.
        """
        part = self.path / FOLDER / f"{self.run:04d}-{distributed.rank()}.csv"
        part.parent.mkdir(parents=True, exist_ok=True)
        card, places = result.card, {}
        with open(_pieces_of(part), "ab") as file:
            for kind, piece in ({"thumbnail": card.thumbnail} | result.pieces).items():
                places[kind] = file.tell(), len(piece)
                file.write(piece)
        facts = {"stamp": result.stamp, "pieces": places}
        facts |= {"severity": card.severity, "shares": card.shares, "href": card.overlay_href}
        facts["doubt"] = asdict(card.doubt)
        with open(part, "ab") as file:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if not file.tell():
                writer.writerow(["name", "facts", *self.columns])
            writer.writerow([result.name, json.dumps(facts), *result.row])
            file.write(text.getvalue().encode(**CODEC))

    def added(self) -> dict[str, Entry]:
        """What all processes have added in this run."""
        parts = [part for part in self._parts() if _run_of(part) == self.run]
        return {name: entry for part in parts for entry, name, _, _ in self._read(part)}

    def row(self, entry: Entry) -> list[str]:
        """A picture's row of results.csv."""
        return _cells(entry)[2:]

    def card(self, entry: Entry) -> GalleryRow:
        """A picture's card of the gallery."""
        name, facts = _cells(entry)[:2]
        facts, thumbnail = json.loads(facts), self.piece(entry, "thumbnail")
        shown = facts["severity"], facts["shares"], thumbnail, facts["href"]
        shown += (Doubt(**facts["doubt"]),)
        return GalleryRow(printable(name), *shown)

    def piece(self, entry: Entry, kind: str) -> bytes:
        """A picture's part of a file that covers all."""
        start, length = json.loads(_cells(entry)[1])["pieces"][kind]
        return _bytes(_pieces_of(entry.part), start, start + length)

    def _check(self, saved: Path, settings: dict) -> None:
        """Refuse to go on with other settings than those of the rows."""
        try:
            then = json.loads(read_text(saved))
            changed = [name for name in settings if then.get(name) != settings[name]]
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{printable(saved)} is damaged; leave --resume out to begin anew."
            ) from error
        for name in changed:
            was, now = (printable(plain.get(name))[:60] for plain in (then, settings))
            raise UserError(
                f"{printable(self.path)}/ holds results with {name} {was}, now it is {now}; give "
                "the same, leave --resume out to begin anew, or choose another --out-dir."
            )

    def _done(self, named: dict[str, Path], is_whole: Callable[[str], bool]) -> dict[str, Entry]:
        parts, done = self._parts(), {}
        self.run = 1 + max(map(_run_of, parts), default=0)
        rows = (row for part in parts for row in self._read(part))
        for entry, name, stamp, path in tqdm(rows, "Looking at earlier results", delay=2):
            same = name in named and path == str(named[name]) and stamp == stamp_of(named[name])
            if same and is_whole(name):
                done[name] = entry
        return done

    def _parts(self) -> list[Path]:
        return sorted((self.path / FOLDER).glob("[0-9]*-[0-9]*.csv"))

    def _read(self, part: Path) -> Iterator[tuple[Entry, str, Stamp, str]]:
        """The whole rows of a part: place, name, stamp and path of the picture."""
        start = stop = 0
        line = b""

        def lines() -> Iterator[str]:
            nonlocal stop, line
            for line in file:
                stop += len(line)
                yield line.decode(**CODEC)

        pieces = _pieces_of(part)
        written = pieces.stat().st_size if pieces.exists() else 0
        with open(part, "rb") as file:
            try:
                for cells in csv.reader(lines()):
                    if not line.endswith(b"\n") or len(cells) != 2 + len(self.columns):
                        return
                    if start:  # below the head
                        facts = json.loads(cells[1])
                        if any(sum(place) > written for place in facts["pieces"].values()):
                            return
                        stamp = tuple(facts["stamp"] or ())
                        yield Entry(part, start, stop), cells[0], stamp, cells[2]
                    start = stop
            except (csv.Error, ValueError, TypeError, KeyError, AttributeError):
                return  # zeros, as a power cut leaves


def _run_of(part: Path) -> int:
    return int(part.name.split("-")[0])


def _pieces_of(part: Path) -> Path:
    return part.with_suffix(".pieces")


def _cells(entry: Entry) -> list[str]:
    text = _bytes(*entry).decode(**CODEC)
    return next(csv.reader(io.StringIO(text, newline="")))


def _bytes(path: Path, start: int, stop: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(stop - start)
