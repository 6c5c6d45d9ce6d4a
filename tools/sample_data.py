"""Draw a small data set of diseased leaves, so that all can be tried before you have your own.

    python tools/sample_data.py             # 48 + 12 pictures and a video in input/demo
    python tools/sample_data.py --out-dir input/more --train 200 --valid 40 --seed 7

The leaves are drawn, not photographed: they carry no licence, need no download, and their masks are
exact. A mask marks the dead tissue of a lesion, its core; the yellow halo around it is living leaf
and stays background. Each picture depends on the seed, its split and its number alone.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import av
import cv2
import numpy as np
from PIL import Image

from common import cli
from common.errors import UserError
from common.files import lock_folder, replacing, write_text
from data.images import map_files

LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndisease:128,0,0::\n"
PALETTE = [0, 0, 0, 128, 0, 0]
SPLITS = ("train", "valid", "video")  # the position is part of a picture's seed: append only
ASPECTS = (4 / 3, 3 / 2, 16 / 9, 1, 3 / 4, 2 / 3)  # width over height
HEALTHY_EVERY = 8  # one training picture in eight shows no lesion at all
FPS, VIDEO_SIZE = 25, (360, 640)  # (height, width)
RGB, LEAF, LESION = slice(0, 3), 3, 4  # channels of a canvas: colour and two coverages, in [0, 1]

GREENS = ((52, 92, 38), (78, 118, 46), (104, 140, 58), (62, 104, 62), (92, 112, 44), (128, 156, 70))
BROWNS = ((112, 78, 48), (146, 104, 62), (92, 62, 42), (164, 128, 84), (122, 92, 66), (82, 64, 50))
TISSUES = (  # core and rim of a lesion: brown, rust, papery grey, black, straw
    ((124, 84, 50), (66, 40, 22)),
    ((158, 94, 46), (104, 50, 22)),
    ((172, 164, 146), (84, 60, 44)),
    ((52, 42, 34), (32, 26, 20)),
    ((188, 152, 100), (112, 70, 38)),
)
LESIONS = {  # how many at least and at most, radius from and to, in half-widths of the leaf
    "blotch": (1, 4, 0.25, 0.55),
    "spot": (4, 13, 0.08, 0.20),
    "dot": (15, 50, 0.02, 0.06),
}


class Species(NamedTuple):
    """A leaf's outline in leaf lengths: its half-width at u goes as u^base (1-u)^tip."""

    width: float  # greatest half-width
    base: float  # small is broad at the stalk
    tip: float  # large is long and pointed
    heart: float = 0.0  # how far the two halves reach behind the stalk
    lobes: int = 0
    teeth: int = 0
    veins: int = 9  # side veins on each side


SPECIES = (
    Species(width=0.30, base=0.55, tip=0.95),  # ovate
    Species(width=0.26, base=0.60, tip=0.80, teeth=26, veins=11),  # serrate, as elm
    Species(width=0.13, base=0.75, tip=1.05, veins=14),  # lanceolate, as willow
    Species(width=0.22, base=0.90, tip=0.70),  # elliptic
    Species(width=0.38, base=0.40, tip=1.00, heart=0.13, veins=7),  # heart-shaped, as lilac
    Species(width=0.35, base=0.42, tip=0.90, heart=0.10, teeth=22, veins=8),  # as lime tree
    Species(width=0.27, base=0.70, tip=0.55, lobes=5, veins=5),  # lobed, as oak
    Species(width=0.20, base=0.60, tip=1.10, teeth=34, veins=15),  # as chestnut
)


def noise(rng, shape, cell: float, octaves: int = 4) -> np.ndarray:
    """A smooth random field (H, W), about [-1, 1]: bumps of `cell` pixels and ever finer ones."""
    total, weight = np.zeros(shape, np.float32), 1.0
    for _ in range(octaves):
        grid = rng.uniform(-1, 1, (int(shape[0] / cell) + 2, int(shape[1] / cell) + 2))
        grid = cv2.resize(grid.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
        total += weight * grid
        cell, weight = max(cell / 2, 1.0), weight / 2
    return total


def cells(rng, shape, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut the plane into irregular cells: each pixel's cell number and distance to its centre."""
    y, x = np.mgrid[0 : shape[0] / pitch, 0 : shape[1] / pitch]
    y = ((y + rng.random(y.shape)) * pitch).astype(int).clip(0, shape[0] - 1)
    x = ((x + rng.random(x.shape)) * pitch).astype(int).clip(0, shape[1] - 1)
    elsewhere = np.ones(shape, np.uint8)
    elsewhere[y, x] = 0
    way = (cv2.DIST_L2, 5, None, None, cv2.DIST_LABEL_PIXEL)
    return cv2.distanceTransformWithLabels(elsewhere, *way)[::-1]


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0.2 else image


def sheet(shape, colour) -> np.ndarray:
    """An RGB image (H, W, 3) in [0, 1] of one colour given in 0..255."""
    return np.full((*shape, 3), np.float32(colour) / 255, np.float32)


def mix(image: np.ndarray, colour, amount: np.ndarray) -> np.ndarray:
    """Fade an RGB image in [0, 1] into a colour given in 0..255 where `amount` (H, W) nears 1."""
    return image + np.clip(amount, 0, 1)[..., None] * (np.float32(colour) / 255 - image)


def lighting(relief: np.ndarray, light) -> tuple[np.ndarray, np.ndarray]:
    """Light a relief, its height in pixels: the diffuse light (1 where flat) and the shine (H, W).

    `light` is the unit vector (x, y, z) towards the sun; z points at the viewer.
    """
    down, right = np.gradient(relief)
    norm = np.sqrt(right**2 + down**2 + 1)
    x, y, z = light
    half = math.sqrt(2 + 2 * z)  # length of light + view, whose direction a mirror would need
    diffuse = (z - right * x - down * y) / norm / z
    shine = (1 + z - right * x - down * y) / norm / half
    return np.clip(diffuse, 0.25, 1.6), np.clip(shine, 0, 1)


def outline(rng, species: Species) -> np.ndarray:
    """The leaf's edge (N, 2), in leaf lengths: from the stalk (0, 0) around the tip (1, 0)."""
    u = np.linspace(0, 1, 700)
    profile = u**species.base * (1 - u) ** species.tip
    profile *= species.width / profile.max()
    sides = []
    for sign in (1, -1):
        wobble = sum(rng.uniform(-0.05, 0.05) * np.sin(k * np.pi * u + k) for k in (2, 3, 5))
        width = profile * (1 + wobble)
        along = u - species.heart * 10 * u * np.exp(1 - 10 * u)
        if species.lobes:
            turn = 2 * np.pi * (species.lobes * u - 0.5 + rng.uniform(-0.1, 0.1))
            width = width * (0.78 + 0.3 * np.cos(turn))
            along = along + 0.025 * np.sin(turn) * np.sin(np.pi * u)  # broad lobes, narrow bays
        if species.teeth:
            bite = (species.teeth * u + rng.random()) % 1
            width = width + 0.012 * (1 - bite) * np.sin(np.pi * u) ** 0.4
        sides.append(np.stack([along, sign * width], 1))
    return np.concatenate([sides[0], sides[1][::-1]])


def coverage(shape, polygons: list[np.ndarray]) -> np.ndarray:
    """How much of each pixel the polygons (N, 2) of (x, y) cover, in [0, 1], by 4x4 samples."""
    canvas = np.zeros((shape[0] * 4, shape[1] * 4), np.uint8)
    for polygon in polygons:  # one at a time: together, their overlap would become a hole
        cv2.fillPoly(canvas, [np.round(polygon * 4).astype(np.int32)], 255)
    return cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def blade(rng, species: Species, s, t, edge, length: float, colour):
    """A healthy leaf: its colour (H, W, 3) in [0, 1] and its relief (H, W) in pixels.

    `s` runs along the midrib and `t` across it, in leaf lengths; `edge` is the distance to the
    outline in pixels. Veins are pale furrows; the blade bulges between them.
    """
    shape = s.shape
    patchy = noise(rng, shape, 0.25 * length, 5)
    across = np.abs(t) + 0.004 * noise(rng, shape, 0.1 * length, 2)
    phase = species.veins * (s - 0.75 * across + 0.5 * across**2) + 0.18 * np.sign(t)
    phase += 0.10 * noise(rng, shape, 0.15 * length, 2)
    gap = np.abs(phase - np.round(phase)) / species.veins * length  # pixels to the next side vein
    fade = 1 - (across / species.width).clip(0, 1) * 0.5
    midrib = np.exp(-((across / 0.011 / (1.15 - s).clip(0.2, 1.2)) ** 2))
    side = np.exp(-((gap / (0.0016 * length + 0.35)) ** 2)) * (s > -0.02) * fade
    mesh = cells(rng, shape, max(0.016 * length, 3.0))[0]
    net = (mesh != np.roll(mesh, 1, 0)) | (mesh != np.roll(mesh, 1, 1))
    net = blur(net.astype(np.float32), 0.7)
    veins = np.maximum(np.maximum(midrib * 0.9, side * 0.75), net * 0.16)

    albedo = sheet(shape, colour)
    albedo *= (1 + 0.10 * patchy + 0.05 * noise(rng, shape, 3, 2))[..., None]
    albedo = mix(albedo, (176, 176, 70), 0.18 + 0.22 * patchy)
    if rng.random() < 0.35:  # ageing: yellow towards the edge, yet healthy
        age = rng.uniform(0.2, 0.6) * np.exp(-edge / (0.05 * length)) + 0.3 * patchy
        albedo = mix(albedo, (206, 186, 74), age * (1 - veins))
    if rng.random() < 0.25:  # pale freckles, another thing that is no lesion
        freckles = noise(rng, shape, max(0.02 * length, 4), 1) - rng.uniform(0.6, 0.8)
        albedo = mix(albedo, (206, 214, 150), (3 * freckles).clip(0, 0.6))
    albedo = mix(albedo, (196, 206, 132), veins * rng.uniform(0.45, 0.8))
    albedo = mix(albedo, (186, 200, 92), 0.45 * np.exp(-edge / 1.6))  # light shines through the rim

    bulge = np.sqrt(np.sin(np.pi * (phase % 1)).clip(0)) * (1 - midrib) * fade
    relief = 0.077 * length / species.veins * bulge - 0.002 * length * midrib - 0.5 * net
    relief += rng.uniform(0.1, 0.5) * length * np.sqrt(t**2 + 6e-4)  # the two halves fold upwards
    relief += 0.022 * length * noise(rng, shape, 0.3 * length, 3)
    relief -= 0.010 * length * np.exp(-edge / (0.025 * length))
    return albedo, relief


def scatter_lesions(rng, edge: np.ndarray, scale: float):
    """Shapes of lesions on a leaf, each (H, W): depth, radial position, and halo in [0, 1].

    `edge` is the distance to the leaf's outline in pixels, `scale` the leaf's half-width in pixels.
    Depth counts the pixels from a lesion's border inwards. It ends two pixels before the outline,
    so that a mask can never touch the ground. The radial position is 0 at a centre, 1 at a border.
    """
    mixtures = ("blotch", "spot", "dot", "blotch dot", "blotch spot", "spot dot")
    kinds = [LESIONS[k] for k in rng.choice(mixtures, p=(0.25, 0.2, 0.05, 0.2, 0.2, 0.1)).split()]
    radii = [rng.uniform(*kind[2:]) for kind in kinds for _ in range(rng.integers(*kind[:2]) + 1)]
    radii = [max(1.8, scale * radius) for radius in radii]
    rows, columns = np.nonzero(edge > min(max(4, 0.1 * scale), edge.max() - 1))
    picks = rng.integers(len(rows), size=len(radii))
    ragged = noise(rng, edge.shape, max(0.25 * scale, 6))
    depth = np.full(edge.shape, -99, np.float32)
    radial, halo = np.zeros((2, *edge.shape), np.float32)
    for radius, row, column in zip(radii, rows[picks], columns[picks], strict=True):
        reach = int(3 * radius)
        top, left = max(row - reach, 0), max(column - reach, 0)
        window = np.s_[top : row + reach, left : column + reach]
        y, x = (v.astype(np.float32) for v in np.indices(depth[window].shape, sparse=True))
        y, x = y + np.float32(top - row), (x + np.float32(left - column)) * rng.uniform(0.75, 1.3)
        away, angle = np.hypot(y, x), np.arctan2(y, x)
        border = 1 + 0.22 * ragged[window]
        for k in range(2, 7):  # an irregular outline, by its first harmonics
            border += rng.uniform(0, 0.28) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        own = np.minimum(radius * border - away, edge[window] - 2)
        glow = np.exp(-((np.maximum(-own, 0) / (0.45 * radius + 1)) ** 1.3))
        radial[window] = np.where(own > depth[window], away / (radius * border), radial[window])
        halo[window] = np.maximum(halo[window], glow)
        depth[window] = np.maximum(depth[window], own)
    return depth, radial, halo


def infect(rng, albedo: np.ndarray, edge: np.ndarray, scale: float):
    """Paint lesions into a leaf's colour: the new colour (H, W, 3) and their coverage (H, W)."""
    depth, radial, halo = scatter_lesions(rng, edge, scale)
    (core, dark), (other, _) = (TISSUES[i] for i in rng.integers(len(TISSUES), size=2))
    grain = noise(rng, edge.shape, max(0.3 * scale, 4), 6)
    tissue = sheet(edge.shape, core) * (1 + 0.16 * grain)[..., None]
    tissue = mix(tissue, other, 0.3 * grain)
    if rng.random() < 0.4:
        rings = np.cos(2 * np.pi * (radial * int(rng.integers(3, 6)) + 0.15 * grain))
        tissue = mix(tissue, dark, 0.25 + 0.25 * rings)
    if rng.random() < 0.4:  # a bleached centre
        tissue = mix(tissue, (198, 186, 160), 0.7 * np.exp(-((radial / 0.4) ** 2)))
    rim = np.exp(-np.maximum(depth, 0) / max(0.05 * scale, 1.2))
    tissue = mix(tissue, dark, rng.uniform(0.4, 0.9) * rim)
    tissue += 0.12 * (albedo - albedo.mean((0, 1)))  # the veins stay faintly visible
    albedo = mix(albedo, (212, 196, 84), float(rng.choice([0.1, 0.45, 0.75])) * halo)
    cover = np.clip(depth / 1.5 + 0.5, 0, 1)
    return albedo + cover[..., None] * (tissue - albedo), cover


def paint_leaf(rng, canvas, middle, angle, length: float, light, colours=GREENS, ill=False) -> None:
    """Lay one leaf and its shadow on a canvas (H, W, 5), its `middle` at (x, y); all in pixels."""
    species = SPECIES[rng.integers(len(SPECIES))]
    bend, strip = rng.uniform(-0.25, 0.25), np.linspace(-rng.uniform(0.12, 0.3), 0.05, 20)
    stalk = np.concatenate([np.c_[strip, 0 * strip + 0.009], np.c_[strip, 0 * strip - 0.009][::-1]])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    base = middle - 0.5 * length * turn[0]
    polygons = [outline(rng, species), stalk]
    polygons = [(p + bend * p[:, :1] ** 2 * (0, 1)) @ turn * length + base for p in polygons]

    # Work on the part of the canvas that the leaf and its shadow touch.
    corners, pad = np.concatenate(polygons), 0.06 * length + 4
    left, top = np.floor(corners.min(0) - pad).astype(int).clip(0)
    right, bottom = np.ceil(corners.max(0) + pad).astype(int).clip(0)
    view = canvas[top:bottom, left:right]
    shape = view.shape[:2]
    alpha = coverage(shape, [p - (left, top) for p in polygons]) if min(shape) > 8 else np.zeros(1)
    if alpha.max() < 1:
        return  # out of the picture
    shift = np.float32([[1, 0, -light[0] * 0.03 * length], [0, 1, -light[1] * 0.03 * length]])
    shadow = blur(cv2.warpAffine(alpha, shift, shape[::-1]), 0.012 * length)
    view[..., RGB] *= 1 - rng.uniform(0.4, 0.65) * shadow[..., None]

    y, x = np.ogrid[: shape[0], : shape[1]]
    y, x = np.float32((y + top - base[1]) / length), np.float32((x + left - base[0]) / length)
    s = x * float(turn[0, 0]) + y * float(turn[0, 1])
    t = x * float(turn[1, 0]) + y * float(turn[1, 1]) - bend * s**2
    edge = cv2.distanceTransform((alpha == 1).astype(np.uint8), cv2.DIST_L2, 5)
    colour = colours[rng.integers(len(colours))] * rng.uniform(0.8, 1.15, 3)
    albedo, relief = blade(rng, species, s, t, edge, length, colour)
    cover = np.zeros_like(alpha)
    if ill:
        albedo, cover = infect(rng, albedo, edge, species.width * length)
        relief += 0.6 * cover * noise(rng, shape, 4, 2)  # dead tissue is wrinkled
    diffuse, shine = lighting(blur(relief, 0.6), light)
    gloss = rng.uniform(0.05, 0.5) * (1 - 0.8 * cover) * shine ** rng.uniform(12, 40)
    colour = mix(albedo * diffuse[..., None], (232, 240, 250), gloss)
    view += alpha[..., None] * (np.dstack([colour, np.ones_like(alpha), cover]) - view)


def leafy_ground(rng, shape, light, colours, backdrop, count: int, softness: float) -> np.ndarray:
    """A heap of healthy leaves, out of focus: litter or foliage, RGB (H, W, 3).

    Drawn at half the size, since focus is lost anyway, for a quarter of the time.
    """
    low = (shape[0] // 2, shape[1] // 2)
    canvas = np.dstack([sheet(low, backdrop), np.zeros((*low, 2), np.float32)])
    for _ in range(count):
        middle, length = rng.uniform(-0.1, 1.1, 2) * low[::-1], max(low) * rng.uniform(0.18, 0.4)
        paint_leaf(rng, canvas, middle, rng.uniform(0, 2 * np.pi), length, light, colours)
    return cv2.resize(blur(canvas[..., RGB], softness * max(low)), shape[::-1])


def pebbles(rng, shape, light) -> np.ndarray:
    """Rounded stones of many tints on dark earth, RGB (H, W, 3)."""
    pitch = max(shape) * rng.uniform(0.04, 0.1)
    labels, distance = cells(rng, shape, pitch)
    count = labels.max() + 1
    radius = pitch * rng.uniform(0.4, 0.8, (count, 1))[labels][..., 0].astype(np.float32)
    distance = distance * (1 + 0.2 * noise(rng, shape, 0.6 * pitch, 2))
    dome = blur(np.sqrt((radius**2 - distance**2).clip(0)), 0.04 * pitch)
    tints = rng.uniform(70, 200, (count, 1)) * rng.normal((1, 0.95, 0.88), 0.03, (count, 3)) / 255
    stones = np.float32(tints)[labels] * (1 + 0.12 * noise(rng, shape, 0.5 * pitch, 5))[..., None]
    stones = mix(stones, (40, 34, 28), 1 - 5 * dome / pitch)
    return stones * lighting(0.6 * dome + noise(rng, shape, 5, 2), light)[0][..., None]


def ground(rng, shape, light) -> np.ndarray:
    """What the leaves lie on or hang before, RGB (H, W, 3) in [0, 1]."""
    size = max(shape)
    kind = rng.choice(["soil", "pebbles", "litter", "foliage", "gradient", "plain"])
    if kind == "litter":
        return leafy_ground(rng, shape, light, BROWNS, (62, 50, 38), 40, 0.004)
    if kind == "foliage":
        return leafy_ground(rng, shape, light, GREENS, (58, 84, 40), 22, rng.uniform(0.008, 0.03))
    if kind == "pebbles":
        return pebbles(rng, shape, light)
    if kind == "gradient":
        tints = GREENS + BROWNS + ((150, 170, 190), (210, 214, 204))
        near, far = rng.permutation(tints)[:2]
        blend = mix(sheet(shape, near), far, 0.5 + noise(rng, shape, 0.7 * size, 2))
        return blur(blend, 0.03 * size)
    rough = noise(rng, shape, 0.2 * size, 7)
    if kind == "soil":
        earth = sheet(shape, BROWNS[rng.integers(len(BROWNS))]) * (0.75 + 0.15 * rough)[..., None]
        relief = 0.012 * size * rough + 0.8 * noise(rng, shape, 6, 3)
        return earth * lighting(relief, light)[0][..., None]
    paper = sheet(shape, rng.choice([30, 90, 140, 200, 230]) * rng.uniform(0.93, 1.07, 3))
    return paper * (1 + 0.025 * rough + 0.012 * noise(rng, shape, 2, 1))[..., None]


def draw_scene(rng, shape, leaves: int, ill_share: float = 0.6) -> np.ndarray:
    """Draw leaves on a ground: a canvas (H, W, 5) of RGB, leaf coverage and lesion coverage.

    The last leaf lies on top of all others and is always ill, unless `ill_share` is zero.
    """
    direction, z = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 0.9)
    flat = math.sqrt(1 - z**2)
    light = (flat * math.cos(direction), flat * math.sin(direction), z)
    canvas = np.dstack([ground(rng, shape, light), np.zeros((*shape, 2))]).astype(np.float32)
    height, width = shape
    for remaining in reversed(range(leaves)):
        angle = rng.uniform(0, 2 * np.pi)
        room = min(width / abs(math.cos(angle)), height / abs(math.sin(angle)))
        length = room * (rng.uniform(0.75, 1.2) if leaves == 1 else rng.uniform(0.45, 0.75))
        spread = 0.06 if leaves == 1 else 0.25 if remaining == 0 else 0.45
        middle = np.array([width, height]) * rng.uniform(0.5 - spread, 0.5 + spread, 2)
        ill = rng.random() < ill_share or (remaining == 0 and ill_share > 0)
        paint_leaf(rng, canvas, middle, angle, length, light, ill=ill)
    return canvas


def photograph(rng, rgb: np.ndarray) -> np.ndarray:
    """What a camera does to a scene: dappled sun, vignette, tint, blur, noise; to uint8 RGB."""
    height, width = shape = rgb.shape[:2]
    if rng.random() < 0.3:
        dapple = np.tanh(3 * noise(rng, shape, 0.3 * max(shape), 3))
        rgb = rgb * (1 + 0.22 * blur(dapple, 3))[..., None]
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - rng.uniform(0, 0.2) * (y**2 + x**2)
    rgb = rgb * np.float32(vignette)[..., None] * np.float32(rng.uniform(0.95, 1.05, 3))
    rgb = blur(rgb, rng.choice([0, 0.5, 0.8])) * rng.uniform(0.9, 1.15)
    rgb += rng.uniform(0.004, 0.02) * rng.standard_normal(rgb.shape, np.float32)
    return np.round(rgb.clip(0, 1) * 255).astype(np.uint8)


def draw_picture(rng, height: int, width: int, healthy=False) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture: image (H, W, 3) uint8 RGB and mask (H, W) uint8, 1 where lesion."""
    canvas = draw_scene(rng, (height, width), rng.choice([1, 1, 3, 4]), 0.0 if healthy else 0.6)
    return photograph(rng, canvas[..., RGB]), (canvas[..., LESION] >= 0.5).astype(np.uint8)


def draw_sample(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture number `index` of a split, and its mask: the same whatever else is drawn."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    aspect, long = rng.choice(ASPECTS), rng.integers(320, 641)
    height, width = round(long / max(aspect, 1)), round(long * min(aspect, 1))
    healthy = split == "train" and index % HEALTHY_EVERY == HEALTHY_EVERY - 1
    return draw_picture(rng, height, width, healthy)


def write_dataset(out_dir: Path, train: int, valid: int, seed: int) -> None:
    """Write pictures, masks and class table; files of the same names are replaced, others stay."""
    write_text(out_dir / "labelmap.txt", LABELMAP)

    def draw(job: tuple[str, int]) -> None:
        split, index = job
        image, mask = draw_sample(seed, split, index)
        with replacing(out_dir / f"{split}_images" / f"{split}_{index:04d}.jpg") as path:
            Image.fromarray(image).save(path, quality=92)
        indexed = Image.fromarray(mask)
        indexed.putpalette(PALETTE)
        with replacing(out_dir / f"{split}_masks" / f"{split}_{index:04d}.png") as path:
            indexed.save(path)

    jobs = [("train", i) for i in range(train)] + [("valid", i) for i in range(valid)]
    map_files(draw, jobs, "Drawing leaves")


def video_frames(seed: int, count: int) -> Iterator[np.ndarray]:
    """A camera gliding over one large picture, slow at both ends, coming nearer: uint8 RGB."""
    height, width = VIDEO_SIZE
    rng = np.random.default_rng([seed, SPLITS.index("video"), 0])
    wide = (height * 3 // 2, width * 3 // 2)
    large = photograph(rng, draw_scene(rng, wide, 9, ill_share=1.0)[..., RGB])
    for ease in (1 - np.cos(np.linspace(0, np.pi, count))) / 2:
        zoom = 1 + 0.25 * ease
        x, y = ease * (wide[1] - width / zoom), (0.1 + 0.8 * ease) * (wide[0] - height / zoom)
        view = np.float32([[zoom, 0, -x * zoom], [0, zoom, -y * zoom]])
        yield cv2.warpAffine(large, view, (width, height), flags=cv2.INTER_CUBIC)


def write_video(path: Path, seconds: float, seed: int) -> None:
    """Write the gliding camera as H.264 in yuv420p, which every player shows."""
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.height, stream.width = VIDEO_SIZE
        stream.pix_fmt = "yuv420p"
        for image in video_frames(seed, max(round(seconds * FPS), 1)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--out-dir", default=Path("input/demo"), help="folder to fill")
    for name, count, what in (("train", 48, "to train on"), ("valid", 12, "to validate on")):
        kind = {"type": cli.positive_int, "default": count}
        parser.add_argument(f"--{name}", **kind, help=f"pictures {what}")
    parser.add_argument("--seed", type=cli.natural, default=0, help="other seed, other leaves")
    seconds = {"type": cli.positive_float, "default": 3.0}
    parser.add_argument("--video-seconds", **seconds, help="of the video")
    what = "replace files of the same names in --out-dir; others stay"
    cli.add_shared(parser, "--overwrite", help=what)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out_dir = args.out_dir
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"--out-dir {out_dir} is a file; name a folder.")
    with lock_folder(out_dir):
        if any(path.name != ".lock" for path in out_dir.iterdir()) and not args.overwrite:
            raise UserError(
                f"{out_dir}/ already holds files. Pass --overwrite to replace the sample data in "
                "it, or choose another --out-dir."
            )
        write_dataset(out_dir, args.train, args.valid, args.seed)
        write_video(out_dir / "sample_video.mp4", args.video_seconds, args.seed)
    print(f"{args.train} + {args.valid} pictures and sample_video.mp4 are in {out_dir}/")


if __name__ == "__main__":
    cli.run(main)
