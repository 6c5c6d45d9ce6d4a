"""Class tables are read in any encoding, or refused with the line."""

from pathlib import Path

import pytest
from data_sets import COFFEE

from common.errors import UserError
from config import ClassTable
from data.classes import (
    format_class_table,
    line_targets,
    merged_classes,
    read_class_table,
    table_lines,
)


def table_of(tmp_path: Path, content: bytes) -> ClassTable:
    (tmp_path / "labelmap.txt").write_bytes(content)
    return read_class_table(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "# label:color_rgb:parts:actions\nsoil:0,0,0::\nblüte:0,176,0::\n".encode(),
        "\ufeffsoil:0,0,0::\r\n\r\nblüte: 0, 176, 0::\r\n".encode(),
        "soil:0,0,0::\nblüte:0,176,0".encode("latin-1"),
    ],
)
def test_labelmaps_of_any_encoding_are_read(tmp_path, content):
    table = table_of(tmp_path, content)
    assert table.names == ("soil", "blüte")
    assert table.colors == ((0, 0, 0), (0, 176, 0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a:0,0,0::\na:1,1,1::\n", "name 'a' twice"),
        (b"a:0,0,0::\nb:0,0,0::\n", r"colour \(0, 0, 0\) twice"),
        (b"a:0,0,0::\nb:0,0,256::\n", "line 2"),
        (b"a:0,0,0::\nb:0,0::\n", "line 2"),
        (b"a:0,0,0::\nb:x,0,0::\n", "line 2"),
        (b"a:0,0,0::\nb\n", "line 2"),
        (b":0,0,0::\nb:1,1,1::\n", "line 1"),
        (b"a\x1b[31m:0,0,0::\nb:1,1,1::\n", "control characters"),
        (b"a:0,0,0::\nvoid:1,1,1::\n", "names 1 class"),
        (b"", "names 0 classes"),
    ],
)
def test_bad_labelmaps_are_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        table_of(tmp_path, content)


def test_without_a_labelmap_the_classes_are_those_of_config(tmp_path):
    assert read_class_table(tmp_path) == ClassTable.default()


def test_only_the_first_class_may_be_black_in_overlays(tmp_path):
    table = table_of(tmp_path, b"a:0,0,0::\nb:255,40,90::\n")
    assert table.vis_colors == ((0, 0, 0), (255, 40, 90))
    table = table_of(tmp_path, b"a:255,40,90::\nb:0,0,0::\n")
    assert any(table.vis_colors[1])
    assert table.vis_colors[1] != table.vis_colors[0]
    assert table.colors[1] == (0, 0, 0)


def test_a_written_table_is_read_as_it_was(tmp_path):
    table = table_of(tmp_path, COFFEE.encode())
    assert table_of(tmp_path, format_class_table(table).encode()) == table


COLORS = "soil:0,0,0::\nrust:1,0,0::\nvoid:9,9,9::\nspot:2,0,0::\nleaf:3,0,0::\n"


def test_merged_classes_take_the_first_ones_place_and_its_colour(tmp_path):
    table = merged_classes(table_of(tmp_path, COLORS.encode()), ["spot,rust=disease"])
    assert table.names == ("soil", "disease", "leaf")
    assert table.colors == ((0, 0, 0), (1, 0, 0), (3, 0, 0))
    assert line_targets(table) == {0: 0, 1: 1, 2: 255, 3: 1, 4: 2}
    assert table_lines(table)[3] == (2, 0, 0)
    assert ClassTable.from_plain(table.to_plain()) == table


def test_a_class_that_others_join_keeps_its_own_place(tmp_path):
    before = table_of(tmp_path, COLORS.encode())
    table = merged_classes(before, ["rust=leaf"], ["spot"])
    assert table.names == ("soil", "leaf")
    assert table.colors == ((0, 0, 0), (3, 0, 0))
    assert line_targets(table) == {0: 0, 1: 1, 2: 255, 3: 255, 4: 1}
    assert merged_classes(before) == before
    # The background may take a class in, and one rule may use what another made.
    table = merged_classes(before, ["rust,spot=disease", "disease=soil"])
    assert line_targets(table) == {0: 0, 1: 0, 2: 255, 3: 0, 4: 1}


@pytest.mark.parametrize(
    ("merge", "ignore", "reason"),
    [
        (["rust"], [], "is no rule"),
        (["=x"], [], "is no rule"),
        (["rust=\x1b"], [], "is no rule"),
        (["mould=x"], [], "no class 'mould'; there are soil, rust, spot, leaf"),
        ([], ["mould"], "no class 'mould'"),
        (["rust,spot,leaf=soil"], [], "leave 1 class"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(tmp_path, merge, ignore, reason):
    with pytest.raises(UserError, match=reason):
        merged_classes(table_of(tmp_path, COLORS.encode()), merge, ignore)
