"""What every module agrees on: the default classes, the label that is ignored, the normalisation.

To train on classes of your own, put a `labelmap.txt` into the data folder (see README, "Your own
data"), or edit the three tables below, as the article's readers are used to doing.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

RGB = tuple[int, int, int]
Size = tuple[int, int]  # (height, width); only --imgsz and OpenCV have the width first

# The default table, used where a data set brings no labelmap.txt.
ALL_CLASSES = ["background", "disease"]
# The colour of each class in colour masks, RGB.
LABEL_COLORS_LIST = [(0, 0, 0), (128, 0, 0)]
# The colour of each class in overlays, RGB; black leaves the photograph as it is.
VIS_LABEL_MAP = [(0, 0, 0), (255, 40, 90)]

# The target value that no loss and no metric counts.
IGNORE_INDEX = 255

# Statistics of ImageNet, RGB, for pixels scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DEFAULT_DATA = Path("input/leaf_disease_segmentation/orig_data")
DEFAULT_OUT_DIR = Path("outputs")
DEFAULT_WEIGHTS_DIR = Path("weights")


def voc_color(number: int) -> RGB:
    """Pascal VOC's colour of a number: its bits, dealt out to the highest bits of the channels."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in the order of their indices.

    Args:
        names: one name a class; their number is K, the width of the model's output.
        colors: the colour of each class in colour masks, RGB in [0, 255].
        vis_colors: the colour of each class in overlays; black leaves the photograph as it is.
        ignored: the lines of the table that are no class (void, ignore, unlabelled): each its
            line number, which is its value in index masks, and its colour. They become 255.
        also: lines of the table that were merged into a class of another line: each its line
            number, its colour, and the index of that class.
    """

    names: tuple[str, ...]
    colors: tuple[RGB, ...]
    vis_colors: tuple[RGB, ...]
    ignored: tuple[tuple[int, RGB], ...] = ()
    also: tuple[tuple[int, RGB, int], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def default(cls) -> "ClassTable":
        """The table written above in this file."""
        return cls(
            tuple(ALL_CLASSES),
            tuple(tuple(color) for color in LABEL_COLORS_LIST),
            tuple(tuple(color) for color in VIS_LABEL_MAP),
        )

    @classmethod
    def from_plain(cls, plain: dict) -> "ClassTable":
        """Rebuild a table from `to_plain`, as it travels in a checkpoint."""

        def color(values) -> RGB:
            red, green, blue = (int(value) for value in values)
            return red, green, blue

        return cls(
            tuple(str(name) for name in plain["names"]),
            tuple(color(values) for values in plain["colors"]),
            tuple(color(values) for values in plain["vis_colors"]),
            tuple((int(line), color(values)) for line, values in plain.get("ignored", ())),
            tuple(
                (int(line), color(values), int(index))
                for line, values, index in plain.get("also", ())
            ),
        )

    def to_plain(self) -> dict:
        """Lists and strings only, so that a checkpoint stays data."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "vis_colors": [list(color) for color in self.vis_colors],
            "ignored": [[line, list(color)] for line, color in self.ignored],
            "also": [[line, list(color), index] for line, color, index in self.also],
        }


@dataclass(frozen=True)
class MaskReading:
    """How the values of masks are read, as it was decided over the training's masks.

    Args:
        grey: what grey levels mean: "colours" of the class table, "indices" of its lines, or
            "binary", where any value but 0 is the second class.
        palette: what palette PNGs mean: "colours", or their "indices", read as grey levels.
        jpeg: what grey JPEGs mean: "colours", the nearest one, or "binary".
        threshold: from which level on a binary JPEG shows the second class.
    """

    grey: str = "colours"
    palette: str = "colours"
    jpeg: str = "colours"
    threshold: int = 128

    @classmethod
    def from_plain(cls, plain: dict) -> "MaskReading":
        """Rebuild a reading, as it travels in a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: there is no such reading.
        """
        reading = cls(plain["grey"], plain["palette"], plain["jpeg"], plain["threshold"])
        ways = ("colours", "indices", "binary")
        if reading.grey not in ways or {reading.palette, reading.jpeg} - set(ways):
            raise ValueError("no way to read masks")
        if type(reading.threshold) is not int or not 0 <= reading.threshold <= 255:
            raise ValueError("no threshold of masks")
        return reading


@dataclass(frozen=True)
class DataChoices:
    """What a person decides about annotations and classes; travels with a model.

    Args:
        overlap: where shapes overlap and their format does not say which one lies on top: the
            "smaller" one, or the later one in the "file".
        polygons: YOLO's lines of four corners are outlines, not turned boxes.
        merge: classes that become one, as "rust,spot=disease".
        ignore: names of classes whose pixels count nowhere.
    """

    overlap: str = "smaller"
    polygons: bool = False
    merge: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, plain: dict) -> "DataChoices":
        """Rebuild them, as they travel in a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        lists = [tuple(map(str, plain[name])) for name in ("merge", "ignore")]
        if plain["overlap"] not in ("smaller", "file"):
            raise ValueError("no rule of overlaps")
        return cls(plain["overlap"], bool(plain["polygons"]), *lists)


@dataclass(frozen=True)
class ModelConfig:
    """All that rebuilds a model and feeds it as it was trained.

    Args:
        variant: a name of `models.variants.VARIANTS`, or `timm/NAME[.TAG]`.
        head: "article" or "pyramid".
        num_classes: K, scores per pixel.
        input_size: (height, width) of the network's input in training, the default elsewhere.
        mean, std: normalisation of RGB pixels scaled to [0, 1].
        window: side of the attention windows, None for the variant's own.
        weights_licence: of the weights that the training started from, None for random ones.
        crop_side: of a model that was trained on crops, the longer side in pixels of the
            photographs (their median) at the scale at which crops were taken; None for one that
            was trained on whole photographs.
        photo_size: the longer side to which photographs are scaled before crops or tiles are taken
            of them, None for their own resolution.
        mask_reading: how the training's masks were read; None where there was nothing to decide.
        choices: what was decided about annotations and classes; None where nothing was.
    """

    variant: str = "faster_vit_0"
    head: str = "article"
    num_classes: int = 2
    input_size: Size = (512, 512)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    window: int | None = None
    weights_licence: str | None = None
    crop_side: int | None = None
    photo_size: int | None = None
    mask_reading: MaskReading | None = None
    choices: DataChoices | None = None

    def to_plain(self) -> dict:
        """Lists, strings and numbers only, so that a checkpoint stays data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
