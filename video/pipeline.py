"""Stages that work at the same time, in threads, and stop in order when they are asked to."""

import contextlib
import ctypes
import platform
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
MIB = 1 << 20
# Settings of glibc's malloc.h: one heap for all threads, which keeps up to 512 MiB that are free,
# and has all arrays below 32 MiB, the most that can be chosen, in it.
MALLOC = {"M_ARENA_MAX": (-8, 1), "M_TRIM_THRESHOLD": (-1, 512 * MIB)}
MALLOC |= {"M_MMAP_THRESHOLD": (-3, 32 * MIB)}


def ahead(items: Iterable[T], depth: int, stop: threading.Event) -> Iterator[T]:
    """Run an iterator in a thread of its own, at most `depth` items ahead of the reader.

    Stages are chained by handing one `ahead` the generator that reads another. An exception of a
    stage reaches the reader as if it ran in place. When `stop` is set both sides end at once, and
    closing the iterator waits for its thread.
    """
    line: queue.Queue = queue.Queue(depth)
    end = object()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                line.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        error = None
        try:
            for item in items:
                if not put((item, None)):
                    break
        except BaseException as caught:
            error = caught
        put((end, error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while not stop.is_set():
            try:
                item, error = line.get(timeout=0.1)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        thread.join()


def keep_memory() -> None:
    """Keep what is freed for what is needed next, in one heap, where glibc manages the memory.

    It gives each thread that begins a heap of its own otherwise, and large arrays back to the
    system as soon as they are freed: what a stage needs for a frame comes back page by page with
    the next one. That cost a model up to 15,000 page faults a frame, and a tenth of its time. It is
    so from then on, for as long as the process lives.
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in MALLOC.values():
            ctypes.CDLL(None).mallopt(parameter, value)


@contextlib.contextmanager
def stopped_by_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets, so that files are closed in order.

    A second Ctrl-C interrupts as usual. Other threads than the main one receive no Ctrl-C.
    """
    stop = threading.Event()

    def on_interrupt(*_) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    here = threading.current_thread() is threading.main_thread()
    kinds = (signal.SIGINT, signal.SIGTERM) if here else ()
    before = {kind: signal.signal(kind, on_interrupt) for kind in kinds}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
