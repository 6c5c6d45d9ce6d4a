"""What the data check knows of a data set, as the page shows it."""

from collections import Counter

from config import IGNORE_INDEX
from data.checks import NOTES, PROBLEMS, examine_source, span, total_pixels
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
    totals = {split: total_pixels(members) for split, members in records.items()}
    table = source.reader.classes
    return {
        "reading": source.reader.describe(),
        "splits": [
            {
                "split": split,
                "pairs": len(members),
                "width": span([r.size[1] for r in members if r.size]),
                "height": span([r.size[0] for r in members if r.size]),
                "formats": dict(Counter(r.format for r in members if r.format)),
            }
            for split, members in records.items()
        ],
        "classes": [
            {
                "name": name,
                "color": list(color),
                "shares": [int(p[index]) / max(1, int(p.sum())) for p in totals.values()],
            }
            for index, (name, color) in [
                *enumerate(zip(table.names, table.vis_colors, strict=True)),
                (IGNORE_INDEX, ("ignored", (128, 128, 128))),
            ]
            if index != IGNORE_INDEX or any(p[index] for p in totals.values())
        ],
        "findings": [
            {
                "what": what,
                "problem": kind in PROBLEMS,
                "count": sum(finding.kind == kind for finding in findings),
                "items": [
                    {"text": finding.text, "photograph": by_path.get(str(finding.path))}
                    for finding in findings
                    if finding.kind == kind
                ][:SHOWN],
            }
            for kind, what in (PROBLEMS | NOTES).items()
            if any(finding.kind == kind for finding in findings)
        ],
    }
