"""What spoils a training is found before it, and told to a person."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data_sets import COFFEE, COLORS, blobs, find_pairs, make_data, photo, save_with_exif
from PIL import Image
from tiny_annotations import all_pairs, coco, square, write_json, write_photo

from common.errors import UserError
from data.cache import cache_folder
from data.checks import check_data_set, check_pairs, examine_source, survey, unlearnt
from data.images import write_image
from data.source import open_source
from data.splits import everything_of, settle_split
from training.flags import make_parser


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_the_check_stops_at_a_broken_file_or_leaves_it_out(tmp_path, capsys):
    root = make_data(tmp_path, [blobs()] * 4)
    pairs = find_pairs(root, "train")
    spoil(pairs[1].image)
    spoil(pairs[2].mask)
    source = open_source(root, ("train",))
    with pytest.raises(UserError, match=r"train_images/001\.png is cut off") as no:
        check_pairs(source)
    assert str(no.value).endswith(" It is the first of 2; --skip-bad leaves such pictures out.")
    assert check_pairs(source, skip_bad=True) == {"train": [pairs[0], pairs[3]]}
    printed = capsys.readouterr().out
    assert "2 of 4 pairs are left out" in printed
    assert "train_masks/002.png" in printed
    hopeless = dataclasses.replace(source, pairs={"train": pairs[1:3]})
    for skip_bad in (False, True):
        with pytest.raises(UserError, match="is cut off") as no:
            check_pairs(hopeless, skip_bad)
        assert "--skip-bad" not in str(no.value)


def test_of_many_that_are_left_out_the_first_are_listed(tmp_path, capsys):
    root = make_data(tmp_path / "masks", [blobs()] * 9)
    for pair in find_pairs(root, "train")[:7]:
        spoil(pair.image)
    check_pairs(open_source(root, ("train",)), skip_bad=True)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "7 of 9 pairs are left out:"
    assert [line.count(" is cut off") for line in said[1:]] == [1] * 5 + [0]
    assert said[-1] == "  and 2 more"

    for mask in sorted((root / "train_masks").iterdir())[:7]:
        mask.unlink()
    open_source(root, ("train",), skip_bad=True)
    assert capsys.readouterr().out.strip().endswith("002.png, 003.png and 3 more")

    shapes = [{"segmentation": [square(1, 1, 9, 9)], "image_id": n + 1} for n in range(8)]
    drawn = drawn_set(tmp_path / "drawn", shapes)
    for number in range(6):
        (drawn / f"{number}.jpg").unlink()
    open_source(drawn, skip_bad=True)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "6 pictures are left out:"
    assert [line.count(" is not there") for line in said[1:]] == [1] * 5 + [0]
    assert said[-1] == "  and 1 more"


def test_a_clean_data_set_has_no_problems(tmp_path, capsys):
    root = make_data(tmp_path, [blobs()] * 2)
    assert check_data_set(root) == 0
    printed = capsys.readouterr().out
    assert "No problems." in printed
    assert "\n2 classes: background, disease\n  masks: " in printed
    share = (blobs() == 1).mean()
    assert f"{share:.2%}" in printed


SAID = r"""
train_images/000.png is cut off
2 images without a mask
2 masks without an image
has the value 9 on
64x48
1 mask with nothing but the first class
1 picture that another split has, too
1 picture that the same split has twice
009.png was painted on the photograph
010.png has the colour
It looks resized with smoothing
\n\x1b[31m.png
symptom
12 PNG
"""


def test_the_report_finds_everything(tmp_path, capsys):
    masks = [blobs((0, 1, 2))] * 12
    root = make_data(tmp_path, masks, COFFEE)
    images, labels = root / "train_images", root / "train_masks"
    spoil(images / "000.png")
    (labels / "001.png").unlink()
    (images / "002.png").unlink()
    Image.fromarray(blobs((0, 1, 9))).save(labels / "003.png")
    Image.fromarray(blobs((0, 1, 2), (48, 48))).save(labels / "004.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(labels / "005.png")
    write_image(images / "006.png", photo(106))  # as valid_images/006.png
    write_image(images / "007.png", photo(8))  # as train_images/008.png
    save_with_exif(images / "009.png", photo(9, (64, 48)), 6)
    Image.fromarray(np.rot90(masks[0])).save(labels / "009.png")
    large = Image.fromarray(COLORS[blobs((0, 1, 2), (480, 640))])
    large.resize((300, 225), Image.Resampling.BILINEAR).save(labels / "010.png")
    (labels / "011.png").rename(labels / "evil\n\x1b[31m.png")
    problems = check_data_set(root, tmp_path / "fix.txt")
    printed = capsys.readouterr().out
    for words in SAID.strip().splitlines():
        assert words in printed, words
    assert "\x1b" not in printed
    fixes = (tmp_path / "fix.txt").read_text().splitlines()
    assert problems == len(fixes) == 9
    assert "train_masks/evil\\n\\x1b[31m.png" in fixes


def drawn_set(root: Path, shapes: list[dict], names=("leaf", "spot")) -> Path:
    """COCO's annotations of 8 photographs, which do not say what is for validation."""
    for number in range(8):
        write_photo(root / f"{number}.jpg", seed=number)
    images = [f"{number}.jpg" for number in range(8)]
    return write_json(root / "all.json", coco(shapes, names=names, images=images)).parent


def test_data_without_splits_are_shown_as_train_py_divides_them(tmp_path, capsys):
    shapes = [{"segmentation": [square(1, 1, 9, 9)], "image_id": n + 1} for n in range(8)]
    root = drawn_set(tmp_path / "set", shapes)
    (root / "8.jpg").write_bytes((root / "0.jpg").read_bytes())  # stays with its twin
    content = coco([*shapes, shapes[0] | {"image_id": 9}], images=[f"{n}.jpg" for n in range(9)])
    write_json(root / "all.json", content)
    source, args = open_source(root), make_parser().parse_args([])
    everything = everything_of(source.pairs)
    look = (source.root, source.reader, args.valid_share, args.groups, args.seed)
    divided, _ = settle_split(tmp_path, everything, *look)
    assert survey(root).pairs == divided
    check_data_set(root)
    said = capsys.readouterr().out
    assert f"\ntrain  {len(divided['train'])} " in said
    facts = said.split("\n\n")[1].splitlines()
    assert facts[0] == "3 classes: background, leaf, spot"
    assert facts[1:-1] == [
        f"  COCO JSON from {root / 'all.json'}",
        "  it does not say what is for validation: train.py sets a share of the pictures aside",
        "  shown is what it does without a flag. 2 that look alike stay together; say with "
        "--groups what else belongs together",
    ]

    victim = divided["valid"][0].image
    spoil(victim)
    damaged = survey(root)
    assert victim in {pair.image for pair in damaged.pairs["train"]}
    assert sorted(p.image for p in all_pairs(damaged)) == [p.image for p in everything]


def test_photographs_that_all_look_alike_are_a_problem_where_some_must_be_set_aside(
    tmp_path, capsys
):
    root = drawn_set(tmp_path, [{"segmentation": [square(1, 1, 9, 9)]}])
    for number in range(1, 8):
        (root / f"{number}.jpg").write_bytes((root / "0.jpg").read_bytes())
    listed = tmp_path / "fix.txt"
    assert check_data_set(root, listed) > 0
    said = capsys.readouterr().out
    assert "All 8 photographs are one group" in said
    assert "another split" not in said  # there is none
    assert "." not in listed.read_text().splitlines()  # nobody deletes the whole by that list


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (("valid", "valid", "test"), "has no pictures for the split train (it has test and valid)"),
        (("train", "test"), "has 1 picture that can be used; at least 2 are needed"),
        ((".",), "has 1 picture that can be used; at least 2 are needed"),
    ],
)
def test_data_that_train_py_would_refuse_have_a_problem(tmp_path, capsys, folders, reason):
    root = tmp_path / "set"
    for number, folder in enumerate(folders):
        write_image(root / folder / f"images/{number}.png", photo(number))
        (root / folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(blobs()).save(root / folder / f"masks/{number}.png")
    with pytest.raises(UserError) as refused:
        open_source(root)
    listed = tmp_path / "fix.txt"
    assert check_data_set(root, listed) == 1
    said = capsys.readouterr().out
    assert reason in str(refused.value)
    assert f"    {refused.value}\n" in said
    assert said.splitlines()[-2] == "1 problem."
    assert listed.read_text() == ""  # nothing there is to be deleted


def test_a_test_picture_that_cannot_be_used_stays_one(tmp_path):
    for number, split in enumerate(["train"] * 5 + ["test"] * 3):
        write_image(tmp_path / split / f"images/{number}.png", photo(number, (40, 60)))
        (tmp_path / split / "masks").mkdir(exist_ok=True)
        size = (60, 40) if number == 5 else (40, 60)  # of another shape than its photograph
        Image.fromarray(blobs((0, 1), size)).save(tmp_path / split / f"masks/{number}.png")
    pairs = survey(tmp_path).pairs
    assert [pair.image.name for pair in pairs["test"]] == ["5.png", "6.png", "7.png"]
    assert (len(pairs["train"]), len(pairs["valid"])) == (4, 1)


def test_what_is_found_in_shapes_names_files_that_a_person_can_open(tmp_path, capsys):
    shapes = [{"segmentation": [square(1, 1, 9, 9)], "image_id": n + 1} for n in range(7)]
    root = drawn_set(tmp_path, shapes)
    assert check_data_set(root) == 0
    said = capsys.readouterr().out
    assert f"{root / 'all.json'}, picture 7.jpg" in said
    assert str(cache_folder()) not in said
    _, findings = examine_source(survey(root))
    assert [found.path for found in findings if found.kind == "empty"] == [root / "7.jpg"]


def test_classes_are_counted_once_and_what_only_validation_shows_is_told(tmp_path, capsys):
    names = ("background", "leaf", "rust", "symptom", "mildew")
    table = "".join(f"{name}:{9 * index},0,0::\n" for index, name in enumerate(names))
    root = make_data(tmp_path, [blobs((0, 1))], table)
    Image.fromarray(blobs((0, 1, 3))).save(root / "valid_masks" / "000.png")
    source = open_source(root)
    told = unlearnt(source.pairs, source.reader)
    assert told.startswith("No mask to learn from shows symptom, but those to validate on do")
    same = {"train": source.pairs["valid"], "valid": source.pairs["train"]}
    assert unlearnt(same, source.reader) == ""
    check_data_set(root)
    said = capsys.readouterr().out
    lines = said[said.index("  3 classes that not every split shows") :].splitlines()[1:4]
    assert lines[0].startswith("    symptom does not occur in train, but in valid: it cannot be")
    assert lines[1:] == ["    rust does not occur", "    mildew does not occur"]


def test_smoothed_binary_masks_are_reported(tmp_path, capsys):
    small = Image.fromarray(blobs((0, 255)))
    root = make_data(tmp_path, [small.resize((256, 192), Image.Resampling.BICUBIC)])
    assert check_data_set(root) == 2
    assert "rare values along its edges" in capsys.readouterr().out
