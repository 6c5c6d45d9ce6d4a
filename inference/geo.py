"""Results of a map of any size: a mask of the same place on earth, polygons and areas.

It is never held whole: the network sees its windows, and what is kept is a band of rows.
"""

import errno
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing, write_csv
from common.text import printable
from config import IGNORE_INDEX, ClassTable
from data.formats.regions import signed_area
from data.images import encode_jpeg, shrink, write_image
from data.inputs import result_path
from inference.ground import POINTS_AT_ONCE, Ground
from inference.journal import Result
from inference.maps import BLOCK, Map, opened, rasterio_package, sampled, window_of
from inference.predictor import Predictor
from inference.results import ENDINGS, MAP_MASK, ResultFolder, count_statistics, trust_cells
from reporting.gallery import Doubt, GalleryRow
from utils import overlay

VIEW = 4096  # pixels of the longer side of an overlay
# Steps from one class to another between neighbours, up to which outlines are drawn of the whole
# map at once: each point of an outline takes 200 bytes, and a canopy can be one outline.
MAX_STEPS = 3_000_000
PART = 2048  # pixels of the side of the parts in which outlines are drawn beyond that
NOISE = 0.2  # steps a pixel from which on a mask has no outlines, but noise
POLYGONS, AREAS = "_classes.geojson", "_areas.csv"  # endings of results


@dataclass
class Counts:
    """What is counted of a map's mask while it is written.

    Args:
        pixels: of each class, (K,); those without data are in none.
        areas: square metres of each class, (K,); zeros where the ground is unknown.
        steps: from one class to another between neighbours.
    """

    pixels: np.ndarray
    areas: np.ndarray
    steps: int = 0


def segment_map(predictor: Predictor, folder: ResultFolder, name: str, path: Path) -> Result:
    """Segment a GeoTIFF in tiles at its own resolution and write what is wanted of it.

    NAME_mask.tif has the map's size, transform and CRS, and 255 where the map has no data;
    NAME_classes.geojson its polygons in WGS 84 (RFC 7946), of all classes but the first;
    NAME_areas.csv pixels and square metres. The overlay is a smaller view.

    Raises:
        UserError: rasterio is missing, the map is damaged, a result would replace a neighbour, or
            what is wanted is not written of maps.
    """
    masked = "mask" in folder.kinds
    files = {
        ending: result_path(folder.path, name, ending) for ending in (MAP_MASK, POLYGONS, AREAS)
    }
    _refuse_to_replace_neighbours(files.values(), path)
    if others := sorted(set(folder.kinds) - {"overlay", "mask"}):
        raise UserError(
            f"{printable(path)} is a map, of which overlay and mask are written; leave "
            f"{', '.join(others)} out of --save."
        )
    classes = predictor.classes
    with opened(path) as dataset:
        field, ground = Map(dataset), Ground.of(dataset)
        with replacing(files[MAP_MASK]) if masked else _scratch() as temporary:
            counts = _write_mask(temporary, field, predictor, ground)
            shown = field.view(field.view_size(VIEW))
            regions: dict[int, list[int]] = {}
            with opened(temporary) as written:
                labels = sampled(written, [1], shown.shape[:2])[0]
                if masked and (why := _no_polygons(counts, ground)):
                    tqdm.write(f"{printable(path)}: {why}, so no polygons are written.")
                    files[POLYGONS].unlink(missing_ok=True)  # of an earlier run
                elif masked:
                    whole = counts.steps <= MAX_STEPS
                    regions = _write_polygons(files[POLYGONS], written, ground, classes, whole)
        tinted = overlay(shown, labels, classes)
        _write_areas(files[AREAS], counts, ground, classes)
    href = None
    if "overlay" in folder.kinds:
        write_image(folder.file(name, "overlay"), tinted)
        href = str(result_path(Path(), name, ENDINGS["overlay"]))
    total = max(1, int(counts.pixels.sum()))  # what has no data counts nowhere
    found = {index: (len(sizes), max(sizes)) for index, sizes in regions.items()}
    counted = counts.pixels, total, found, classes, folder.mm_per_pixel
    severity, shares, figures = count_statistics(*counted)
    cells = trust_cells(severity, Doubt())  # nobody says of a map how far to trust it
    row = [str(path), field.size[1], field.size[0], *cells, *figures]
    thumbnail = encode_jpeg(shrink(tinted, 320), quality=70)
    return Result(name, row, GalleryRow(printable(name), severity, shares, thumbnail, href))


@contextmanager
def _scratch() -> Iterator[Path]:
    """A place for a mask that nobody asked to keep."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "mask.tif"


def contents(folder: ResultFolder, names: Iterable[str]) -> str:
    """What a folder holds of those of its pictures that are maps, in words; "" if none is."""
    if not any(result_path(folder.path, name, AREAS).is_file() for name in names):
        return ""
    mask = f"NAME{MAP_MASK} and, where it can be drawn, NAME{POLYGONS}"
    return f"Of maps: NAME{AREAS}{f', {mask}' if 'mask' in folder.kinds else ''}"


def _refuse_to_replace_neighbours(targets, path: Path) -> None:
    for target in targets:
        if target.exists() and target.parent.resolve() == Path(path).parent.resolve():
            raise UserError(
                f"{printable(target)} lies beside its map and may be your own; choose another "
                "--out-dir."
            )


def _no_polygons(counts: Counts, ground: Ground | None) -> str:
    """Why a mask has no polygons, in words; empty where it has them."""
    if ground is None:
        return "its coordinates lie nowhere on earth"
    pixels = int(counts.pixels.sum())
    if counts.steps > NOISE * pixels:
        return f"its classes change at {counts.steps:,} places of {pixels:,}, which is noise"
    return ""


def _write_mask(path: Path, field: Map, predictor: Predictor, ground: Ground | None) -> Counts:
    """Write a map's mask strip by strip as the network gives it, and count it."""
    source, classes = field.dataset, predictor.classes
    K, (H, W) = len(classes), field.size
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": W, "height": H}
    profile |= {"crs": source.crs, "transform": source.transform, "nodata": IGNORE_INDEX}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
    counts = Counts(np.zeros(K, np.int64), np.zeros(K))
    above = None
    with (
        rasterio_package().open(path, "w", BIGTIFF="IF_SAFER", **profile) as target,
        tqdm(total=H, desc="Segmenting a map", unit="row", delay=2, dynamic_ncols=True) as bar,
    ):
        for top, strip in _strips(predictor.tiled_bands(field), W):
            rows = slice(top, top + len(strip))
            strip[field.empty(rows)] = IGNORE_INDEX
            _put(target, strip, rows)
            counts.pixels += np.bincount(strip.ravel(), minlength=256)[:K]
            if ground is not None:
                counts.areas += ground.class_areas(strip, top, K)
            joined = strip if above is None else np.concatenate([above, strip])
            counts.steps += np.count_nonzero(joined[1:] != joined[:-1])
            counts.steps += np.count_nonzero(strip[:, 1:] != strip[:, :-1])
            above = strip[-1:]
            bar.update(len(strip))
        target.write_colormap(1, dict(enumerate(classes.colors)))
        target.update_tags(classes=", ".join(f"{i} {n}" for i, n in enumerate(classes.names)))
    return counts


def _put(target, strip: np.ndarray, rows: slice) -> None:
    """Write rows of a mask; a full disk is no fault of the map's."""
    rasterio = rasterio_package()
    try:
        target.write(strip, 1, window=window_of(rows, slice(0, strip.shape[1])))
    except rasterio.errors.RasterioError as error:
        why = "cannot be written, most likely because the disk is full"
        raise OSError(errno.EIO, why, target.name) from error


def _strips(bands, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """The classes of bands of scores (K, rows, W), in strips that fill the file's blocks.

    A block that is written in two parts is compressed twice and leaves a hole in the file.
    """
    held, first = np.empty((0, width), np.uint8), 0
    for _, band in bands:
        held = np.concatenate([held, band.max(0).indices.to("cpu").numpy().astype(np.uint8)])
        full = len(held) // BLOCK * BLOCK
        if full:
            yield first, held[:full]
            held, first = held[full:], first + full
    if len(held):
        yield first, held


def _write_polygons(
    path: Path, mask, ground: Ground, classes: ClassTable, whole: bool
) -> dict[int, list[int]]:
    """Write the outlines of all classes but the first as GeoJSON.

    Args:
        mask: an open dataset, whose zeros are left out.
        whole: whether outlines are drawn of the whole map at once, or of parts of it.

    Returns:
        how many pixels each region of a class has, nothing where parts cut them.
    """
    outlines, sizes = _outlines(mask, whole), {}
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        while chunk := _some(outlines):
            for properties, rings in _features(chunk, ground, classes):
                sizes.setdefault(properties["class_index"], []).append(properties["pixels"])
                file.write(f'{separator}{{"type": "Feature", "properties": ')
                file.write(f'{json.dumps(properties)}, "geometry": ')
                file.write('{"type": "Polygon", "coordinates": [')
                for number, ring in enumerate(rings):
                    file.write(", [" if number else "[")
                    for first in range(0, len(ring), 1000):  # json.dumps takes 500 bytes a point
                        points = (f"[{x:.9f}, {y:.9f}]" for x, y in ring[first : first + 1000])
                        file.write(", " * (first > 0) + ", ".join(points))
                    file.write("]")
                file.write("]}}")
                separator = ",\n"
        file.write("\n]}\n")
    return sizes if whole else {}


def _outlines(mask, whole: bool) -> Iterator[tuple[list[np.ndarray], int]]:
    """Polygons of a mask, each its rings (N, 2) in the CRS, the outer one first, and its class."""
    rasterio = rasterio_package()
    if whole:
        band = rasterio.band(mask, 1)
        parts = [(band, band, mask.transform)]
    else:
        windows = (
            window_of(slice(top, top + PART), slice(left, left + PART))
            for top in range(0, mask.height, PART)
            for left in range(0, mask.width, PART)
        )
        read = ((mask.read(1, window=w), mask.window_transform(w)) for w in windows)
        parts = ((labels, labels > 0, transform) for labels, transform in read)
    for labels, shown, transform in parts:
        found = rasterio.features.shapes(labels, shown, connectivity=4, transform=transform)
        for shape, label in found:
            if label != IGNORE_INDEX:
                yield [np.array(ring) for ring in shape["coordinates"]], int(label)


def _some(outlines: Iterator) -> list[tuple[list[np.ndarray], int]]:
    """The next polygons, until they have many points together."""
    taken, points = [], 0
    for rings, label in outlines:
        taken.append((rings, label))
        points += sum(map(len, rings))
        if points >= POINTS_AT_ONCE:
            break
    return taken


def _features(
    polygons: list[tuple[list[np.ndarray], int]], ground: Ground, classes: ClassTable
) -> Iterator[tuple[dict, list[np.ndarray]]]:
    """The properties of polygons and their rings on earth (longitude, latitude)."""
    rings = [ring for outline, _ in polygons for ring in outline]
    points, ends = np.concatenate(rings), np.cumsum([len(ring) for ring in rings])[:-1]
    on_earth = np.split(ground.to("EPSG:4326", *points.T), ends)
    flat = rings if ground.planar else np.split(ground.to(ground.equal_area, *points.T), ends)
    pixel, first = abs(ground.transform.determinant), 0
    for outline, label in polygons:
        mine = slice(first, first + len(outline))
        first = mine.stop
        inside, *holes = (abs(signed_area(ring)) for ring in rings[mine])
        pixels = round((inside - sum(holes)) / pixel)
        inside, *holes = (abs(signed_area(ring)) for ring in flat[mine])
        area = pixels * ground.planar if ground.planar else inside - sum(holes)
        # The outer ring runs counter-clockwise, holes clockwise (RFC 7946, section 3.1.6).
        turned = [
            ring if (signed_area(ring) > 0) == (number == 0) else ring[::-1]
            for number, ring in enumerate(on_earth[mine])
        ]
        properties = {"class": classes.names[label], "class_index": label, "pixels": pixels}
        yield properties | {"square_metres": float(f"{area:.6g}")}, turned


def _write_areas(path: Path, counts: Counts, ground: Ground | None, classes: ClassTable) -> None:
    """A table of the classes' pixels and square metres."""
    total = max(1, int(counts.pixels.sum()))
    rows = []
    counted = zip(classes.names, counts.pixels.tolist(), counts.areas, strict=True)
    for name, pixels, area in counted:
        known = ["", ""] if ground is None else [float(f"{area:.8g}"), ground.how()]
        rows.append([name, pixels, round(pixels / total, 6), *known])
    write_csv(path, ["class", "pixels", "share", "square_metres", "measured_in"], rows)
