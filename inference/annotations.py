"""Predictions as annotations, so that a person corrects them in the tool they know.

Each connected region of a class becomes a polygon; the first class is what has none. None of these
formats knows holes in its polygons, so a hole is joined to the outline by a bridge without width,
which every tool draws, fills and edits. (COCO's run lengths can hold holes, too, but hardly any
editor changes them.) COCO's outlines run along the pixels' edges, so that areas are right to the
pixel; the others' run a little within, since their tools also paint the pixels that a line passes.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from common.files import replacing, write_text
from config import ClassTable, Size
from inference.outlines import Region

INSET = 0.25  # pixels, of all outlines but COCO's; see `regions_of`


def file_name(name: str, path: Path) -> str:
    """How annotations call a picture: its path below the input, or all of it where two share that.

    Args:
        name: of its results.
    """
    below = Path(name).with_name(path.name)
    return (below if below.with_suffix("") == Path(name) else path).as_posix()


# --- One file for all pictures ---


def coco_lines(regions: list[Region]) -> bytes:
    """A picture's annotations of COCO, one a line, each still without its number and picture."""
    lines = []
    for region in regions:
        ring = region.ring.ravel().tolist()
        facts = {"category_id": region.label, "iscrowd": 0, "area": region.area}
        line = json.dumps(facts | {"bbox": region.box, "segmentation": [ring]})
        lines.append(line.removeprefix("{"))
    return "\n".join(lines).encode()


def write_coco(
    path: Path,
    classes: ClassTable,
    pictures: Iterable[tuple[str, Size]],
    annotations: Iterable[bytes],
) -> None:
    """Write COCO's instances, picture by picture, so that they are never all in memory.

    Args:
        pictures: file name and (height, width), numbered from 1.
        annotations: what `coco_lines` made of each.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(classes.names) if i]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)},\n')
        file.write('"images": [')
        for number, (name, (height, width)) in enumerate(pictures, start=1):
            facts = {"id": number, "file_name": name, "width": width, "height": height}
            file.write(",\n" * (number > 1) + json.dumps(facts))
        file.write('],\n"annotations": [')
        written = 0
        for number, lines in enumerate(annotations, start=1):
            for line in lines.decode().splitlines():
                written += 1
                file.write(",\n" * (written > 1))
                file.write(f'{{"id": {written}, "image_id": {number}, {line}')
        file.write("]}\n")


def label_studio_task(regions: list[Region], name: str, size: Size, classes: ClassTable) -> bytes:
    """A task of Label Studio whose prediction is the regions, in per cent of the picture.

    Args:
        name: of the picture's file, below the root of Label Studio's local files.
    """
    height, width = size
    result = [
        {
            "id": f"r{number}",
            "from_name": "label",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "points": (region.ring * (100 / width, 100 / height)).round(6).tolist(),
                "closed": True,
                "polygonlabels": [classes.names[region.label]],
            },
        }
        for number, region in enumerate(regions, start=1)
    ]
    image = f"/data/local-files/?d={quote(os.fsencode(name))}"
    return json.dumps({"data": {"image": image}, "predictions": [{"result": result}]}).encode()


def write_label_studio(path: Path, classes: ClassTable, tasks: Iterable[bytes]) -> None:
    """Write the tasks of Label Studio, and beside them the labelling interface that they need."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(b"[")
        for number, task in enumerate(tasks):
            file.write(b",\n" * bool(number) + task)
        file.write(b"]\n")
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(color).hex()}"/>\n'
        for name, color in list(zip(classes.names, classes.vis_colors, strict=True))[1:]
    )
    write_text(
        path.with_suffix(".xml"),
        f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n</View>\n',
    )


# --- A file a picture ---


def write_labelme(
    path: Path, regions: list[Region], picture: Path, size: Size, classes: ClassTable
) -> None:
    """Write what LabelMe 5 opens, the picture named by its way from there."""
    shapes = [
        {
            "label": classes.names[region.label],
            "points": region.ring.tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for region in regions
    ]
    try:
        way = os.path.relpath(picture, path.parent)
    except ValueError:  # on another drive
        way = str(picture.absolute())
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": Path(way).as_posix()}
    content |= {"imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
    write_text(path, json.dumps(content) + "\n")


def write_yolo(path: Path, regions: list[Region], size: Size) -> None:
    """Write a picture's labels of YOLO: a line a region, its class from 0, then shares of the size.

    YOLO has no class for the background, so its numbers are ours less one.
    """
    lines = []
    for region in regions:
        ring = region.ring
        if len(ring) == 4:  # would be read as a turned box, by its number of numbers
            ring = np.concatenate([ring, ring[:1]])
        points = (ring / size[::-1]).ravel().tolist()
        lines.append(f"{region.label - 1} {' '.join(f'{value:.8g}' for value in points)}\n")
    write_text(path, "".join(lines))


def write_yolo_table(path: Path, classes: ClassTable) -> None:
    """Write the data.yaml of a folder of labels; a JSON text is one of YAML, whatever is in it."""
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"
        for number, name in enumerate(classes.names[1:])
    )
    write_text(
        path,
        "# Put the photographs into images/, named as their labels in labels/.\n"
        f"train: images\nval: images\nnames:\n{names}",
    )
