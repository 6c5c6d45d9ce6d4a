"""What is written of segmented pictures: files of each one, and what covers all of them."""

import csv
import os
import zipfile
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing, write_csv
from common.text import listed, printable
from config import ClassTable
from data.classes import format_class_table
from data.images import encode_jpeg, shrink, write_image, write_mask
from data.inputs import result_path
from inference import annotations
from inference.journal import Entry, Journal, Result
from inference.outlines import regions_of
from metrics import SeverityTable
from reporting.gallery import Doubt, GalleryRow, write_gallery
from utils import colour_mask, draw_legend, overlay

MAX_JPEG_SIDE = 65_500  # pixels; the overlay of a longer picture is a smaller view of it
# Files of each picture: their endings, and the folders of those that must bear its plain name.
ENDINGS = dict(overlay="_overlay.jpg", mask="_mask.png", colour="_colour.png", prob="_prob.npz")
ENDINGS |= dict(labelme=".json", yolo=".txt")
FOLDERS = dict(labelme="labelme", yolo="yolo/labels")
POLYGONS = ("coco", "labelme", "yolo", "labelstudio")
KINDS = (*ENDINGS, "cvat", "coco", "labelstudio")
# What covers all pictures of a run, and is no mere view of them.
TABLES = ("results.csv", "cvat.zip", "coco.json", "labelstudio.json")
MAP_MASK = "_mask.tif"  # of a GeoTIFF, in the place of the PNG (see `inference.geo`)


@dataclass(frozen=True)
class ResultFolder:
    """The folder that results of pictures go to.

    Args:
        kinds: of `KINDS`, what is written.
        mm_per_pixel: scale of the photographs, adds areas in square millimetres; or None.
        simplify: pixels by which annotations' outlines may be off to need fewer points.
    """

    path: Path
    kinds: Collection[str]
    classes: ClassTable
    mm_per_pixel: float | None = None
    simplify: float = 0

    @property
    def columns(self) -> list[str]:
        """The head of results.csv."""
        head = ["file", "width", "height", "severity", *(field.name for field in fields(Doubt))]
        return head + statistic_names(self.classes, self.mm_per_pixel)

    @property
    def file_kinds(self) -> set[str]:
        """Of what is written, the files of each picture."""
        kinds = {"mask" if kind == "cvat" else kind for kind in self.kinds}
        return kinds & ENDINGS.keys()

    @property
    def contents(self) -> str:
        """What is in the folder once all is done, in words."""
        names = {k: str(Path(FOLDERS.get(k, ""), f"NAME{ending}")) for k, ending in ENDINGS.items()}
        names |= {"cvat": "cvat.zip", "coco": "coco.json", "labelstudio": "labelstudio.json"}
        text = listed(names[kind] for kind in KINDS if kind in self.kinds)
        if "overlay" in self.kinds:
            return text
        return f"{text}; --save with overlay draws the classes over each picture, too"

    def file(self, name: str, kind: str) -> Path:
        """Where a picture's result goes."""
        return result_path(self.path / FOLDERS.get(kind, ""), name, ENDINGS[kind])

    def is_whole(self, name: str) -> bool:
        """Whether all files of a picture are there; none ever bears its name half-written."""
        return all(
            self.file(name, kind).is_file()
            or (kind == "mask" and result_path(self.path, name, MAP_MASK).is_file())
            for kind in self.file_kinds
        )

    def refuse_to_replace_neighbours(self, named: dict[str, Path]) -> None:
        """A result must not take the place of the user's own mask beside a photograph.

        Raises:
            UserError: it would.
        """
        place = cache(_resolved)  # of a folder, once
        for name, path in named.items():
            for kind in self.file_kinds:
                target = self.file(name, kind)
                if place(target.parent) == place(path.parent) and target.exists():
                    raise UserError(
                        f"{printable(target)} lies beside its photograph and may be your own; "
                        "choose another --out-dir."
                    )

    def keep_tables_of_others(self, named: dict[str, Path]) -> str:
        """Number the tables of an earlier run that tell of other pictures than these.

        Returns:
            the name that its results.csv has now; "" where there was none to keep.
        """
        older, *_ = tables = [self.path / name for name in TABLES]
        if not older.is_file():
            return ""
        try:
            # A name that is not Unicode stands there as `write_csv` has written it.
            with open(older, encoding="utf-8", newline="") as file:
                told = {_place(line["file"]) for line in csv.DictReader(file)}
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError):
            told = {None}  # whatever that is, it is no table of these pictures
        own = (str(path).encode(errors="backslashreplace").decode() for path in named.values())
        if told <= set(map(_place, own)):
            return ""
        number = 1
        while any(_numbered(table, number).exists() for table in tables):
            number += 1
        for table in reversed(tables):  # results.csv last, so that a kill in between loses none
            if table.is_file():
                table.replace(_numbered(table, number))
        return _numbered(older, number).name

    def write(
        self,
        name: str,
        path: Path,
        image: np.ndarray,
        mask: np.ndarray,
        probabilities: np.ndarray | None,
        doubt: Doubt,
    ) -> Result:
        """Write what is wanted of one picture, and count it.

        Args:
            image: HWC uint8 RGB.
            mask: (H, W) uint8 class indices.
            probabilities: (K, H, W) float16, where they are wanted.
            doubt: how far the result can be trusted.
        """
        tinted, href = overlay(image, mask, self.classes), None
        if "overlay" in self.kinds:
            write_image(self.file(name, "overlay"), shrink(tinted, MAX_JPEG_SIDE))
            href = str(result_path(Path(), name, ENDINGS["overlay"]))
        if "mask" in self.file_kinds:
            write_mask(self.file(name, "mask"), mask, self.classes.colors)
        if "colour" in self.kinds:
            write_image(self.file(name, "colour"), colour_mask(mask, self.classes.colors))
        if probabilities is not None:
            arrays = {"probabilities": probabilities, "classes": self.classes.names}
            with replacing(self.file(name, "prob")) as temporary:
                np.savez_compressed(temporary, **arrays)
        severity, shares, figures = mask_statistics(mask, self.classes, self.mm_per_pixel)
        row = [str(path), image.shape[1], image.shape[0], *trust_cells(severity, doubt), *figures]
        thumbnail = encode_jpeg(shrink(tinted, 320), quality=70)
        card = GalleryRow(printable(name), severity, shares, thumbnail, href, doubt)
        return Result(name, row, card, self._write_polygons(name, path, mask))

    def _write_polygons(self, name: str, path: Path, mask: np.ndarray) -> dict[str, bytes]:
        """Write a picture's own annotation files; returns its part of those that cover all."""
        pieces, regions, kinds = {}, [], set(self.kinds) & set(POLYGONS)
        if kinds - {"coco"}:
            inset = annotations.INSET
            regions = list(regions_of(mask, len(self.classes), self.simplify, inset))
        if "labelme" in kinds:
            target = self.file(name, "labelme")
            annotations.write_labelme(target, regions, path, mask.shape, self.classes)
        if "yolo" in kinds:
            annotations.write_yolo(self.file(name, "yolo"), regions, mask.shape)
        if "labelstudio" in kinds:
            called = annotations.file_name(name, path)
            task = annotations.label_studio_task(regions, called, mask.shape, self.classes)
            pieces["labelstudio"] = task
        if "coco" in kinds:
            exact = list(regions_of(mask, len(self.classes), self.simplify))
            pieces["coco"] = annotations.coco_lines(exact)
        return pieces

    def write_summary(self, journal: Journal, entries: dict[str, Entry]) -> None:
        """Write what covers all pictures: results.csv, legend.png, summary.html, annotations.

        Args:
            entries: the pictures' rows in the journal by name, in the order of the inputs.
        """
        rows = map(journal.row, _shown(entries.values(), "Writing results.csv"))
        write_csv(self.path / "results.csv", self.columns, rows)
        canvas = np.full((40 + 36 * len(self.classes), 480, 3), 60, np.uint8)
        write_image(self.path / "legend.png", draw_legend(canvas, self.classes))
        self._write_annotations(journal, entries)
        write_gallery(
            self.path / "summary.html",
            title="Segmented pictures",
            classes=self.classes,
            rows=map(journal.card, _shown(entries.values(), "Collecting the gallery")),
            note=SeverityTable.of(self.classes.names).describe(self.classes.names),
        )

    def _write_annotations(self, journal: Journal, entries: dict[str, Entry]) -> None:
        """Write the files of annotations that cover all pictures."""
        if "cvat" in self.kinds:
            self._write_cvat(list(entries))
        if "yolo" in self.kinds:
            annotations.write_yolo_table(self.path / "yolo/data.yaml", self.classes)
        if "labelstudio" in self.kinds:
            path = self.path / "labelstudio.json"
            shown = _shown(entries.values(), f"Writing {path.name}")
            tasks = (journal.piece(entry, "labelstudio") for entry in shown)
            annotations.write_label_studio(path, self.classes, tasks)
        if "coco" in self.kinds:
            rows = ((name, journal.row(entry)) for name, entry in entries.items())
            pictures = (
                (annotations.file_name(name, Path(path)), (int(height), int(width)))
                for name, (path, width, height, *_) in rows
            )
            shown = _shown(entries.values(), "Writing coco.json")
            lines = (journal.piece(entry, "coco") for entry in shown)
            annotations.write_coco(self.path / "coco.json", self.classes, pictures, lines)

    def _write_cvat(self, names: list[str]) -> None:
        """All masks in the layout of CVAT's "Segmentation mask 1.1"."""
        path, shown = self.path / "cvat.zip", [printable(name) for name in names]
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr("labelmap.txt", format_class_table(self.classes))
            lines = "".join(f"{name}\n" for name in shown)
            archive.writestr("ImageSets/Segmentation/default.txt", lines)
            for name, printed in zip(_shown(names, "Writing cvat.zip"), shown, strict=True):
                archive.write(self.file(name, "mask"), f"SegmentationClass/{printed}.png")


def _place(path: str) -> str:
    """A path as results.csv tells it, wherever it was told from."""
    return os.path.abspath(path)


def _resolved(folder: Path) -> Path:
    """Where a folder really lies; itself where it is none at all, as lists may hold."""
    try:
        return folder.resolve()
    except (OSError, ValueError, RuntimeError):
        return folder


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}_{number}")


def _shown(items: Collection, what: str) -> Iterable:
    """The items below a bar, which shows where there are many."""
    return tqdm(items, what, unit="picture", delay=2)


def trust_cells(severity: float, doubt: Doubt) -> list[float | str]:
    """The cells of results.csv for a severity and how far to trust it, empty where not known."""
    values = (severity, *astuple(doubt))
    return ["" if value is None or value != value else round(value, 6) for value in values]


def statistic_names(classes: ClassTable, mm_per_pixel: float | None) -> list[str]:
    """What the figures of `mask_statistics` are called."""
    figures = ["pixels", "share", "share_of_foreground", "regions", "largest_region"]
    figures += ["mm2"] if mm_per_pixel else []
    return [f"{figure}_{name}" for name in classes.names for figure in figures]


def mask_statistics(
    mask: np.ndarray, classes: ClassTable, mm_per_pixel: float | None
) -> tuple[float, list[float], list[float]]:
    """Count a mask (H, W).

    Returns:
        the last symptom's severity (see `SeverityTable`), NaN without one; each class's share of
        the picture; the figures, class after class.
    """
    pixels = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    regions = {index: (0, 0) for index in range(len(classes))}
    for index in np.flatnonzero(pixels).tolist():
        areas = cv2.connectedComponentsWithStats((mask == index).view(np.uint8))[2][1:, -1]
        regions[index] = len(areas), int(areas.max())
    return count_statistics(pixels, mask.size, regions, classes, mm_per_pixel)


def count_statistics(
    pixels: np.ndarray,
    total: int,
    regions: dict[int, tuple[int, int]],
    classes: ClassTable,
    mm_per_pixel: float | None,
) -> tuple[float, list[float], list]:
    """As `mask_statistics`, of what was counted.

    Args:
        pixels: of each class, (K,).
        total: pixels of the picture.
        regions: how many a class has and the pixels of its largest, where they are known.
    """
    foreground = int(pixels[1:].sum())
    row: list = []
    for index, count in enumerate(pixels.tolist()):
        of_foreground = count / foreground if index and foreground else 0.0
        row += [count, round(count / total, 6), round(of_foreground, 6)]
        row += regions.get(index, (None, None))
        row += [float(f"{count * mm_per_pixel**2:.6g}")] if mm_per_pixel else []
    severity = round(float(SeverityTable.of(classes.names).severity(pixels)), 6)
    return severity, (pixels / total).tolist(), row
