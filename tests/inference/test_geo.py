"""Maps: read by windows, written back at the same place on earth, measured on the ground."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny
from torch import nn

import inference_image
from common.errors import UserError
from config import ClassTable, ModelConfig
from data.formats.regions import signed_area
from inference import geo
from inference.geo import segment_map
from inference.maps import is_map
from inference.predictor import Ensemble, Predictor
from inference.results import ResultFolder

rasterio = pytest.importorskip("rasterio", reason="needs requirements-geo.txt")
REAL = Path(__file__).resolve().parents[3] / "shared/data/formats/geotiff_weecology"
# pytest undoes the filter that images.py sets when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
UTM = {"crs": "EPSG:32617", "transform": rasterio.Affine(0.1, 0, 404211.9, 0, -0.1, 3285142.9)}
CLASSES = ClassTable.default()


class Bright(nn.Module):
    """A model whose second class is what is bright, pixel by pixel: the answer is known."""

    def forward(self, x):
        score = x.mean(1, keepdim=True)
        return torch.cat([-score, score], dim=1)


def predictor(**options) -> Predictor:
    config = ModelConfig(input_size=(64, 96), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Predictor(Bright(), config, CLASSES, **options)


def write_map(path: Path, image: np.ndarray, **profile) -> Path:
    """A GeoTIFF of HWC uint8, or of other numbers."""
    height, width, count = image.shape
    shape = {"width": width, "height": height, "count": count, "dtype": image.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **(UTM | profile)) as target:
        target.write(np.moveaxis(image, 2, 0))
    return path


def scene(height=300, width=330) -> np.ndarray:
    """Dark ground, a bright ring around a dark hole, and a bright rectangle in a corner."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - 120, columns - 150)
    bright = (distance < 60) & (distance > 25)
    bright[-40:-20, -70:-10] = True
    return np.where(bright[..., None], 220, 30).astype(np.uint8).repeat(3, axis=2)


def segment(path: Path, out: Path, kinds=("overlay", "mask"), **options):
    folder = ResultFolder(out, kinds, CLASSES)
    result = segment_map(predictor(**options), folder, path.stem, path)
    with rasterio.open(out / f"{path.stem}_mask.tif") as dataset:
        return result, dataset.read(1), dataset.profile


def features_of(out: Path, name="field") -> list[dict]:
    return json.loads((out / f"{name}_classes.geojson").read_text())["features"]


def areas_of(out: Path, name="field") -> dict[str, dict]:
    with open(out / f"{name}_areas.csv", newline="") as file:
        return {row["class"]: row for row in csv.DictReader(file)}


def test_a_mask_lies_where_its_map_does(tmp_path):
    image = scene()
    path = write_map(tmp_path / "field.tif", image)
    assert is_map(path)
    result, mask, profile = segment(path, tmp_path / "out")
    np.testing.assert_array_equal(mask, image[..., 0] > 128)
    assert (profile["crs"], profile["transform"]) == (UTM["crs"], UTM["transform"])
    assert (profile["tiled"], profile["compress"], profile["nodata"]) == (True, "deflate", 255)
    assert result.row[1:3] == [330, 300]
    assert Image.open(tmp_path / "out/field_overlay.jpg").size == (330, 300)
    whole = predictor(tile=64).masks([image])[0]
    np.testing.assert_array_equal(mask, whole)
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_several_models_see_a_map_as_one(tmp_path):
    path = write_map(tmp_path / "field.tif", scene())
    members = [predictor(), predictor(tile=80)]
    out = ResultFolder(tmp_path / "out", ("mask",), CLASSES)
    segment_map(Ensemble(members), out, "field", path)
    with rasterio.open(tmp_path / "out/field_mask.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), scene()[..., 0] > 128)


@pytest.mark.parametrize("down", [-0.1, 0.1], ids=["north up", "south up"])
def test_polygons_lie_on_earth_and_give_the_mask_back(tmp_path, down):
    transform = rasterio.Affine(0.1, 0, 404211.9, 0, down, 3285142.9)
    path = write_map(tmp_path / "field.tif", scene(), transform=transform)
    _, mask, _ = segment(path, tmp_path / "out")
    features = features_of(tmp_path / "out")
    assert len(features) == 2
    assert {feature["properties"]["class"] for feature in features} == {CLASSES.names[1]}
    shapes = []
    for feature in features:
        outer, *holes = (np.array(ring) for ring in feature["geometry"]["coordinates"])
        assert (outer[0] == outer[-1]).all()
        assert signed_area(outer) > 0  # counter-clockwise
        assert all(signed_area(hole) < 0 for hole in holes)
        assert ((outer > (-82, 29.6)) & (outer < (-81.9, 29.8))).all()  # Florida, longitude first
        back = rasterio.warp.transform_geom("EPSG:4326", UTM["crs"], feature["geometry"])
        shapes.append((back, 1))
    drawn = rasterio.features.rasterize(shapes, mask.shape, transform=transform)
    np.testing.assert_array_equal(drawn, mask)
    assert sum(feature["properties"]["pixels"] for feature in features) == mask.sum()


def test_outlines_of_a_map_with_many_are_drawn_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(geo, "MAX_STEPS", 100)
    monkeypatch.setattr(geo, "PART", 64)
    path = write_map(tmp_path / "field.tif", scene())
    _, mask, _ = segment(path, tmp_path / "out")
    features = features_of(tmp_path / "out")
    assert len(features) == 8  # of two that borders of parts cut
    shapes = [
        rasterio.warp.transform_geom("EPSG:4326", UTM["crs"], feature["geometry"])
        for feature in features
    ]
    drawn = rasterio.features.rasterize(shapes, mask.shape, transform=UTM["transform"])
    np.testing.assert_array_equal(drawn, mask)
    assert sum(feature["properties"]["pixels"] for feature in features) == mask.sum()


def test_areas_are_square_metres_of_the_projection(tmp_path):
    path = write_map(tmp_path / "field.tif", scene())
    _, mask, _ = segment(path, tmp_path / "out")
    row = areas_of(tmp_path / "out")[CLASSES.names[1]]
    assert int(row["pixels"]) == mask.sum()
    assert float(row["square_metres"]) == pytest.approx(mask.sum() * 0.01, rel=1e-9)
    sizes = [feature["properties"]["square_metres"] for feature in features_of(tmp_path / "out")]
    assert sum(sizes) == pytest.approx(mask.sum() * 0.01, rel=1e-5)
    feet = UTM | {"crs": "EPSG:2225"}  # California, US survey feet
    segment(write_map(tmp_path / "feet.tif", scene(), **feet), tmp_path / "out")
    area = float(areas_of(tmp_path / "out", "feet")[CLASSES.names[1]]["square_metres"])
    assert area == pytest.approx(mask.sum() * 0.01 * (1200 / 3937) ** 2, rel=1e-6)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_where_a_projection_does_not_keep_areas_they_are_those_on_the_ground(tmp_path, crs):
    """A square degree near 48 N, by the ellipsoid's formula, and the same in Web Mercator."""
    image = np.full((200, 300, 3), 220, np.uint8)
    box = (11.0, 48.0, 11.03, 48.02)
    bounds = rasterio.warp.transform_bounds("EPSG:4326", crs, *box)
    transform = rasterio.transform.from_bounds(*bounds, 300, 200)
    path = write_map(tmp_path / "field.tif", image, crs=crs, transform=transform)
    segment(path, tmp_path / "out")
    row = areas_of(tmp_path / "out")[CLASSES.names[1]]
    assert row["measured_in"] == "an equal-area projection"
    # Snyder, Map projections (1987), equation 3-12: the area from the equator up to a latitude.
    a, e = 6378137.0, 0.0818191908426
    sine = np.sin(np.radians([48.0, 48.02]))
    q = (1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
    expected = a**2 / 2 * np.radians(0.03) * (q[1] - q[0])
    assert float(row["square_metres"]) == pytest.approx(expected, rel=2e-5)
    (feature,) = features_of(tmp_path / "out")
    assert feature["properties"]["square_metres"] == pytest.approx(expected, rel=2e-4)


def test_what_holds_no_data_is_no_class(tmp_path):
    image = scene()
    image[:50, :70] = 0
    path = write_map(tmp_path / "field.tif", image, nodata=0)
    _, mask, _ = segment(path, tmp_path / "out")
    assert (mask[:50, :70] == 255).all()
    assert (mask == 255).sum() == 50 * 70
    assert (
        sum(int(row["pixels"]) for row in areas_of(tmp_path / "out").values()) == 300 * 330 - 3500
    )


@pytest.mark.parametrize("kind", ["grey", "rgba", "uint16", "12 bits", "float", "five bands"])
def test_maps_of_any_depth_are_seen_as_read_image_would_see_them(tmp_path, kind):
    image = scene(90, 100)
    stored = {
        "grey": image[..., :1],
        "rgba": np.dstack([image, np.full((90, 100), 255, np.uint8)]),
        "uint16": image.astype(np.uint16) << 8,
        "12 bits": image.astype(np.uint16) << 4,
        "float": image / np.float32(255),
        "five bands": np.dstack([image, image[..., :2] // 2]),
    }[kind]
    photometric = {} if kind == "grey" else {"photometric": "RGB"}
    path = write_map(tmp_path / "field.tif", stored, **photometric)
    _, mask, _ = segment(path, tmp_path / "out")
    np.testing.assert_array_equal(mask, image[..., 0] > 128)


def test_a_map_is_read_by_windows_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("data.decoding.MAX_PIXELS", 1000)
    largest = 0

    class Spy(geo.Map):
        def __getitem__(self, place):
            nonlocal largest
            part = super().__getitem__(place)
            largest = max(largest, part.shape[0] * part.shape[1])
            return part

    monkeypatch.setattr(geo, "Map", Spy)
    monkeypatch.setattr(geo, "VIEW", 100)
    image = scene(700, 400)
    _, mask, _ = segment(write_map(tmp_path / "field.tif", image), tmp_path / "out")
    np.testing.assert_array_equal(mask, image[..., 0] > 128)
    assert largest <= 64 * 96
    with Image.open(tmp_path / "out/field_overlay.jpg") as overlay:
        assert overlay.size == (57, 100)
        shown = np.array(overlay.convert("L"))
    np.testing.assert_array_equal(shown[95:97, 49:54] > 100, True)  # the rectangle in its corner


def test_noise_and_maps_of_nowhere_get_a_mask_but_no_polygons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(geo, "NOISE", 0.001)
    out = tmp_path / "out"
    segment(write_map(tmp_path / "field.tif", scene()), out)
    assert "which is noise, so no polygons" in capsys.readouterr().out
    local = rasterio.crs.CRS.from_wkt('LOCAL_CS["a field",UNIT["metre",1]]')
    segment(write_map(tmp_path / "local.tif", scene(), crs=local), out)
    assert "lie nowhere on earth" in capsys.readouterr().out
    assert not list(out.glob("*.geojson"))
    assert areas_of(out, "local")[CLASSES.names[1]]["square_metres"] == ""


def test_a_damaged_map_is_named_and_leaves_nothing(tmp_path):
    path = write_map(tmp_path / "field.tif", scene())
    path.write_bytes(path.read_bytes()[:100_000])
    assert is_map(path)
    with pytest.raises(UserError, match=r"field\.tif is damaged"):
        segment(path, tmp_path / "out")
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix != ".lock"]
    plain = tmp_path / "plain.tif"
    Image.fromarray(scene()).save(plain)
    assert not is_map(plain)
    (tmp_path / "text.tif").write_text("II*\0 and no more")
    assert not is_map(tmp_path / "text.tif")


def test_a_map_without_rasterio_is_one_sentence(tmp_path, monkeypatch):
    path = write_map(tmp_path / "field.tif", scene())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert is_map(path)
    with pytest.raises(UserError, match=r"pip install -r requirements-geo\.txt"):
        segment_map(predictor(), ResultFolder(tmp_path, ("mask",), CLASSES), "field", path)


def test_what_is_not_written_of_maps_is_said_and_not_left_out(tmp_path):
    path = write_map(tmp_path / "field.tif", scene())
    with pytest.raises(UserError, match="leave cvat, prob out of --save"):
        segment(path, tmp_path / "out", ("mask", "prob", "cvat"))


def test_a_mask_of_ones_own_beside_the_map_is_never_replaced(tmp_path):
    path = write_map(tmp_path / "field.tif", scene())
    (tmp_path / "field_mask.tif").write_text("my own")
    with pytest.raises(UserError, match="may be your own"):
        segment(path, tmp_path)
    assert (tmp_path / "field_mask.tif").read_text() == "my own"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/formats")
def test_real_maps_among_photographs(tmp_path, monkeypatch, capsys):
    Image.fromarray(scene(50, 60)).save(tmp_path / "photo.jpg")
    model = save_tiny(tmp_path / "model.pth", (64, 64))
    inputs = [tmp_path / "photo.jpg", REAL / "OSBS_029.tif", REAL / "test_tiled.tif"]
    flags = ["--model", model, "--device", "cpu", "--out-dir", tmp_path / "out", "--tile", 256]
    flags += ["--overlap", 0]
    command = ["inference_image.py", "--input", *inputs, *flags]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    assert inference_image.main() == 0
    named = (
        "Of maps: NAME_areas.csv, NAME_mask.tif and, where it can be drawn, NAME_classes.geojson"
    )
    assert capsys.readouterr().out.splitlines()[-1] == named
    with open(tmp_path / "out/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    written = [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_mask.*")]
    monkeypatch.setattr(sys, "argv", [str(word) for word in (*command, "--resume")])
    assert inference_image.main() == 0  # all are done, the maps too
    assert written == [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_mask.*")]
    assert [(row["width"], row["height"]) for row in rows] == [
        ("60", "50"),
        ("400", "400"),
        ("1000", "1000"),
    ]
    for name in ("OSBS_029", "test_tiled"):
        with (
            rasterio.open(REAL / f"{name}.tif") as source,
            rasterio.open(tmp_path / f"out/{name}_mask.tif") as mask,
        ):
            assert (mask.crs, mask.transform, mask.shape) == (
                source.crs,
                source.transform,
                source.shape,
            )
    points = [
        p
        for f in features_of(tmp_path / "out", "test_tiled")
        for p in f["geometry"]["coordinates"][0]
    ]
    longitudes, latitudes = np.array(points).T
    assert 4 < longitudes.min() < longitudes.max() < 6  # the Netherlands
    assert 51 < latitudes.min() < latitudes.max() < 53
