"""What the page does without a browser: the line of jobs, trainings as processes, starting it."""

import json
import os
import socket
import sys
import threading

import numpy as np
import pytest
from data_sets import COFFEE, blobs, make_data, photo
from open_page import HOME, TOKEN, ended, wait_for
from PIL import Image
from starlette.testclient import TestClient
from tiny_model import save_tiny
from tiny_video import write_video

import app
from common import cli
from common.device import choose_device
from common.errors import UserError
from config import ClassTable
from data.images import write_image
from page import workspace
from page.jobs import WAITING, Job, Worker
from page.server import make_app
from page.training import Trainings, Wish, find_models
from training.flags import parse_args


def test_the_line_is_bounded_and_outlives_what_fails_in_it(capsys):
    worker, go = Worker(debug=True), threading.Event()
    first = worker.submit(Job("x", "First", "0"), lambda job: go.wait(60))
    wait_for(lambda: first.state == "running")
    rest = [
        worker.submit(Job("x", "Next", str(n)), lambda job: 1 / 0) for n in range(1, WAITING + 1)
    ]
    with pytest.raises(UserError, match="waiting already"):
        worker.submit(Job("x", "Last", "99"), lambda job: None)
    with pytest.raises(UserError, match="at work already"):
        worker.submit(Job("x", "Again", "0"), lambda job: None)
    rest[-1].stop.set()
    go.set()
    wait_for(lambda: rest[-1].state == "stopped")
    assert first.state == "done"
    assert {job.state for job in rest[:-1]} == {"failed"}
    assert "unexpected ZeroDivisionError" in rest[0].error
    assert "ZeroDivisionError" in capsys.readouterr().err
    worker.close()


def test_a_broken_photograph_does_not_stop_the_rest(desk, client, tmp_path):
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    for name in ("a", "c"):
        write_image(tmp_path / "in" / f"{name}.png", photo())
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:900])
    made = client.post("/api/collections", json={"folder": str(tmp_path / "in")}).json()["id"]
    job = ended(client, client.post(f"/api/collections/{made}/segment", json={}).json())
    assert job["state"] == "done"
    assert len(job["notes"]) == 1
    assert "b.png" in job["notes"][0]
    shown = client.get(f"/api/collections/{made}").json()
    states = {entry["name"]: entry["segmented"] for entry in shown["photographs"]}
    assert states == {"a": True, "b": False, "c": True}
    figures = shown["photographs"][0]["figures"]
    assert 0 <= figures["severity"] <= 1
    assert "regions_disease" in figures
    assert 0 <= figures["confidence"] <= 1
    address = f"/api/collections/{made}/photographs/{shown['photographs'][0]['id']}"
    mask = np.frombuffer(client.get(f"{address}/mask").content, np.uint8).reshape(48, 64)
    written = Image.open(next(desk.space.path.rglob("a_mask.png")))
    np.testing.assert_array_equal(mask, np.array(written))
    assert figures["pixels_disease"] == (mask == 1).sum()
    assert {"results.csv", "cvat.zip", "coco.json"} <= set(shown["downloads"])
    for what in shown["downloads"]:
        url = client.post("/api/tickets", json={"what": what, "id": made}).json()["url"]
        assert client.get(url, headers={"x-token": ""}).status_code == 200


def test_a_stopped_segmentation_keeps_what_is_done_and_goes_on(desk, client, tmp_path, monkeypatch):
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", photo(number))
    made = client.post("/api/collections", json={"folder": str(tmp_path / "in")}).json()["id"]

    def stopped_after_one(*given):
        from inference.pictures import segment_pictures  # as it is

        outcomes = segment_pictures(*given)
        yield next(outcomes)
        [job] = desk.worker.jobs.values()
        assert client.post(f"/api/jobs/{job.id}/stop").status_code == 204
        yield from outcomes

    desk.segmenter()
    with monkeypatch.context() as patch:
        patch.setattr("page.segmenting.segment_pictures", stopped_after_one)
        job = ended(client, client.post(f"/api/collections/{made}/segment", json={}).json())
    assert (job["state"], job["done"]) == ("stopped", 2)
    rows = client.get(f"/api/collections/{made}").json()["photographs"]
    assert [row["segmented"] for row in rows] == [True, True, False]
    masks = {path: path.stat().st_mtime_ns for path in desk.space.path.rglob("*_mask.png")}
    job = ended(client, client.post(f"/api/collections/{made}/segment", json={}).json())
    assert (job["state"], job["done"]) == ("done", 3)
    rows = client.get(f"/api/collections/{made}").json()["photographs"]
    assert [row["segmented"] for row in rows] == [True, True, True]
    first = sorted(masks)[:2]
    assert {path: path.stat().st_mtime_ns for path in first} == {p: masks[p] for p in first}


def test_masks_of_another_models_classes_are_not_shown_as_those_of_the_new(
    desk, client, tmp_path, monkeypatch
):
    model = save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    write_image(tmp_path / "in" / "a.png", photo())
    made = client.post("/api/collections", json={"folder": str(tmp_path / "in")}).json()["id"]
    base = f"/api/collections/{made}"
    assert ended(client, client.post(f"{base}/segment", json={}).json())["state"] == "done"
    address = f"{base}/photographs/{client.get(base).json()['photographs'][0]['id']}"
    shown = []

    def none(*_):
        shown.append(client.get(f"{address}/mask").headers["x-origin"])
        yield from ()

    monkeypatch.setattr("page.segmenting.segment_pictures", none)
    again = ended(client, client.post(f"{base}/segment", json={}).json())
    assert (again["state"], shown) == ("done", ["prediction"])
    colors = ((0, 0, 0), (9, 9, 9))
    save_tiny(model, classes=ClassTable(("ground", "leaf"), colors, colors))
    ended(client, client.post(f"{base}/segment", json={}).json())
    assert shown == ["prediction", "nothing"]
    assert desk.collection(made).classes.names == ("ground", "leaf")
    assert not any(row["segmented"] for row in client.get(base).json()["photographs"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_odd_names_of_files_are_photographs_like_others(desk, client, tmp_path):
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    names = (b"a'\"b", b"<img src=x onerror=alert(1)>", b"new\nline", "\u53f6 \u202e".encode())
    names += (b"\xff\xfe", b"-rf", b"#?&%41", b"back\\slash", b"a;b,c")
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        write_image(tmp_path / "x.png", photo(number))
        os.rename(tmp_path / "x.png", os.fsencode(tmp_path / "in") + b"/" + name + b".png")
    made = client.post("/api/collections", json={"folder": str(tmp_path / "in")}).json()["id"]
    base = f"/api/collections/{made}"
    assert ended(client, client.post(f"{base}/segment", json={}).json())["notes"] == []
    rows = client.get(base).json()["photographs"]
    assert [row["segmented"] for row in rows] == [True] * len(names)
    assert all(row["name"].isprintable() for row in rows)
    address = f"{base}/photographs/{next(r['id'] for r in rows if 'udcff' in r['name'])}"
    mask = np.zeros((48, 64), np.uint8).tobytes()
    saved = client.put(f"{address}/mask", content=mask, headers={"if-match": "*"})
    assert saved.status_code == 204
    again = type(desk)(desk.space.path, None, "cpu")
    rows = again.table.rows(again.collection(made))
    assert [row["segmented"] for row in rows] == [True] * len(names)
    assert sum(row["corrected"] for row in rows) == 1
    for what in ("masks", "results.csv"):
        url = client.post("/api/tickets", json={"what": what, "id": made}).json()["url"]
        assert client.get(url).status_code == 200


def test_a_restart_finds_what_was_there(desk, client, tmp_path):
    made = client.post("/api/collections", json={"title": "mine"}).json()["id"]
    write_image(tmp_path / "a.png", photo())
    content = (tmp_path / "a.png").read_bytes()
    client.put(f"/api/collections/{made}/photographs?name=a.png", content=content)
    client.post(f"/api/collections/{made}/classes", json={"names": ["ground", "leaf"]})
    again = type(desk)(desk.space.path, None, "cpu").collection(made)
    assert again.title == "mine"
    assert again.classes.names == ("ground", "leaf")
    assert [entry.name for entry in again.photographs.values()] == ["a"]
    (desk.space.path / "collections" / made / "collection.json").write_text("{")
    assert made not in type(desk)(desk.space.path, None, "cpu").space.collections


def test_two_photographs_of_one_name_keep_results_of_their_own(desk, client, tmp_path):
    made = client.post("/api/collections", json={"title": "mine"}).json()["id"]
    for name in ("a.png", "A.png", "a.jpg"):
        write_image(tmp_path / name, photo())
        content = (tmp_path / name).read_bytes()
        client.put(f"/api/collections/{made}/photographs?name={name}", content=content)
    names = {entry.id: entry.name for entry in desk.collection(made).photographs.values()}
    assert sorted(name.casefold() for name in names.values()) == ["a", "a_2", "a_3"]
    again = type(desk)(desk.space.path, None, "cpu").collection(made)
    assert {entry.id: entry.name for entry in again.photographs.values()} == names


def test_a_restart_reads_no_masks_before_they_are_asked_for(desk, tmp_path, monkeypatch):
    root, opened = make_data(tmp_path / "set", [blobs()] * 2), []
    data = desk.space.open(root, "data")
    survey = workspace.survey_source
    monkeypatch.setattr(workspace, "survey_source", lambda at: opened.append(at) or survey(at))
    again = type(desk)(desk.space.path, None, "cpu")
    found = again.collection(data.id)
    assert found.photographs == data.photographs
    assert opened == []
    mask, origin = again.mask(found, next(iter(found.photographs.values())))
    assert (origin, opened) == ("data", [root])
    np.testing.assert_array_equal(mask, blobs())


def test_the_data_check_is_told_in_figures_and_sentences(client, tmp_path):
    root = make_data(tmp_path / "set", [blobs((0, 1, 2))] * 3, COFFEE)
    Image.fromarray(blobs((0, 7))).save(root / "train_masks/001.png")
    job = ended(client, client.post("/api/data", json={"folder": str(root)}).json())
    result = job["result"]
    assert [(split["split"], split["pairs"]) for split in result["splits"]] == [
        ("train", 3),
        ("valid", 3),
    ]
    address = f"/api/collections/{result['collection']}"
    shown = client.get(address).json()["photographs"]
    again = client.get(f"{address}/photographs/{shown[1]['id']}/mask")
    assert again.headers["x-origin"] == "nothing"  # a mask without sense is painted anew
    [wrong] = [finding for finding in result["findings"] if finding["problem"]]
    assert "001.png" in wrong["items"][0]["text"]
    assert wrong["items"][0]["photograph"] in [entry["id"] for entry in shown]
    address = f"{address}/photographs/{shown[0]['id']}"
    assert client.get(f"{address}/thumbnail").headers["content-type"] == "image/jpeg"
    shares = {entry["name"]: entry["shares"] for entry in result["classes"]}
    assert sum(share[0] for share in shares.values()) == pytest.approx(1)


def test_a_video_comes_back_marked(desk, client, tmp_path):
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    content = write_video(tmp_path / "walk.mp4", frames=3, size=(48, 64)).read_bytes()
    job = ended(client, client.put("/api/videos?name=walk.mp4", content=content).json())
    assert (job["state"], job["done"]) == ("done", 3)
    classes = [(entry["name"], any(entry["color"])) for entry in job["result"]["classes"]]
    assert classes == [("background", False), ("disease", True)]
    url = client.post("/api/tickets", json={"what": "video", "id": job["id"]}).json()["url"]
    part = client.get(url, headers={"range": "bytes=0-7", "x-token": ""})
    assert part.status_code == 206
    assert part.content[4:8] == b"ftyp"
    bad = ended(client, client.put("/api/videos?name=bad.mp4", content=b"no video").json())
    assert bad["state"] == "failed"
    assert "bad.mp4" in bad["error"]


def test_a_video_takes_no_others_place_and_none_is_kept_for_nothing(desk, client, monkeypatch):
    videos = desk.space.path / "videos"
    assert client.put("/api/videos?name=a.mp4", content=b"1").status_code == 422  # no model
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    (videos / "marked").mkdir(parents=True, exist_ok=True)
    (videos / "marked" / "B.mp4").touch()
    monkeypatch.setattr(desk, "segmenter", lambda: 1 / 0)
    for name in ("a.mp4", "a.mov", "b.avi"):
        assert client.put(f"/api/videos?name={name}", content=b"1").status_code == 202
    monkeypatch.setattr(desk.worker, "submit", lambda *_: desk.model("gone"))
    assert client.put("/api/videos?name=c.mp4", content=b"1").status_code == 422
    kept = sorted(path.name for path in videos.iterdir() if path.is_file())
    assert kept == ["a.mp4", "a_2.mov", "b_2.avi"]


def test_a_training_that_is_stopped_before_it_begins_does_not_begin(
    desk, client, tmp_path, monkeypatch
):
    root, begun = make_data(tmp_path / "set", [blobs()] * 2), []
    brought = desk.space.path / "training_data"

    def stopped(root, painted, target):
        [job] = desk.worker.jobs.values()
        assert client.post(f"/api/jobs/{job.id}/stop").status_code == 204
        return make_data(target, [blobs()] * 2)

    monkeypatch.setattr("page.desk.training_folder", stopped)
    monkeypatch.setattr(desk.trainings, "start", lambda *given: begun.append(given))
    wish = {"data": str(root), "recipe": "light", "epochs": 1}
    assert ended(client, client.post("/api/runs", json=wish).json())["state"] == "stopped"
    assert begun == []
    assert list(brought.iterdir()) == []


def test_a_wish_is_what_train_py_understands(tmp_path):
    wish = Wish(str(tmp_path), "light", 3, "timm/convnext_tiny", "none", (64, 32), 2)
    args, _ = parse_args(wish.flags())
    assert (str(args.data), args.epochs, args.model) == (str(tmp_path), 3, "timm/convnext_tiny")
    assert (args.imgsz, args.batch, args.weights) == ((32, 64), 2, "none")
    assert parse_args(Wish("--overwrite", "light", 1).flags())[0].overwrite is False


SCRIPT = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from common import cli
from common.files import lock_folder
folder = Path(sys.argv[1].split("=")[1])
def main():
    with lock_folder(folder):
        row = {{"epoch": 1, "seconds": 2, "argv": sys.argv}}
        (folder / "log.jsonl").write_text(json.dumps(row))
        (folder / "last.pth").touch()
        print("Training 3/8 [00:01<00:02]", flush=True)
        while not (folder / "finish").exists():
            time.sleep(0.01)
        (folder / "report.html").touch()
cli.run(main)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Stands for train.py: works until it is stopped, or until there is a file `finish`."""
    root = app.Path(app.__file__).parent
    (tmp_path / "train.py").write_text(SCRIPT.format(root=str(root)))
    monkeypatch.setattr("page.training.ROOT", tmp_path)
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of POSIX")
def test_a_training_outlives_the_server_and_is_found_stopped_and_resumed(script):
    runs = Trainings(script / "runs", "cpu")
    runs.start("one", Wish("data", "light", 5), "leaves")
    wait_for(lambda: runs.describe("one")["step"])
    state = runs.describe("one")
    assert (state["state"], state["step"], state["seconds_left"]) == ("running", [3, 8], 8)
    later = Trainings(script / "runs", "cpu")
    assert later.describe("one")["state"] == "running"
    for refused in (later, runs):
        with pytest.raises(UserError, match="at work already"):
            refused.start("two", Wish("data", "light", 5), "leaves")
    later.stop("one")
    wait_for(lambda: later.describe("one")["state"] == "stopped")
    assert later.describe("one")["can_go_on"]
    later.go_on("one")
    (script / "runs/one/finish").touch()
    wait_for(lambda: later.describe("one")["state"] == "done")
    argv = json.loads((script / "runs/one/log.jsonl").read_text())["argv"]
    assert argv[-1] == "--resume"
    assert not later.describe("one")["can_go_on"]
    assert later.describe("one")["log"].count("3/8") == 2


def make_run(folder, age: int, scores=(), finished=True):
    """What a training leaves that was so long ago, of that many epochs."""
    folder.mkdir(parents=True)
    (folder / "best_model_iou.pth").touch()
    os.utime(folder / "best_model_iou.pth", (1000 - age, 1000 - age))
    rows = (json.dumps({"valid_miou": score}) for score in scores)
    (folder / "log.jsonl").write_text("\n".join(rows))
    if finished:
        (folder / "report.html").touch()


def test_models_are_found_the_newest_first_and_folds_as_one(tmp_path):
    make_run(tmp_path / "a", 3, (0.5, 0.25))
    for number in range(2):
        make_run(tmp_path / f"cv/fold_{number}", 2 - number, (0.25, 0.5 + 0.25 * number))
    (tmp_path / "cv/folds.csv").write_text("file,fold\na.png,0\nb.png,1\n")
    folds, alone = find_models([tmp_path])
    assert (folds.path, folds.name, folds.folds, folds.epochs) == (tmp_path / "cv", "cv", 2, 2)
    assert (folds.miou, folds.finished) == (pytest.approx(0.625), True)
    assert alone.path == tmp_path / "a/best_model_iou.pth"
    assert (alone.folds, alone.epochs, alone.miou) == (0, 2, 0.5)
    (tmp_path / "cv/fold_1/report.html").unlink()
    assert not find_models([tmp_path])[0].finished
    (tmp_path / "a/report.html").unlink()
    (tmp_path / "a/log.jsonl").unlink()
    alone = find_models([tmp_path])[1]
    assert (alone.epochs, alone.miou, alone.finished) == (0, None, True)  # from elsewhere
    (tmp_path / "cv/folds.csv").write_text("file,fold\na.png,0\nb.png,1\nc.png,2\n")
    assert find_models([tmp_path]) == [alone]  # a fold is not trained yet


def test_the_newest_finished_model_is_taken_until_a_person_chooses(desk, client, monkeypatch):
    runs = desk.trainings.folder
    for age, name in enumerate(("at-work", "stopped", "newer", "older")):
        make_run(runs / name, age, (0.5,), finished=name != "stopped")
        (runs / name / "page.json").write_text('{"title": "leaves", "epochs": 1}')
    monkeypatch.setattr(desk.trainings, "is_running", lambda name: name == "at-work")
    state = client.get("/api/state").json()
    names = {model["id"]: model["name"] for model in state["models"]}
    assert list(names.values()) == [
        "leaves at-work",
        "leaves stopped",
        "leaves newer",
        "leaves older",
    ]
    assert [model["finished"] for model in state["models"]] == [False, False, True, True]
    assert names[state["preferred"]] == "leaves newer"
    assert desk.model("").name == "leaves newer"
    assert {run["id"]: names[run["model"]] for run in state["runs"]}["stopped"] == "leaves stopped"


def test_a_taken_port_is_followed_by_the_next(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with app.listen("127.0.0.1", port) as found:
            assert found.getsockname()[1] > port
        assert f"Port {port} is taken" in capsys.readouterr().out
    with pytest.raises(UserError, match="no address of this machine"):
        app.listen("no.such.host.invalid", 8000)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--host", "0.0.0.0"], "add --password"),
        (["--host", "0.0.0.0", "--password", "short"], "at least 8"),
    ],
)
def test_others_are_let_in_with_a_password_alone(monkeypatch, flags, sentence):
    monkeypatch.setattr(sys, "argv", ["app.py", *flags])
    with pytest.raises(UserError, match=sentence):
        app.main()


@pytest.mark.parametrize("name", ["cudaa", "cuda:", "CPU", "auto:1", ""])
def test_a_device_that_is_none_is_refused_before_the_page_opens(monkeypatch, tmp_path, name):
    flags = [f"--device={name}", f"--out-dir={tmp_path}", "--no-browser"]
    monkeypatch.setattr(sys, "argv", ["app.py", *flags])
    monkeypatch.setattr(app, "listen", lambda *_: pytest.fail("the page opens"))
    with pytest.raises(UserError) as refused:
        app.main()
    with pytest.raises(UserError) as elsewhere:
        choose_device(name)
    assert str(refused.value) == str(elsewhere.value)


def test_devices_that_may_be_are_not_refused_by_their_names():
    for name in ("auto", "cpu", "cpu:0", "cuda", "cuda:1", "mps", "xpu:0"):
        cli.check_device_name(name)


@pytest.mark.parametrize("at_work", ["", "one"])
def test_the_end_says_that_a_training_goes_on_only_where_one_does(
    monkeypatch, tmp_path, capsys, at_work
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["app.py", f"--out-dir={tmp_path / 'work'}", "--no-browser"])
    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    monkeypatch.setattr(Trainings, "at_work", lambda self: at_work)
    with app.listen("127.0.0.1", 0) as listener:
        monkeypatch.setattr(app, "listen", lambda *_: listener)
        assert app.main() == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"The page is closed{'; the training goes on' if at_work else ''}."


def test_the_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-app\.txt"):
        app.main()


def test_an_error_that_nobody_foresaw_is_a_sentence_in_the_browser(desk, monkeypatch):
    monkeypatch.setattr(desk, "models", lambda: 1 / 0)
    app = make_app(desk, TOKEN)
    client = TestClient(app, base_url=HOME, raise_server_exceptions=False)
    answer = client.get("/api/state", headers={"x-token": TOKEN})
    assert answer.status_code == 500
    assert "unexpected ZeroDivisionError" in answer.json()["error"]
