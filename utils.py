"""What one draws: masks in colours, overlays, legends, sheets of pictures, curves."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from common.files import replacing
from config import ClassTable
from data.images import fit_within, resize_image

FONT = cv2.FONT_HERSHEY_SIMPLEX


def colour_mask(mask: np.ndarray, colors: tuple) -> np.ndarray:
    """Class indices (H, W) to their colours, (H, W, 3) uint8; any index without one is grey."""
    table = np.full((256, 3), 128, dtype=np.uint8)
    table[: len(colors)] = colors
    return table[mask]


def overlay(image: np.ndarray, mask: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Tint a photograph with its classes and draw their outlines; black classes tint nothing.

    Args:
        image: HWC uint8 RGB.
        mask: (H, W) class indices; 255 and other values without a class tint nothing.

    Returns:
        HWC uint8 RGB of the same size.
    """
    visible = [i for i, color in enumerate(classes.vis_colors) if any(color)]
    seen = np.isin(mask, visible).astype(np.uint8)
    if not seen.any():
        return image.copy()
    # Only the box around what is visible is worked on: a picture is mostly background.
    x, y, w, h = cv2.boundingRect(seen)
    box = slice(y, y + h), slice(x, x + w)
    colours = colour_mask(mask[box], classes.vis_colors)
    part = image[box]
    blended = cv2.addWeighted(part, 0.5, colours, 0.5, 0)
    result = image.copy()
    result[box] = np.where(seen[box][..., None].astype(bool), blended, part)
    edges = cv2.morphologyEx(mask[box], cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    outline = (edges > 0) & seen[box].astype(bool)
    result[box][outline] = colours[outline]
    return result


def draw_legend(image: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Write the names of the visible classes with their colours into the upper left corner."""
    result = image.copy()
    shown = [pair for pair in zip(classes.names, classes.vis_colors, strict=True) if any(pair[1])]
    line = int(np.clip(round(min(image.shape[:2]) / 22), 12, 64))
    scale, thick = line / 32, max(1, line // 20)
    widths = [cv2.getTextSize(_ascii(name), FONT, scale, thick)[0][0] for name, _ in shown]
    height, width = line * len(shown) + line // 2, max(widths, default=0) + 2 * line
    if not shown or height > image.shape[0] or width > image.shape[1]:
        return result  # too small a picture for words
    panel = result[:height, :width]
    panel[:] = cv2.addWeighted(panel, 0.35, np.zeros_like(panel), 0.65, 0)
    for row, (name, color) in enumerate(shown):
        top = row * line + line // 4
        corners = (line // 3, top + line // 6), (line, top + line * 5 // 6)
        cv2.rectangle(result, *corners, color, cv2.FILLED)
        place, white = (line * 4 // 3, top + line * 4 // 5), (255, 255, 255)
        cv2.putText(result, _ascii(name), place, FONT, scale, white, thick, cv2.LINE_AA)
    return result


def _ascii(name: str) -> str:
    """OpenCV's fonts hold ASCII only."""
    return name.encode("ascii", "replace").decode()[:40]


def letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture to fit into a box, its sides in proportion, and centre it on white."""
    h, w = fit_within(image.shape[:2], (height, width))
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    canvas[top : top + h, left : left + w] = resize_image(image, (h, w))
    return canvas


def side_by_side(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Lay out rows of equally large pictures, HWC uint8, on white."""
    height, width = rows[0][0].shape[:2]
    sheet = np.full(
        (len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * (height + gap) :, j * (width + gap) :][:height, :width] = picture
    return sheet


def plot_curves(path: Path, train: list[float], valid: list[float], title: str) -> None:
    """Draw a figure's course over the epochs for both splits, as the article's graphs do."""
    figure = Figure(figsize=(9, 6))
    axes = figure.subplots()
    epochs = range(1, len(train) + 1)
    for values, name, color in ((train, "train", "tab:blue"), (valid, "validation", "tab:red")):
        axes.plot(epochs, values, color=color, marker=".", label=f"{name} {title}")
    axes.set(xlabel="epoch", ylabel=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
