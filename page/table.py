"""The table of a collection: what was predicted of each photograph, or counted if it was painted.

A mask that was corrected is counted as a predicted one is. It is right as far as a person can say,
so it has no interval and no confidence. How unlike the training its photograph is stays as it was.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from common.files import write_csv, write_text
from common.text import printable
from config import ClassTable
from data.images import image_size
from page.corrections import Corrections, read_labels
from page.workspace import Collection, Photograph

OF_PREDICTIONS = ("confidence", "severity_low", "severity_high")
Line = tuple[Photograph, dict[str, str] | None, dict[str, float] | None]


class Table:
    """Tells the rows to the page and writes them as a file.

    Args:
        kept: folder for what was counted, so that no mask is read twice.
    """

    def __init__(self, corrections: Corrections, kept: Path):
        self.corrections, self.kept = corrections, kept

    def rows(self, collection: Collection) -> list[dict]:
        """A row for each photograph: what is known of it, and its figures if it has any."""
        return list(self._rows(collection, list(collection.photographs.values())))

    def row(self, collection: Collection, photograph: Photograph) -> dict:
        """The row of one photograph."""
        return next(self._rows(collection, [photograph]))

    def _rows(self, collection: Collection, wanted: Iterable[Photograph]) -> Iterator[dict]:
        places = {name: place for place, name in enumerate(collection.look_first())}
        for entry, predicted, counted in self._lines(collection, wanted):
            figures = _numbers(predicted or {})
            if counted is not None:
                kept = figures.items() if counted else ()
                figures = {n: v for n, v in kept if n not in OF_PREDICTIONS} | counted
            yield {
                "id": entry.id,
                "name": printable(entry.path.stem if entry.split else entry.name),
                "split": entry.split,
                "corrected": counted is not None,
                "segmented": predicted is not None,
                "rank": places.get(entry.name),
                "figures": figures,
            }

    def write(self, collection: Collection) -> Path:
        """Write results.csv as the page shows it; its last column says what was corrected."""
        head, table = ["file", "width", "height"], []
        for entry, predicted, counted in self._lines(collection, collection.photographs.values()):
            line = dict(predicted or {})
            if counted is not None and not (predicted and counted):
                height, width = image_size(entry.path)
                line = {"file": str(entry.path), "width": width, "height": height}
            if counted is not None:
                line |= dict.fromkeys(OF_PREDICTIONS, "") | counted
            if line:
                head += [name for name in line if name not in head]
                table.append(line | {"corrected": "no" if counted is None else "yes"})
        head.append("corrected")
        rows = ([line.get(name, "") for name in head] for line in table)
        write_csv(path := collection.home / "results.csv", head, rows)
        return path

    def _lines(self, collection: Collection, wanted: Iterable[Photograph]) -> Iterator[Line]:
        """Of each photograph what was predicted, and what was counted of its correction."""
        predicted, classes = collection.figures(), collection.classes
        copies = self.corrections.copies(classes) if classes else {}
        for entry in list(wanted):
            painted = classes and self.corrections.find(entry.path, classes, copies)
            counted = self._count(painted, classes) if painted else None
            yield entry, predicted.get(entry.id), counted

    def _count(self, mask: Path, classes: ClassTable) -> dict[str, float]:
        """The figures of a mask that was painted, by the names of results.csv.

        None are known of one that cannot be read: it does not keep the others from being seen.
        """
        facts = mask.stat()
        kept, stamp = self.kept / mask.parents[1].name / f"{mask.stem}.json", facts.st_mtime_ns
        with suppress(OSError, ValueError, KeyError, TypeError):  # it is counted anew
            known = json.loads(kept.read_text(encoding="utf-8"))
            if known["stamp"] == stamp:
                return known["figures"]
        from inference.results import mask_statistics, statistic_names  # they bring matplotlib

        try:
            labels = read_labels(mask)
        except UserError:
            return {}
        severity, _, row = mask_statistics(labels, classes, None)
        names = statistic_names(classes, None)
        figures = {} if severity != severity else {"severity": severity}  # NaN: no symptom
        figures |= dict(zip(names, row, strict=True))
        write_text(kept, json.dumps({"stamp": stamp, "figures": figures}))
        return figures


def _numbers(row: dict[str, str]) -> dict[str, float | str]:
    """The figures of a line of results.csv, numbers as numbers."""
    figures = {}
    for name, text in row.items():
        if name in ("file", "width", "height") or text in (None, ""):
            continue
        try:
            figures[name] = float(text)
        except ValueError:
            figures[name] = text
    return figures
