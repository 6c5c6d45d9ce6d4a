"""The page on a port of this machine, and the browser that opens it."""

import threading
import time
from contextlib import contextmanager

import uvicorn

from app import listen
from page.server import make_app

TOKEN = "a-token-of-the-tests-that-is-long"
HOME = "http://127.0.0.1"
FLAGS = """--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --no-proxy-server
    --disable-extensions --no-zygote"""


@contextmanager
def serving(desk, **options):
    """The page on any port that is free; yields its address."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = make_app(desk, TOKEN, port=port, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def wait_for(condition) -> None:
    """Until something is so; a test never waits for a time."""
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def ended(client, job: dict) -> dict:
    """A job when it has ended."""
    found = {}

    def look() -> bool:
        jobs = client.get("/api/state").json()["jobs"]
        found.update(next(entry for entry in jobs if entry["id"] == job["id"]))
        return found["state"] not in ("waiting", "running")

    wait_for(look)
    return found
