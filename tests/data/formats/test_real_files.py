"""Exports that strangers made are read right, or end in a sentence (`../shared/data/formats`)."""

import numpy as np
import pytest
from house import ROOT
from PIL import Image
from tiny_annotations import all_pairs, labels, open_all

from common.errors import UserError
from data.checks import check_pairs
from data.source import open_source, survey_source

REAL = ROOT.parent / "shared" / "data" / "formats"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
EDGE = "edge_cvat-ai_datumaro/"
CHAIRS = "background Chair Painting Plant Sofa Table"
SHAPES = "background rectangle triangle circle ellipse line crack bird strawberry"


@pytest.mark.parametrize(
    ("name", "counts", "names"),
    [
        ("coco_iteam1", [3], SHAPES),
        ("coco_weecology", [2], "background tree"),
        ("coco_ArtemZhelnin/training", [17, 8], "background leaf root stem"),
        ("cvat_iteam1", [4], SHAPES),
        ("labelme_iteam1/grapes", [8], "background black_grape green_grape"),
        ("labelme_ykszk/tests/data", [1], "background Eye Iris Nose"),
        ("labelstudio_ilhamyulianto/yolo", [6], CHAIRS),
        ("labelstudio_ilhamyulianto", [6], CHAIRS),
        ("masks_hololee", [4], "background disease"),
        ("yoloseg_3ggie-AB_mixed", [9, 1], "background Bok-Choy-Diseased"),
        ("yoloseg_FubinZhang", [8, 3], "background leaf"),
        (
            f"{EDGE}yolo_dataset/yolov8_segmentation",
            [1],
            "background " + " ".join(f"label_{number}" for number in range(10)),
        ),
        (
            f"{EDGE}common_semantic_segmentation_dataset/dataset",
            [2],
            "Void Animal Archway Bicyclist Child Road",
        ),
        (
            f"{EDGE}common_semantic_segmentation_dataset/non_standard_dataset",
            [2],
            "Void Animal Archway Bicyclist Child Road Pedestrian SignSymbol",
        ),
    ],
)
def test_what_people_exported_is_read(name, counts, names):
    source = survey_source(REAL / name)
    assert " ".join(source.reader.classes.names) == names
    found = [len(source.pairs[split]) for split in source.pairs]
    assert [sum(found)] == counts if source.divided else found == counts
    check_pairs(source)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("yolodet_gazellhatice_boxesonly", "boxes only"),
        (f"{EDGE}yolo_dataset/yolov8_oriented_boxes", "--polygons"),
        (f"{EDGE}coco_dataset/coco_instances", "1 with boxes only"),
        (f"{EDGE}cvat_dataset/for_images", "picture img1.jpg: polygon 0: it has no label"),
        ("coco_ArtemZhelnin/training", "no pictures for the split train"),
        ("coco_ArtemZhelnin/annotations", r"is not there; put it into \S+\. It is the first of 18"),
        ("labelme_ykszk/lmrs/tests", r"the photograph parent.+stem.jpg is not there"),
        (
            "labelstudio_ilhamyulianto/only-json",
            r"10.jpg is not there; put it into \S+\. It .+ of 136",
        ),
        ("geotiff_weecology", "holds no data set that is known"),
    ],
)
def test_what_cannot_be_trained_on_ends_in_a_sentence(name, reason):
    with pytest.raises(UserError, match=reason):
        open_source(REAL / name)


def test_one_project_in_three_formats_has_the_same_masks():
    home = REAL / "labelstudio_ilhamyulianto"
    yolo = open_all(home / "yolo")
    coco = open_all(home / "coco", skip_bad=True)
    masks = [
        {pair.stem: source.reader.read(pair) for pair in all_pairs(source)}
        for source in (yolo, coco)
    ]
    assert masks[0].keys() == masks[1].keys()
    for stem, mask in masks[0].items():
        assert (mask == masks[1][stem]).mean() > 0.9999


def test_cvats_own_raster_of_ellipses_is_the_run_lengths_that_it_wrote():
    """Pascal VOC of the same project."""
    theirs = np.array(Image.open(REAL / "labelme_iteam1/voc1.1/SegmentationClass/shapes.png"))
    ours = labels(REAL / "coco_iteam1", "shapes")
    assert np.array_equal(ours == 4, theirs[..., 2] == 128)
    from_xml = labels(REAL / "cvat_iteam1", "shapes") == 4
    assert (from_xml & (ours == 4)).sum() / (from_xml | (ours == 4)).sum() > 0.98
