"""What the data check knows of a data set, as the page shows it."""

from collections import Counter

import numpy as np

from common.text import agreed
from config import IGNORE_INDEX, ClassTable
from data.checks import NOTES, PROBLEMS, Finding, Record, examine_source, span, total_pixels
from page.workspace import Collection

SHOWN = 200  # findings of a kind


def describe_data(collection: Collection) -> dict:
    """Splits, classes and findings of a data set in plain types.

    Raises:
        UserError: it cannot be read at all.
    """
    source = collection.source
    records, findings = examine_source(source)
    by_path = {str(entry.path): entry.id for entry in collection.photographs.values()}
    by_path |= {
        str(pair.mask): by_path[str(pair.image)]
        for pairs in source.pairs.values()
        for pair in pairs
        if str(pair.image) in by_path
    }
    totals = [total_pixels(members) for members in records.values()]
    return {
        "reading": source.describe(),
        "splits": [_describe_split(split, members) for split, members in records.items()],
        "classes": _describe_classes(source.reader.classes, totals),
        "findings": _describe_findings(findings, by_path),
    }


def _describe_split(split: str, members: list[Record]) -> dict:
    sizes = [record.size for record in members if record.size]
    return {
        "split": split,
        "pairs": len(members),
        "width": span([width for _, width in sizes]),
        "height": span([height for height, _ in sizes]),
        "formats": dict(Counter(record.format for record in members if record.format)),
    }


def _describe_classes(table: ClassTable, totals: list[np.ndarray]) -> list[dict]:
    """Each class with its share of each split's pixels; what is ignored, where there is any."""
    entries = [*enumerate(zip(table.names, table.vis_colors, strict=True))]
    if any(pixels[IGNORE_INDEX] for pixels in totals):
        entries.append((IGNORE_INDEX, ("ignored", (128, 128, 128))))
    return [
        {
            "name": name,
            "color": list(color),
            "shares": [int(pixels[index]) / max(1, int(pixels.sum())) for pixels in totals],
        }
        for index, (name, color) in entries
    ]


def _describe_findings(findings: list[Finding], by_path: dict[str, str]) -> list[dict]:
    """The findings kind by kind, each with the id of its photograph where it has one."""
    found = []
    for kind, what in (PROBLEMS | NOTES).items():
        own = [finding for finding in findings if finding.kind == kind]
        items = [{"text": f.text, "photograph": by_path.get(str(f.path))} for f in own[:SHOWN]]
        entry = {"what": agreed(len(own), what), "problem": kind in PROBLEMS}
        entry |= {"count": len(own), "items": items}
        found += [entry] if own else []
    return found
