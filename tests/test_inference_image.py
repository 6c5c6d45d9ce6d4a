"""From files to overlays, masks and numbers; one bad picture never loses the others."""

import csv
import io
import sys
import zipfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from run_tiny import add_tiny
from torch import nn

import inference_image
from config import ClassTable, ModelConfig
from inference.predictor import Predictor
from inference.results import mask_statistics, statistic_names
from models.checkpoint import save_checkpoint
from segmentation_model import build_model

COLORS = ((0, 0, 0), (0, 176, 0), (255, 0, 0))
LEAF = ClassTable(("ground", "leaf", "spot"), COLORS, COLORS)


@pytest.fixture
def model(tmp_path):
    add_tiny()
    torch.manual_seed(0)
    network = build_model("tiny", "pyramid", 3)
    nn.init.normal_(network.pyramid_head.classifier.weight, std=5.0)  # all classes occur
    path = tmp_path / "model.pth"
    save_checkpoint(path, network, ModelConfig("tiny", "pyramid", 3, (64, 64)), LEAF)
    return path


def picture(path, height=40, width=60, seed=0):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = rng.integers(0, 255, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    image = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(image).save(path)
    return image


def go(monkeypatch, model, out_dir, *flags):
    command = ["inference_image.py", "--device", "cpu", "--model", str(model)]
    monkeypatch.setattr(sys, "argv", [*command, "--out-dir", str(out_dir), *map(str, flags)])
    return inference_image.main()


def rows_of(out_dir):
    with open(out_dir / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_picture_gets_overlay_mask_and_a_line(monkeypatch, model, tmp_path):
    images = {
        "a": picture(tmp_path / "in/a.png", 40, 60),
        "b": picture(tmp_path / "in/b.png", 70, 30),
    }
    out = tmp_path / "out"
    assert go(monkeypatch, model, out, "--input", tmp_path / "in", "--batch", 2) == 0
    predictor = Predictor.load(model, device="cpu")
    rows = rows_of(out)
    for row, (name, image) in zip(rows, images.items(), strict=True):
        mask = Image.open(out / f"{name}_mask.png")
        assert mask.mode == "P"
        values = np.array(mask)
        assert np.array_equal(values, predictor.masks([image])[0])
        assert Image.open(out / f"{name}_overlay.jpg").size == (image.shape[1], image.shape[0])
        assert (int(row["width"]), int(row["height"])) == (image.shape[1], image.shape[0])
        for index, label in enumerate(LEAF.names):
            assert int(row[f"pixels_{label}"]) == (values == index).sum()
        assert float(row["share_ground"]) == pytest.approx((values == 0).mean(), abs=1e-6)
    assert (out / "legend.png").exists()
    assert (out / "summary.html").exists()
    assert not list(out.rglob(".tmp-*"))


def test_severity_is_the_spots_share_of_leaf_and_spot():
    mask = np.zeros((10, 10), np.uint8)
    mask[:4] = 1
    mask[0, :4] = 2
    mask[3, 9] = 2
    severity, shares, row = mask_statistics(mask, LEAF, 0.5)
    assert severity == 5 / 40
    assert shares == [0.6, 0.35, 0.05]
    spot = dict(zip(statistic_names(LEAF, 0.5), row, strict=True))
    assert spot["regions_spot"] == 2
    assert spot["largest_region_spot"] == 4
    assert spot["mm2_spot"] == 5 * 0.25
    assert spot["share_of_foreground_leaf"] == 35 / 40


def test_a_healthy_or_empty_picture_has_no_severity():
    assert mask_statistics(np.zeros((5, 5), np.uint8), LEAF, None)[0] == 0
    assert mask_statistics(np.ones((5, 5), np.uint8), LEAF, None)[0] == 0


def test_one_bad_picture_never_loses_the_others(monkeypatch, model, tmp_path, capsys):
    picture(tmp_path / "in/good.png")
    picture(tmp_path / "in/cut.jpg", 400, 400)
    whole = (tmp_path / "in/cut.jpg").read_bytes()
    (tmp_path / "in/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/empty.png").write_bytes(b"")
    (tmp_path / "in/text.png").write_text("not a picture")
    out = tmp_path / "out"
    assert go(monkeypatch, model, out, "--input", tmp_path / "in", "--batch", 3) == 1
    assert [row["file"].rsplit("/", 1)[1] for row in rows_of(out)] == ["good.png"]
    assert not list(out.glob("cut*"))
    listed = (out / "skipped.txt").read_text().splitlines()
    assert len(listed) == 3
    assert "3 pictures were skipped" in capsys.readouterr().err


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (2000, 1)])
def test_odd_shapes_are_pictures_like_any_other(monkeypatch, model, tmp_path, height, width):
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(tmp_path / "p.png")
    assert go(monkeypatch, model, tmp_path / "out", "--input", tmp_path / "p.png") == 0
    assert Image.open(tmp_path / "out/p_mask.png").size == (width, height)


def test_colours_probabilities_and_tiles(monkeypatch, model, tmp_path):
    picture(tmp_path / "a.png", 70, 90)
    out = tmp_path / "out"
    flags = ["--save", "mask", "colour", "prob", "--tile", "64", "--tta"]
    assert go(monkeypatch, model, out, "--input", tmp_path / "a.png", *flags) == 0
    mask = np.array(Image.open(out / "a_mask.png"))
    colour = np.array(Image.open(out / "a_colour.png"))
    assert np.array_equal(colour, np.array(LEAF.colors, np.uint8)[mask])
    stored = np.load(out / "a_prob.npz")
    assert stored["probabilities"].shape == (3, 70, 90)
    top = np.sort(stored["probabilities"].astype(float), axis=0)
    clear = top[-1] - top[-2] > 0.01
    assert np.array_equal(stored["probabilities"].argmax(0)[clear], mask[clear])
    assert not (out / "a_overlay.jpg").exists()


def test_the_cvat_archive_holds_what_cvat_imports(monkeypatch, model, tmp_path):
    picture(tmp_path / "in/x/a.png")
    picture(tmp_path / "in/b.png")
    out = tmp_path / "out"
    go(monkeypatch, model, out, "--input", tmp_path / "in", "--recursive", "--save", "cvat")
    with zipfile.ZipFile(out / "cvat.zip") as archive:
        assert "leaf:0,176,0::" in archive.read("labelmap.txt").decode().splitlines()
        names = archive.read("ImageSets/Segmentation/default.txt").decode().split()
        assert sorted(names) == ["b", "x/a"]
        for name in names:
            stored = Image.open(io.BytesIO(archive.read(f"SegmentationClass/{name}.png")))
            expected = np.array(Image.open(out / f"{name}_mask.png").convert("RGB"))
            assert np.array_equal(np.array(stored.convert("RGB")), expected)


def test_earlier_results_are_replaced_and_other_files_left_alone(monkeypatch, model, tmp_path):
    picture(tmp_path / "a.png")
    out = tmp_path / "out"
    go(monkeypatch, model, out, "--input", tmp_path / "a.png")
    (out / "a_mask.png").write_text("old")
    (out / "mine.txt").write_text("mine")
    go(monkeypatch, model, out, "--input", tmp_path / "a.png")
    assert Image.open(out / "a_mask.png").size == (60, 40)
    assert (out / "mine.txt").read_text() == "mine"


def test_tables_of_other_pictures_are_kept_numbered(monkeypatch, model, tmp_path, capsys):
    out, kept = tmp_path / "out", "their table is now results_{}.csv."
    for name in ("one/a", "one/b", "two/c"):
        picture(tmp_path / f"{name}.png")
    go(monkeypatch, model, out, "--input", tmp_path / "one", "--save", "coco")
    first = {name: (out / name).read_bytes() for name in ("results.csv", "coco.json")}
    go(monkeypatch, model, out, "--input", tmp_path / "one")  # the same again
    assert "table is now" not in capsys.readouterr().out
    assert (out / "results.csv").read_bytes() == first["results.csv"]

    go(monkeypatch, model, out, "--input", tmp_path / "two")
    assert kept.format(1) in capsys.readouterr().out
    assert [row["file"] for row in rows_of(out)] == [str(tmp_path / "two/c.png")]
    assert (out / "results_1.csv").read_bytes() == first["results.csv"]
    assert (out / "coco_1.json").read_bytes() == first["coco.json"]

    go(monkeypatch, model, out, "--resume", "--input", tmp_path / "two", tmp_path / "one")
    assert "table is now" not in capsys.readouterr().out  # all that it told is told again
    (out / "results.csv").write_bytes(b"\xff no table")
    go(monkeypatch, model, out, "--input", tmp_path / "two")
    assert kept.format(2) in capsys.readouterr().out
    assert (out / "results_2.csv").read_bytes() == b"\xff no table"
    (out / "results.csv").write_text('file\n"' + "a" * 200_000)  # more than a field may hold
    (out / "coco_3.json").write_text("kept")
    go(monkeypatch, model, out, "--input", tmp_path / "two")
    assert kept.format(4) in capsys.readouterr().out
    assert (out / "coco_3.json").read_text() == "kept"
    monkeypatch.chdir(tmp_path)
    go(monkeypatch, model, out, "--input", "two")  # the same from elsewhere
    assert "table is now" not in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("results*")) == [
        "results.csv",
        "results_1.csv",
        "results_2.csv",
        "results_4.csv",
    ]


def test_long_strange_names_give_results(monkeypatch, model, tmp_path):
    names = [
        "n" * 251 + ".png",
        "-leading.png",
        "with space ü.png",
        "new\nline.png",
        '"quo<te>.png',
    ]
    for name in names:
        picture(tmp_path / "in" / name)
    out = tmp_path / "out"
    assert go(monkeypatch, model, out, "--input", tmp_path / "in") == 0
    assert len(rows_of(out)) == len(names)
    assert len(list(out.glob("*.jpg"))) == len(names)


def test_what_was_written_is_said_and_how_to_have_overlays(monkeypatch, model, tmp_path, capsys):
    picture(tmp_path / "a.png")
    given = "--input", tmp_path / "a.png", "--save"
    assert go(monkeypatch, model, tmp_path / "out", *given, "coco", "yolo") == 0
    said = capsys.readouterr().out
    assert "1 picture segmented" in said
    kinds = "Beside it: results.csv, yolo/labels/NAME.txt and coco.json; --save with overlay"
    assert kinds in said
    assert go(monkeypatch, model, tmp_path / "both", *given, "overlay") == 0
    assert capsys.readouterr().out.endswith("Beside it: results.csv, NAME_overlay.jpg\n")
