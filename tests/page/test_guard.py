"""Strangers: other pages of the browser, other machines, files and names made to do harm."""

import errno
import http.client
import io
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from open_page import HOME, TOKEN, serving
from PIL import Image
from starlette.testclient import TestClient

from common.errors import UserError
from page import archive
from page.archive import unpack_archive
from page.desk import Desk
from page.guard import POLICY, is_loopback
from page.room import SPARE
from page.server import MAX_UPLOAD, make_app
from page.workspace import Workspace, clean_name

ADDRESSES = ("/api/state", "/api/collections/x", "/api/runs/x/picture", "/api/jobs/x/stop")


def picture(size=(30, 40), seed=0) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dropped(client):
    """A collection and one photograph in it: the collection's address and the photograph's."""
    name = client.post("/api/collections", json={"title": "t"}).json()["id"]
    base = f"/api/collections/{name}"
    added = client.put(f"{base}/photographs?name=leaf.png", content=picture()).json()
    return base, f"{base}/photographs/{added['id']}"


@pytest.mark.parametrize("path", ADDRESSES)
@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_nothing_is_told_without_the_token(client, path, token):
    answer = client.get(path, headers={"x-token": token})
    assert answer.status_code == 401
    assert answer.headers["content-security-policy"] == POLICY


def test_the_empty_page_needs_no_token_and_holds_none(client):
    answer = client.get("/", headers={"x-token": ""})
    assert answer.status_code == 200
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "169.254.1.1"]
)
def test_a_foreign_host_is_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 421
    assert client.get("/api/state", headers={"host": host}).status_code == 421


def test_the_port_is_part_of_the_host(desk):
    app = make_app(desk, TOKEN, port=8000)
    assert TestClient(app, base_url="http://127.0.0.1:8000").get("/").status_code == 200
    assert TestClient(app, base_url="http://127.0.0.1:8001").get("/").status_code == 421


def test_others_in_the_network_reach_it_by_number_not_by_a_name_that_was_made_up(desk):
    app = make_app(desk, TOKEN, remote=True, password="a good one")
    assert TestClient(app, base_url="http://192.168.1.5").get("/").status_code == 200
    assert TestClient(app, base_url="http://rebound.example").get("/").status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_of_the_browser_changes_nothing(client, headers):
    assert client.post("/api/collections", json={}, headers=headers).status_code == 403
    assert client.get("/api/state").json()["collections"] == []


def test_no_other_page_may_read_an_answer(client):
    answer = client.options(
        "/api/state",
        headers={"origin": "http://evil.example", "access-control-request-method": "GET"},
    )
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_answer_forbids_guessing_framing_and_everything_from_elsewhere(client, dropped):
    for path in ("/", "/static/main.js", "/api/state", "/nowhere", dropped[1] + "/tile/0/0/0"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == POLICY
        assert headers["cross-origin-resource-policy"] == "same-origin"
    for rule in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert rule in POLICY
    assert "unsafe" not in POLICY


@pytest.mark.parametrize(
    "name",
    [
        "../../outside.png",
        "/etc/outside.png",
        "..\\..\\outside.png",
        "C:\\outside.png",
        "\\\\server\\share\\outside.png",
        "outside.png\0.sh",
        "CON.png",
        ".hidden.png",
        "a:b.png",
        "ä" * 300 + ".png",
        "a\n<script>.png",
        "....png",
        " .png",
    ],
)
def test_no_name_leads_out_of_the_folder(desk, client, dropped, name):
    before = set(desk.space.path.parent.rglob("*"))
    answer = client.put(f"{dropped[0]}/photographs", params={"name": name}, content=picture())
    assert answer.status_code in (201, 415)
    made = set(desk.space.path.parent.rglob("*")) - before
    assert {path.parent for path in made} <= {desk.collection(dropped[0][17:]).root}
    assert clean_name(name).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../..",
        "work/../../etc",
        "\\\\server\\share",
        "//server/share",
        "nowhere",
        "a\0b",
        "~no",
    ],
)
def test_a_folder_is_one_of_this_machine(client, text):
    for path in ("/api/collections", "/api/data"):
        answer = client.post(path, json={"folder": text})
        # Without a folder it is a collection to drop photographs into.
        assert answer.status_code == (201 if not text and path == "/api/collections" else 422)


def test_others_name_only_the_folders_for_data(tmp_path):
    (tmp_path / "input/mine").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (tmp_path / "input/link").symlink_to(tmp_path / "private")
    space = Workspace(tmp_path / "work", [tmp_path / "input"])
    assert space.named_folder(str(tmp_path / "input/mine")) == tmp_path / "input/mine"
    for place in ("private", "input/link"):
        with pytest.raises(UserError):
            space.named_folder(str(tmp_path / place))


def test_a_link_in_a_folder_shows_nothing_outside_it(client, tmp_path):
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/own.png").write_bytes(picture())
    (tmp_path / "in/link.png").symlink_to(tmp_path / "secret.png")
    name = client.post("/api/collections", json={"folder": str(tmp_path / "in")}).json()["id"]
    shown = client.get(f"/api/collections/{name}").json()["photographs"]
    assert [entry["name"] for entry in shown] == ["own"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/ticket/../../etc/passwd",
        "/ticket/x",
        "/api/collections/..%2f..%2fx",
        "/api/runs/..%2f..%2f/picture",
    ],
)
def test_no_address_leads_to_a_file(client, path):
    assert client.get(path).status_code == 404


def test_a_ticket_is_for_known_files_alone(client, dropped):
    for wish in (
        {"what": "../collection.json", "id": dropped[0][17:]},
        {"what": "results.csv", "id": "../.."},
        {"what": "report", "id": "../../x"},
        {"what": "video", "id": "x"},
        {},
    ):
        assert client.post("/api/tickets", json=wish).status_code == 404


def test_an_upload_is_counted_while_it_streams(desk, client, dropped):
    def endless():
        for _ in range(MAX_UPLOAD // (1 << 20) + 2):
            yield b"\0" * (1 << 20)

    address = f"{dropped[0]}/photographs?name=big.png"
    assert client.put(address, content=endless()).status_code == 413
    claimed = client.put(address, content=b"x", headers={"content-length": str(1 << 40)})
    assert claimed.status_code == 413
    assert [path.name for path in desk.collection(dropped[0][17:]).root.iterdir()] == ["leaf.png"]


@pytest.fixture
def nearly_full(monkeypatch):
    """A disk on which little more fits; what comes back says how many bytes."""

    def leave(room: int) -> None:
        disk = type("Disk", (), {"free": SPARE + room})
        monkeypatch.setattr("page.room.SPARE", SPARE)
        monkeypatch.setattr("page.room.shutil.disk_usage", lambda folder: disk)

    return leave


def test_uploads_together_leave_room_on_the_disk(desk, client, dropped, nearly_full):
    nearly_full(100)
    for address in (f"{dropped[0]}/photographs?name=b.png", "/api/archives?name=a.zip"):
        for body in (picture(), iter([picture()])):  # with its length ahead, and without
            answer = client.put(address, content=body)
            assert answer.status_code == 507
            assert "1 GiB stays free" in answer.json()["error"]
    assert [path.name for path in desk.collection(dropped[0][17:]).root.iterdir()] == ["leaf.png"]
    assert list((desk.space.path / "data").iterdir()) == []
    nearly_full(len(picture()))
    answer = client.put(f"{dropped[0]}/photographs?name=b.png", content=picture())
    assert answer.status_code == 201


def test_a_full_disk_is_a_sentence(desk, client, dropped, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(desk, "save_mask", full)
    mask = {"content": b"\0" * 1200, "headers": {"if-match": "*"}}
    desk.set_classes(desk.collection(dropped[0][17:]), ["background", "leaf"])
    answer = client.put(f"{dropped[1]}/mask", **mask)
    assert (answer.status_code, "No space left" in answer.json()["error"]) == (507, True)


def test_a_collection_has_an_end(client, dropped, monkeypatch):
    monkeypatch.setattr("page.server.MAX_PHOTOGRAPHS", 2)
    address = f"{dropped[0]}/photographs?name=more.png"
    assert client.put(address, content=picture()).status_code == 201
    assert client.put(address, content=picture()).status_code == 413


def test_what_a_killed_server_left_on_its_way_is_removed(desk, client, dropped):
    home = desk.space.path
    for place in ("data/.tmp-ab/x.png", "data/.tmp-a.zip", "videos/.tmp-a.mp4"):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_bytes(b"half")
    root = desk.collection(dropped[0][17:]).root
    (root / ".tmp-a.png").write_bytes(picture())
    masks = home / "corrections/leaf-1/valid_masks"
    masks.mkdir(parents=True)
    (masks / ".tmp-0123abcd.png").write_bytes(b"half")
    again = Desk(home, None, "cpu")
    assert list(home.rglob(".tmp-*")) == []
    assert [entry.name for entry in again.collection(root.parent.name).photographs.values()] == [
        "leaf"
    ]


def test_a_body_that_never_ends_is_cut_off_on_the_wire(desk):
    with serving(desk) as address:
        host = address.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.putrequest("POST", "/api/collections")
        for name, value in (("x-token", TOKEN), ("transfer-encoding", "chunked")):
            connection.putheader(name, value)
        connection.endheaders()
        sent = 0
        with suppress(ConnectionError):  # the server hangs up; a silence of 20 s is another error
            while sent < 4000:
                connection.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                sent += 1
        assert sent < 4000


@pytest.mark.parametrize("content", [b"", b"not a picture", picture()[:60]])
def test_what_is_no_picture_is_not_kept(desk, client, dropped, content):
    answer = client.put(f"{dropped[0]}/photographs?name=bad.png", content=content)
    assert answer.status_code == 422
    assert "bad.png" in answer.json()["error"]
    assert len(list(desk.collection(dropped[0][17:]).root.iterdir())) == 1


def test_a_header_that_claims_gigapixels_is_refused(client, dropped):
    head = bytearray(picture())
    head[16:24] = (60000).to_bytes(4, "big") * 2
    answer = client.put(f"{dropped[0]}/photographs?name=bomb.png", content=bytes(head))
    assert answer.status_code == 422


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"', b"\xff", b"[" * 60000, b"{" * 70000])
def test_what_is_no_small_json_is_refused(client, body):
    assert client.post("/api/data", content=body).status_code in (400, 413)


@pytest.mark.parametrize(
    "wish",
    [
        {"recipe": "light; rm -rf /", "epochs": 1},
        {"recipe": "light", "epochs": "1"},
        {"recipe": "light", "epochs": -1},
        {"recipe": "light", "epochs": True},
        {"recipe": "light", "model": "$(id)"},
        {"recipe": "light", "model": ["timm/x"]},
        {"recipe": "light", "weights": "/etc/passwd"},
        {"recipe": "light", "data": "--resume"},
        {"recipe": "light", "width": 10**9},
    ],
)
def test_nothing_typed_becomes_a_flag_or_a_path(desk, client, wish):
    answer = client.post("/api/runs", json={"data": "", "corrections": True} | wish)
    assert answer.status_code in (400, 422)
    assert desk.trainings.names() == []


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "entry", ["../x.png", "/x.png", "a/../../x.png", "C:/x.png", "..\\x.png", link("x.png")]
)
def test_an_archive_unpacks_into_its_folder_or_not_at_all(tmp_path, entry):
    archive = make_zip(tmp_path / "a.zip", [("good.png", b"1"), (entry, b"/etc/passwd")])
    with pytest.raises(UserError):
        unpack_archive(archive, tmp_path / "out/data")
    assert not (tmp_path / "out/data").exists()
    assert not list(tmp_path.rglob("x.png"))


def test_an_archive_that_grows_beyond_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("page.archive.MAX_BYTES", 1000)
    archive = make_zip(tmp_path / "a.zip", [("zeros.png", b"\0" * 2000)])
    with pytest.raises(UserError, match="4 GiB"):
        unpack_archive(archive, tmp_path / "data")
    archive.write_bytes(b"PK\3\4 no archive")
    with pytest.raises(UserError, match="plain zip"):
        unpack_archive(archive, tmp_path / "data")


def test_a_damaged_archive_is_refused_in_a_sentence_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 8)
    content = bytearray(path.read_bytes())
    start = 30 + len("a.png")  # behind the head of the entry
    content[start : start + 20] = b"\xff" * 20  # no block of deflate begins so
    path.write_bytes(content)
    with pytest.raises(UserError, match="plain zip"):
        unpack_archive(path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_whatever_an_archive_has_wrong_one_sentence_says_so(desk, client):
    sound = make_zip(desk.space.path / "a.zip", [("a.png", b"1")]).read_bytes()
    start, end = sound.index(b"PK\1\2"), sound.index(b"PK\5\6")
    packed = sound[: start + 10] + b"\x0c" + sound[start + 11 :]  # as it is not, by bzip2
    text = sound[: start + 9] + b"\x08" + sound[start + 10 :]
    text = text[: start + 46] + b"\xff" + text[start + 47 :]  # no UTF-8, as its name is said to be
    nameless = sound[: start + 46] + b"\0" + sound[start + 47 :]
    place = sound[: end + 16] + b"\0\0\0\x7f" + sound[end + 20 :]
    inside = make_zip(desk.space.path / "b.zip", [("a", b"1"), ("a/b.png", b"1")]).read_bytes()
    for content in (packed, text, nameless, place, inside):
        answer = client.put("/api/archives?name=a.zip", content=content)
        assert answer.status_code == 422
        assert answer.json()["error"].endswith("make it a plain zip.")
        assert str(desk.space.path) not in answer.json()["error"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names",
    [[], ["folder/"], ["a.png", "a.png"], ["a", "a/b.png"], ["a/b.png", "a"], ["n" * 300 + ".png"]],
)
def test_an_archive_that_is_no_folder_leaves_nothing(desk, client, names):
    path = desk.space.path / "a.zip"
    make_zip(path, [(name, b"1") for name in names])
    answer = client.put("/api/archives?name=a.zip", content=path.read_bytes())
    assert answer.status_code == 422
    assert "rchive" in answer.json()["error"]
    assert list((desk.space.path / "data").iterdir()) == []


def test_a_bomb_is_refused_before_it_is_unpacked(desk, client, nearly_full, monkeypatch):
    path = desk.space.path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", b"\0" * (1 << 20))
    nearly_full(3 << 20)
    monkeypatch.setattr("page.archive._extract", lambda *_: 1 / 0)
    answer = client.put("/api/archives?name=a.zip", content=path.read_bytes())
    assert answer.status_code == 507
    assert list((desk.space.path / "data").iterdir()) == []


def test_an_archive_that_holds_more_than_it_lists_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("zeros.png", b"\0" * 2000)])
    content = archive.read_bytes()
    size, less = (2000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    archive.write_bytes(content.replace(size + size, size + less))
    with pytest.raises(UserError, match="archive"):
        unpack_archive(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_archive_that_is_done_in_the_middle_of_another_of_its_name_is_beside_it(
    desk, client, monkeypatch
):
    path = make_zip(desk.space.path / "x.zip", [("a.png", b"1")])
    extract, answers, content = archive._extract, [], path.read_bytes()

    def overtaken(*given):
        monkeypatch.setattr(archive, "_extract", extract)
        answers.append(client.put("/api/archives?name=set.zip", content=content))
        extract(*given)

    monkeypatch.setattr(archive, "_extract", overtaken)
    answers.append(client.put("/api/archives?name=set.zip", content=content))
    assert [answer.status_code for answer in answers] == [201, 201]
    folders = [Path(answer.json()["folder"]) for answer in answers]
    assert [folder.name for folder in folders] == ["set", "set_2"]
    assert all((folder / "a.png").read_bytes() == b"1" for folder in folders)


def test_an_archive_with_one_folder_is_that_folder(tmp_path):
    names = ["set/train_images/a.png", "set/train_masks/a.png", "__MACOSX/set/._a"]
    archive = make_zip(tmp_path / "a.zip", [(name, b"1") for name in names])
    assert unpack_archive(archive, tmp_path / "data") == tmp_path / "data/set"


def test_a_password_gives_the_token_and_nothing_else_does(desk, monkeypatch):
    monkeypatch.setattr("page.server.WRONG_GUESS", 0)
    app = make_app(desk, TOKEN, remote=True, password="correct horse")
    client = TestClient(app, base_url=HOME, headers={"origin": HOME})
    assert client.post("/api/login", json={"password": "correct horse"}).json() == {"token": TOKEN}
    for wrong in ("", "correct hors", "correct horse "):
        assert client.post("/api/login", json={"password": wrong}).status_code == 403
    open_one = TestClient(make_app(desk, TOKEN), base_url=HOME)
    assert open_one.post("/api/login", json={"password": ""}).status_code == 404


def test_what_reaches_beyond_this_machine_is_known():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.3.2.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
