"""Trainings: train.py as a process of its own, and what its folder tells while it works.

The page only starts it and reads: closing the browser or ending the server ends no training. A run
is found again by its folder, whose lock says whether its process still lives.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from common.errors import UserError
from common.files import write_text
from data.splits import FOLDS_FILE, Division
from training.run_files import BEST, LAST, LOG, REPORT, fold_folder

try:
    import fcntl
except ImportError:  # Windows: only trainings of this start are known to run
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("", "*/", "*/*/")  # below a folder, where models are looked for


@dataclass(frozen=True)
class Wish:
    """What a person chose for a training; None leaves a flag to the recipe.

    Args:
        data: the data set's folder.
        weights: a checkpoint to start from, "none", or None.
        imgsz: width and height of the network's input.
        head, window: of the network, as train.py names them.
    """

    data: str
    recipe: str
    epochs: int
    model: str | None = None
    weights: str | None = None
    imgsz: tuple[int, int] | None = None
    batch: int | None = None
    head: str | None = None
    window: int | None = None

    def flags(self) -> list[str]:
        """As they are typed; each value is bound to its flag, so that none can be a flag."""
        flags = [f"--data={self.data}", f"--recipe={self.recipe}", f"--epochs={self.epochs}"]
        flags += [f"--model={self.model}"] if self.model else []
        flags += ["--imgsz", *map(str, self.imgsz)] if self.imgsz else []
        rest = {name: getattr(self, name) for name in ("weights", "batch", "head", "window")}
        return flags + [f"--{name}={value}" for name, value in rest.items() if value]


class Trainings:
    """The runs of this page.

    Args:
        folder: holds a folder for each.
        device: where they compute, as --device names it.
    """

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device
        self._children: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()

    def new_name(self) -> str:
        """A name for the next run, which sorts by time."""
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        names = (f"{stamp}{tail}" for tail in ("", *(f"-{n}" for n in range(2, 1000))))
        return next(name for name in names if not (self.folder / name).exists())

    def start(self, name: str, wish: Wish, title: str) -> None:
        """Begin a training.

        Raises:
            UserError: another one is at work.
        """
        with self._lock:
            self.refuse_second()
            about = asdict(wish) | {"title": title}
            write_text(self.folder / name / "page.json", json.dumps(about, indent=1) + "\n")
            self._run(name, wish.flags())

    def go_on(self, name: str) -> None:
        """Go on with a training that was stopped.

        Raises:
            UserError: there is nothing to go on from, or another one is at work.
        """
        with self._lock:
            self.refuse_second()
            if not (self.folder / name / LAST).is_file():
                raise UserError("No epoch of this training was finished; start a new one.")
            self._run(name, ["--resume"])

    def refuse_second(self) -> None:
        """Keep it at one training at a time.

        Raises:
            UserError: one is at work.
        """
        if self.at_work():
            raise UserError("A training is at work already; wait for its end, or stop it.")

    def _run(self, name: str, flags: list[str]) -> None:
        folder = self.folder / name
        command = [sys.executable, str(ROOT / "train.py"), f"--out-dir={folder}"]
        command += [f"--device={self.device}", *flags]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with open(folder / "train.log", "ab") as log:
            self._children[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Ask a training to end; every finished epoch is safe."""
        child = self._children.get(name)
        if child is not None and child.poll() is None:
            child.terminate()
        elif self.is_running(name):
            os.kill(int((self.folder / name / ".lock").read_text().split()[0]), signal.SIGTERM)

    def at_work(self) -> str:
        """The name of the run that is at work, "" if none is."""
        return next(filter(self.is_running, self.names()), "")

    def names(self) -> list[str]:
        """All runs, the newest first."""
        found = self.folder.glob("*/page.json")
        return sorted((path.parent.name for path in found), reverse=True)

    def is_running(self, name: str) -> bool:
        child = self._children.get(name)
        if child is not None:
            return child.poll() is None
        return _is_locked(self.folder / name / ".lock")

    def describe(self, name: str) -> dict:
        """What the page shows of a run, plain types."""
        folder = self.folder / name
        about = json.loads((folder / "page.json").read_text(encoding="utf-8"))
        history, running = read_history(folder), self.is_running(name)
        finished = (folder / REPORT).is_file() and not running
        state = "running" if running else "done" if finished else "stopped"
        log = _tail(folder / "train.log")
        step = re.findall(r"(\d+)/(\d+) \[", log.rsplit("\n", 1)[-1]) if running else []
        child = self._children.get(name)
        if state == "stopped" and child is not None and child.returncode == 2:
            state = "failed"
        seconds = [row["seconds"] for row in history if row.get("seconds")]
        left = sum(seconds[-5:]) / len(seconds[-5:]) if seconds else None
        return about | {
            "id": name,
            "state": state,
            "history": history,
            "step": [int(number) for number in step[-1]] if step else None,
            "seconds_left": left and left * max(0, about["epochs"] - len(history)),
            "can_go_on": not running and not finished and (folder / LAST).is_file(),
            "log": log[-4000:],
            "error": next((x[7:] for x in log.splitlines()[::-1] if x.startswith("error: ")), ""),
            "pictured": (picture := self.picture(name)) and picture.name,
            "has_report": (folder / REPORT).is_file(),
        }

    def picture(self, name: str) -> Path | None:
        """What the last epoch made of validation pictures."""
        return max((self.folder / name / "valid_preds").glob("epoch_*.jpg"), default=None)


def read_history(folder: Path) -> list[dict]:
    """The figures of a run's epochs."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if isinstance(row, dict)]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Model:
    """A trained model, as a person chooses it.

    Args:
        path: a checkpoint, or a folder of folds, which are one model together.
        name: the run's.
        epochs: that it was trained for, each of its folds if it has any.
        miou: of validation, the best; of folds their mean; None where nobody has written it down.
        folds: how many, 0 for a model that is one.
        finished: whether its run came to its end, as that of a checkpoint from elsewhere did.
        changed: when, in seconds.
    """

    path: Path
    name: str
    epochs: int
    miou: float | None
    folds: int
    finished: bool
    changed: float


def find_models(folders: list[Path]) -> list[Model]:
    """Trained models, the newest first; folds of which one is not trained yet are none."""
    best = (
        path for folder in folders for place in PLACES for path in folder.glob(place + BEST["miou"])
    )
    runs = {path.resolve().parent for path in best}
    parents = {run.parent for run in runs if (run.parent / FOLDS_FILE).is_file()}
    alone = [run for run in runs if run.parent not in parents]
    found = [_describe(run / BEST["miou"], run, [run]) for run in alone]
    for parent in parents:
        folds = [fold_folder(parent, number) for number in range(_count_folds(parent))]
        if folds and all(fold in runs for fold in folds):
            found.append(_describe(parent, parent, folds))
    return sorted(found, key=lambda model: model.changed, reverse=True)[:100]


def _describe(path: Path, run: Path, trained: list[Path]) -> Model:
    histories = [read_history(folder) for folder in trained]
    scores = [[row["valid_miou"] for row in rows if row.get("valid_miou")] for rows in histories]
    best = [max(own) for own in scores if own]
    return Model(
        path,
        " ".join(filter(None, (_title_of(run), run.name))),
        epochs=max(map(len, histories)),
        miou=statistics.fmean(best) if best else None,
        folds=len(trained) if path == run else 0,
        finished=all(
            (folder / REPORT).is_file() or not (folder / LOG).is_file() for folder in trained
        ),
        changed=max((folder / BEST["miou"]).stat().st_mtime for folder in trained),
    )


def _count_folds(parent: Path) -> int:
    path = parent / FOLDS_FILE
    return _read_folds(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=100)
def _read_folds(path: Path, changed: int) -> int:
    """How many folds a table has; the page asks each second. 0 if it is none."""
    try:
        return Division.read(path, "fold").count
    except UserError:
        return 0


def _title_of(folder: Path) -> str:
    """What a person called a run of the page; "" for another's."""
    try:
        return str(json.loads((folder / "page.json").read_text(encoding="utf-8"))["title"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_locked(path: Path) -> bool:
    """Whether a process holds a folder's lock (see `common.files.lock_folder`)."""
    if fcntl is None or not path.is_file():
        return False
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _tail(path: Path) -> str:
    """The end of a log as a terminal would show it: of a bar that was drawn anew, the last."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 20000))
        text = file.read().decode("utf-8", "replace")
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
