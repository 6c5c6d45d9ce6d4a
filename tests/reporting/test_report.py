"""The pages show what was measured, need nothing from outside, and let no name become markup."""

import base64
import math
import os
import subprocess
import tracemalloc
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urlsplit

import cv2
import numpy as np
import pytest

from common.text import printable
from config import ClassTable
from reporting import charts, pages, samples
from reporting.gallery import GalleryRow, write_gallery
from reporting.report import write_report
from reporting.samples import Sample, choose_samples, error_map

CLASSES = ClassTable(
    ("background", "leaf", "symptom"),
    ((0, 0, 0), (0, 176, 0), (255, 0, 0)),
    ((0, 0, 0), (0, 176, 0), (255, 0, 0)),
)
NASTY = [
    "<script>alert(1)</script>",
    '" onerror="alert(1)" x=\'',
    "'><img src=x onerror=alert(1)>",
    "</style></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "//elsewhere.example/x.jpg",
    "https://elsewhere.example/x.jpg",
    "a?b#c%20d&amp;e.jpg",
    "two\nlines\tand\x07\x1b[31m\x00 control",
    "right\u202eto left",
    "Blattfläche 葉.jpg",
    os.fsdecode(b"latin1-\xe9.jpg"),
]


class Page(HTMLParser):
    """A page as a browser takes it apart: its tags, and its text without scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._inside = [], "", None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None
        self.text += "\n"

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag, **wanted):
        found = [attributes for name, attributes in self.tags if name == tag]
        return [a for a in found if all(a.get(k.strip("_")) == v for k, v in wanted.items())]


def metrics_of(counts, classes=CLASSES):
    counts = np.array(counts, dtype=float)
    hit, truth, called = counts.diagonal(), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        iou = hit / (truth + called - hit)
        lists = {"iou": iou, "precision": hit / called, "recall": hit / truth}
        lists |= {"dice": 2 * hit / (truth + called), "boundary_iou": iou / 2}
    figures = {"miou": float(np.nanmean(iou)), "pixel_accuracy": float(hit.sum() / counts.sum())}
    figures |= {name: values.tolist() for name, values in lists.items()}
    counted = {"images": 7, "confusion": counts.astype(int).tolist()}
    return {"classes": list(classes.names), **counted, **figures}


def history_of(mious):
    same = {"lr": 1e-4, "seconds": 60.0, "train_pixel_accuracy": 0.9, "train_miou": 0.8}
    same |= {"train_iou": [0.8] * 3, "valid_pixel_accuracy": 0.9}
    rows = []
    for epoch, miou in enumerate(mious, 1):
        valid = {"valid_loss": 2 / epoch, "valid_miou": miou, "valid_iou": [0.9, 0.7, miou]}
        rows.append({"epoch": epoch, "train_loss": 1 / epoch, **same, **valid})
    return rows


def leaf(seed=0, size=(120, 200)):
    """A drawn leaf with spots, and its mask."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 225, np.uint8)
    truth = np.zeros(size, np.uint8)
    center, axes = (size[1] // 2, size[0] // 2), (size[1] // 3, size[0] // 4)
    cv2.ellipse(image, center, axes, 10, 0, 360, (70, 130, 50), cv2.FILLED)
    cv2.ellipse(truth, center, axes, 10, 0, 360, 1, cv2.FILLED)
    for x, y in zip(rng.integers(70, 130, 6), rng.integers(45, 75, 6), strict=True):
        cv2.circle(image, (int(x), int(y)), 5, (120, 70, 30), cv2.FILLED)
        cv2.circle(truth, (int(x), int(y)), 5, 2, cv2.FILLED)
    return image, truth


def three_samples(name="leaf.jpg"):
    for seed, (rank, iou) in enumerate([("best", 0.9), ("median", 0.7), ("worst", math.nan)]):
        image, truth = leaf(seed)
        yield Sample(name, image, truth, np.roll(truth, 6, axis=1), iou, rank)


def jpeg(seed=0):
    return cv2.imencode(".jpg", leaf(seed)[0][..., ::-1])[1].tobytes()


def full_report(path, classes=CLASSES, name="leaf.jpg"):
    counts = [[900, 20, 0], [10, 300, 5], [0, 40, 60]]
    shown = {
        "metrics": metrics_of(counts, classes),
        "history": history_of(np.linspace(0.3, 0.8, 12)),
        "samples": three_samples(name),
        "settings": {"data": name, "imgsz": [512, 512], name: name},
        "facts": {"device": name},
    }
    write_report(path, title=name, classes=classes, **shown)
    return Page(path)


def gallery(path, rows, classes=CLASSES, **more):
    write_gallery(path, title="t", classes=classes, rows=rows, **more)
    return Page(path)


def assert_self_contained(page):
    assert page.source.startswith("<!doctype html>")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "use"), tag
        assert "srcset" not in attributes
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;")
        if "href" in attributes:
            assert tag == "a"
            assert urlsplit(attributes["href"])[:2] == ("", ""), attributes["href"]
            assert not attributes["href"].startswith("/")
    for word in ("@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert word not in page.source
    policy = next(a for a in page.all("meta") if "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")


def assert_only_our_markup(page, plain):
    """Hostile names may change texts and values, but no tag and no attribute."""
    ours = [(tag, sorted(attributes)) for tag, attributes in plain.tags]
    assert [(tag, sorted(attributes)) for tag, attributes in page.tags] == ours
    assert not any(ord(char) < 32 and char not in "\n" for char in page.source)


@pytest.mark.parametrize("name", NASTY)
def test_a_report_shows_hostile_names_as_text(tmp_path, name):
    classes = ClassTable(("background", "leaf", name), CLASSES.colors, CLASSES.vis_colors)
    page = full_report(tmp_path / "a.html", classes, name)
    assert_only_our_markup(page, full_report(tmp_path / "b.html"))
    assert_self_contained(page)
    shown = printable(name)
    assert page.text.count(shown) >= 8
    assert f"Photograph of {shown}" in [a["alt"] for a in page.all("img")]


@pytest.mark.parametrize("name", NASTY)
def test_a_gallery_shows_hostile_names_as_text_and_links_to_their_files(tmp_path, name):
    classes = ClassTable(("background", "leaf", name), CLASSES.colors, CLASSES.vis_colors)
    below = "sub/" + name.lstrip("/")
    rows = [GalleryRow(name, 0.5, [0.2, 0.3, 0.5], jpeg(), below)]
    page = gallery(tmp_path / "a.html", rows, classes, note=name)
    plain = [GalleryRow("a", 0.5, [0.2, 0.3, 0.5], jpeg(), "a")]
    assert_only_our_markup(page, gallery(tmp_path / "b.html", plain))
    assert_self_contained(page)
    assert page.text.count(printable(name)) == 3
    target = os.fsdecode(unquote_to_bytes(page.all("a")[0]["href"]))
    assert os.path.normpath(target) == os.path.normpath(below)


@pytest.mark.parametrize("href", NASTY)
def test_a_gallery_links_to_files_beside_it_and_never_to_an_address(tmp_path, href):
    rows = [GalleryRow("a", 0.5, [1, 0, 0], jpeg(), href)]
    assert_self_contained(gallery(tmp_path / "summary.html", rows))


def test_a_gallery_without_overlays_has_no_links(tmp_path):
    page = gallery(tmp_path / "a.html", [GalleryRow("a", 0.5, [1, 0, 0], jpeg(), None)])
    assert len(page.all("img")) == 1
    assert not page.all("a")


def test_the_verdict_names_the_weakest_class_and_what_it_is_taken_for(tmp_path):
    page = full_report(tmp_path / "report.html")
    # By hand: symptom has 60 of 60 + 40 + 5 pixels right; 40 of its 100 are called leaf, and 5 of
    # the 65 called symptom are leaf. All background: 920 of 1335 pixels, over three classes.
    assert "Weakest class: symptom, IoU 57%." in page.text
    assert "40% of it is missed, mostly called leaf." in page.text
    assert "8% of what is called symptom is something else, mostly leaf." in page.text
    assert "Calling every pixel background would reach 23%." in page.text


def test_a_high_mean_does_not_hide_a_class_that_is_never_found(tmp_path):
    classes = ClassTable(tuple("abcdefgh"), ((1, 2, 3),) * 8, ((1, 2, 3),) * 8)
    counts = np.diag([1000.0] * 8)
    counts[7] = [50, 0, 0, 0, 0, 0, 0, 0]
    metrics = metrics_of(counts, classes)
    assert metrics["miou"] > 0.86
    write_report(tmp_path / "a.html", title="t", classes=classes, metrics=metrics)
    page = Page(tmp_path / "a.html")
    assert page.all("span", class_="grade Poor")
    assert "Nothing was ever called h." in page.text


def test_without_metrics_the_best_epoch_speaks(tmp_path):
    history = history_of([0.5, 0.61, math.nan, 0.55, 0.4, 0.4, 0.4])
    write_report(tmp_path / "a.html", title="t", classes=CLASSES, history=history)
    page = Page(tmp_path / "a.html")
    assert "61.0%" in page.text
    assert "2 of 7" in page.text
    assert "did not improve in the 5 epochs after it" in page.text
    assert len(page.all("svg")) == 4


def test_curves_break_where_a_value_is_missing_and_stay_in_their_frame(tmp_path):
    history = history_of([0.2, 0.3, math.nan, 0.5, 0.4])
    history[1]["train_loss"] = math.inf
    history[2]["valid_iou"] = [0.5, None, math.nan]
    write_report(tmp_path / "a.html", title="t", classes=CLASSES, history=history)
    lines = [a["points"].split() for a in Page(tmp_path / "a.html").all("polyline")]
    # loss: training in two parts; mIoU: validation in two; accuracy; classes: two of them in two
    assert [len(points) for points in lines] == [1, 3, 5, 5, 2, 2, 5, 5, 5, 2, 2, 2, 2]
    points = np.array([[float(v) for v in p.split(",")] for line in lines for p in line])
    width, height = charts.CHART
    assert (points >= 0).all()
    assert (points <= (width, height)).all()


def test_it_is_said_at_which_size_curves_and_figures_were_measured(tmp_path):
    given = {"title": "t", "classes": CLASSES, "history": history_of([0.5, 0.84])}
    words = "size of the network's input, all other figures of this page at each mask's own"
    for name, metrics in (("epochs", None), ("anew", metrics_of(np.diag([90, 9, 1])))):
        write_report(tmp_path / name, metrics=metrics, **given)
        assert (words in Page(tmp_path / name).text) == (metrics is not None)


@pytest.mark.parametrize("epochs", [1, 2, 700])
def test_any_number_of_epochs_can_be_drawn(tmp_path, epochs):
    history = history_of([0.5] * epochs)
    write_report(tmp_path / "a.html", title="t", classes=CLASSES, history=history)
    assert len(Page(tmp_path / "a.html").all("svg")) == 4


def test_what_has_no_figure_is_a_dash(tmp_path):
    metrics = metrics_of([[10, 0, 0], [2, 8, 0], [0, 0, 0]])
    metrics["mean_dice"] = math.nan
    shown = {"metrics": metrics, "samples": three_samples()}
    facts = {"speed": math.nan, "peak": None}
    write_report(tmp_path / "a.html", title="t", classes=CLASSES, facts=facts, **shown)
    rows = [(0.4, "a"), (math.nan, "b"), (0.6, "c")]
    path = tmp_path / "b.html"
    page = gallery(path, [GalleryRow(n, s, [1.0, 0, 0], jpeg(), None) for s, n in rows])
    assert "highest severity\n60.00%" in page.text.replace("\n\n", "\n")
    assert [a["title"] for a in page.all("span", class_="name")] == ["c", "a", "b"]
    for each in (Page(tmp_path / "a.html"), page):
        assert "–" in each.text
        assert "nan" not in each.text.lower()
        assert not any("nan" in a["style"] for _, a in each.tags if "style" in a)


def test_a_report_of_nothing_says_so(tmp_path):
    write_report(tmp_path / "a.html", title="t", classes=CLASSES)
    page = Page(tmp_path / "a.html")
    assert "No pixel was measured" in page.text
    assert not page.all("table")
    assert not page.all("svg")
    page = gallery(tmp_path / "b.html", [])
    assert "There is no picture to show." in page.text


def test_samples_come_worst_first_with_four_pictures_that_can_be_decoded(tmp_path):
    page = full_report(tmp_path / "a.html")
    assert page.text.index("Worst") < page.text.index("Median") < page.text.index("Best")
    labels = [a["alt"].split()[0] for a in page.all("img")]
    assert labels == ["Photograph", "Truth", "Prediction", "Errors"] * 3


def test_a_large_photograph_and_a_smaller_mask_make_small_views():
    image, truth = np.zeros((1500, 3000, 3), np.uint8), np.zeros((300, 600), np.uint8)
    sample = Sample("a", image, truth, np.zeros((300, 600), np.int64), 0.5, "best")
    views = samples._views(sample, CLASSES)
    assert views["size"] == (640, 320)
    assert all(len(uri) < 100_000 for uri in views["pictures"].values())


def test_a_missed_spot_of_six_pixels_leaves_its_trace_in_a_large_photograph():
    image = np.full((2000, 4000, 3), 128, np.uint8)
    truth = np.zeros((2000, 4000), np.uint8)
    places = [(50 + 103 * i, 60 + 201 * i) for i in range(18)]
    for y, x in places:
        truth[y : y + 6, x : x + 6] = 1
    views = samples._views(Sample("a", image, truth, np.zeros_like(truth), 0.5, "worst"), CLASSES)
    encoded = base64.b64decode(views["pictures"]["Errors"].split(",")[1])
    seen = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
    for y, x in (np.array(places) * 0.16).round().astype(int):
        spot = seen[y - 1 : y + 3, x - 1 : x + 3]
        assert (spot[..., 0] - spot[..., 2]).max() > 10


def test_the_error_map_tells_the_kinds_of_error_apart():
    truth = np.array([[0, 1, 1, 0, 1, 255, 255]], np.uint8)
    pred = np.array([[0, 1, 0, 2, 2, 0, 1]], np.uint8)
    view = error_map(np.full((1, 7, 3), 200, np.uint8), truth, pred)[0].tolist()
    assert view[0] == [80, 80, 80]  # the photograph, dimmed
    assert view[1] not in (view[0], *view[2:])
    wrong = [samples.MISSED, samples.FALSE_ALARM, samples.WRONG_CLASS]
    assert [tuple(color) for color in view[2:]] == [*wrong, samples.IGNORED, samples.IGNORED]


# How red-blind and green-blind eyes see linear RGB (Machado et al. 2009, severity 1).
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]


@pytest.mark.parametrize("matrix", [np.eye(3), PROTANOPIA, DEUTERANOPIA])
def test_colour_blind_readers_can_tell_the_errors_apart(matrix):
    photograph = np.full((1, 2, 3), 200, np.uint8)
    view = error_map(photograph, np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))
    colors = [samples.MISSED, samples.FALSE_ALARM, samples.WRONG_CLASS, samples.IGNORED, *view[0]]
    linear = (np.array(colors) / 255.0) ** 2.2
    seen = np.clip(linear @ np.array(matrix).T, 0, 1).astype(np.float32) ** (1 / 2.2)
    lab = cv2.cvtColor(seen[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distances[np.triu_indices(len(lab), 1)].min() > 15  # 2.3 is just noticeable


def test_samples_are_the_extremes_and_the_middle_and_none_comes_twice():
    ious = [0.5, 0.9, math.nan, 0.1, 0.7, 0.3, 0.8, 0.2, 0.6, 0.4]
    assert choose_samples(ious) == {"best": [1, 6, 4], "median": [8, 0, 9], "worst": [3, 7, 5]}
    for count in range(12):
        chosen = [i for part in choose_samples([0.5] * count).values() for i in part]
        assert len(chosen) == len(set(chosen)) == (count if count < 3 else min(9, count // 3 * 3))
    assert choose_samples([math.nan]) == {"best": [], "median": [], "worst": []}


def test_many_pictures_arrive_sorted_on_pages_and_never_all_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    count, size = 1200, 10_000

    def rows():
        for i in range(count):
            yield GalleryRow(f"f{i}", rng.random(), [0.7, 0.2, 0.1], rng.bytes(size), f"f{i}.jpg")

    path = tmp_path / "summary.html"
    pages.environment().get_template("gallery.html")  # compiled before memory is measured
    tracemalloc.start()
    try:
        write_gallery(path, title="t", classes=CLASSES, rows=rows())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.3 * count * size
    written = [path, tmp_path / "summary_2.html", tmp_path / "summary_3.html"]
    assert sorted(tmp_path.iterdir()) == written
    assert [page.stat().st_size // (500 * size) for page in written] == [1, 1, 0]
    sources = [page.read_text(encoding="utf-8") for page in written]
    parts = [source.split('data-severity="')[1:] for source in sources]
    assert [len(part) for part in parts] == [500, 500, 200]
    severities = [float(text[:8]) for part in parts for text in part]
    assert severities == sorted(severities, reverse=True)


def test_pages_lead_to_each_other_and_those_of_a_longer_gallery_go(tmp_path):
    def write(count):
        rows = (GalleryRow(f"f{i}", i / 10, [1, 0, 0], jpeg(), None) for i in range(count))
        return gallery(tmp_path / "summary.html", rows, page_size=3)

    assert not write(3).all("nav")
    first = write(7)
    assert_self_contained(first)
    assert {a["href"] for a in first.all("a")} == {"summary_2.html", "summary_3.html"}
    assert "Sorting and filters act on this page." in first.text
    last = Page(tmp_path / "summary_3.html")
    assert {a["href"] for a in last.all("a")} == {"summary.html", "summary_2.html"}
    assert len(last.all("article")) == 1
    assert [tile in last.text for tile in ("7", "30.00%", "60.00%")] == [True] * 3
    assert "3: 0.0% to 0.0%" in last.text
    (tmp_path / "summary_mine.html").touch()
    (tmp_path / "summary_9x.html").touch()
    write(4)
    names = {"summary.html", "summary_2.html", "summary_mine.html", "summary_9x.html"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_error_on_the_way_keeps_the_old_page(tmp_path):
    path = tmp_path / "summary.html"
    gallery(path, [])
    before = path.read_bytes()

    def rows():
        yield GalleryRow("a", 0.5, [1, 0, 0], jpeg(), None)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_gallery(path, title="t", classes=CLASSES, rows=rows())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["summary.html"]


# --- In a browser ---------------------------------------------------------------------------------


def opened(chromium, page, *flags):
    """Open a page and return what the browser prints."""
    command = [*chromium, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_verdict_and_pictures_at_desktop_and_phone_width(tmp_path, chromium, width):
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    image, truth = np.full((90, 160, 3), (250, 0, 250), np.uint8), np.zeros((90, 160), np.uint8)
    metrics, shown = metrics_of(np.diag([90, 9, 1])), Sample("a", image, truth, truth, 1.0, "best")
    write_report(path, title="t", classes=CLASSES, metrics=metrics, samples=[shown])
    opened(chromium, path, f"--screenshot={shot}", f"--window-size={width},2000")
    pixels = cv2.imread(str(shot))[..., ::-1].astype(int)
    assert pixels.shape == (2000, width, 3)

    def area(color):
        return int((abs(pixels - color).max(-1) < 12).sum())

    assert area((0, 121, 90)) > 500  # the grade
    assert area((250, 0, 250)) > 160 * 90 / 4  # the photograph


def test_a_browser_runs_our_script_and_no_other(tmp_path, chromium):
    path = tmp_path / "summary.html"
    gallery(path, [GalleryRow(f"{i}", i / 9, [1, 0, 0], jpeg(), None) for i in range(9)])
    source = path.read_text(encoding="utf-8")
    planted = "<script>document.title = 'stranger'</script></body>"
    path.write_text(source.replace("</body>", planted), encoding="utf-8")
    seen = opened(chromium, path, "--dump-dom")
    assert "9 of 9 shown" in seen
    assert "<title>t</title>" in seen


@pytest.mark.parametrize(
    ("true", "predicted", "grade"),
    [(0.05, 0.04, "Very good"), (0.05, 0.0, "Fair"), (0.4, 0.2, "Fair")],
)
def test_no_model_is_called_good_that_misleads_about_a_leaf(tmp_path, true, predicted, grade):
    worst = ("leaf.jpg", true, predicted)
    missed = [worst] if predicted < true / 4 else []
    metrics = metrics_of([[95, 5, 0], [0, 100, 0], [0, 0, 100]]) | {"images": 12}
    metrics |= {"severity_error": 0.01, "severity_worst": worst, "severity_missed": missed}
    write_report(tmp_path / "a.html", title="t", classes=CLASSES, metrics=metrics)
    page = Page(tmp_path / "a.html")
    assert page.all("span", class_=f"grade {grade.split()[0]}")
    assert f"at worst on leaf.jpg: {predicted:.1%} instead of {true:.1%}" in page.text


def severity_of(true, predicted, concordance, **more):
    figures = {"concordance_low": 0.5, "concordance_high": 0.9, "precision": 0.9, "accuracy": 0.9}
    figures |= {"bias": 0.02, "rmse": 0.05, "limits_low": -0.1, "limits_high": 0.14}
    files = [f"{NASTY[0]}{i}" for i in range(len(true))]
    series = {"files": files, "true": true, "predicted": predicted}
    return {"class": "symptom", "concordance": concordance, **series, **figures, **more}


@pytest.mark.parametrize(
    ("concordance", "low", "rmse", "grade"),
    [
        (0.97, 0.75, 0.05, "Very"),
        (0.97, math.nan, 0.05, "Very"),
        (0.97, 0.5, 0.05, "Good"),  # so few pictures that it may be poor
        (0.9, 0.5, 0.05, "Good"),
        (0.8, 0.5, 0.05, "Fair"),
        (0.2, -0.5, 0.05, "Poor"),
        (0.2, -0.5, 0.005, "Very"),  # all errors are small
        (math.nan, math.nan, 0.05, "Very"),  # all pictures are alike
    ],
)
def test_a_models_grade_follows_the_agreement_of_severity(tmp_path, concordance, low, rmse, grade):
    true = np.linspace(0, 0.5, 12).tolist()
    severity = [severity_of(true, true, concordance, rmse=rmse, concordance_low=low)]
    metrics = metrics_of(np.diag([90, 9, 1]))
    path = tmp_path / "a.html"
    write_report(path, title="t", classes=CLASSES, metrics=metrics, severity=severity)
    page = Page(path)
    assert page.all("span", class_=f"grade {grade}")
    assert ("concordance with the truth is" in page.text) == (concordance == concordance)


def test_what_has_no_severity_is_said_once_and_named_where_another_has_one(tmp_path):
    severity = [severity_of([0.1, 0.2], [0.1, 0.2], 0.9)]
    metrics = metrics_of(np.diag([90, 9, 1])) | {"severity_error": math.nan, "severity_worst": None}
    metrics |= {"severity_missed": []}
    given = {"title": "t", "classes": CLASSES, "metrics": metrics, "severity": severity}
    write_report(tmp_path / "a.html", **given, severity_note="No severity of rust.")
    text = Page(tmp_path / "a.html").text
    assert text.count("No severity of rust.") == 1
    assert "Severity is that of symptom. Its concordance with the truth is 0.90" in text


def test_severity_is_drawn_with_its_line_bias_and_limits_inside_the_plot(tmp_path):
    true, predicted = [0.0, 0.1, 0.4], [0.05, 0.1, 0.3]
    scatter, differences = charts.agreement_charts(severity_of(true, predicted, 0.9))
    left, top, right, bottom = charts.SCATTER_FRAME
    for chart in (scatter, differences):
        assert len(chart["points"]) == 3
        assert all(left <= x <= right and top <= y <= bottom for x, y, *_ in chart["points"])
    x1, y1, x2, y2, kind = scatter["lines"][0]
    assert kind == "exact"
    x, y, text, _ = scatter["points"][1]  # the exact one lies on the line
    assert (y - y1) / (x - x1) == pytest.approx((y2 - y1) / (x2 - x1), rel=0.02)
    assert text.endswith("10.00% instead of 10.00%")
    kinds = [line[-1] for line in differences["lines"]]
    assert kinds == ["exact", "bias", "limit low", "limit high"]
    many = charts.agreement_charts(severity_of([0.1] * 5000, [0.2] * 5000, 0.9))
    assert len(many[0]["points"]) <= charts.MAX_POINTS
    one = charts.agreement_charts(severity_of([0.0], [0.0], math.nan, limits_low=math.nan))
    assert len(one[0]["points"]) == 1


def test_reliability_and_doubtful_pictures_are_told(tmp_path):
    steps = [{"share": 0.5, "said": 0.6, "seen": 0.5}, {"share": 0.5, "said": 1.0, "seen": 0.9}]
    errors = {"background": 0.01, "leaf": 0.02, "symptom": 0.07}
    part = {"steps": steps, "error": 0.1, "edge_error": 0.3, "inner_error": 0.05}
    part["class_errors"] = errors
    figures = {"temperature": 1.5, "before": part, "after": part | {"error": 0.04}}
    path, doubtful = tmp_path / "a.html", [(NASTY[0], 0.41, 0.5)]
    write_report(path, title="t", classes=CLASSES, reliability=figures, doubtful=doubtful)
    page = Page(path)
    assert "off by 10.0%, at this temperature by 4.0%" in page.text
    assert "worst for symptom, 7.0%" in page.text
    assert "41.0%" in page.text
    assert len(page.all("circle")) == 4
    assert not page.all("script", src="")
