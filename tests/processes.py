"""Scripts in real processes of their own, forked from one that has imported them already.

A process that begins with `python train.py` imports for six seconds. These begin in a tenth: a
server process imports the scripts once, before it starts any thread, and forks for each call.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from run_tiny import ROOT, run_script

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 240  # seconds, less than a test has: what takes ten alone takes long on a busy machine
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["run_tiny", "train", "evaluate", "inference_image"])


class Script:
    """A script that runs, with what it printed; it is its own session, as under a shell.

    Args:
        command: the script and its flags.
        environment: variables that only it sees.
        nohup: ignore Ctrl-C, as the jobs of `nohup ... &` do.
    """

    def __init__(self, *command: str, nohup: bool = False, **environment: str):
        self._folder = Path(tempfile.mkdtemp(prefix="process-"))
        method = multiprocessing.get_start_method()
        job = (list(map(str, command)), environment, nohup, self._folder, method)
        self._process = SERVER.Process(target=_run, args=job)
        with path_for_the_server():
            self._process.start()
        self.pid = self._process.pid

    def finish(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Wait for its end: the exit code, negative for a signal's, and the errors it printed.

        One that hangs is ended, and says where each of its threads stands.
        """
        self._process.join(timeout)
        hangs = self._process.is_alive()
        if hangs:
            self.send(signal.SIGABRT)
            self._process.join(10)
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL, to_all=True)
        errors = self._folder / "err"
        text = errors.read_text() if errors.exists() else ""
        shutil.rmtree(self._folder)
        assert not hangs, f"{self.pid} still runs after {timeout} s: {text}"
        return self._process.exitcode, text

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Until something has come about or the process has ended."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.is_alive() and not event():
            time.sleep(0.01)

    def stands_still(self) -> bool:
        """Whether a signal has stopped it."""
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def family(self) -> list[psutil.Process]:
        """It and its workers, whoever forked them: all that print where it prints."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self._folder / "out") in [file.path for file in process.open_files()]:
                    found.append(process)
        return found

    def send(self, number: int, to_all: bool = False) -> None:
        """Send a signal, `to_all` its children too, as a scheduler does."""
        (os.killpg if to_all else os.kill)(self.pid, number)


def together(count: int, *command: str, **environment: str) -> list[Script]:
    """`torchrun --nproc_per_node=COUNT`: processes that find each other."""
    world = environment | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": free_port(), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [Script(*command, **world, **rank) for rank in ranks]


def free_port() -> str:
    """A port that nobody listens on, below those that a system hands out to whoever asks.

    Each test process looks among ten of its own: another one may have found the next one free, too.
    """
    first = 20_000 + os.getpid() % 1_200 * 10
    for port in range(first, first + 10):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError(f"no port from {first} on is free")


@contextlib.contextmanager
def path_for_the_server():
    """The server imports before it hears of our `sys.path`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _run(
    command: list[str], environment: dict[str, str], nohup: bool, folder: Path, method: str
) -> None:
    os.setsid()
    # A loader's workers are the script's own children: the server's would outlive a killed script.
    multiprocessing.set_start_method(method, force=True)
    os.chdir(ROOT)
    os.environ.update(environment)
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with open(folder / name, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN if nohup else signal.default_int_handler)
    run_script(*command)
