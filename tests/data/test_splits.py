"""Whole groups on one side, every class on both, and what was decided is kept."""

from collections import Counter

import numpy as np
import pytest
from data_sets import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from config import ClassTable, MaskReading
from data.masks import MaskReader
from data.pairs import Pair
from data.splits import (
    Division,
    choose_part,
    group_pairs,
    hold_out,
    make_folds,
    name_of,
    settle_split,
)

READER = MaskReader(
    ClassTable(("soil", "leaf", "spot"), ((0, 0, 0),) * 3, ((0, 0, 0),) * 3),
    MaskReading(grey="indices"),
)


def make_pairs(root, names, holds=lambda number: (0, 1)):
    """Pairs whose masks hold the classes that `holds` says for their number."""
    pairs = []
    for number, name in enumerate(names):
        image, mask = root / f"images/{name}.png", root / f"masks/{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(sum(map(ord, name)) + 1000 * number, (20, 24))).save(image)
        stripes = np.resize(np.array(holds(number), np.uint8), (20, 24))
        Image.fromarray(stripes).save(mask)
        pairs.append(Pair(image, mask, name))
    return pairs


@pytest.fixture(scope="module")
def plants(tmp_path_factory):
    """Four photographs of each of ten plants; every third plant has spots."""
    root = tmp_path_factory.mktemp("plants")
    names = [f"plant{plant}_{shot}" for plant in range(10) for shot in range(4)]
    holds = lambda number: (0, 1, 2) if number // 4 % 3 == 0 else (0, 1)  # noqa: E731
    return root, make_pairs(root, names, holds)


def test_folds_keep_groups_together_and_spread_size_and_rare_classes(plants):
    root, pairs = plants
    folds, remark = make_folds(pairs, root, READER, 4, r"(.*)_\d+", seed=1)
    assert "10 groups" in remark
    homes = {}
    for name, part in folds.parts.items():
        assert homes.setdefault(name.split("_")[0], part) == part
    assert sorted(Counter(folds.parts.values()).values()) == [8, 8, 12, 12]
    spotted = {homes[f"images/plant{plant}"] for plant in (0, 3, 6, 9)}
    assert len(spotted) == 4  # one plant with spots in each fold
    again, _ = make_folds(pairs, root, READER, 4, r"(.*)_\d+", seed=1)
    assert again == folds
    assert make_folds(pairs, root, READER, 4, r"(.*)_\d+", seed=2)[0] != folds


def test_a_share_is_set_aside_in_whole_groups(plants):
    root, pairs = plants
    split, _ = hold_out(pairs, root, READER, 0.2, r"(.*)_\d+", seed=0)
    valid = {name for name, part in split.parts.items() if part == "valid"}
    assert len(valid) == 8
    assert len({name.split("_")[0] for name in valid}) == 2
    for share, plants_aside in ((0.3, 3), (0.5, 5), (0.01, 1), (0.99, 9)):
        parts = hold_out(pairs, root, READER, share, r"(.*)_\d+", seed=0)[0].parts
        assert Counter(parts.values())["valid"] == 4 * plants_aside


def test_more_photographs_leave_the_earlier_ones_where_they_were(plants, tmp_path):
    root, pairs = plants
    first, _ = hold_out(pairs[:24], root, READER, 0.25, r"(.*)_\d+", seed=0)
    first.write(tmp_path / "split.csv")
    earlier = Division.read(tmp_path / "split.csv", "split")
    assert earlier == first
    # Two more shots of plants that are known, and four new plants.
    more = [pairs[-1], *pairs[:24], *pairs[24:39]]
    second, _ = hold_out(more, root, READER, 0.25, r"(.*)_\d+", seed=5, earlier=earlier)
    assert all(second.parts[name] == part for name, part in first.parts.items())
    assert second.parts.keys() == {name_of(pair.image, root) for pair in more}
    homes = {}
    for name, part in second.parts.items():
        assert homes.setdefault(second.groups[name], part) == part
    assert Counter(second.parts.values())["valid"] > Counter(first.parts.values())["valid"]
    one_more, _ = hold_out(pairs[:25], root, READER, 0.25, r"(.*)_\d+", seed=5, earlier=earlier)
    assert one_more.parts["images/plant6_0.png"] == "train"


def test_without_groups_photographs_that_look_alike_stay_together(tmp_path):
    pairs = make_pairs(tmp_path, [f"leaf{number}" for number in range(6)])
    Image.open(pairs[0].image).save(pairs[4].image)
    own, remark = group_pairs(pairs, tmp_path, None)
    assert own[4] == own[0] == "images/leaf0.png"
    assert len(set(own)) == 5
    assert "2 that look alike stay together" in remark


def test_groups_come_from_a_table(tmp_path):
    pairs = make_pairs(tmp_path, ["a", "b", "c"])
    table = tmp_path / "groups.csv"
    table.write_text("file,group\nimages/a.png,x\nb.png,y\nc,x\n")
    assert group_pairs(pairs, tmp_path, str(table))[0] == ["x", "y", "x"]
    table.write_text("file,group\na,x\nc,x\n")
    with pytest.raises(UserError, match=r"no group for images/b.png"):
        group_pairs(pairs, tmp_path, str(table))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("(plant", "is no pattern"),
        ("plant.*", "0 pairs of brackets"),
        (r"(p)(.*)_\d+", "2 pairs of brackets"),
        ("x(.*)", "fits no photograph's name, such as plant0_0"),
        ("absent.csv", "is not there"),
        ("(.*)", None),
    ],
)
def test_groups_that_cannot_be_made_end_in_a_sentence(plants, groups, message):
    root, pairs = plants
    if message is None:
        assert len(set(group_pairs(pairs, root, groups)[0])) == len(pairs)
        return
    with pytest.raises(UserError, match=message):
        group_pairs(pairs, root, groups)


def test_too_few_or_too_large_groups_end_in_a_sentence(plants):
    root, pairs = plants
    with pytest.raises(UserError, match=r"8 photographs in 2 groups are too few for 3 parts"):
        make_folds(pairs[:8], root, READER, 3, r"(.*)_\d+", 0)
    with pytest.raises(UserError, match=r"All 4 photographs are one group"):
        hold_out(pairs[:4], root, READER, 0.2, r"(.*)_\d+", 0)
    # Every label is too rare to be in each part: nothing to spread, and no warning.
    assert make_folds(pairs[:4:2], root, READER, 2, "(.*)", 0)[0].count == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines"),
        ("file\na\n", "needs the columns file and fold"),
        ("file,fold\na,0\nb,\n", "filled in every line"),
        ("file,fold\na,0\na,1\n", "names a twice"),
        ("file,fold\na,0\nb,2\n", "folds 0, 2; they must be 0, 1, 2"),
        ("file,fold\na,0\nb,0\n", "folds 0; they must be"),
        ("file,fold\na,one\nb,two\n", "they must be"),
        ("file,group,fold\na,x,0\nb,x,1\n", "group x into fold 0 and, by b, into 1"),
        ("file,fold\n" + "".join(f"{n},{n}\n" for n in range(200)), "they must be"),
    ],
)
def test_a_table_that_is_none_ends_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Division.read(path, "fold")


def test_a_table_by_hand_needs_no_groups_and_must_place_every_photograph(tmp_path):
    pairs = make_pairs(tmp_path, ["a", "b", "ä"])
    path = tmp_path / "folds.csv"
    path.write_text("fold,file\n1,images\\a.png\n0,images/b.png\n", encoding="utf-8-sig")
    division = Division.read(path, "fold")
    assert division.part_of(pairs[:2], tmp_path, path) == ["1", "0"]
    with pytest.raises(UserError, match=r"does not place 1 of 3 photographs; the first is images/"):
        division.part_of(pairs, tmp_path, path)


def test_a_split_is_written_and_gone_on_from(plants, tmp_path):
    root, pairs = plants
    rest = (root, READER, 0.25, r"(.*)_\d+", 0)
    first, _ = settle_split(tmp_path / "a", pairs[:24], *rest)
    table = tmp_path / "a/split.csv"
    assert choose_part(pairs[:24], root, table, "valid") == first["valid"]
    second, remark = settle_split(tmp_path / "b", pairs, *rest, table)
    assert "16 are new" in remark
    for part in ("train", "valid"):
        assert set(first[part]) < set(second[part])
        assert choose_part(pairs, root, tmp_path / "b/split.csv", part) == second[part]
    third, _ = settle_split(tmp_path / "a", pairs, *rest)  # the folder's own, by itself
    assert third == second
    with pytest.raises(UserError, match="does not place 16 of 40"):
        settle_split(tmp_path / "c", pairs, *rest, write_first(table, first, root), goes_on=True)
    write_first(table, {"train": pairs[:24]}, root)
    with pytest.raises(UserError, match="valid of no photograph"):
        settle_split(tmp_path / "c", pairs[:24], *rest, table)


def write_first(path, split, root):
    parts = {name_of(pair.image, root): part for part, own in split.items() for pair in own}
    Division("split", parts, {name: name for name in parts}).write(path)
    return path


def test_a_split_of_other_data_is_not_gone_on_from(plants, tmp_path):
    root, pairs = plants
    write_first(tmp_path / "split.csv", {"train": pairs[:4]}, root)
    divided, _ = settle_split(tmp_path, pairs[4:], root, READER, 0.25, r"(.*)_\d+", 0)
    assert len(divided["valid"]) == 8
    assert "plant0" not in (tmp_path / "split.csv").read_text()


CELLS = st.text('ab0123,"\n\r\\é \x00', max_size=6)


@given(st.lists(st.lists(CELLS, max_size=4), max_size=5), st.booleans())
def test_a_strangers_table_is_read_or_ends_in_a_sentence(tmp_path_factory, rows, quoted):
    path = tmp_path_factory.mktemp("table") / "folds.csv"
    head = "file,fold\n" if quoted else "\ufefffile,group,fold\r\n"
    text = head + "\n".join(",".join(cells) for cells in rows)
    path.write_bytes(text.encode())
    try:
        division = Division.read(path, "fold")
    except UserError:
        return
    assert division.count >= 2
    division.write(path)
    assert Division.read(path, "fold").parts.keys() == division.parts.keys()
