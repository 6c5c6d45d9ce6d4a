"""What the page can do, without a word about HTTP: each thing that a person asks for is a method.

Everything that measures, decides or writes is done by the rooms that the scripts use; here it is
only brought together.
"""

import hashlib
import secrets
import shutil
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import replacing
from common.text import printable
from config import ClassTable
from data.images import encode_jpeg, image_size, read_image, resize_mask, shrink
from data.inputs import result_path
from page.archive import unpack_archive
from page.corrections import Corrections, content_digest, read_labels, training_folder
from page.findings import describe_data
from page.jobs import Job, Worker
from page.pictures import Pictures, fingerprint
from page.table import Table
from page.training import ROOT, Model, Trainings, Wish, find_models
from page.workspace import Collection, Photograph, Workspace, classes_of, clean_name, legend

MASK_ENDING = "_mask.png"  # as inference.results names it; that module would bring matplotlib
SAMPLE = ("--train=48", "--valid=12")  # pictures that are drawn


class ConflictError(UserError):
    """Another window has saved meanwhile."""


class OtherClassesError(ConflictError):
    """Another window has given the photographs other classes meanwhile."""


class Desk:
    """The state of the page and what can be done with it.

    Args:
        path: the folder that all of it lies in.
        roots: see `Workspace`.
        device: as --device names it.
        debug: see `Worker`.
    """

    def __init__(self, path: Path, roots: list[Path] | None, device: str, debug: bool = False):
        self.space = Workspace(path, roots)
        self.corrections = Corrections(self.space.path / "corrections")
        self.corrections.tidy()
        self.table = Table(self.corrections, self.space.path / "counted")
        self.trainings = Trainings(self.space.path / "runs", device)
        self.pictures, self.worker = Pictures(), Worker(debug)
        self._device, self._segmenter = device, None
        self._saving = threading.Lock()

    # --- What there is ---

    def models(self) -> dict[str, Model]:
        """Trained models, the newest first, by the id that the browser names them with."""
        found = find_models([self.trainings.folder, Path("outputs")])
        at_work = self.trainings.at_work()
        runs = [at_work and (self.trainings.folder / at_work).resolve()]
        models = (
            replace(model, finished=model.finished and model.path.parent not in runs)
            for model in found
        )
        return {_model_id(model.path): model for model in models}

    def preferred(self, models: dict[str, Model]) -> str:
        """The id of the model that is taken unless a person chooses: the newest finished one."""
        finished = (name for name, model in models.items() if model.finished)
        return next(finished, next(iter(models), ""))

    def model(self, name: str) -> Model:
        """The model that a browser's id means; "" is the preferred one.

        Raises:
            UserError: there is none.
        """
        found = self.models()
        if not found:
            raise UserError("There is no trained model yet; train one first.")
        name = name or self.preferred(found)
        if name not in found:
            raise UserError("That model is gone; choose another.")
        return found[name]

    def collection(self, name: str) -> Collection:
        found = self.space.collections.get(name)
        if found is None:
            raise KeyError(name)
        return found

    # --- Photographs ---

    def segment(self, collection: Collection, model: str) -> Job:
        """Put a collection into the line of what is segmented."""
        chosen = self.model(model)
        if not collection.photographs:
            raise UserError("There is no photograph here yet; drop some.")
        job = Job("segment", f"Segmenting {collection.title}", collection.id)
        return self.worker.submit(
            job, lambda job: self.segmenter().photographs(job, collection, chosen.path, chosen.name)
        )

    def segmenter(self):
        """What brings PyTorch, imported by the one thread that uses it."""
        if self._segmenter is None:
            from page.segmenting import Segmenter

            self._segmenter = Segmenter(self._device)
        return self._segmenter

    def set_classes(self, collection: Collection, names: list[str]) -> None:
        """Say what will be painted on photographs that no model has seen.

        Where classes of these names were painted before, theirs is the table: what is painted now
        is learnt together with that.

        Raises:
            OtherClassesError: another window has said otherwise, and may have painted since.
        """
        with self._saving:
            said = classes_of(names, collection.home)
            if collection.classes is None:
                collection.classes = self.corrections.table_of(said.names) or said
                collection.save()
            elif collection.classes.names != said.names:
                what = "These photographs have classes already; reload the page."
                raise OtherClassesError(what)

    def adopt_classes(self, collection: Collection) -> ClassTable:
        """The classes to paint with.

        Raises:
            UserError: nobody has said which.
        """
        if collection.classes is None:
            raise UserError("Say first which classes are painted.")
        return collection.classes

    def table_id(self, collection: Collection) -> str:
        """By what the browser sees whether it still shows the classes that a mask has now."""
        return self._table_id(self.adopt_classes(collection))

    def _table_id(self, classes: ClassTable) -> str:
        return self.corrections.folder(classes).name.rpartition("-")[2]

    def thumbnail(self, collection: Collection, entry: Photograph) -> bytes:
        """A small JPEG of a photograph, tinted with its mask where there is one."""
        image = shrink(read_image(entry.path), 320)
        if collection.classes is not None:
            from utils import overlay  # it brings matplotlib, which the page's start need not

            mask, source = self.mask(collection, entry)
            if source != "nothing":
                image = overlay(image, resize_mask(mask, image.shape[:2]), collection.classes)
        return encode_jpeg(image, quality=75)

    def mask_archive(self, collection: Collection) -> Path:
        """All masks of a collection as one zip file, those that were corrected as corrected."""
        path = collection.home / clean_name(f"{collection.title}_masks.zip")
        classes = self.adopt_classes(collection)
        copies = self.corrections.copies(classes)
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for entry in list(collection.photographs.values()):
                predicted = result_path(collection.results, entry.name, MASK_ENDING)
                painted = self.corrections.find(entry.path, classes, copies)
                if painted is not None or predicted.is_file():
                    archive.write(painted or predicted, f"{printable(entry.name)}{MASK_ENDING}")
        return path

    # --- Masks ---

    def mask(self, collection: Collection, entry: Photograph) -> tuple[np.ndarray, str]:
        """The mask (H, W) uint8 that painting starts from, at the photograph's upright size.

        Returns:
            the mask, and where it is from: "correction", "prediction", "data" or "nothing".
        """
        return self._mask(collection, entry, self.adopt_classes(collection))

    def _mask(
        self, collection: Collection, entry: Photograph, classes: ClassTable
    ) -> tuple[np.ndarray, str]:
        size = image_size(entry.path)
        predicted = result_path(collection.results, entry.name, MASK_ENDING)
        painted = self.corrections.find(entry.path, classes)
        # A mask that cannot be read is painted anew.
        if painted is not None:
            with suppress(UserError):
                return read_labels(painted), "correction"
        if predicted.is_file():
            with suppress(UserError):
                return read_labels(predicted), "prediction"
        if collection.kind == "data":
            with suppress(UserError):
                return resize_mask(collection.read(entry), size), "data"
        return np.zeros(size, np.uint8), "nothing"

    def save_mask(
        self, collection: Collection, entry: Photograph, mask: np.ndarray, seen: str, table: str
    ) -> str:
        """Keep a correction.

        Args:
            seen: the fingerprint of the mask that was painted on, "*" for any.
            table: the `table_id` of the classes that were painted, "" for any.

        Returns:
            the new fingerprint.

        Raises:
            ConflictError: another window has saved a different mask since.
            OtherClassesError: a model of other classes has segmented the photographs since.
        """
        with self._saving:
            # Once: a segmentation may change them at any moment.
            classes = self.adopt_classes(collection)
            if table not in ("", self._table_id(classes)):
                what = "These photographs have other classes now; reload the page."
                raise OtherClassesError(what)
            now = fingerprint(self._mask(collection, entry, classes)[0])
            if seen not in (now, "*") and now != fingerprint(mask):
                raise ConflictError(
                    "This picture was saved in another window meanwhile; load it again."
                )
            self.corrections.save(entry.path, mask, classes, self._split_of(entry))
        return fingerprint(mask)

    def _split_of(self, entry: Photograph) -> str:
        """The split of a photograph, also where an equal file of it was dropped once more."""
        if entry.split:
            return entry.split
        size, digest = entry.path.stat().st_size, ""
        for other in list(self.space.collections.values()):
            for twin in list(other.photographs.values()) if other.kind == "data" else ():
                if twin.path.is_file() and twin.path.stat().st_size == size:
                    digest = digest or content_digest(entry.path)
                    if content_digest(twin.path) == digest:
                        return twin.split
        return ""

    # --- Data sets ---

    def check(self, folder: Path) -> Job:
        """Look at a data set as closely as the data check does."""

        def work(job: Job) -> None:
            collection = self.space.open(folder, "data")
            job.result = describe_data(collection) | {"collection": collection.id}

        title = f"Checking {printable(folder.name)}"
        return self.worker.submit(Job("check", title, str(folder)), work)

    def unpack(self, archive: Path, name: str) -> Path:
        """The folder of a data set that came as a zip file, which is then removed.

        Raises:
            UserError: see `unpack_archive`.
        """
        try:
            return unpack_archive(archive, self.space.path / "data" / Path(name).stem)
        finally:
            archive.unlink(missing_ok=True)

    def draw_sample(self) -> Job:
        """Draw the sample leaves, for whoever has no photographs at hand."""
        target = self.space.path / "sample" / "leaves"

        def work(job: Job) -> None:
            if not (target / "labelmap.txt").is_file():
                script = ROOT / "tools" / "sample_data.py"
                command = [
                    sys.executable,
                    str(script),
                    f"--out-dir={target}",
                    "--overwrite",
                    *SAMPLE,
                ]
                drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if drawn.returncode:
                    raise UserError(f"The leaves could not be drawn: {drawn.stderr[-300:]}")
            data = self.space.open(target, "data")
            photographs = self.space.open(target / "valid_images", "folder")
            job.result = {"data": data.id, "folder": str(target), "photographs": photographs.id}

        return self.worker.submit(Job("sample", "Drawing sample leaves", "sample"), work)

    # --- Trainings ---

    def train(self, wish: dict) -> Job:
        """Begin a training with what a person chose.

        Raises:
            UserError: a choice that cannot be, or another training is at work.
        """
        root = self.space.named_folder(wish["data"], data=True) if wish.get("data") else None
        corrected = bool(wish.get("corrections"))
        if root is None and not corrected:
            raise UserError("Choose a data set, or train on what was corrected.")
        if root is None:
            self.corrections.fitting(None)  # or it is said at once that there is none
        weights = wish.get("weights") or None
        own = None if weights in (None, "none") else self.model(weights).path
        if own is not None and own.is_dir():
            raise UserError("Folds are several models; start from the weights of another one.")
        self.trainings.refuse_second()
        name = self.trainings.new_name()
        title = printable(root.name if root else "corrections")
        title += " with corrections" if root and corrected else ""
        options = {key: wish.get(key) or None for key in ("model", "imgsz", "batch")}
        options |= {"recipe": wish["recipe"], "epochs": wish["epochs"]}
        options |= {"weights": str(own) if own else weights}

        def work(job: Job) -> None:
            target, begun = self.space.path / "training_data" / name, False
            try:
                classes = self.space.open(root, "data").classes if root and corrected else None
                painted = self.corrections.fitting(classes) if corrected else None
                data = training_folder(root, painted, target)
                network = network_of(own) if own and not options["model"] else {}
                if not job.stop.is_set():
                    self.trainings.start(name, Wish(str(data), **options | network), title)
                    begun = True
            finally:
                if not begun:  # nobody learns from what was brought together
                    shutil.rmtree(target, ignore_errors=True)

        # To bring a data set and its corrections together, each of its masks is read.
        return self.worker.submit(Job("train", f"Preparing {title}", "train"), work)

    # --- Videos ---

    def mark_video(self, source: Path, model: str) -> Job:
        """Put a video into the line."""
        path, target = self.model(model).path, source.parent / "marked" / f"{source.stem}.mp4"

        def work(job: Job) -> None:
            classes = self.segmenter().video(job, source, target, path)
            file = str(target.relative_to(self.space.path))
            job.result = {"file": file, "classes": legend(classes)}

        job = Job("video", f"Marking {printable(source.name)}", secrets.token_hex(8))
        return self.worker.submit(job, work)


def network_of(checkpoint: Path) -> dict[str, str | int | None]:
    """What a training from a checkpoint's weights must say of its network, in `Wish`'s words."""
    from models.checkpoint import parse_description, read_checkpoint  # they bring PyTorch

    content = read_checkpoint(checkpoint)
    if "model_config" not in content:  # the article's own: the recipe knows as much
        return {}
    config, _ = parse_description(content, checkpoint)
    return {"model": config.variant, "head": config.head, "window": config.window}


def _model_id(path: Path) -> str:
    return hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=8).hexdigest()
