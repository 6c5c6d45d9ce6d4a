"""A person at the page: in Debian's Chromium, with a mouse, with fingers, with keys alone."""

import errno
import io
import json
import os
import re
import threading
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from data_sets import blobs, make_data
from matplotlib.path import Path as Outline
from open_page import TOKEN, serving, wait_for
from PIL import Image
from playwright.sync_api import expect
from tiny_video import write_video

from common.errors import UserError
from common.files import write_csv, write_text
from config import ClassTable
from page.corrections import read_labels
from page.jobs import Job
from page.workspace import LOOK_FIRST, legend

SIZE = (60, 80)  # height, width of the photographs that are painted on
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
expect.set_options(timeout=30_000)
SEEN = "document.getElementById('mask-layer').toDataURL()"
LONG = 240_000  # milliseconds for a training of seconds, on a machine that does much else


@contextmanager
def at(browser, address, known="412", **options):
    """A window on the page. Nothing is asked of anybody else, and the console stays empty.

    Args:
        known: the status of an answer that is meant to be none of success.
    """
    context = browser.new_context(**options)
    foreign, said = [], []
    context.on("request", lambda r: foreign.append(r.url) if is_foreign(r.url, address) else None)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{address}/#{TOKEN}")
    yield page
    context.close()
    assert foreign == []
    assert [text for text in said if known not in text] == []


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, "blob:", "data:"))


@pytest.fixture
def address(desk):
    with serving(desk) as url:
        yield url


@pytest.fixture
def photographs(desk):
    """Three photographs of noise around a brown square, in a collection with three classes."""
    made = desk.space.create("leaves")
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
        image[20:40, 30:60] = (150, 90, 50)
        Image.fromarray(image).save(made.root / f"leaf{number}.png")
    made.find()
    desk.set_classes(made, ["background", "leaf", "<b>spot</b>"])
    return made


@pytest.fixture
def trained(desk):
    """Two models: the newest first, as they are found. Nothing loads them."""
    paths = [desk.trainings.folder / name / "best_model_iou.pth" for name in ("newer", "older")]
    for age, path in enumerate(paths):
        write_text(path, "")
        os.utime(path, (1000 - age, 1000 - age))
    return paths


class Canvas:
    """The editor of a window: pictures' pixels to places on the screen, and what is saved."""

    def __init__(self, page, desk, collection, number=0):
        self.page, self.desk, self.collection = page, desk, collection
        self.entry = list(collection.photographs.values())[number]
        page.locator("#table button.open").nth(number).click()
        self.wait()

    def wait(self):
        expect(self.page.locator(f"#editor[data-ready='{self.entry.id}']")).to_be_visible()
        box = self.page.evaluate(
            "(() => { const b = document.getElementById('guide-layer').getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        self.left, self.top, width, height = box
        # As a picture is fitted into its window.
        self.scale = min(round(width) / SIZE[1], round(height) / SIZE[0]) * 0.97
        self.left += (round(width) - SIZE[1] * self.scale) / 2
        self.top += (round(height) - SIZE[0] * self.scale) / 2

    def place(self, x, y):
        return self.left + x * self.scale, self.top + y * self.scale

    def drag(self, *points):
        mouse = self.page.mouse
        mouse.move(*self.place(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.place(*point))
        mouse.up()

    def click(self, x, y):
        self.page.mouse.click(*self.place(x, y))

    def set(self, name, value):
        self.page.locator(f"#{name}").evaluate(
            f"(e) => {{ e.value = {value}; e.dispatchEvent(new Event('input')); }}"
        )

    def saved(self):
        """The mask on the disk, after all has been saved."""
        self.page.keyboard.press("Control+s")
        expect(self.page.locator("#saved")).to_have_text("Saved")
        return read_labels(self.desk.corrections.find(self.entry.path, self.collection.classes))


def brushed(mask, points, size, value):
    """Pixels whose centre is within half the brush of a line."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for (x0, y0), (x1, y1) in pairwise(points):
        length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
        t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
        mask[np.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0)) <= size / 2] = value
    return mask


def test_tools_change_the_pixels_they_say_and_no_others(browser, desk, address, photographs):
    with at(browser, address, **DESKTOP) as page:
        canvas, expected = Canvas(page, desk, photographs), np.zeros(SIZE, np.uint8)
        chips = page.locator("#classes").inner_text().split("\n")
        assert chips == ["1 background", "2 leaf", "3 <b>spot</b>", "0 not sure"]
        canvas.set("size", 7)
        stroke = [(10.3, 10.3), (40.3, 15.3), (70.3, 50.3)]
        canvas.drag(*stroke)
        np.testing.assert_array_equal(canvas.saved(), brushed(expected, stroke, 7, 1))
        page.keyboard.press("3")
        corners = [(5.3, 30.3), (25.3, 32.3), (20.3, 55.3), (8.3, 50.3)]
        page.keyboard.press("p")
        for corner in corners:
            canvas.click(*corner)
        page.keyboard.press("Enter")
        y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
        inside = Outline(corners).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))
        before = expected.copy()
        expected[inside.reshape(SIZE)] = 2
        np.testing.assert_array_equal(canvas.saved(), expected)
        page.keyboard.press("Control+z")
        np.testing.assert_array_equal(canvas.saved(), before)
        page.keyboard.press("y")
        np.testing.assert_array_equal(canvas.saved(), expected)
        page.keyboard.press("e")
        canvas.drag((30.3, 0.3), (30.3, 59.3))
        np.testing.assert_array_equal(
            canvas.saved(), brushed(expected, [(30.3, 0.3), (30.3, 59.3)], 7, 0)
        )
        page.keyboard.press("w")
        page.keyboard.press("0")
        canvas.click(50.5, 25.5)
        expected[20:40, 30:60] = 255
        np.testing.assert_array_equal(canvas.saved(), expected)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_photograph_stays_where_it_is_when_the_tool_changes(
    browser, desk, address, photographs, size
):
    photographs.classes = ClassTable.default()  # two, whose tools just fill a row
    with at(browser, address, **size) as page:
        canvas = Canvas(page, desk, photographs)
        places = {"brush": page.locator("#stage").bounding_box()}
        for tool in ("eraser", "hand", "wand", "polygon"):
            page.locator(f"[data-tool={tool}]").click()
            places[tool] = page.locator("#stage").bounding_box()
        for corner in ((10.3, 10.3), (60.3, 10.3), (60.3, 50.3)):
            canvas.click(*corner)
        expect(page.locator("#finish")).to_be_visible()
        places["filling"] = page.locator("#stage").bounding_box()
        assert len({tuple(place.values()) for place in places.values()}) == 1, places


def test_a_class_is_shown_as_chosen_only_where_it_is_painted(browser, desk, address, photographs):
    with at(browser, address, **DESKTOP) as page:
        Canvas(page, desk, photographs)
        chosen = page.locator("#classes [aria-checked=true]")
        expect(chosen).to_have_text("2 leaf")
        for key in ("e", "h"):
            page.keyboard.press(key)
            expect(chosen).to_have_count(0)
            page.keyboard.press("b")
            expect(chosen).to_have_text("2 leaf")


def test_what_is_seen_is_the_mask_at_any_scale(browser, desk, address, photographs):
    """Zoomed and moved, a click still hits the pixel below the pointer."""
    with at(browser, address, **DESKTOP) as page:
        canvas = Canvas(page, desk, photographs)
        canvas.set("size", 1)
        x, y = canvas.place(61.9, 17.9)
        page.mouse.move(x, y)
        for _ in range(3):
            page.mouse.wheel(0, -300)
        page.mouse.click(x, y)
        expected = np.zeros(SIZE, np.uint8)
        expected[17, 61] = 1
        np.testing.assert_array_equal(canvas.saved(), expected)
        shown = page.evaluate(
            "([x, y]) => { const c = document.getElementById('mask-layer'),"
            " b = c.getBoundingClientRect();"
            " return [...c.getContext('2d').getImageData(x - b.left, y - b.top, 1, 1).data]; }",
            [x, y],
        )
        assert tuple(shown[:3]) == pytest.approx(photographs.classes.vis_colors[1], abs=3)


def test_keys_alone_are_enough(browser, desk, address, photographs):
    with at(browser, address, **DESKTOP) as page:
        expect(page.locator("#table tbody tr")).to_have_count(3)
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.className") == "open":
                break
        page.keyboard.press("Enter")
        first, second = list(photographs.photographs.values())[:2]
        expect(page.locator(f"#editor[data-ready='{first.id}']")).to_be_visible()
        for key in ("2", "b", *["["] * 20, "Space", "Shift+ArrowRight", "Shift+ArrowRight"):
            page.keyboard.press(key)
        expect(page.locator("#saved")).to_have_text("Saved")
        mask = read_labels(desk.corrections.find(first.path, photographs.classes))
        rows, columns = np.nonzero(mask)
        assert set(rows) == {30}
        assert columns.min() <= 40 < columns.max()
        assert set(np.unique(mask)) == {0, 1}
        page.keyboard.press("PageDown")
        expect(page.locator(f"#editor[data-ready='{second.id}']")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#editor")).not_to_be_visible()
        expect(page.locator("#counts")).to_have_text("3 photographs, 1 corrected")


class Hand:
    """Fingers and a pen, as the system of a tablet tells of them."""

    def __init__(self, canvas):
        self.canvas, self.session = canvas, canvas.page.context.new_cdp_session(canvas.page)

    def fingers(self, kind, *points):
        """All fingers that lie on the photograph now; `kind` is start, move, end or cancel."""
        places = [dict(zip("xy", self.canvas.place(*point), strict=True)) for point in points]
        named = [place | {"id": number} for number, place in enumerate(places)]
        event = {"type": f"touch{kind.title()}", "touchPoints": named}
        self.session.send("Input.dispatchTouchEvent", event)

    def pen(self, kind, point, force=0.5):
        """`kind` is Pressed, Moved or Released."""
        x, y = self.canvas.place(*point)
        event = {"type": f"mouse{kind}", "x": x, "y": y, "pointerType": "pen", "force": force}
        down = {} if kind == "Released" else {"buttons": 1}
        self.session.send(
            "Input.dispatchMouseEvent", event | down | {"button": "left", "clickCount": 1}
        )

    def seen(self):
        """The mask as it is drawn."""
        return self.canvas.page.evaluate(SEEN)

    def moved(self, before):
        """The mask as it is drawn, once it lies elsewhere than it did."""
        self.canvas.page.wait_for_function(f"before => {SEEN} !== before", arg=before)
        return self.seen()


def test_a_finger_paints_and_two_scale(browser, desk, address, photographs):
    with at(browser, address, **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        canvas = Canvas(page, desk, photographs)
        canvas.set("size", 7)
        hand, stroke = Hand(canvas), [(20.3, 20.3), (40.3, 30.3)]
        hand.fingers("start", stroke[0])
        hand.fingers("move", stroke[1])
        hand.fingers("end")
        once = canvas.saved()
        np.testing.assert_array_equal(once, brushed(np.zeros(SIZE, np.uint8), stroke, 7, 1))
        before = hand.seen()
        hand.fingers("start", (30.5, 30.5))
        hand.fingers("start", (30.5, 30.5), (50.5, 30.5))
        hand.fingers("move", (20.5, 30.5), (60.5, 30.5))
        apart = hand.moved(before)
        hand.fingers("move", (20.5, 40.5), (60.5, 40.5))
        hand.moved(apart)
        hand.fingers("end")
        page.locator("#close").click()
        expect(page.locator("#editor")).to_be_hidden()  # all is saved
        np.testing.assert_array_equal(
            once, read_labels(desk.corrections.find(canvas.entry.path, photographs.classes))
        )


def test_a_second_finger_does_not_take_back_what_the_first_has_painted(
    browser, desk, address, photographs
):
    with at(browser, address, **PHONE) as page:
        canvas = Canvas(page, desk, photographs)
        canvas.set("size", 7)
        hand, stroke = Hand(canvas), [(10.3, 20.3), (60.3, 30.3)]
        hand.fingers("start", stroke[0])
        hand.fingers("move", stroke[1])
        hand.fingers("start", stroke[1], (20.5, 50.5))
        hand.fingers("end")
        np.testing.assert_array_equal(
            canvas.saved(), brushed(np.zeros(SIZE, np.uint8), stroke, 7, 1)
        )


def test_a_pen_paints_however_hard_it_is_pressed_and_the_hand_beside_it_does_not(
    browser, desk, address, photographs
):
    with at(browser, address, **PHONE) as page:
        canvas = Canvas(page, desk, photographs)
        canvas.set("size", 7)
        hand, expected = Hand(canvas), np.zeros(SIZE, np.uint8)
        before, stroke = hand.seen(), [(10.3, 10.3), (40.3, 15.3), (60.3, 30.3)]
        hand.fingers("start", (70.5, 50.5))  # a hand that is put down before its pen
        hand.pen("Pressed", stroke[0], force=0.05)
        hand.fingers("move", (60.5, 50.5))
        hand.pen("Moved", stroke[1], force=0.4)
        hand.pen("Moved", stroke[2], force=1)
        hand.pen("Released", stroke[2])
        hand.fingers("end")
        np.testing.assert_array_equal(canvas.saved(), brushed(expected, stroke, 7, 1))
        painted = hand.moved(before)
        hand.fingers("start", (20.5, 50.5))
        hand.fingers("move", (40.5, 50.5))
        hand.fingers("end")
        hand.moved(painted)
        page.locator("#fit").click()
        assert hand.seen() == painted
        # The other end of a pen, of which no test can tell Chromium.
        page.evaluate(
            """places => {
                const guide = document.getElementById('guide-layer');
                guide.setPointerCapture = () => {};
                places.forEach(([clientX, clientY], i) => guide.dispatchEvent(new PointerEvent(
                    ['pointerdown', 'pointermove', 'pointerup'][i], { pointerType: 'pen', button: 5,
                    buttons: 32, pointerId: 77, clientX, clientY, cancelable: true })));
            }""",
            [canvas.place(*stroke[0]), canvas.place(*stroke[1]), canvas.place(*stroke[1])],
        )
        np.testing.assert_array_equal(canvas.saved(), brushed(expected, stroke[:2], 7, 0))


def test_a_key_in_the_middle_of_a_stroke_loses_nothing(browser, desk, address, photographs):
    with at(browser, address, **DESKTOP) as page:
        canvas, (first, second) = Canvas(page, desk, photographs), [(10.3, 10.3), (40.3, 10.3)]
        canvas.set("size", 7)
        page.mouse.move(*canvas.place(*first))
        page.mouse.down()
        page.mouse.move(*canvas.place(*second))
        page.keyboard.press("PageDown")
        other = list(photographs.photographs.values())[1]
        expect(page.locator(f"#editor[data-ready='{other.id}']")).to_be_visible()
        page.mouse.move(*canvas.place(10.3, 30.3))
        page.mouse.up()
        page.locator("#close").click()
        expect(page.locator("#editor")).to_be_hidden()  # all is saved
        mask = read_labels(desk.corrections.find(canvas.entry.path, photographs.classes))
        np.testing.assert_array_equal(
            mask, brushed(np.zeros(SIZE, np.uint8), [first, second], 7, 1)
        )
        assert desk.corrections.find(other.path, photographs.classes) is None


def test_what_is_painted_while_the_last_stroke_is_saved_is_saved_too(
    browser, desk, address, photographs, monkeypatch
):
    save, free = desk.save_mask, threading.Event()
    monkeypatch.setattr(desk, "save_mask", lambda *of: free.wait(60) and save(*of))
    with at(browser, address, **DESKTOP) as page:
        canvas = Canvas(page, desk, photographs)
        canvas.drag((10.5, 10.5), (20.5, 10.5))
        with page.expect_request(lambda request: request.method == "PUT"):
            page.keyboard.press("PageDown")
        canvas.drag((50.5, 50.5), (60.5, 50.5))
        free.set()
        other = list(photographs.photographs.values())[1]
        expect(page.locator(f"#editor[data-ready='{other.id}']")).to_be_visible()
        both = read_labels(desk.corrections.find(canvas.entry.path, photographs.classes))
        assert both[10, 15] == both[50, 55] == 1


def test_why_a_stroke_could_not_be_saved_is_seen_above_the_picture(
    browser, desk, address, photographs, monkeypatch
):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with at(browser, address, known="507", **DESKTOP) as page:
        canvas = Canvas(page, desk, photographs)
        with monkeypatch.context() as full:
            full.setattr(desk, "save_mask", fail)
            canvas.drag((10.5, 10.5), (20.5, 10.5))
            page.get_by_text(os.strerror(errno.ENOSPC)).first.click()  # nothing covers it
        assert canvas.saved()[10, 15] == 1


def test_what_another_window_saved_is_not_lost(browser, desk, address, photographs):
    with at(browser, address, **DESKTOP) as one, at(browser, address, **DESKTOP) as two:
        first, second = Canvas(one, desk, photographs), Canvas(two, desk, photographs)
        first.drag((10.5, 10.5), (20.5, 10.5))
        saved = first.saved()
        second.drag((50.5, 50.5), (60.5, 50.5))
        expect(two.get_by_text("saved in another window")).to_be_visible()
        np.testing.assert_array_equal(first.saved(), saved)
        two.get_by_role("button", name="Load it again").click()
        expect(two.locator("#saved")).to_have_text("Corrected")
        second.drag((50.5, 50.5), (60.5, 50.5))
        both = second.saved()
        assert both[10, 15] == both[50, 55] == 1


def test_a_window_that_shows_other_classes_says_so(browser, desk, address, photographs):
    with at(browser, address, known="409", **DESKTOP) as page:
        canvas = Canvas(page, desk, photographs)
        photographs.classes = ClassTable.default()  # as after a model of others
        canvas.drag((10.5, 10.5), (20.5, 10.5))
        page.get_by_role("button", name="Reload the page").click()
        expect(page.locator("#table button.open")).to_have_count(3)
        Canvas(page, desk, photographs)
        chips = page.locator("#classes").inner_text().split("\n")
        assert chips == ["1 background", "2 disease", "0 not sure"]
    assert not list(desk.corrections.root.glob("*/*_masks/*"))


def test_what_was_asked_of_a_picture_is_not_in_the_way_of_the_next(
    browser, desk, address, photographs, monkeypatch
):
    with at(browser, address, **DESKTOP) as page:
        canvas, box = Canvas(page, desk, photographs), page.locator("#editor .conflict")
        for leave in ("PageUp", "Escape"):
            with monkeypatch.context() as others:
                others.setattr(desk, "table_id", lambda collection: "other")
                page.keyboard.press("PageDown")
                expect(box).to_have_count(1)
            page.keyboard.press(leave)
            expect(box).to_have_count(0)
            if leave == "PageUp":
                canvas.wait()


def test_a_window_that_closes_right_after_a_stroke_loses_nothing(
    browser, desk, address, photographs
):
    with at(browser, address, **DESKTOP) as page:
        canvas = Canvas(page, desk, photographs)
        canvas.drag((10.5, 10.5), (20.5, 10.5))
        page.locator("#close").click()
        expect(page.locator("#editor")).not_to_be_visible()
    assert desk.corrections.find(canvas.entry.path, photographs.classes) is not None


def test_what_is_painted_while_the_server_is_away_is_saved_when_it_is_back(
    browser, desk, address, photographs
):
    away = threading.Event()
    with at(browser, address, known="ERR_FAILED", **DESKTOP) as page:
        # From before the picture is opened: a route that is added later may miss the next request.
        page.route("**/mask", lambda route: route.abort() if away.is_set() else route.continue_())
        canvas = Canvas(page, desk, photographs)
        away.set()
        canvas.drag((10.5, 10.5), (20.5, 10.5))
        expect(page.locator("#saved")).to_contain_text("The server does not answer")
        assert desk.corrections.find(canvas.entry.path, photographs.classes) is None
        away.clear()
        assert canvas.saved()[10, 15] == 1


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_view_has_a_serious_fault_of_accessibility(browser, desk, address, photographs, size):
    with at(browser, address, **size) as page:
        page.set_default_timeout(30_000)
        faults = []

        def look(view):
            options = {"resultTypes": ["violations"]}
            for found in Axe().run(page, options=options).response["violations"]:
                if found["impact"] in ("serious", "critical"):
                    places = [node["html"][:120] for node in found["nodes"][:3]]
                    faults.append((view, found["id"], places))

        for view in ("photographs", "data", "train", "video"):
            page.locator(f'.top a[href="#{view}"]').click()
            expect(page.locator(f"#{view}")).to_be_visible()
            look(view)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator('.top a[href="#photographs"]').click()
        page.evaluate("document.getElementById('ask-classes').showModal()")
        look("classes")
        page.get_by_role("button", name="Cancel").click()
        Canvas(page, desk, photographs)
        look("editor")
        assert faults == []


def test_each_file_that_is_left_out_is_named_with_its_reason(browser, desk, address, tmp_path):
    """What a photograph lacks is said before the files that are none, which may be many."""
    others = ["leaf.txt", "b.json", "c.json", ".hidden", "Thumbs.db"]
    chosen = [tmp_path / name for name in ("a.png", "b.png", "broken.jpg", *others)]
    for path in chosen:
        Image.new("RGB", (8, 8)).save(path, "PNG")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with at(browser, address, known="422", **DESKTOP) as page:
        page.locator("#files").set_input_files(chosen)
        said = page.locator(".message.error")
        expect(said).to_contain_text("4 left out. broken.jpg holds no picture")
        expect(said).to_contain_text("leaf.txt is no photograph by its ending.")
        expect(page.locator("#table td.name")).to_have_text(["a", "b"])


def test_errors_of_two_jobs_are_both_said_and_none_hides_its_own(
    browser, desk, address, photographs
):
    def fail(job):
        job.notes.append("leaf0.jpg is damaged.")
        raise UserError(f"{job.title}: the disk is full.")

    with at(browser, address, **DESKTOP) as page:
        expect(page.locator("#table tbody tr")).to_have_count(3)
        for about in (photographs.id, "another"):
            desk.worker.submit(Job("segment", about, about), fail)
        said = page.locator(".message.error")
        expect(said).to_have_text(
            [f"{photographs.id}: the disk is full.", "another: the disk is full."]
        )


def test_an_error_belongs_to_the_section_where_it_was_asked_for(browser, desk, address):
    """Where the answer takes a while, another section may be open by then."""
    slow = """() => {
      const real = window.fetch, wait = new Promise(go => { window.answer = go; });
      window.fetch = async (...call) => {
        if (String(call[0]).includes("/api/data")) await wait;
        return real(...call);
      };
    }"""
    with at(browser, address, known="422", **DESKTOP) as page:
        page.locator('.top a[href="#data"]').click()
        page.evaluate(slow)
        page.locator("#data [name=folder]").fill("input/nothing")
        page.get_by_role("button", name="Check").click()
        page.locator('.top a[href="#photographs"]').click()
        expect(page.locator("#photographs")).to_be_visible()
        page.evaluate("() => window.answer()")
        expect(page.locator('.message.error[data-view="data"]')).to_have_count(1)


def test_sample_leaves_are_offered_with_and_without_a_model(
    browser, desk, address, monkeypatch, trained
):
    asked = []
    monkeypatch.setattr(desk, "draw_sample", lambda: asked.append(1) or Job("sample", "", ""))
    with at(browser, address, **DESKTOP) as page:
        expect(page.locator("#segment-form")).to_be_visible()
        page.get_by_role("button", name="Draw sample leaves").click()
        wait_for(lambda: asked)


# Words within which a line ends, in all that is seen.
BROKEN = """() => {
  const broken = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    for (const { 0: word, index } of node.data.matchAll(/[A-Za-z]+/g)) {
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      const tops = new Set([...range.getClientRects()].map(box => box.top));
      if (tops.size > 1 && word.length < 16) broken.push(word);
    }
  }
  return broken;
}"""


def test_no_word_is_broken_on_a_phone(browser, desk, address, photographs, trained):
    photographs.title = "Dropped on 27 Nov 2026, 18:10, after the rain and before the next"
    photographs.model = "leaves with corrections 2026-01-02-080000"
    for name in ("2026-01-01-080000", "2026-01-02-080000"):
        about = json.dumps({"title": "leaves with corrections", "epochs": 1})
        write_text(desk.trainings.folder / name / "page.json", about)
    with at(browser, address, **PHONE) as page:
        expect(page.locator("#table tbody tr")).to_have_count(3)
        for view in ("photographs", "data", "train", "video"):
            page.locator(f'.top a[href="#{view}"]').click()
            expect(page.locator(f"#{view}")).to_be_visible()
            assert page.evaluate(BROKEN) == [], view
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator('.top a[href="#photographs"]').click()
        field, card = page.locator("#collection"), page.locator("#drop")
        right = [box["x"] + box["width"] for box in (field.bounding_box(), card.bounding_box())]
        assert right[0] <= right[1]
        Canvas(page, desk, photographs)
        assert page.evaluate(BROKEN) == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_section_that_is_open_already_does_not_scroll(browser, address, photographs, size):
    with at(browser, address, **size) as page:
        expect(page.locator("#table tbody tr")).to_have_count(3)
        for view in ("photographs", "photographs", "train", "train", "photographs"):
            page.locator(f'.top a[href="#{view}"]').click()
            expect(page.locator(f"#{view}")).to_be_visible()
            assert page.evaluate("scrollY") == 0, view
        page.reload()
        expect(page.locator("#table tbody tr")).to_have_count(3)
        assert page.evaluate("scrollY") == 0


def test_an_error_goes_with_the_next_attempt_of_the_same(browser, desk, address, tmp_path):
    make_data(tmp_path / "set", [blobs()] * 2)
    (tmp_path / "empty").mkdir()
    with at(browser, address, known="422", **DESKTOP) as page:
        page.locator('.top a[href="#data"]').click()
        error = page.locator(".message.error")

        def check(name):
            page.locator("#data [name=folder]").fill(str(tmp_path / name))
            page.get_by_role("button", name="Check").click()

        check("nothing")
        expect(error).to_contain_text("nothing is no folder here")
        check("empty")
        expect(error).to_contain_text("empty holds no data set")  # and no other beside it
        expect(page.locator("#checked")).to_be_empty()
        check("set")
        expect(page.locator("#checked h2").first).to_have_text("set")
        assert error.count() == 0


def test_an_error_does_not_follow_to_another_section(browser, desk, address):
    def fail(job):
        raise UserError("It was not to be.")

    with at(browser, address, known="422", **DESKTOP) as page:
        error = page.locator(".message.error")
        page.locator('.top a[href="#data"]').click()
        page.locator("#data [name=folder]").fill("input/nothing")
        page.get_by_role("button", name="Check").click()
        expect(error).to_contain_text("no folder here")
        page.locator('.top a[href="#photographs"]').click()
        expect(page.locator("#photographs")).to_be_visible()
        assert error.count() == 0  # at once, not after its time
        desk.worker.submit(Job("train", "Preparing leaves", "train"), fail)
        expect(error).to_have_text("It was not to be.")
        page.locator('.top a[href="#train"]').click()
        expect(page.locator("#train")).to_be_visible()
        expect(error).to_have_count(1)  # that is where it belongs
        page.locator('.top a[href="#video"]').click()
        expect(page.locator("#video")).to_be_visible()
        assert error.count() == 0  # at once, not after its time


def test_the_doubtful_come_first_unless_a_person_orders_otherwise(
    browser, desk, address, photographs
):
    names, order = ["leaf0", "leaf1", "leaf2"], ["leaf2", "leaf0", "leaf1"]

    def segment(job):
        head, lines = ["file", "severity"], photographs.photographs.values()
        rows = [[line.path, 0.1 * number] for number, line in enumerate(lines)]
        write_csv(photographs.results / "results.csv", head, rows)
        write_text(photographs.home / LOOK_FIRST, json.dumps(order))
        photographs.model = job.title

    with at(browser, address, **DESKTOP) as page:
        shown = page.locator("#table td.name")
        expect(shown).to_have_text(names)
        for model, expected in (("first", order), ("second", names)):
            job = desk.worker.submit(Job("segment", model, photographs.id), segment)
            wait_for(lambda job=job: job.state == "done")
            for view in ("train", "photographs"):  # the page asks the server anew
                page.locator(f'.top a[href="#{view}"]').click()
            expect(page.locator("#results-title")).to_contain_text(f"segmented with {model}")
            expect(shown).to_have_text(expected)
            page.locator("#order").select_option("name")


def test_what_was_corrected_is_learnt_from_where_there_is_nothing_else(
    browser, desk, address, photographs, monkeypatch
):
    begun = []
    monkeypatch.setattr(desk.trainings, "start", lambda *given: begun.append(given))
    for entry in photographs.photographs.values():
        desk.corrections.save(entry.path, np.zeros(SIZE, np.uint8), photographs.classes, "")
    with at(browser, address, **DESKTOP) as page:
        page.locator('.top a[href="#train"]').click()
        box = page.get_by_label("Learn from the corrected pictures (3 with background")
        expect(box).to_be_checked()
        page.get_by_role("button", name="Start training").click()
        wait_for(lambda: begun)
        data = page.locator("[name=data]")
        data.fill("a/folder")
        expect(box).not_to_be_checked()
        data.fill("")
        expect(box).to_be_checked()
        box.uncheck()  # a person's word stays
        data.fill("a/folder")
        data.fill("")
        expect(box).not_to_be_checked()


def test_two_trainings_on_the_same_are_told_apart(browser, desk, address):
    for name in ("2026-01-01-080000", "2026-01-02-080000"):
        about = json.dumps({"title": "corrections", "epochs": 1})
        write_text(desk.trainings.folder / name / "page.json", about)
    with at(browser, address, **DESKTOP) as page:
        page.locator('.top a[href="#train"]').click()
        names = [f"corrections 2026-01-0{day}-080000" for day in (2, 1)]
        expect(page.locator("#runs td.name")).to_have_text(names)
        expect(page.locator("#live h2")).to_have_text(names[0])


def test_none_is_started_beside_a_training_at_work(browser, desk, address, monkeypatch):
    write_text(desk.trainings.folder / "2026/page.json", '{"title": "leaves", "epochs": 1}')
    write_text(desk.trainings.folder / "2025/page.json", '{"title": "leaves", "epochs": 1}')
    write_text(desk.trainings.folder / "2025/last.pth", "")
    at_work = {"2026"}
    monkeypatch.setattr(desk.trainings, "is_running", lambda name: name in at_work)
    with at(browser, address, **DESKTOP) as page:
        page.locator('.top a[href="#train"]').click()
        start, reason = (
            page.get_by_role("button", name="Start training"),
            page.locator("#start-note"),
        )
        go_on = page.get_by_role("button", name="Go on")
        expect(start).to_be_disabled()
        expect(reason).to_contain_text("A training is at work")
        expect(go_on).to_have_count(0)
        at_work.clear()
        expect(start).to_be_enabled()
        expect(reason).to_be_empty()
        expect(go_on).to_have_count(1)
        free = threading.Event()
        job = desk.worker.submit(Job("train", "Preparing leaves", "train"), lambda _: free.wait(60))
        expect(start).to_be_disabled()
        free.set()
        wait_for(lambda: job.state == "done")
        expect(start).to_be_enabled()


def test_the_model_that_nobody_chose_is_called_the_newest(browser, desk, address, trained):
    with at(browser, address, **DESKTOP) as page:
        for name in ("model", "video-model"):
            texts = page.locator(f"#{name} option")
            expect(texts).to_have_text(["Newest: newer", "older"])
            assert page.locator(f"#{name}").input_value() == texts.first.get_attribute("value")


def gap(above, below) -> float:
    """Pixels between one thing and the next below it."""
    above, below = above.bounding_box(), below.bounding_box()
    return below["y"] - above["y"] - above["height"]


def test_a_marked_video_says_what_its_colours_mean(browser, desk, address, photographs):
    (desk.space.path / "marked").mkdir()
    write_video(desk.space.path / "marked/walk.mp4", frames=3, size=(48, 64))
    result = {"file": "marked/walk.mp4", "classes": legend(photographs.classes)}
    desk.worker.submit(Job("video", "Marking walk.mp4", "1"), lambda job: job.result.update(result))
    with at(browser, address, **DESKTOP) as page:
        page.locator('.top a[href="#video"]').click()
        card = page.locator("#videos .card")
        colours, download = card.locator(".legend"), card.get_by_role("button", name="Download")
        expect(colours.locator("> span")).to_have_text(["leaf", "<b>spot</b>"])
        assert gap(card.locator("video"), colours) >= 8
        assert gap(colours, download) >= 8


def test_what_is_below_a_legend_is_not_glued_to_it(browser, address, tmp_path):
    make_data(tmp_path / "set", [blobs()] * 2)
    with at(browser, address, **PHONE) as page:
        page.locator('.top a[href="#data"]').click()
        page.locator("#data [name=folder]").fill(str(tmp_path / "set"))
        page.get_by_role("button", name="Check").click()
        below = page.get_by_role("button", name="Train on it")
        expect(below).to_be_visible()
        assert gap(page.locator("#checked .legend"), below) >= 8
        assert gap(page.locator("#data-form"), page.locator("#data .soft").first) >= 8


def test_a_stranger_at_another_machine_is_asked_for_the_password(browser, desk):
    with serving(desk, password="correct horse") as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.get_by_label("Password").fill("correct horse")
        page.get_by_role("button", name="Open the page").click()
        expect(page.get_by_role("heading", name="Photographs", exact=True)).to_be_visible()
        context.close()


def test_a_person_goes_the_whole_way(browser, desk, address, monkeypatch, tmp_path):
    """Sample leaves, two epochs, a corrected picture, and a second training that uses it."""
    monkeypatch.setattr("page.desk.SAMPLE", ("--train=4", "--valid=2", "--video-seconds=0.1"))
    with at(browser, address, **DESKTOP) as page:
        page.get_by_role("button", name="Draw sample leaves").click()
        expect(page.locator("#table tbody tr")).to_have_count(2, timeout=LONG)
        train(page, "2")
        expect(page.locator("#live .charts svg")).to_have_count(2)
        expect(page.locator("#run-picture img")).to_be_visible()
        page.get_by_role("button", name="Show the report").click()
        report = page.frame_locator("#report iframe")
        expect(report.get_by_role("heading").first).to_be_visible()
        page.get_by_role("button", name="Segment photographs").click()
        page.locator("#segment").click()
        segmented = page.locator("#table .badge", has_text="segmented")
        expect(segmented).to_have_count(2, timeout=LONG)
        [collection] = [c for c in desk.space.collections.values() if c.kind == "folder"]
        doubtful = collection.look_first()[0]
        entry = next(e for e in collection.photographs.values() if e.name == doubtful)
        predicted, origin = desk.mask(collection, entry)
        assert origin == "prediction"
        page.locator("#table button.open").first.click()
        expect(page.locator(f"#editor[data-ready='{entry.id}']")).to_be_visible()
        page.keyboard.press("Space")
        expect(page.locator("#saved")).to_have_text("Saved")
        page.locator("#close").click()
        expect(page.locator("#table td.number", has_text="corrected")).to_have_count(1)
        corrected, origin = desk.mask(collection, entry)
        assert origin == "correction"
        changed = np.argwhere(corrected != predicted)
        centre = np.array(predicted.shape) / 2
        assert np.hypot(*(changed + 0.5 - centre).T).max(initial=0) <= 10
        page.locator('.top a[href="#train"]').click()
        page.locator("[name=corrections]").check()
        train(page, "1")
        check_second_training(desk, corrected)
        downloads(page)
        mark_video(page, write_video(tmp_path / "walk.mp4", frames=3, size=(48, 64)))


def train(page, epochs: str) -> None:
    page.locator('.top a[href="#train"]').click()
    form = page.locator("#train-form")
    folder = page.locator("#folders option").first.get_attribute("value")
    form.locator("[name=data]").fill(folder)
    form.locator("[name=epochs]").fill(epochs)
    form.locator("details").evaluate("e => { e.open = true; }")
    for name, value in (("width", "64"), ("height", "64"), ("batch", "2")):
        form.locator(f"[name={name}]").fill(value)
    before = page.locator("#live .badge").count()
    page.get_by_role("button", name="Start training").click()
    if before:
        expect(page.locator("#live .badge")).to_have_text("at work", timeout=LONG)
    expect(page.locator("#live .badge")).to_have_text(re.compile("finished|failed"), timeout=LONG)
    expect(page.locator("#live .badge")).to_have_text("finished")


def check_second_training(desk, corrected: np.ndarray) -> None:
    """It learnt from a data set in which the corrected mask stands for the old one."""
    newest, first = desk.trainings.names()
    data = json.loads((desk.trainings.folder / newest / "page.json").read_text())["data"]
    masks = [read_labels(path) for path in desk.space.path.glob("training_data/*/valid_masks/*")]
    assert str(desk.space.path / "training_data") in data
    assert len(masks) == 2
    assert any(np.array_equal(mask, corrected) for mask in masks)
    assert len(desk.trainings.describe(first)["history"]) == 2


def mark_video(page, path) -> None:
    """A clip comes back marked, and the browser plays it."""
    page.locator('.top a[href="#video"]').click()
    page.locator("#video-file").set_input_files(path)
    video = page.locator("#videos video")
    expect(video).to_have_count(1, timeout=LONG)
    expect(page.locator("#videos .legend > span")).to_have_text(["disease"])
    if page.evaluate(
        "document.createElement('video').canPlayType('video/mp4; codecs=avc1.640028')"
    ):
        shown = "() => document.querySelector('#videos video').videoWidth === 64"
        page.wait_for_function(shown)


def downloads(page) -> None:
    page.locator('.top a[href="#photographs"]').click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Masks").click()
    assert waiting.value.suggested_filename.endswith("_masks.zip")
    content = io.BytesIO(waiting.value.path().read_bytes())
    assert content.getvalue()[:2] == b"PK"
