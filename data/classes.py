"""The class table of a data set: labelmap.txt, as CVAT writes it, to names and colours and back."""

from pathlib import Path

import config
from common.errors import UserError
from common.text import printable, read_text
from config import RGB, ClassTable

# Names in a class table that mean "not labelled": their pixels become 255.
IGNORED_NAMES = {"void", "ignore", "ignored", "unlabel", "unlabeled", "unlabelled"}
# For classes that would be black in overlays.
SPARE_COLORS = [(255, 40, 90), (0, 160, 255), (255, 200, 0), (150, 80, 255), (0, 200, 120)]
MAX_CLASSES = 254


def read_class_table(root: Path) -> ClassTable:
    """The classes of `labelmap.txt` (lines `name:r,g,b::`), or else those of `config.py`.

    A line called void, ignore or unlabelled is no class: its pixels count nowhere.

    Raises:
        UserError: a line that cannot be read, a name or a colour used twice, fewer than two
            classes or more than 254.
    """
    path = Path(root) / "labelmap.txt"
    if not path.exists() and not path.is_symlink():
        tables = config.ALL_CLASSES, config.LABEL_COLORS_LIST, config.VIS_LABEL_MAP
        if len({len(table) for table in tables}) > 1:
            raise UserError("config.py: the three tables of classes differ in length.")
        return ClassTable.default()
    names, colors, ignored = [], [], []
    for number, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        name, color = _parse_line(text, f"{printable(path)} line {number}")
        if name in names:
            raise UserError(f"{printable(path)} has the name {name!r} twice; rename one.")
        if color in colors or color in [other for _, other in ignored]:
            raise UserError(f"{printable(path)} has the colour {color} twice; change one.")
        if name.casefold() in IGNORED_NAMES:
            ignored.append((len(names) + len(ignored), color))
        else:
            names.append(name)
            colors.append(color)
    if len(names) + len(ignored) > MAX_CLASSES:
        raise UserError(f"{printable(path)} has more than {MAX_CLASSES} lines; remove some.")
    if len(names) < 2:
        raise UserError(
            f"{printable(path)} names {len(names)} classes; 2 to {MAX_CLASSES} are needed, the "
            "background included."
        )
    return ClassTable(tuple(names), tuple(colors), _visible(colors), tuple(ignored))


def _parse_line(text: str, where: str) -> tuple[str, RGB]:
    """One line `name:r,g,b::` of a class table."""
    name, _, rest = text.strip().partition(":")
    name, numbers = name.strip(), rest.partition(":")[0].split(",")
    try:
        color = tuple(int(number) for number in numbers)
    except ValueError:
        color = ()
    if not name or len(color) != 3 or not all(0 <= value <= 255 for value in color):
        raise UserError(
            f"{where} is {printable(text.strip()[:60])!r}; write name:red,green,blue:: with "
            "numbers from 0 to 255."
        )
    if printable(name) != name:
        raise UserError(f"{where} has control characters in {printable(name)!r}; remove them.")
    return name, color


def _visible(colors: list[RGB]) -> tuple[RGB, ...]:
    """Colours for overlays: the table's own at full brightness; only the first may be black.

    Tables are made to be told apart by programs: (128, 0, 0) on a dark leaf is hard to see.
    """
    spare = [color for color in SPARE_COLORS if color not in colors]
    colors = [color if any(color) or i == 0 else spare[0] for i, color in enumerate(colors)]
    bright = [tuple(round(v * 255 / max(*color, 1)) for v in color) for color in colors]
    return tuple(bright if len(set(bright)) == len(set(colors)) else colors)


def format_class_table(classes: ClassTable) -> str:
    """The text of a labelmap.txt, without the lines that are no class."""
    lines = ["# label:color_rgb:parts:actions"]
    for name, color in zip(classes.names, classes.colors, strict=True):
        lines.append(f"{name}:{','.join(map(str, color))}::")
    return "\n".join(lines) + "\n"


def table_lines(classes: ClassTable) -> dict[int, RGB]:
    """The colour of every line of the table, of classes and of what is ignored, by its number."""
    ignored, rest = dict(classes.ignored), iter(classes.colors)
    return {
        line: ignored[line] if line in ignored else next(rest)
        for line in range(len(classes) + len(ignored))
    }
