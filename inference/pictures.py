"""Many pictures through one predictor: read ahead, written behind, one bad file no harm."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.images import read_image
from inference.geo import segment_map
from inference.journal import Result, Stamp, stamp_of
from inference.maps import is_map
from inference.prediction import Prediction
from inference.predictor import Predictor
from inference.results import ResultFolder
from reporting.gallery import Doubt

Judge = Callable[[list[np.ndarray], list[Prediction]], list[Doubt]]


def judge_by_itself(images: list[np.ndarray], said: list[Prediction]) -> list[Doubt]:
    """What predictions say of themselves, without a look at other pictures."""
    return [Doubt(confidence=prediction.sums.confidence()) for prediction in said]


def segment_pictures(
    predictor: Predictor,
    folder: ResultFolder,
    named: list[tuple[str, Path]],
    workers: int,
    judge: Judge = judge_by_itself,
) -> Iterator[Result | UserError]:
    """Read, segment, write and count pictures; closing the iterator stops after those at work.

    Args:
        named: each picture's name among the results, and its path.
        workers: threads that read and write.
        judge: says how far the predictions of some pictures can be trusted.

    Yields:
        in the order of the inputs, as they are done, each picture's result, or why there is none.
    """
    jobs: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for group in read_ahead(named, predictor.batch, workers, pool):
            images = [job.result()[1] for _, _, job in group if _fault(job) is None]
            pictures = [image for image in images if image is not None]
            read = list(predictor.read(pictures, with_probabilities="prob" in folder.kinds))
            masks = zip(read, judge(pictures, read), strict=True)
            for name, path, job in group:
                if _fault(job) is None:
                    stamp, image = job.result()
                    if image is None:  # a map passes here, through the one predictor
                        job = _done(_stamped, stamp, segment_map, predictor, folder, name, path)
                    else:
                        said, doubt = next(masks)
                        shown = image, said.mask, said.probabilities, doubt
                        job = pool.submit(_stamped, stamp, folder.write, name, path, *shown)
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


def _read(path: Path) -> tuple[Stamp | None, np.ndarray | None]:
    """What a picture was known by before it was read, and the picture; None for a map's."""
    return stamp_of(path), None if is_map(path) else read_image(path)


def _stamped(stamp: Stamp | None, work: Callable[..., Result], *values) -> Result:
    """The result of `work` on a picture, with what the picture was known by before."""
    return replace(work(*values), stamp=stamp)


def _done(work: Callable, *values) -> Future:
    """What a thread would hold of work that was done here."""
    job = Future()
    try:
        job.set_result(work(*values))
    except UserError as error:
        job.set_exception(error)
    return job


def _fault(job: Future) -> UserError | None:
    """Why a thread made nothing; what is no fault of a picture is raised."""
    error = job.exception()
    if error is not None and not isinstance(error, UserError):
        raise error
    return error


def _outcome(job: Future) -> Result | UserError:
    return _fault(job) or job.result()
