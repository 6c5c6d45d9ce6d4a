"""What is written for annotation tools gives the mask back, thin lesions and holes included."""

import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.mask import toBbox

from config import ClassTable
from data.images import write_image
from data.source import open_source
from inference import annotations
from inference.journal import Journal
from inference.outlines import regions_of
from inference.results import ResultFolder
from reporting.gallery import Doubt

COLORS = ((0, 0, 0), (0, 176, 0), (255, 0, 0))
NAMES = ("ground", "leaf", 'spot "ü" & <b>')
CLASSES = ClassTable(NAMES, COLORS, COLORS)


def leaf() -> np.ndarray:
    """A leaf with holes, spots of one pixel, thin lines, patches that touch at corners."""
    mask = np.zeros((90, 120), np.uint8)
    cv2.ellipse(mask, (60, 45), (50, 38), 20, 0, 360, 1, -1)
    cv2.circle(mask, (45, 40), 9, 0, -1)
    cv2.circle(mask, (75, 50), 10, 2, -1)
    cv2.circle(mask, (75, 50), 4, 1, -1)  # a leaf within a ring of the spot
    mask[20, 40:80] = 2
    mask[25:60, 95] = 2
    mask[60, 30] = mask[0, 0] = mask[-1, -1] = 2
    for step in range(12):
        mask[62 + step, 50 + step] = 2
        mask[70 - step, 70 + step] = 0
    mask[5, 5:9] = 1
    return mask


def noise(seed: int) -> np.ndarray:
    """Blocks of one to three pixels: every way in which pixels can meet."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet((1, 1, 1))
    cells = rng.choice(3, (1 + seed % 13, 1 + seed % 17), p=shares).astype(np.uint8)
    times = 1 + seed % 3
    return cells.repeat(times, 0).repeat(times, 1)


MASKS = [leaf(), np.zeros((5, 7), np.uint8), np.full((1, 1), 2, np.uint8), *map(noise, range(60))]


def between_lines(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres a line encloses, by counting the edges to their left."""
    covered = np.zeros(size, bool)
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        for row in np.flatnonzero((rows > min(y0, y1)) & (rows < max(y0, y1))):
            covered[row] ^= columns > x0 + (rows[row] - y0) * (x1 - x0) / (y1 - y0)
    return covered


def pillow(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """LabelMe's own raster: what a line encloses, and the pixels that it passes."""
    picture = Image.new("1", size[::-1])
    ImageDraw.Draw(picture).polygon([tuple(point) for point in ring.tolist()], 1, 1)
    return np.array(picture)


def opencv(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What tools that train YOLO do: whole numbers, outline included."""
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [ring.astype(np.int32)], 1)
    return mask > 0


@pytest.mark.parametrize(
    ("fill", "inset"), [(between_lines, 0), (between_lines, 0.25), (pillow, 0.25), (opencv, 0.25)]
)
def test_outlines_give_the_mask_back_to_every_kind_of_raster(fill, inset):
    for mask in MASKS:
        back = np.zeros_like(mask)
        for region in regions_of(mask, 3, inset=inset):
            back[fill(region.ring, mask.shape)] = region.label
        assert np.array_equal(back, mask)


def test_areas_boxes_and_holes_are_right():
    for mask in MASKS:
        regions = list(regions_of(mask, 3))
        for label in (1, 2):
            count, _, stats, _ = cv2.connectedComponentsWithStats((mask == label).view(np.uint8))
            ours = [r for r in regions if r.label == label]
            assert sorted([*r.box, r.area] for r in ours) == sorted(stats[1:count].tolist())
    ring = next(region for region in regions_of(leaf(), 3) if region.label == 2 and region.holes)
    assert len(ring.holes) == 1


def test_simplified_outlines_have_fewer_points_and_lose_no_spot():
    mask = cv2.resize(leaf(), None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    mask = cv2.medianBlur(mask, 15)
    mask[3, 100] = 2
    points, found = {}, {}
    for tolerance in (0, 1.5):
        regions = list(regions_of(mask, 3, tolerance))
        points[tolerance], found[tolerance] = sum(len(r.ring) for r in regions), len(regions)
        back = np.zeros_like(mask)
        for region in regions:
            back[between_lines(region.ring, mask.shape)] = region.label
        for label in (1, 2):
            both = ((back == label) & (mask == label)).sum()
            assert both / ((back == label) | (mask == label)).sum() > 0.95
    assert points[1.5] < points[0] / 5
    assert found[1.5] == found[0]
    assert next(iter(regions_of(mask[:6, 90:110], 3, 1.5))).area == 1


def write_coco(path, masks, size=None):
    pictures = [(f"{number}.png", mask.shape) for number, mask in enumerate(masks)]
    lines = [annotations.coco_lines(list(regions_of(mask, 3))) for mask in masks]
    annotations.write_coco(path, CLASSES, pictures, lines)
    return path


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_the_masks_areas_and_boxes_that_were_written(tmp_path):
    coco = COCO(write_coco(tmp_path / "coco.json", MASKS))
    assert [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())] == [
        (1, "leaf"),
        (2, NAMES[2]),
    ]
    assert len(coco.getImgIds()) == len(MASKS)
    for number, mask in enumerate(MASKS):
        image = coco.loadImgs(number + 1)[0]
        assert (image["file_name"], image["height"], image["width"]) == (
            f"{number}.png",
            *mask.shape,
        )
        back = np.zeros_like(mask)
        for found in coco.loadAnns(coco.getAnnIds(imgIds=[number + 1])):
            drawn = coco.annToMask(found)
            back[drawn > 0] = found["category_id"]
            assert found["area"] == drawn.sum()
            assert found["bbox"] == toBbox(coco.annToRLE(found)).tolist()
            assert found["iscrowd"] == 0
        assert np.array_equal(back, mask)
    assert len(coco.anns) == sum(len(list(regions_of(mask, 3))) for mask in MASKS)


def test_labelme_finds_the_photograph_and_the_shapes(tmp_path):
    photo, path = tmp_path / "in/ä b.jpg", tmp_path / "out/labelme/x/ä b.json"
    mask = leaf()
    regions = list(regions_of(mask, 3, inset=annotations.INSET))
    annotations.write_labelme(path, regions, photo, mask.shape, CLASSES)
    content = json.loads(path.read_text())
    assert content["imagePath"] == "../../../in/ä b.jpg"
    assert (content["imageHeight"], content["imageWidth"]) == mask.shape
    assert content["imageData"] is None
    assert content["version"].startswith("5.")
    back = np.zeros_like(mask)
    for shape in content["shapes"]:
        assert shape["shape_type"] == "polygon"
        ring = np.array(shape["points"])
        back[pillow(ring, mask.shape)] = NAMES.index(shape["label"])
    assert np.array_equal(back, mask)


def test_yolo_lines_are_shares_of_the_size_and_classes_from_zero(tmp_path):
    annotations.write_yolo_table(tmp_path / "data.yaml", CLASSES)
    table = yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))
    assert table["names"] == dict(enumerate(NAMES[1:]))
    for mask in MASKS:
        regions = list(regions_of(mask, 3, inset=annotations.INSET))
        annotations.write_yolo(tmp_path / "a.txt", regions, mask.shape)
        back = np.zeros_like(mask)
        for line in (tmp_path / "a.txt").read_text().splitlines():
            label, *numbers = line.split()
            assert len(numbers) > 8  # 4 are a box, 8 may be a turned one
            points = np.array(numbers, float).reshape(-1, 2)
            assert (points >= 0).all()
            assert (points <= 1).all()
            back[between_lines(points * mask.shape[::-1], mask.shape)] = int(label) + 1
        assert np.array_equal(back, mask)


def test_label_studio_gets_predictions_in_per_cent_and_the_interface_for_them(tmp_path):
    mask = leaf()
    regions = list(regions_of(mask, 3, inset=annotations.INSET))
    name = "x/ä b?.png"
    task = annotations.label_studio_task(regions, name, mask.shape, CLASSES)
    annotations.write_label_studio(tmp_path / "labelstudio.json", CLASSES, [task, task])
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    assert len(tasks) == 2
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=x/%C3%A4%20b%3F.png"
    root = ElementTree.parse(tmp_path / "labelstudio.xml").getroot()
    image, labels = root.find("Image"), root.find("PolygonLabels")
    assert [label.get("value") for label in labels] == list(NAMES[1:])
    assert image.get("value") == "$image"
    back = np.zeros_like(mask)
    for found in tasks[1]["predictions"][0]["result"]:
        assert (found["from_name"], found["to_name"]) == (labels.get("name"), image.get("name"))
        assert (found["original_height"], found["original_width"]) == mask.shape
        points = np.array(found["value"]["points"]) / 100 * mask.shape[::-1]
        label = found["value"]["polygonlabels"][0]
        back[between_lines(points, mask.shape)] = NAMES.index(label)
    assert np.array_equal(back, mask)


def test_pictures_are_named_by_their_place_below_the_input():
    assert annotations.file_name("x/a", Path("/data/x/a.png")) == "x/a.png"
    assert annotations.file_name("a_png", Path("/other/a.png")) == "/other/a.png"


# --- Out, and in again by the program's own readers -----------------------------------------------


def written(root: Path, kind: str) -> dict[str, np.ndarray]:
    """Results of photographs in a folder of the data set; their masks by the file's name."""
    masks = {"x/a": leaf(), "x/b": noise(45), "c": noise(5).repeat(2, 0), "d": noise(16)}
    folder = ResultFolder(root / "out", [kind], CLASSES)
    journal = Journal(folder.path, folder.columns)
    journal.begin({}, False, {}, bool)
    for name, mask in masks.items():
        path, image = root / f"in/{name}.png", np.zeros((*mask.shape, 3), np.uint8)
        write_image(path, image)
        journal.append(folder.write(name, path, image, mask, None, Doubt()))
    folder.write_summary(journal, journal.added())
    return {name.rpartition("/")[2]: mask for name, mask in masks.items()}


@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo", "labelstudio"])
def test_what_is_written_is_read_by_train_py(tmp_path, kind):
    root = tmp_path / "data"
    masks = written(root, kind)
    (root / "out/legend.png").unlink()
    if kind == "yolo":  # as the file's first line asks for
        (root / "in").rename(root / "out/yolo/images")
        root = root / "out/yolo"
    if kind == "labelstudio":  # as a person exports it who has agreed with every prediction
        path = root / "out/labelstudio.json"
        tasks = json.loads(path.read_text())
        path.write_text(json.dumps([t | {"annotations": t.pop("predictions")} for t in tasks]))
    source = open_source(root, ("train", "valid"), cache=False)
    pairs = [pair for split in source.pairs.values() for pair in split]
    assert sorted(pair.image.stem for pair in pairs) == sorted(masks)
    names = source.reader.classes.names
    assert set(names[1:]) == set(NAMES[1:])
    for pair in pairs:
        ours = np.array([0, *(NAMES.index(name) for name in names[1:])])[source.reader.read(pair)]
        assert np.array_equal(ours, masks[pair.image.stem])
