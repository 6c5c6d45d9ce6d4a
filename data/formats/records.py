"""What every annotation format comes to: pictures, and the shapes that were drawn on each."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.text import printable
from config import RGB, Size
from data.formats.regions import Region


@dataclass(frozen=True)
class Shape:
    """One annotated area.

    Args:
        label: the class's name as the file has it.
        where: which annotation it is, for a sentence about it.
    """

    label: str
    region: Region
    where: str


@dataclass
class Picture:
    """A photograph with what was drawn on it.

    Args:
        path: of the photograph.
        file: the file that holds its annotations.
        shapes: in the file's order; the last lies on top.
        boxes: around things that have no outline: something is there, but nobody knows which
            pixels. What no shape covers of them is neither taught nor measured.
        size: (height, width) that the file says the photograph has; None where it says nothing.
        split: "train", "valid", "test", or None where the source has no splits.
    """

    path: Path
    file: Path
    shapes: list[Shape] = field(default_factory=list)
    boxes: list[Region] = field(default_factory=list)
    size: Size | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        """Both files, for sentences."""
        return f"{printable(self.file)}, picture {printable(self.path.name)}"


@dataclass
class Annotations:
    """All that was read of a source.

    Args:
        format: its name as people say it.
        ordered: whether the format says which shape lies on top: the later one.
        names: of the classes, without the background, in the source's order.
        colors: of those classes to which the source gives one.
        pictures: that can be used.
        boxes_only: pictures that only have boxes, which say nothing about pixels: left out.
        problems: about each picture that cannot: the file with the fault, and a sentence.
        counts: how often something happened that is no error, by words that `counted` takes.
        remarks: what else a person should know.
    """

    format: str
    ordered: bool
    names: list[str] = field(default_factory=list)
    colors: dict[str, RGB] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    boxes_only: list[Picture] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def add_names(self, names) -> None:
        """Append those classes that are not known yet; two of one name are one class."""
        for name in names:
            if name not in self.names:
                self.names.append(name)

    def add_picture(self, picture: Picture, other: int = 0) -> None:
        """Keep a picture, unless boxes are all that it has: what they hold is no background.

        Args:
            other: annotations that are no areas: points, lines, tags.
        """
        self.counts["point|points, line|lines or tag|tags (no areas)"] += other
        if picture.boxes and not picture.shapes:
            self.boxes_only.append(picture)
            return
        what = "box|boxes without an outline: what no outline covers of it|them counts nowhere"
        self.counts[what] += len(picture.boxes)
        self.pictures.append(picture)

    def add_problem(self, file: Path, where: str, error: UserError) -> None:
        """Note why a picture is left out, in one sentence with its place."""
        text = str(error) if where in str(error) else f"{where}: {error}"
        self.problems.append((file, text if text.endswith(".") else f"{text}."))

    @contextmanager
    def picture(self, file: Path, where: str) -> Iterator[None]:
        """What goes wrong with a picture costs this picture, and is told with its place."""
        try:
            yield
        except UserError as error:
            self.add_problem(file, where, error)


@contextmanager
def annotation(where: str) -> Iterator[None]:
    """Tell with an error which annotation it was."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}; correct or remove it.") from error
