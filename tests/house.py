"""The house as the tests see it: every module of the product, wherever it lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_PRODUCT = {"tests", "input", "outputs", "weights", "docs"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name and path of each module below `root`, packages by the name of their folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in NOT_PRODUCT or any(part.startswith(".") for part in parts):
            continue
        found[".".join(parts).removesuffix(".__init__")] = path
    return found
