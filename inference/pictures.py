"""Many pictures through one predictor: read ahead, written behind, one bad file no harm."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.images import read_image
from inference.journal import Result, Stamp, stamp_of
from inference.predictor import Predictor
from inference.results import ResultFolder


def segment_pictures(
    predictor: Predictor, folder: ResultFolder, named: list[tuple[str, Path]], workers: int
) -> Iterator[Result | UserError]:
    """Read, segment, write and count pictures; closing the iterator stops after those at work.

    Args:
        named: each picture's name among the results, and its path.
        workers: threads that read and write.

    Yields:
        in the order of the inputs, as they are done, each picture's result, or why there is none.
    """
    jobs: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for group in read_ahead(named, predictor.batch, workers, pool):
            images = [job.result()[1] for _, _, job in group if _fault(job) is None]
            masks = iter(predictor.segment(images, "prob" in folder.kinds))
            for name, path, job in group:
                if _fault(job) is None:
                    job = pool.submit(_write, folder, name, path, *job.result(), *next(masks))
                jobs.append(job)
            # Memory stays bounded where writing is the slowest.
            while jobs and (len(jobs) > 2 * workers or jobs[0].done()):
                yield _outcome(jobs.popleft())
        while jobs:
            yield _outcome(jobs.popleft())


def read_ahead(
    named: list[tuple[str, Path]], size: int, workers: int, pool: ThreadPoolExecutor
) -> Iterator[list[tuple[str, Path, Future]]]:
    """Groups of `size` pictures to come; a picture a worker is read ahead, never all."""
    items, waiting = iter(named), deque()
    while True:
        for name, path in islice(items, size + workers - len(waiting)):
            waiting.append((name, path, pool.submit(_read, path)))
        if not waiting:
            return
        yield [waiting.popleft() for _ in range(min(size, len(waiting)))]


def _read(path: Path) -> tuple[Stamp | None, np.ndarray]:
    """A picture, and what it was known by before it was read."""
    return stamp_of(path), read_image(path)


def _write(folder: ResultFolder, name: str, path: Path, stamp: Stamp | None, *made) -> Result:
    result = folder.write(name, path, *made)
    result.stamp = stamp
    return result


def _fault(job: Future) -> UserError | None:
    """Why a thread made nothing; what is no fault of a picture is raised."""
    error = job.exception()
    if error is not None and not isinstance(error, UserError):
        raise error
    return error


def _outcome(job: Future) -> Result | UserError:
    return _fault(job) or job.result()
