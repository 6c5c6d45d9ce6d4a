"""Many pictures through one predictor: read ahead, written behind, one bad file no harm."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from common.errors import UserError
from data.images import read_image
from inference.predictor import Predictor
from inference.results import Result, ResultFolder


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
        for group in read_ahead(named, predictor.batch, pool):
            images = [job.result() for _, _, job in group if _fault(job) is None]
            masks = iter(predictor.segment(images, "prob" in folder.kinds))
            for name, path, job in group:
                if _fault(job) is None:
                    job = pool.submit(folder.write, name, path, job.result(), *next(masks))
                jobs.append(job)
            while len(jobs) > 2 * workers:  # memory stays bounded where writing is the slowest
                yield _outcome(jobs.popleft())
        while jobs:
            yield _outcome(jobs.popleft())


def read_ahead(
    named: list[tuple[str, Path]], size: int, pool: ThreadPoolExecutor
) -> Iterator[list]:
    """Groups of (name, path, picture to come); a few pictures are read ahead, never all."""
    items, waiting = iter(named), []
    while True:
        for name, path in islice(items, size + 1 - len(waiting)):
            waiting.append((name, path, pool.submit(read_image, path)))
        if not waiting:
            return
        yield waiting[:size]
        waiting = waiting[size:]


def _fault(job: Future) -> UserError | None:
    """Why a thread made nothing; what is no fault of a picture is raised."""
    error = job.exception()
    if error is not None and not isinstance(error, UserError):
        raise error
    return error


def _outcome(job: Future) -> Result | UserError:
    return _fault(job) or job.result()
