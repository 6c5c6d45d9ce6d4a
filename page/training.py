"""Trainings: train.py as a process of its own, and what its folder tells while it works.

The page only starts it and reads: closing the browser or ending the server ends no training. A run
is found again by its folder, whose lock says whether its process still lives.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from common.files import write_text

try:
    import fcntl
except ImportError:  # Windows: only trainings of this start are known to run
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]
BEST = "best_model_iou.pth"
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
            if not (self.folder / name / "last.pth").is_file():
                raise UserError("No epoch of this training was finished; start a new one.")
            self._run(name, ["--resume"])

    def refuse_second(self) -> None:
        """Keep it at one training at a time.

        Raises:
            UserError: one is at work.
        """
        running = [name for name in self.names() if self.is_running(name)]
        if running:
            raise UserError("A training is at work already; wait for its end, or stop it.")

    def _run(self, name: str, flags: list[str]) -> None:
        folder = self.folder / name
        command = [sys.executable, str(ROOT / "train.py"), f"--out-dir={folder}"]
        command += [f"--device={self.device}", *flags]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with open(folder / "train.log", "ab") as log:
            self._children[name] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def stop(self, name: str) -> None:
        """Ask a training to end; every finished epoch is safe."""
        child = self._children.get(name)
        if child is not None and child.poll() is None:
            child.terminate()
        elif self.is_running(name):
            os.kill(int((self.folder / name / ".lock").read_text().split()[0]), signal.SIGTERM)

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
        finished = (folder / "report.html").is_file() and not running
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
            "can_go_on": not running and not finished and (folder / "last.pth").is_file(),
            "log": log[-4000:],
            "error": next((x[7:] for x in log.splitlines()[::-1] if x.startswith("error: ")), ""),
            "has_model": (folder / BEST).is_file(),
            "pictured": (picture := self.picture(name)) and picture.name,
            "has_report": (folder / "report.html").is_file(),
        }

    def picture(self, name: str) -> Path | None:
        """What the last epoch made of validation pictures."""
        return max((self.folder / name / "valid_preds").glob("epoch_*.jpg"), default=None)


def read_history(folder: Path) -> list[dict]:
    """The figures of a run's epochs."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if isinstance(row, dict)]
    except (OSError, ValueError):
        return []


def find_models(folders: list[Path]) -> list[dict]:
    """Trained models, the newest first: path, name and what they reached."""
    best = (path for folder in folders for place in PLACES for path in folder.glob(place + BEST))
    # A folder of folds is one model, whichever of its folds was found.
    paths = {
        path.parents[1] if (path.parents[1] / "folds.csv").is_file() else path
        for path in (path.resolve() for path in best)
    }
    newest = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    found = []
    for path in newest[:100]:
        run = path if path.is_dir() else path.parent
        scores = [row.get("valid_miou") for row in read_history(run)]
        best = max((score for score in scores if score is not None), default=None)
        name = " ".join(filter(None, (_title_of(run), run.name)))
        found.append({"path": path, "name": name, "epochs": len(scores), "miou": best})
    return found


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
