"""Masks that are painted: exact, replaced by the second, kept in their split, trained on."""

import gzip
import io
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_sets import COFFEE, COLORS, blobs, make_data, photo, save_with_exif
from open_page import ended
from PIL import Image
from run_tiny import add_tiny

import train
from common.errors import UserError
from config import ClassTable
from data.checks import check_data_set
from data.images import write_image
from data.source import open_source
from models.checkpoint import parse_description, read_checkpoint
from page.corrections import Corrections, read_labels, training_folder
from page.pictures import fingerprint
from training.flags import parse_args

TABLE = ClassTable(("background", "leaf", "symptom"), *[tuple(map(tuple, COLORS.tolist()))] * 2)


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def add(client, content: bytes, name="leaf.png", classes=("background", "leaf", "symptom")) -> str:
    """Drop a photograph into a new collection; returns its address."""
    made = client.post("/api/collections", json={"title": "t"}).json()["id"]
    base = f"/api/collections/{made}"
    assert client.post(f"{base}/classes", json={"names": classes}).status_code == 204
    entry = client.put(f"{base}/photographs?name={name}", content=content).json()
    return f"{base}/photographs/{entry['id']}"


def store(client, address: str, mask: np.ndarray, tag: str | None = None):
    tag = tag or client.get(f"{address}/mask").headers["etag"]
    content = gzip.compress(mask.tobytes(), mtime=0)
    return client.put(f"{address}/mask", content=content, headers={"if-match": tag})


def painted(desk) -> list:
    return sorted(desk.corrections.root.glob("*/*_masks/*.png"))


def test_a_mask_is_kept_to_the_pixel_as_a_palette_of_indices(desk, client):
    address, mask = add(client, jpeg(photo())), np.zeros((48, 64), np.uint8)
    mask[3:9, 5:50], mask[20, 7], mask[40:, 60:] = 1, 2, 255
    assert store(client, address, mask).status_code == 204
    answer = client.get(f"{address}/mask")
    assert answer.content == mask.tobytes()
    assert answer.headers["x-origin"] == "correction"
    with Image.open(painted(desk)[0]) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), mask)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_has_the_size_of_the_upright_photograph(desk, client, tmp_path, orientation):
    save_with_exif(tmp_path / "x.jpg", photo(orientation), orientation)
    address = add(client, (tmp_path / "x.jpg").read_bytes(), "x.jpg")
    width, height = map(int, client.get(f"{address}/mask").headers["x-size"].split(","))
    assert (height, width) == ((48, 64) if orientation < 5 else (64, 48))
    tile = Image.open(io.BytesIO(client.get(f"{address}/tile/0/0/0").content))
    assert tile.size == (width, height)
    assert not tile.getexif()
    mask = blobs((0, 1, 2), (height, width))
    assert store(client, address, mask).status_code == 204
    other = add(client, jpeg(photo(20)), "other.png")
    assert store(client, other, blobs()).status_code == 204
    source = open_source(painted(desk)[0].parents[1])
    pair = next(p for pairs in source.pairs.values() for p in pairs if p.stem.startswith("x-"))
    np.testing.assert_array_equal(source.reader.read(pair), mask)


def odd_pictures() -> dict[str, bytes]:
    """Photographs as cameras, scanners and phones do not make them."""
    rgb = photo()

    def encoded(image, kind) -> bytes:
        image.save(buffer := io.BytesIO(), kind)
        return buffer.getvalue()

    deep = {
        name: cv2.imencode(name[name.index(".") :], values)[1].tobytes()
        for name, values in (
            ("grey16.png", rgb[..., 0].astype(np.uint16) * 256),
            ("deep.tif", rgb.astype(np.uint16) * 256),
            ("float.tif", rgb.astype(np.float32) / 255),
        )
    }
    modes = {f"{mode}.png": encoded(Image.fromarray(rgb).convert(mode), "PNG") for mode in "1LP"}
    modes["alpha.png"] = encoded(Image.fromarray(rgb).convert("RGBA"), "PNG")
    modes["cmyk.jpg"] = encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG")
    modes["first.gif"] = encoded(Image.fromarray(rgb).convert("P"), "GIF")
    sizes = {"dot": (1, 1), "column": (1, 3000), "row": (3000, 1)}
    return (
        deep | modes | {f"{n}.png": encoded(Image.new("RGB", s), "PNG") for n, s in sizes.items()}
    )


def test_odd_pictures_are_seen_painted_and_kept(client):
    for name, content in odd_pictures().items():
        address = add(client, content, name)
        width, height = map(int, client.get(f"{address}/mask").headers["x-size"].split(","))
        for what in ("thumbnail", "tile/0/0/0"):
            assert client.get(f"{address}/{what}").status_code == 200, name
        spot = {"x": width - 1, "y": height - 1, "tolerance": 3}
        assert client.post(f"{address}/wand", json=spot).status_code == 200
        mask = np.full((height, width), 2, np.uint8)
        assert store(client, address, mask).status_code == 204
        assert client.get(f"{address}/mask").content == mask.tobytes()


def test_two_corrections_are_a_data_set_that_the_check_accepts(desk, client, capsys):
    for number in range(7):
        address = add(client, jpeg(photo(number)), f"leaf {number}.png")
        assert store(client, address, blobs((0, 1, 2))).status_code == 204
        root = painted(desk)[0].parents[1]
        if number:
            assert check_data_set(root) == 0
    assert len(list(root.glob("valid_masks/*"))) == 2
    assert len(list(root.glob("train_masks/*"))) == 5


def test_the_second_correction_replaces_the_first_wherever_the_picture_came_from(desk, client):
    content = jpeg(photo())
    store(client, add(client, content), blobs((0, 1)))
    again = add(client, content, "renamed.png")
    assert client.get(f"{again}/mask").headers["x-origin"] == "correction"
    assert store(client, again, blobs((0, 2))).status_code == 204
    assert len(painted(desk)) == 1
    np.testing.assert_array_equal(read_labels(painted(desk)[0]), blobs((0, 2)))


def test_two_windows_do_not_overwrite_each_other(desk, client):
    address = add(client, jpeg(photo()))
    tag = client.get(f"{address}/mask").headers["etag"]
    first = store(client, address, blobs((0, 1)), tag)
    assert first.status_code == 204
    assert store(client, address, blobs((0, 2)), tag).status_code == 412
    np.testing.assert_array_equal(read_labels(painted(desk)[0]), blobs((0, 1)))
    assert store(client, address, blobs((0, 1)), tag).status_code == 204  # both painted the same
    assert store(client, address, blobs((0, 2)), first.headers["etag"]).status_code == 204
    without = client.put(f"{address}/mask", content=blobs().tobytes())
    assert without.status_code == 428


def test_a_window_that_shows_other_classes_saves_nothing(desk, client):
    address, mask = add(client, jpeg(photo())), blobs((0, 1))
    base = address[: address.index("/photographs")]
    shown = client.get(base).json()
    answer = client.get(f"{address}/mask")
    assert answer.headers["x-classes"] == shown["table"]
    names = {"names": ["background", "symptom", "leaf"]}
    assert client.post(f"{base}/classes", json=names).status_code == 409
    same = {"names": [entry["name"] for entry in shown["classes"]]}
    assert client.post(f"{base}/classes", json=same).status_code == 204
    headers = {"if-match": answer.headers["etag"], "x-classes": shown["table"]}
    desk.collection(shown["id"]).classes = ClassTable.default()  # a model has brought others
    for seen in (answer.headers["etag"], "*"):
        saved = client.put(
            f"{address}/mask", content=mask.tobytes(), headers=headers | {"if-match": seen}
        )
        assert saved.status_code == 409
    assert painted(desk) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 3071,
        b"\0" * 3073,
        b"\3" * 3072,
        b"\x1f\x8b broken",
        gzip.compress(b"\0" * (1 << 24), mtime=0),
        gzip.compress(b"\0" * 3071, mtime=0),
    ],
)
def test_what_is_no_mask_of_the_photograph_is_refused(desk, client, content):
    address = add(client, jpeg(photo()))
    tag = client.get(f"{address}/mask").headers["etag"]
    answer = client.put(f"{address}/mask", content=content, headers={"if-match": tag})
    assert answer.status_code == 422
    assert painted(desk) == []


def test_a_validation_picture_stays_one_even_when_it_is_dropped_once_more(desk, client, tmp_path):
    root = make_data(tmp_path / "set", [blobs((0, 1, 2))] * 2, COFFEE)
    data = desk.space.open(root, "data")
    valid = next(entry for entry in data.photographs.values() if entry.split == "valid")
    address = f"/api/collections/{data.id}/photographs/{valid.id}"
    assert client.get(f"{address}/mask").headers["x-origin"] == "data"
    assert client.get(f"{address}/mask").content == blobs((0, 1, 2)).tobytes()
    assert desk._split_of(valid) == "valid"
    made = client.post("/api/collections", json={"title": "t"}).json()["id"]
    name = f"/api/collections/{made}/photographs?name=again.png"
    entry = client.put(name, content=valid.path.read_bytes()).json()
    desk.collection(made).classes = data.classes
    again = f"/api/collections/{made}/photographs/{entry['id']}"
    assert store(client, again, blobs((0, 2))).status_code == 204
    assert [path.parent.name for path in painted(desk)] == ["valid_masks"]
    assert client.get(f"{address}/mask").content == blobs((0, 2)).tobytes()


def test_a_training_takes_the_correction_in_the_place_of_the_old_mask(tmp_path):
    root = make_data(tmp_path / "set", [blobs((0, 1, 2))] * 3, COFFEE)
    corrections = Corrections(tmp_path / "corrections")
    new = photo(77)
    write_image(tmp_path / "new.png", new)
    source = open_source(root)
    corrections.save(source.pairs["valid"][1].image, blobs((0, 2)), source.reader.classes, "valid")
    corrections.save(tmp_path / "new.png", blobs((0, 1)), source.reader.classes, "")
    made = training_folder(root, corrections.folder(source.reader.classes), tmp_path / "training")
    merged = open_source(made)
    assert {split: len(pairs) for split, pairs in merged.pairs.items()} == {"train": 3, "valid": 4}
    masks = [merged.reader.read(pair) for pair in merged.pairs["valid"]]
    assert sorted(mask.max() + mask.sum() for mask in masks) == sorted(
        m.max() + m.sum() for m in [blobs((0, 1, 2))] * 2 + [blobs((0, 2)), blobs((0, 1))]
    )
    assert check_data_set(made) == 0


def test_corrections_alone_need_one_picture_to_validate_with(tmp_path):
    corrections = Corrections(tmp_path / "corrections")
    folder = corrections.folder(TABLE)
    with pytest.raises(UserError, match="Nothing is corrected"):
        training_folder(None, folder, tmp_path / "none")
    for number in range(2):
        write_image(tmp_path / f"{number}.png", photo(number))
        corrections.save(tmp_path / f"{number}.png", blobs((0, 1, 2)), TABLE, "")
        if number == 0:
            with pytest.raises(UserError, match="Two corrected pictures"):
                training_folder(None, folder, tmp_path / "one")
    assert open_source(training_folder(None, folder, tmp_path / "two")).pairs.keys() == {
        "train",
        "valid",
    }


def test_a_training_takes_the_corrections_of_its_classes_or_those_painted_last(tmp_path):
    corrections = Corrections(tmp_path / "corrections")
    with pytest.raises(UserError, match="Nothing is corrected yet; correct"):
        corrections.fitting(None)
    two = ClassTable(("background", "leaf"), *[((0, 0, 0), (0, 176, 0))] * 2)
    for number, classes in enumerate((TABLE, two, TABLE)):
        write_image(tmp_path / f"{number}.png", photo(number))
        mask = corrections.save(tmp_path / f"{number}.png", blobs((0, 1)), classes, "train")
        os.utime(mask, (number, number))
    assert [(names, count) for _, names, count in corrections.sets()] == [
        (TABLE.names, 2),
        (two.names, 1),
    ]
    assert corrections.fitting(None) == corrections.folder(TABLE)
    assert corrections.fitting(two) == corrections.folder(two)
    other_colors = ClassTable(two.names, *[((0, 0, 0), (9, 9, 9))] * 2)
    assert corrections.fitting(other_colors) == corrections.folder(two)
    for folder, text in ((".hidden", COFFEE), ("damaged", "background:0,0\n")):
        shutil.copytree(corrections.folder(TABLE), corrections.root / folder)
        (corrections.root / folder / "labelmap.txt").write_text(text)
    (corrections.folder(two) / "train_masks" / "._1.png").touch()
    assert [count for _, _, count in corrections.sets()] == [2, 1]
    with pytest.raises(UserError, match="with the classes background, spot"):
        corrections.fitting(ClassTable(("background", "spot"), two.colors, two.colors))


def test_corrections_in_other_colours_keep_their_classes_in_a_training(tmp_path):
    root = make_data(tmp_path / "set", [blobs((0, 1, 2))] * 2, COFFEE)
    swapped = TABLE.colors[0], TABLE.colors[2], TABLE.colors[1]
    corrections, table = (
        Corrections(tmp_path / "corrections"),
        ClassTable(TABLE.names, *[swapped] * 2),
    )
    write_image(tmp_path / "new.png", photo(77))
    corrections.save(tmp_path / "new.png", blobs((0, 1, 2)), table, "train")
    painted = corrections.fitting(open_source(root).reader.classes)
    merged = open_source(training_folder(root, painted, tmp_path / "training"))
    assert len(merged.pairs["train"]) == 3
    for pair in merged.pairs["train"]:
        np.testing.assert_array_equal(merged.reader.read(pair), blobs((0, 1, 2)))


def test_a_mask_is_kept_with_the_classes_it_was_checked_with(desk, client, monkeypatch):
    address = add(client, jpeg(photo()))
    [collection] = desk.space.collections.values()
    before = collection.classes

    def changing(mask):  # as a model that segments meanwhile does
        collection.classes = ClassTable.default()
        return fingerprint(mask)

    monkeypatch.setattr("page.desk.fingerprint", changing)
    assert store(client, address, blobs((0, 2))).status_code == 204
    assert [path.parents[1] for path in painted(desk)] == [desk.corrections.folder(before)]


def test_corrections_of_other_classes_are_not_mixed_into_a_data_set(tmp_path):
    root = make_data(tmp_path / "set", [blobs()] * 2)
    corrections = Corrections(tmp_path / "corrections")
    write_image(tmp_path / "a.png", photo())
    corrections.save(tmp_path / "a.png", blobs((0, 1, 2)), TABLE, "train")
    with pytest.raises(UserError, match="train on one of them alone"):
        training_folder(root, corrections.folder(TABLE), tmp_path / "training")


def test_a_killed_server_leaves_no_photograph_without_mask(tmp_path):
    corrections = Corrections(tmp_path / "corrections")
    write_image(tmp_path / "a.png", photo())
    mask = corrections.save(tmp_path / "a.png", blobs(), TABLE, "train")
    mask.unlink()
    assert corrections.find(tmp_path / "a.png", TABLE) is None
    own = [mask.parents[1] / "train_images" / name for name in ("mine.jpg", "more/b.jpg")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    corrections.tidy()
    assert all(path.is_file() for path in own)  # what a person has put there stays
    shutil.rmtree(own[1].parent)
    own[0].unlink()
    assert not list(tmp_path.glob("corrections/*/*_images/*"))
    assert corrections.save(tmp_path / "a.png", blobs(), TABLE, "train") == mask


def test_the_wand_takes_what_is_connected_and_looks_alike(client):
    image = np.full((60, 90, 3), (40, 120, 40), np.uint8)
    image[10:30, 20:50] = (150, 90, 50)
    image[10:30, 70:80] = (150, 90, 50)  # alike, but elsewhere
    address = add(client, jpeg(image))
    answer = client.post(f"{address}/wand", json={"x": 25, "y": 15, "tolerance": 10})
    assert answer.headers["x-box"] == "20,10,30,20"
    assert answer.content == b"\1" * 600
    outside = client.post(f"{address}/wand", json={"x": 90, "y": 15, "tolerance": 10})
    assert outside.status_code == 422
    assert client.post(f"{address}/wand", json={"x": -1, "y": 1}).status_code == 400


def test_tiles_of_all_scales_make_up_the_photograph(client):
    image = np.zeros((700, 1100, 3), np.uint8)
    image[:, :, 0] = np.linspace(0, 255, 1100).astype(np.uint8)
    image[:, :, 1] = np.linspace(0, 255, 700).astype(np.uint8)[:, None]
    address = add(client, jpeg(image))
    for level, columns, rows in ((0, 3, 2), (1, 2, 1), (2, 1, 1)):
        lines = [
            np.concatenate(
                [
                    np.array(Image.open(io.BytesIO(client.get(f"{address}/tile/{place}").content)))
                    for place in (f"{level}/{column}/{row}" for column in range(columns))
                ],
                axis=1,
            )
            for row in range(rows)
        ]
        whole = np.concatenate(lines)
        assert whole.shape == (-(-700 >> level), -(-1100 >> level), 3)
        sampled = image[:: 1 << level, :: 1 << level][: whole.shape[0], : whole.shape[1]]
        assert np.abs(whole.astype(int) - sampled).mean() < 3
    assert client.get(f"{address}/tile/0/3/0").status_code == 422


@pytest.fixture
def trained_here(monkeypatch):
    """Trainings that are begun wait; what comes back gives the last one's flags, or runs it."""
    begun = []

    class Child:
        returncode = None

        def __init__(self, command, **_):
            begun.append((self, command))

        def poll(self):
            return self.returncode

    def last(runs: bool = True):
        child, command = begun[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*command[1:], "--workers=0"])
            child.returncode = train.main() if runs else 0
        return parse_args(command[2:])[0]

    add_tiny()
    monkeypatch.setattr("page.training.subprocess.Popen", Child)
    return last


def test_photographs_alone_are_enough_from_round_to_round(desk, client, trained_here):
    """Painted from nothing, trained on that alone, segmented, corrected, trained once more."""
    made = client.post("/api/collections", json={"title": "mine"}).json()["id"]
    base = f"/api/collections/{made}"
    for number in range(3):
        name = f"{base}/photographs?name=leaf{number}.png"
        assert client.put(name, content=jpeg(photo(number))).status_code == 201
    wish = {"recipe": "scratch", "model": "tiny", "weights": "", "epochs": 1, "width": 64}
    wish |= {"data": "", "corrections": True, "height": 32}
    assert "Nothing is corrected" in client.post("/api/runs", json=wish).json()["error"]
    names = ["background", "leaf", "spot"]
    assert client.post(f"{base}/classes", json={"names": names}).status_code == 204
    shown = client.get(base).json()["photographs"]
    addresses = [f"{base}/photographs/{entry['id']}" for entry in shown]
    for address in addresses[:2]:
        assert client.get(f"{address}/mask").headers["x-origin"] == "nothing"
        assert store(client, address, blobs((0, 1, 2))).status_code == 204

    assert ended(client, client.post("/api/runs", json=wish).json())["state"] == "done"
    first = trained_here()
    [run] = client.get("/api/state").json()["runs"]
    assert (run["state"], len(run["history"])) == ("done", 1)
    assert ended(client, client.post(f"{base}/segment", json={}).json())["state"] == "done"
    rows = client.get(base).json()["photographs"]
    assert [(row["corrected"], row["segmented"]) for row in rows] == [
        (True, True),
        (True, True),
        (False, True),
    ]
    assert client.get(f"{addresses[0]}/mask").content == blobs((0, 1, 2)).tobytes()
    assert client.get(f"{addresses[2]}/mask").headers["x-origin"] == "prediction"
    assert store(client, addresses[2], blobs((0, 2))).status_code == 204
    assert len({path.parents[1] for path in painted(desk)}) == 1
    [model] = client.get("/api/state").json()["models"]
    # With the recipe's own network the weights would not fit.
    wish |= {"weights": model["id"], "model": ""}
    assert ended(client, client.post("/api/runs", json=wish).json())["state"] == "done"
    second, own = trained_here(runs=False), first.out_dir / "best_model_iou.pth"
    config, _ = parse_description(read_checkpoint(own), own)
    assert config.window is not None
    network = (second.model, second.head, second.window, Path(second.weights))
    assert network == (config.variant, config.head, config.window, own)
    newest = desk.trainings.names()[0]
    data = open_source(desk.space.path / "training_data" / newest)
    assert {split: len(pairs) for split, pairs in data.pairs.items()} == {"train": 2, "valid": 1}


@pytest.mark.parametrize("names", ["background leaf spot rust mildew", "ground disease", "b Blatt"])
def test_new_leaves_are_green_and_new_symptoms_are_not(desk, client, names):
    names = names.split()
    base = add(client, jpeg(photo()), classes=names).rpartition("/photographs/")[0]
    colors = [np.array(entry["color"]) for entry in client.get(base).json()["classes"]]
    assert colors[0].tolist() == [0, 0, 0]
    green = [name for name, color in zip(names, colors, strict=True) if color.argmax() == 1]
    assert green == [name for name in names if name in ("leaf", "Blatt")]
    assert len({tuple(color) for color in colors}) == len(names)
    if len(names) > 2:
        assert (colors[2].argmax(), colors[2][0]) == (0, 255)  # warm


def test_there_are_colours_for_as_many_classes_as_are_taken(desk, client):
    for names in (
        ["ground", *"abcdefghi"],
        ["ground", "leaf", "stem", "root", "shoot", "petiole", "plant", *"abc"],
    ):
        add(client, jpeg(photo()), classes=names)
    made = client.post("/api/collections", json={"title": "t"}).json()["id"]
    answer = client.post(
        f"/api/collections/{made}/classes", json={"names": ["ground", *"abcdefghij"]}
    )
    assert answer.status_code == 422
    assert "Give 2 to 10 classes" in answer.json()["error"]


def test_classes_that_were_painted_before_keep_their_colours(desk, client, tmp_path):
    """A later photograph with classes of the same names is learnt together with them."""
    old = desk.space.create("old")
    write_image(old.root / "a.png", photo(3))
    old.find()
    old.classes = TABLE
    [entry] = old.photographs.values()
    desk.corrections.save(entry.path, blobs(), TABLE, "")
    address = add(client, jpeg(photo(4)))
    assert store(client, address, blobs()).status_code == 204
    assert len(list(desk.corrections.root.glob("*/labelmap.txt"))) == 1
    assert len(painted(desk)) == 2
