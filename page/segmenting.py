"""Photographs and videos through the model that is chosen, as the scripts do it.

This module brings PyTorch. It is imported by the thread that computes, after the page has opened.
"""

import json
import shutil
from pathlib import Path
from threading import Event

from common.device import spare_cores
from common.errors import UserError
from common.files import lock_folder, write_text
from common.text import counted
from config import ClassTable
from inference.clips import segmented_clip
from inference.journal import Journal
from inference.pictures import segment_pictures
from inference.predictor import Predictor
from inference.results import ResultFolder
from page.jobs import Job
from page.workspace import LOOK_FIRST, Collection
from trust.calibration import digests_of
from trust.doubt import make_judge
from video.reader import VideoReader

WRITTEN = ("overlay", "mask", "cvat", "coco", "labelstudio")
COVERAGE = 0.9  # probability with which a severity lies in its interval, as inference_image.py's
THREADS = 2  # that read and write photographs beside the model


class Segmenter:
    """Keeps the predictor that was used last, since loading one takes seconds."""

    def __init__(self, device: str):
        self._device = device
        self._key: tuple | None = None
        self._predictor: Predictor | None = None

    def _load(self, model: Path) -> Predictor:
        facts = model.stat()
        key = (model, facts.st_mtime_ns, facts.st_size)
        if key != self._key:
            self._predictor = None  # two of them need not fit into the memory
            self._predictor, self._key = Predictor.load(model, device=self._device), key
        return self._predictor

    def photographs(self, job: Job, collection: Collection, model: Path, name: str) -> None:
        """Segment all photographs of a collection into its folder of results.

        Args:
            name: what the model is called.

        Raises:
            UserError: the model cannot be used, or no photograph could be read.
        """
        predictor = self._load(model)
        named = {entry.name: entry.path for entry in list(collection.photographs.values())}
        job.total = len(named)
        folder = ResultFolder(collection.results, WRITTEN, predictor.classes)
        # A model that carries a calibration tells how far each result can be trusted.
        judge = make_judge([model], predictor, COVERAGE, say=lambda text: _remark(job, text))
        settings = {"model": digests_of([model]), "save": sorted(WRITTEN)}
        with lock_folder(collection.results):
            if collection.classes not in (None, predictor.classes):
                _remove_results(collection)  # in whose masks the numbers mean other classes
            collection.classes, collection.model = predictor.classes, name
            collection.save()
            journal = Journal(folder.path, folder.columns)
            done = _begin(journal, settings, named, folder)
            job.done = len(done)
            waiting = [item for item in named.items() if item[0] not in done]
            outcomes = segment_pictures(predictor, folder, waiting, THREADS, judge)
            for outcome in outcomes:
                job.done += 1
                if isinstance(outcome, UserError):
                    job.notes.append(str(outcome))
                else:
                    journal.append(outcome)
                if job.stop.is_set():
                    break
            outcomes.close()
            made = done | journal.added()
            folder.write_summary(journal, {name: made[name] for name in named if name in made})
            write_text(collection.results / "skipped.txt", "".join(f"{n}\n" for n in job.notes))
            write_text(collection.home / LOOK_FIRST, json.dumps(order_to_look_at(collection)))
        if not made:
            raise UserError(job.notes[0] if job.notes else "Nothing was segmented.")

    def video(self, job: Job, source: Path, target: Path, model: Path) -> ClassTable:
        """Mark a video.

        Returns:
            the classes whose colours are in it.

        Raises:
            UserError: the model or the video cannot be used.
        """
        predictor = self._load(model)
        with VideoReader(str(source), spare_cores(predictor.device)) as reader:
            job.total, stop = reader.expected_frames or 0, Event()
            with segmented_clip(reader, predictor, target, stop, smooth=0.8) as written:
                for _ in written:
                    job.done += 1
                    if job.stop.is_set():
                        stop.set()
                if job.done == 0:
                    raise UserError(f"{reader.name} holds no picture; choose another video.")
            if reader.damage:
                job.notes.append(
                    f"The video is damaged at {reader.damage.time:.2f} s ({reader.damage.reason}); "
                    f"the result holds the {counted(job.done, 'frame|frames')} that could be read."
                )
        return predictor.classes


def order_to_look_at(collection: Collection) -> list[str]:
    """The names of segmented photographs, the one first that is worth the most to look at.

    Both figures are shares: what the model is little sure of comes first, and what is like nothing
    in the training.
    """

    def doubt(row: dict) -> float:
        unsure = 1 - float(row.get("confidence") or 1)
        return unsure + float(row.get("unlike_training") or 0)

    rows = sorted(collection.figures().items(), key=lambda item: doubt(item[1]), reverse=True)
    return [collection.photographs[name].name for name, _ in rows]


def _remove_results(collection: Collection) -> None:
    (collection.home / LOOK_FIRST).unlink(missing_ok=True)
    for path in collection.results.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":  # which is held
            path.unlink()


def _remark(job: Job, text: str) -> None:
    job.result["remark"] = text


def _begin(journal: Journal, settings: dict, named: dict[str, Path], folder: ResultFolder) -> dict:
    """What is done already by the same model, of photographs that have not changed since."""
    try:
        return journal.begin(settings, True, named, folder.is_whole)
    except UserError:  # by another model: its results are replaced
        return journal.begin(settings, False, named, folder.is_whole)
