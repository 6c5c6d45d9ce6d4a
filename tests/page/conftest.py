"""The page for tests: behind a client, or in front of a browser."""

import pytest
from open_page import FLAGS, HOME, TOKEN
from playwright.sync_api import sync_playwright
from processes import BROWSER
from starlette.testclient import TestClient

from page.desk import Desk
from page.server import make_app


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A desk whose folder for data is the test's own, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("page.room.SPARE", 0)  # this machine's own disk may be nearly full
    made = Desk(tmp_path / "work", None, "cpu")
    yield made
    made.worker.close()


@pytest.fixture
def client(desk):
    """Requests as the page sends them, without a socket."""
    headers = {"x-token": TOKEN, "origin": HOME}
    return TestClient(make_app(desk, TOKEN), base_url=HOME, headers=headers)


@pytest.fixture(scope="session")
def browser():
    """Debian's own Chromium; nothing is downloaded."""
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield opened
        opened.close()
