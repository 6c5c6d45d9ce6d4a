"""Maps, opened and read by windows: a drone's has a hundred times as many pixels as a photograph.

rasterio, which reads and writes them, is optional (`requirements-geo.txt`) and imported only where
a map is met.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import TiffImagePlugin

from common.errors import UserError
from common.packages import install_command
from common.text import printable
from config import Size
from data.images import fit_within, spread_12_bits, to_8_bits

GEO_KEYS, PIXEL_SCALE, TIE_POINTS, MATRIX = 34735, 33550, 33922, 34264  # tags of GeoTIFF 1.1
BLOCK = 256  # rows that are read at once, and the side of the blocks in which masks are stored
CACHE_MIB = 96  # of GDAL: the rows of a wide map that its windows share
SAMPLE = 1024  # pixels of the longer side of the view that tells how bright a map is
MAX_WIDTH, MAX_HEIGHT = 200_000, 1_000_000  # a header may claim any number in a few bytes


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
            "This TIFF is a map, which needs a package: "
            + install_command("-r requirements-geo.txt")
        ) from error
    return rasterio


@contextmanager
def opened(path: Path) -> Iterator:
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
            sample = sampled(dataset, self._bands, size)
            self._top = float(np.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0).max())

    @property
    def size(self) -> Size:
        return self.shape[:2]

    def view_size(self, longest: int) -> Size:
        """The (height, width) of a view whose longer side has at most so many pixels."""
        small = max(self.size) <= longest
        return self.size if small else fit_within(self.size, (longest, longest))

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (
            slice(*part.indices(side)[:2]) for part, side in zip(place, self.size, strict=True)
        )
        return self._rgb(self.dataset.read(self._bands, window=window_of(rows, columns)))

    def view(self, size: Size) -> np.ndarray:
        """The whole map, smaller, HWC uint8 RGB."""
        return self._rgb(sampled(self.dataset, self._bands, size))

    def _rgb(self, bands: np.ndarray) -> np.ndarray:
        array = spread_12_bits(np.moveaxis(bands, 0, 2), self._top)
        array = np.ascontiguousarray(to_8_bits(array, self._top))
        return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array

    def empty(self, rows: slice) -> np.ndarray:
        """Which pixels of some rows hold no data, (rows, W) bool."""
        return self.dataset.dataset_mask(window=window_of(rows, slice(0, self.shape[1]))) == 0


def sampled(dataset, bands: list[int], size: Size) -> np.ndarray:
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
            array = dataset.read(bands, window=window_of(strip, slice(0, dataset.width)))
            parts.append(array[:, mine][:, :, columns])
    return np.concatenate(parts, axis=1)


def window_of(rows: slice, columns: slice):
    return rasterio_package().windows.Window.from_slices(rows, columns)
