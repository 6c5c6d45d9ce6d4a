"""CVAT for images 1.1."""

import numpy as np
import pytest
from tiny_annotations import all_pairs, filled, labels, open_all, write_photo

from common.errors import UserError

SIZE = (20, 30)
META = """<meta><task><labels>
<label><name>leaf</name><color>#00b000</color><type>any</type></label>
<label><name>spot</name><color>#ff0000</color></label>
<label><name>plant</name><type>skeleton</type></label>
<label><name>1</name><parent>plant</parent></label>
</labels></task></meta>"""


def write(root, shapes="", tail="", head=META):
    for number, name in enumerate("ab"):
        write_photo(root / "images" / f"{name}.png", SIZE, seed=number)
    images = "".join(
        f'<image id="{number}" name="{name}.png" width="30" height="20">{content}</image>'
        for number, (name, content) in enumerate((("a", shapes), ("b", "")))
    )
    text = f"<?xml version='1.0'?><annotations><version>1.1</version>{head}{images}{tail}"
    (root / "annotations.xml").write_text(text + "</annotations>")
    return root


def polygon(label, z="", points="2,2;20,2;20,15;2,15") -> str:
    return f'<polygon label="{label}" points="{points}" {z}></polygon>'


def box(label, z="", turned="") -> str:
    return f'<box label="{label}" xtl="5" ytl="5" xbr="11" ybr="9" {z} {turned}></box>'


def test_classes_and_colours_come_from_the_file_without_skeletons(tmp_path):
    classes = open_all(write(tmp_path, polygon("leaf"))).reader.classes
    assert classes.names == ("background", "leaf", "spot")
    assert classes.colors == ((0, 0, 0), (0, 176, 0), (255, 0, 0))


@pytest.mark.parametrize(
    ("leaf", "spot", "on_top"),
    [
        ('z_order="1"', 'z_order="0"', 1),
        ('z_order="-2"', 'z_order="-1"', 2),
        ("", "", 2),
        ('z_order="0"', "", 2),
        ("", 'z_order="-1"', 1),
    ],
)
def test_z_order_decides_then_the_files_order(tmp_path, leaf, spot, on_top):
    root = write(tmp_path, polygon("leaf", leaf) + box("spot", spot))
    assert labels(root)[7, 7] == on_top


def test_boxes_ellipses_and_masks_are_areas_and_may_be_turned(tmp_path):
    shapes = (
        box("leaf") + '<mask label="spot" rle="1, 2, 3" left="20" top="10" width="3" height="2"/>'
    )
    root = write(tmp_path, shapes)
    expected = filled(SIZE, (1, 5, 5, 11, 9), (2, 21, 10, 23, 11))
    assert np.array_equal(labels(root), expected)
    write(tmp_path, box("leaf", turned='rotation="90.0"'))
    assert np.array_equal(labels(root), filled(SIZE, (1, 6, 4, 10, 10)))
    write(tmp_path, '<ellipse label="leaf" cx="15" cy="10" rx="8" ry="4"></ellipse>')
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = ((x - 15) / 8) ** 2 + ((y - 10) / 4) ** 2 < 1
    assert (labels(root).astype(bool) ^ inside).sum() <= 4


def test_lines_points_tags_and_skeletons_are_no_areas(tmp_path):
    shapes = """<polyline label="leaf" points="1,1;5,5"/><points label="leaf" points="1,1"/>
    <tag label="leaf"/><skeleton label="plant"><points label="1" points="1,1"/></skeleton>"""
    source = open_all(write(tmp_path, polygon("leaf") + shapes))
    assert "4 points, lines or tags" in source.reader.describe()
    assert np.array_equal(labels(tmp_path), filled(SIZE, (1, 2, 2, 20, 15)))


def test_a_projects_subsets_are_splits(tmp_path):
    root = write(tmp_path, polygon("leaf"))
    text = (root / "annotations.xml").read_text()
    text = text.replace('name="a.png"', 'name="a.png" subset="Train"')
    text = text.replace('name="b.png"', 'name="b.png" subset="Validation"')
    (root / "annotations.xml").write_text(text)
    source = open_all(root)
    assert [pair.stem for pairs in source.pairs.values() for pair in pairs] == ["a", "b"]
    assert not source.divided


def test_a_video_is_refused(tmp_path):
    with pytest.raises(UserError, match="annotates a video"):
        open_all(write(tmp_path, tail='<track id="0" label="leaf"></track>'))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (polygon(""), "polygon 0: it has no label"),
        (polygon("leaf", points="1,1;2"), "odd"),
        (polygon("leaf", points="1,1;2,2"), "fewer than three"),
        (polygon("leaf", points="1,1;2,2;x,3"), "no numbers"),
        (polygon("leaf", 'z_order="x"'), "z_order"),
        ('<mask label="leaf" rle="1,2" left="0" top="0" width="3" height="2"/>', "3 of 6 pixels"),
        ('<mask label="leaf" rle="1,x" left="0" top="0" width="3" height="2"/>', "run lengths"),
        ('<mask label="leaf" rle="6" left="0" top="0" width="3"/>', "its height is None"),
        ('<box label="leaf" xtl="1" ytl="1" xbr="nan" ybr="3"/>', "its xbr"),
    ],
)
def test_a_shape_that_cannot_be_meant_is_named(tmp_path, shapes, reason):
    root = write(tmp_path, shapes)
    with pytest.raises(UserError, match=rf"annotations.xml, picture a.png: .*{reason}"):
        open_all(root)
    write_photo(root / "images" / "c.png", SIZE)
    text = (root / "annotations.xml").read_text()
    extra = f'<image name="c.png" width="30" height="20">{polygon("leaf")}</image></annotations>'
    (root / "annotations.xml").write_text(text.replace("</annotations>", extra))
    left = open_all(root, skip_bad=True)
    assert sorted(pair.stem for pair in all_pairs(left)) == ["b", "c"]


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE annotations [<!ENTITY a "leaf">]>',
        '<!DOCTYPE annotations SYSTEM "file:///etc/x">',
    ],
)
def test_document_types_and_entities_are_refused(tmp_path, head):
    root = write(tmp_path)
    (root / "annotations.xml").write_text(f"{head}<annotations>&a;</annotations>")
    with pytest.raises(UserError, match="DOCTYPE"):
        open_all(root)
