"""Tests run on the CPU, without a screen and without a network."""

import gc
import ipaddress
import multiprocessing
import os
import socket
import sys

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # local test servers are reached directly

import matplotlib
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from processes import BROWSER, PATIENCE

# Threads would wait for each other and for other workers, and their number may change a last bit.
torch.set_num_threads(1)
# A loader that garbage collection ends waits so long for workers that were not told, not 5 seconds.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5

# The same examples in every run, however busy the machine; tests/soak/ searches at random.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

CHROMIUM = """--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic
    --disable-background-networking --disable-component-update --disable-extensions --disable-sync
    --no-first-run --no-proxy-server --no-zygote --hide-scrollbars
    --autoplay-policy=no-user-gesture-required"""


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Refuse connections that leave this machine, and know no name beyond it."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connect_locally(self, address):
        if self.family != socket.AF_UNIX and not _is_local(address[0]):
            raise ConnectionRefusedError(f"tests do not use the network, but asked for {address}")
        return connect(self, address)

    def resolve_locally(host, *rest, **more):
        if host and not _is_local(host):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        patch.setattr(socket, "getaddrinfo", resolve_locally)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_bar_by_chance():
    """A bar that shows from two seconds on shows on a busy machine alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.images.tqdm", lambda items, *_, **__: items)
        yield


@pytest.fixture(autouse=True, scope="session")
def graphs_are_blank():
    """Drawing them is most of a short epoch's time; test_utils.py draws, and forked scripts do."""

    def draw_nothing(path, *_) -> None:
        Image.new("RGB", (8, 8)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        if room := sys.modules.get("training.run_folder"):  # imported where a test trains
            patch.setattr(room, "plot_curves", draw_nothing)
        yield


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory):
    """What is learnt of files goes to a temporary folder, from started scripts too."""
    with pytest.MonkeyPatch.context() as patch:
        # Matplotlib would search all fonts again, in every process.
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_child_is_left():
    """A forked loader that outlives its test keeps open whatever was: a browser waits for it."""
    before = multiprocessing.active_children()
    yield
    if multiprocessing.active_children() != before:
        gc.collect()  # an error's traceback may hold the iterator over them
    left = [child for child in multiprocessing.active_children() if child not in before]
    for child in left:  # one that was told to end may not have been waited for
        child.join(PATIENCE)
    left = [child for child in left if child.is_alive()]
    assert not left, f"{left} outlived the test"


@pytest.fixture(autouse=True)
def seed():
    """Random tensors are the same whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def chromium(tmp_path):
    """The command of a browser with a profile of its own; the page comes last."""
    return [BROWSER, *CHROMIUM.split(), f"--user-data-dir={tmp_path / 'profile'}"]


def pytest_collection_modifyitems(config, items):
    """Leave out what needs a browser where there is none; the summary says so in one line."""
    if BROWSER is None:
        out = [item for item in items if {"chromium", "browser"} & set(item.fixturenames)]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


def pytest_collection_finish():
    """Leave what was imported out of garbage collections: plots ask for three in every epoch."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Print what tests counted, from the workers of `pytest -n` too, and what was left out."""
    if BROWSER is None:
        terminalreporter.write_line("No Chromium here: no page and no video is opened in a browser")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counted":
                terminalreporter.write_line(value)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
