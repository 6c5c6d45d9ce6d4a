"""Class tables are read in any encoding, or refused with the line."""

from pathlib import Path

import pytest
from data_sets import COFFEE

from common.errors import UserError
from config import ClassTable
from data.classes import format_class_table, read_class_table


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
        (b"a:0,0,0::\nvoid:1,1,1::\n", "names 1 classes"),
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
