"""One thread that does what takes long, and what the page knows of it meanwhile."""

import queue
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from common.cli import explain
from common.errors import UserError

WAITING = 8  # jobs that may wait for the one at work
KEPT = 50  # finished jobs that the page can still ask for


@dataclass
class Job:
    """Something that takes long, as far as it is.

    Args:
        kind: "segment", "check", "video", "sample" or "train".
        about: the id of what it works on.
        state: "waiting", "running", "done", "stopped" or "failed".
        done, total: of its steps; a total of 0 says that nobody knows.
        notes: a sentence for each thing that was left out.
        result: what the page needs when it is done, plain types.
    """

    kind: str
    title: str
    about: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "waiting"
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    result: dict = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def to_plain(self) -> dict:
        names = ("id", "kind", "title", "about", "state", "done", "total", "error", "result")
        return {name: getattr(self, name) for name in names} | {"notes": self.notes[:200]}


class Worker:
    """The thread. One at a time, because each job takes all the cores and much of the memory.

    Args:
        debug: print the traceback of an error that nobody foresaw.
    """

    def __init__(self, debug: bool = False) -> None:
        self._debug = debug
        self.jobs: dict[str, Job] = {}
        self._line: queue.Queue[tuple[Job, Callable[[Job], None]] | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job, work: Callable[[Job], None]) -> Job:
        """Put a job into the line.

        Raises:
            UserError: the line is full, or the same is in it already.
        """
        with self._lock:
            for other in self.jobs.values():
                if other.state in ("waiting", "running") and (other.kind, other.about) == (
                    job.kind,
                    job.about,
                ):
                    raise UserError(f"{other.title} is at work already; wait for it, or stop it.")
            try:
                self._line.put_nowait((job, work))
            except queue.Full:
                raise UserError(
                    f"{WAITING} tasks are waiting already; wait for one to end, or stop one."
                ) from None
            self.jobs[job.id] = job
            ended = [j.id for j in self.jobs.values() if j.state not in ("waiting", "running")]
            for name in ended[:-KEPT]:
                del self.jobs[name]
        return job

    def close(self, seconds: float = 5) -> None:
        """Ask all jobs to end, and give the one at work a moment; what it has written is whole."""
        for job in list(self.jobs.values()):
            job.stop.set()
        with suppress(queue.Full):  # then the thread ends with the process
            self._line.put_nowait(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (entry := self._line.get()) is not None:
            job, work = entry
            if job.stop.is_set():
                job.state = "stopped"
                continue
            job.state = "running"
            try:
                work(job)
                job.state = "stopped" if job.stop.is_set() else "done"
            except Exception as error:
                if self._debug:
                    traceback.print_exc(file=sys.stderr)
                job.error, job.state = explain(error), "failed"
