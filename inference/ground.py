"""Where on earth a map's points lie, and how many square metres its pixels have."""

import numpy as np

from config import Size
from inference.maps import rasterio_package

# The projection keeps areas nearly enough to count its pixels: UTM's are off by 0.2 % at most.
FAITHFUL = 0.01
LATTICE = 64  # pixels between the places where the size of a pixel on the ground is computed
POINTS_AT_ONCE = 100_000


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
