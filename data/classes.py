"""The class table of a data set: labelmap.txt, as CVAT writes it, to names and colours and back."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import config
from common.errors import UserError
from common.text import counted, printable, read_text
from config import IGNORE_INDEX, RGB, ClassTable, voc_color

# Names in a class table that mean "not labelled": their pixels become 255.
IGNORED_NAMES = {"void", "ignore", "ignored", "unlabel", "unlabeled", "unlabelled"}
# For classes that would be black in overlays.
SPARE_COLORS = [(255, 40, 90), (0, 160, 255), (255, 200, 0), (150, 80, 255), (0, 200, 120)]
MAX_CLASSES = 254
WHITE = (255, 255, 255)  # means "ignored" wherever no class has it


def has_class_table(root: Path) -> bool:
    """Whether a folder brings a class table of its own."""
    return any(os.path.lexists(Path(root) / name) for name in READERS)


def read_class_table(root: Path) -> ClassTable:
    """The classes of `labelmap.txt` (lines `name:r,g,b::`), or else those of `config.py`.

    Without a labelmap.txt, Datumaro's dataset_meta.json or Roboflow's _classes.csv is read.

    A line called void, ignore or unlabelled is no class: its pixels count nowhere.

    Raises:
        UserError: a line that cannot be read, a name or a colour used twice, fewer than two
            classes or more than 254.
    """
    for name, read in READERS.items():
        if os.path.lexists(Path(root) / name):
            return read(Path(root) / name)
    tables = config.ALL_CLASSES, config.LABEL_COLORS_LIST, config.VIS_LABEL_MAP
    if len({len(table) for table in tables}) > 1:
        raise UserError("config.py: the three tables of classes differ in length.")
    return ClassTable.default()


def _read_labelmap(path: Path) -> ClassTable:
    rows = [
        (*_parse_line(text, f"{printable(path)} line {number}"), False)
        for number, text in enumerate(read_text(path).splitlines(), start=1)
        if text.strip() and not text.lstrip().startswith("#")
    ]
    return _table(rows, path)


def _table(rows: list[tuple[str, RGB, bool]], path: Path) -> ClassTable:
    """The table of lines (name, colour, whether it is a class whatever its name says)."""
    names, colors, ignored = [], [], []
    for name, color, kept in rows:
        if name in names:
            raise UserError(f"{printable(path)} has the name {name!r} twice; rename one.")
        if color in colors or color in [other for _, other in ignored]:
            raise UserError(f"{printable(path)} has the colour {color} twice; change one.")
        if name.casefold() in IGNORED_NAMES and not kept:
            ignored.append((len(names) + len(ignored), color))
        else:
            names.append(name)
            colors.append(color)
    if len(names) + len(ignored) > MAX_CLASSES:
        raise UserError(f"{printable(path)} has more than {MAX_CLASSES} lines; remove some.")
    if len(names) < 2:
        many = counted(len(names), "class|classes")
        raise UserError(
            f"{printable(path)} names {many}; 2 to {MAX_CLASSES} are needed, with the background."
        )
    return ClassTable(tuple(names), tuple(colors), visible_colors(colors), tuple(ignored))


def _read_datumaro(path: Path) -> ClassTable:
    """The classes of Datumaro's dataset_meta.json: names by number, and a colour for each."""
    try:
        content = json.loads(read_text(path))
        labels = sorted((int(number), str(name)) for number, name in content["label_map"].items())
        lines = [
            f"{name}:{','.join(map(str, content['segmentation_colors'][number]))}"
            for number, name in labels
        ]
        background = int(content.get("background_label") or 0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{printable(path)} is no class table of Datumaro; remove it or write labelmap.txt."
        ) from error
    rows = [
        (*_parse_line(line, printable(path)), number == background)
        for (number, _), line in zip(labels, lines, strict=True)
    ]
    return _table(rows, path)


def _read_roboflow(path: Path) -> ClassTable:
    """The classes of Roboflow's _classes.csv: a head, then lines of a pixel's value and a name."""
    rows: list[tuple[str, RGB, bool]] = []
    for number, text in enumerate(read_text(path).splitlines()[1:]):
        value, _, name = (part.strip() for part in text.partition(","))
        if value != str(number) or not name or printable(name) != name:
            raise UserError(
                f"{printable(path)} line {number + 2} is {printable(text[:60])!r}, not the value "
                f"{number} and a name; correct it or write labelmap.txt."
            )
        taken = [color for _, color, _ in rows]
        rows.append((name, free_color(number, taken), number == 0))
    return _table(rows, path)


# The files that may hold the table; the first that is there counts.
READERS = {
    "labelmap.txt": _read_labelmap,
    "dataset_meta.json": _read_datumaro,
    "_classes.csv": _read_roboflow,
}


def free_color(number: int, taken: list[RGB]) -> RGB:
    """Pascal VOC's colour of a number, or of the next one whose colour is not taken or white."""
    colors = map(voc_color, itertools.count(number))
    return next(color for color in colors if color not in (*taken, WHITE))


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


def visible_colors(colors: list[RGB]) -> tuple[RGB, ...]:
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
    """The colour of every line of the table, of classes and of what is none, by its number."""
    colors = {line: color for line, color, *_ in (*classes.ignored, *classes.also)}
    rest = iter(classes.colors)
    return {
        line: colors[line] if line in colors else next(rest)
        for line in range(len(classes) + len(colors))
    }


def line_targets(classes: ClassTable) -> dict[int, int]:
    """The class index of every line of the table, 255 for one that is no class."""
    targets = dict.fromkeys((line for line, _ in classes.ignored), IGNORE_INDEX)
    targets |= {line: index for line, _, index in classes.also}
    own = iter(range(len(classes)))
    return {
        line: targets[line] if line in targets else next(own)
        for line in range(len(classes) + len(targets))
    }


def merged_classes(
    classes: ClassTable, merge: Sequence[str] = (), ignore: Sequence[str] = ()
) -> ClassTable:
    """The table after some classes became one, and others none.

    Args:
        merge: as "rust,spot=disease": these become the class of that name, which may be one of the
            table or new; a new one takes the place and colour of the first of them.
        ignore: names of classes whose pixels become 255.

    Raises:
        UserError: no such class, or fewer than two are left.
    """
    lines, targets = table_lines(classes), line_targets(classes)
    name_of = {
        line: None if index == IGNORE_INDEX else classes.names[index]
        for line, index in targets.items()
    }
    for rule in merge:
        parts, _, target = rule.partition("=")
        names, target = [name.strip() for name in parts.split(",")], target.strip()
        if not target or not all(names) or printable(target) != target:
            raise UserError(f"--merge {printable(rule)!r} is no rule; write rust,spot=disease.")
        _check_known(names, name_of, "--merge")
        name_of = {line: target if name in names else name for line, name in name_of.items()}
    _check_known(ignore, name_of, "--ignore")
    name_of = {line: None if name in ignore else name for line, name in name_of.items()}
    left = list(dict.fromkeys(name for name in name_of.values() if name is not None))
    if len(left) < 2:
        many = counted(len(left), "class|classes")
        raise UserError(f"--merge and --ignore leave {many}; at least 2 are needed.")
    # A class keeps the line that bore its name before, or takes the first of those it is made of.
    before = {line: classes.names[i] for line, i in targets.items() if i != IGNORE_INDEX}
    lines_of = {name: [line for line in name_of if name_of[line] == name] for name in left}
    own = {
        name: min(of, key=lambda line, name=name: (before[line] != name, line))
        for name, of in lines_of.items()
    }
    order = sorted(left, key=own.__getitem__)
    return ClassTable(
        tuple(order),
        tuple(lines[own[name]] for name in order),
        tuple(classes.vis_colors[targets[own[name]]] for name in order),
        tuple((line, lines[line]) for line, name in name_of.items() if name is None),
        tuple(
            (line, lines[line], order.index(name))
            for line, name in name_of.items()
            if name is not None and line != own[name]
        ),
    )


def _check_known(names: Sequence[str], name_of: dict[int, str | None], flag: str) -> None:
    known = [name for name in name_of.values() if name is not None]
    for name in names:
        if name not in known:
            listed = ", ".join(dict.fromkeys(known))
            raise UserError(f"{flag}: there is no class {printable(name)!r}; there are {listed}.")
