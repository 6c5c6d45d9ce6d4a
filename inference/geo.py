"""Maps: GeoTIFFs of any size, read by windows and written back as masks of the same place on earth.

A drone's map of a field has a hundred times as many pixels as a photograph. It is never held whole:
the network sees its windows, and what is kept is a band of rows. rasterio, which reads and writes
them, is optional (`requirements-geo.txt`) and imported only where a map is met.
"""

import errno
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import TiffImagePlugin
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing, write_csv
from common.text import printable
from config import IGNORE_INDEX, ClassTable, Size
from data.formats.regions import signed_area
from data.images import encode_jpeg, shrink, spread_12_bits, to_8_bits, write_image
from data.inputs import result_path
from inference.journal import Result
from inference.predictor import Predictor
from inference.results import ENDINGS, MAP_MASK, ResultFolder, trust_cells
from metrics import SeverityTable
from reporting.gallery import Doubt, GalleryRow
from utils import overlay

GEO_KEYS, PIXEL_SCALE, TIE_POINTS, MATRIX = 34735, 33550, 33922, 34264  # tags of GeoTIFF 1.1
BLOCK = 256  # side of the blocks in which masks are stored
CACHE_MIB = 96  # of GDAL: the rows of a wide map that its windows share
VIEW = 4096  # pixels of the longer side of an overlay
SAMPLE = 1024  # pixels of the longer side of the view that tells how bright a map is
MAX_WIDTH, MAX_HEIGHT = 200_000, 1_000_000  # a header may claim any number in a few bytes
# Steps from one class to another between neighbours, up to which outlines are drawn of the whole
# map at once: each point of an outline takes 200 bytes, and a canopy can be one outline.
MAX_STEPS = 3_000_000
PART = 2048  # pixels of the side of the parts in which outlines are drawn beyond that
NOISE = 0.2  # steps a pixel from which on a mask has no outlines, but noise
# The projection keeps areas nearly enough to count its pixels: UTM's are off by 0.2 % at most.
FAITHFUL = 0.01
LATTICE = 64  # pixels between the places where the size of a pixel on the ground is computed
POINTS_AT_ONCE = 100_000
POLYGONS, AREAS = "_classes.geojson", "_areas.csv"  # endings of results


def is_map(path: Path) -> bool:
    """Whether a file is a TIFF that says where on earth it lies; what cannot be read is none."""
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            head = file.read(16)
            if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return False
            tags = TiffImagePlugin.ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
            file.seek(tags.next)
            tags.load(file)
            return GEO_KEYS in tags and (MATRIX in tags or {PIXEL_SCALE, TIE_POINTS} <= {*tags})
    except Exception:  # whatever a damaged header provokes: the reader of pictures names it
        return False


def rasterio_package():
    try:
        import rasterio
        import rasterio.features
        import rasterio.warp
    except ImportError as error:
        raise UserError(
            "This TIFF is a map, which needs a package: pip install -r requirements-geo.txt"
        ) from error
    return rasterio


@contextmanager
def _opened(path: Path) -> Iterator:
    """Open a GeoTIFF, and nothing that it or its neighbours may point to.

    Raises:
        UserError: it is damaged, or claims a size beyond all maps.
    """
    rasterio = rasterio_package()
    from rasterio._err import CPLE_BaseError  # what GDAL says where rasterio has no word of its own

    settings = {"GDAL_CACHEMAX": CACHE_MIB, "GDAL_PAM_ENABLED": "NO", "PROJ_NETWORK": "OFF"}
    settings |= {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    try:
        with (
            rasterio.Env(**settings),
            rasterio.open(Path(path).resolve(), driver="GTiff") as dataset,
        ):
            if dataset.width > MAX_WIDTH or dataset.height > MAX_HEIGHT:
                raise UserError(
                    f"{printable(path)} claims {dataset.width}x{dataset.height} px, more than "
                    f"{MAX_WIDTH}x{MAX_HEIGHT}; cut it into several."
                )
            yield dataset
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, CPLE_BaseError) as error:
        reason = printable(" ".join(str(error).split())[:120])
        raise UserError(
            f"{printable(path)} is damaged or no GeoTIFF that can be read ({reason}); replace it."
        ) from error


class Map:
    """A GeoTIFF as an array HWC uint8 RGB, whose slices are read when they are asked for.

    Bands that call themselves red, green and blue, or else the first three, or one grey one.
    Numbers of more than 8 bits are scaled as `read_image` does, by a view of the whole map.
    """

    def __init__(self, dataset):
        self.dataset = dataset
        self.shape = (dataset.height, dataset.width, 3)
        names = [color.name for color in dataset.colorinterp]
        rgb = [names.index(name) + 1 for name in ("red", "green", "blue") if name in names]
        self._bands = rgb if len(rgb) == 3 else [1, 2, 3] if dataset.count >= 3 else [1]
        self._top = 0.0
        if dataset.dtypes[0] != "uint8":
            size = self.view_size(SAMPLE)
            sample = _sampled(dataset, self._bands, size)
            self._top = float(np.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0).max())

    @property
    def size(self) -> Size:
        return self.shape[:2]

    def view_size(self, longest: int) -> Size:
        """The (height, width) of a view whose longer side has at most so many pixels."""
        scale = min(1, longest / max(self.size))
        return max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (
            slice(*part.indices(side)[:2]) for part, side in zip(place, self.size, strict=True)
        )
        return self._rgb(self.dataset.read(self._bands, window=_window(rows, columns)))

    def view(self, size: Size) -> np.ndarray:
        """The whole map, smaller, HWC uint8 RGB."""
        return self._rgb(_sampled(self.dataset, self._bands, size))

    def _rgb(self, bands: np.ndarray) -> np.ndarray:
        array = spread_12_bits(np.moveaxis(bands, 0, 2), self._top)
        array = np.ascontiguousarray(to_8_bits(array, self._top))
        return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array

    def empty(self, rows: slice) -> np.ndarray:
        """Which pixels of some rows hold no data, (rows, W) bool."""
        return self.dataset.dataset_mask(window=_window(rows, slice(0, self.shape[1]))) == 0


def _sampled(dataset, bands: list[int], size: Size) -> np.ndarray:
    """Every n-th pixel of bands, (bands, *size), read strip by strip.

    GDAL would do it in one call, which takes gigabytes and minutes of some files.
    """
    rows, columns = (
        ((np.arange(wanted) + 0.5) * side / wanted).astype(int)
        for wanted, side in zip(size, dataset.shape, strict=True)
    )
    parts = []
    for top in range(0, dataset.height, BLOCK):
        mine = rows[(rows >= top) & (rows < top + BLOCK)] - top
        if len(mine):
            strip = slice(top, min(top + BLOCK, dataset.height))
            array = dataset.read(bands, window=_window(strip, slice(0, dataset.width)))
            parts.append(array[:, mine][:, :, columns])
    return np.concatenate(parts, axis=1)


def _window(rows: slice, columns: slice):
    return rasterio_package().windows.Window.from_slices(rows, columns)


# --- On the ground --------------------------------------------------------------------------------


class Ground:
    """How large the pixels of a map are on the ground, and where its points lie in WGS 84.

    The size of a pixel is that of the map's own projection where this keeps areas; else, as for
    degrees and for Web Mercator, whose pixels shrink towards the poles, it is that in Lambert's
    azimuthal equal-area projection around the map's centre.

    Args:
        crs: of rasterio, projected or geographic.
        transform: from (column, row) to the CRS's (x, y), an affine one.
        size: (height, width) of the map.
    """

    def __init__(self, crs, transform, size: Size):
        rasterio = rasterio_package()
        self.crs, self.transform, self.size = crs, transform, size
        self._warp = rasterio.warp.transform
        x, y = transform @ (size[1] / 2, size[0] / 2)
        (longitude,), (latitude,) = self._warp(crs, "EPSG:4326", [x], [y])
        centre = f"+lat_0={latitude:.9f} +lon_0={longitude:.9f}"
        self.equal_area = rasterio.crs.CRS.from_proj4(f"+proj=laea {centre} +datum=WGS84 +units=m")
        self.planar = None  # square metres of each pixel, where they all have as many
        if crs.is_projected:
            planar = abs(transform.determinant) * crs.linear_units_factor[1] ** 2
            edges = [[0, size[0] // 2, size[0] - 1], [0, size[1] // 2, size[1] - 1]]
            true = self.pixel_areas(*(np.array(part) for part in edges))
            if np.abs(true / planar - 1).max() < FAITHFUL:
                self.planar = planar

    @classmethod
    def of(cls, dataset) -> "Ground | None":
        """The ground of a map, None of one whose coordinates lie nowhere on earth."""
        crs = dataset.crs
        if crs is None or not (crs.is_projected or crs.is_geographic):
            return None
        try:
            return cls(crs, dataset.transform, (dataset.height, dataset.width))
        except ValueError:  # as rasterio's error about a CRS is: one that leads nowhere
            return None

    def how(self) -> str:
        """How areas are computed, in words."""
        return "the map's own projection" if self.planar else "an equal-area projection"

    def to(self, crs, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Points of the map's CRS in another one, (N, 2)."""
        moved = np.empty((len(xs), 2))
        for first in range(0, len(xs), POINTS_AT_ONCE):  # rasterio makes lists of them
            part = slice(first, first + POINTS_AT_ONCE)
            moved[part] = np.transpose(self._warp(self.crs, crs, xs[part], ys[part])[:2])
        return moved

    def pixel_areas(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Square metres of the pixels at these rows and columns, (rows, columns)."""
        grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2).astype(np.float64)
        corners = np.concatenate([grid + step for step in np.array([(0, 0), (1, 0), (0, 1)])])
        a, b, c, d, e, f = tuple(self.transform)[:6]
        xs, ys = corners @ (a, b) + c, corners @ (d, e) + f
        origin, right, below = np.split(self.to(self.equal_area, xs, ys), 3)
        u, v = right - origin, below - origin
        return np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).reshape(len(rows), len(columns))

    def class_areas(self, mask: np.ndarray, top: int, classes: int) -> np.ndarray:
        """Square metres of each class in some rows (rows, W) of the map from `top` on: (K,)."""
        if self.planar:
            return np.bincount(mask.ravel(), minlength=256)[:classes] * self.planar
        rows = np.arange(0, mask.shape[0], LATTICE)
        columns = np.arange(0, mask.shape[1], LATTICE)
        ends = rows + LATTICE // 2, columns + LATTICE // 2
        areas = self.pixel_areas(
            np.minimum(ends[0], mask.shape[0] - 1) + top, np.minimum(ends[1], mask.shape[1] - 1)
        )
        total = np.zeros(classes)
        for row, line in zip(rows, areas, strict=True):
            for column, area in zip(columns, line, strict=True):
                cell = mask[row : row + LATTICE, column : column + LATTICE]
                total += np.bincount(cell.ravel(), minlength=256)[:classes] * area
        return total


# --- Results --------------------------------------------------------------------------------------


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
    with _opened(path) as dataset:
        field, ground = Map(dataset), Ground.of(dataset)
        with replacing(files[MAP_MASK]) if masked else _scratch() as temporary:
            counts = _write_mask(temporary, field, predictor, ground)
            shown = field.view(field.view_size(VIEW))
            regions: dict[int, list[int]] = {}
            with _opened(temporary) as written:
                labels = _sampled(written, [1], shown.shape[:2])[0]
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
    severity, shares, figures = map_statistics(counts.pixels, regions, classes, folder.mm_per_pixel)
    cells = trust_cells(severity, Doubt())  # nobody says of a map how far to trust it
    row = [str(path), field.size[1], field.size[0], *cells, *figures]
    thumbnail = encode_jpeg(shrink(tinted, 320), quality=70)
    return Result(name, row, GalleryRow(printable(name), severity, shares, thumbnail, href))


@contextmanager
def _scratch() -> Iterator[Path]:
    """A place for a mask that nobody asked to keep."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "mask.tif"


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
        target.write(strip, 1, window=_window(rows, slice(0, strip.shape[1])))
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
            _window(slice(top, top + PART), slice(left, left + PART))
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
    rows = [
        [
            *(name, int(pixels), round(int(pixels) / total, 6)),
            "" if ground is None else float(f"{area:.8g}"),
            "" if ground is None else ground.how(),
        ]
        for name, pixels, area in zip(classes.names, counts.pixels, counts.areas, strict=True)
    ]
    write_csv(path, ["class", "pixels", "share", "square_metres", "measured_in"], rows)


def map_statistics(
    pixels: np.ndarray,
    regions: dict[int, list[int]],
    classes: ClassTable,
    mm_per_pixel: float | None,
) -> tuple[float, list[float], list]:
    """As `results.mask_statistics`, of what was counted; pixels without data count nowhere.

    Args:
        pixels: of each class, (K,).
        regions: how many pixels each region of a class has; touching at a corner joins none.
    """
    total, foreground = max(1, int(pixels.sum())), int(pixels[1:].sum())
    row: list = []
    for index, count in enumerate(pixels.tolist()):
        sizes = regions.get(index, [])
        of_foreground = count / foreground if index and foreground else 0.0
        row += [count, round(count / total, 6), round(of_foreground, 6)]
        row += [len(sizes), max(sizes)] if sizes else [None, None]
        row += [float(f"{count * mm_per_pixel**2:.6g}")] if mm_per_pixel else []
    severity = round(float(SeverityTable.of(classes.names).severity(pixels)), 6)
    return severity, (pixels / total).tolist(), row
