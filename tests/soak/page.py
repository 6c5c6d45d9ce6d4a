"""How the editor of the page feels on photographs of 12 and 50 megapixels, in Chromium.

python tests/soak/page.py

One line a photograph: seconds until it is shown and can be painted on, milliseconds a move of the
brush, seconds from a stroke's end until it is on the disk (0.9 of them are waited for more
strokes), seconds of a wand, milliseconds to draw the mask anew, megabytes of JavaScript.
"""

# ruff: noqa: E402

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[1:3]]

import cv2
import numpy as np
from open_page import FLAGS, TOKEN, serving
from playwright.sync_api import expect, sync_playwright
from processes import BROWSER

from page.desk import Desk

SIZES = {"12 megapixels": (3000, 4000), "50 megapixels": (5792, 8688)}
MOVES = 40
REDRAW = """() => {
    const opacity = document.getElementById('opacity'), start = performance.now();
    opacity.value = 30;
    opacity.dispatchEvent(new Event('input'));
    return performance.now() - start;
}"""


def draw(folder: Path, name: str, size: tuple[int, int]) -> None:
    cells = np.random.default_rng(0).integers(0, 255, (size[0] // 16, size[1] // 16, 3), np.uint8)
    image = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / f"{name}.jpg"), image)


def try_out(page, number: int, name: str) -> str:
    """Open, paint, take with the wand; returns the figures."""
    start = time.monotonic()
    page.locator("#table button.open").nth(number).click()
    expect(page.locator("#editor[data-ready]")).to_be_visible()
    shown = time.monotonic() - start
    page.wait_for_timeout(3000)  # for the tiles
    box = page.locator("#guide-layer").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    start = time.monotonic()
    page.mouse.move(x - 200, y)
    page.mouse.down()
    for move in range(MOVES):
        page.mouse.move(x - 200 + 10 * move, y + 6 * (move % 5))
    page.mouse.up()
    painted = time.monotonic() - start
    expect(page.locator("#saved")).to_have_text("Saved")
    saved = time.monotonic() - start - painted
    page.keyboard.press("w")
    start = time.monotonic()
    page.mouse.click(x, y + 150)
    expect(page.locator("#saved")).to_have_text("Not saved yet")
    waved = time.monotonic() - start
    expect(page.locator("#saved")).to_have_text("Saved")
    redraw, heap = page.evaluate(REDRAW), page.evaluate("performance.memory.usedJSHeapSize")
    page.locator("#close").click()
    return (
        f"{name}: shown {shown:.1f} s, move {1000 * painted / MOVES:.0f} ms, saved {saved:.1f} s, "
        f"wand {waved:.1f} s, redraw {redraw:.0f} ms, heap {heap / 1e6:.0f} MB"
    )


def main() -> None:
    expect.set_options(timeout=60_000)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        desk = Desk(Path(place), None, "cpu")
        made = desk.space.create("large")
        for name, size in SIZES.items():
            draw(made.root, name, size)
        made.find()
        desk.set_classes(made, ["background", "disease"])
        with serving(desk) as address:
            browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto(f"{address}/#{TOKEN}")
            for number, name in enumerate(SIZES):
                print(try_out(page, number, name))
            page.wait_for_timeout(3000)  # for small pictures that are still drawn
            browser.close()
        desk.worker.close()


if __name__ == "__main__":
    main()
