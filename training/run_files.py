"""The files of a training by name, and which of them --model means."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UserError
from data.splits import FOLDS_FILE, MAX_FOLDS, Division

BEST = {"miou": "best_model_iou.pth", "loss": "best_model_loss.pth"}
FINAL, LAST = "model.pth", "last.pth"  # the last epoch's model; what a run goes on from
HISTORY, LOG, REPORT = "history.csv", "log.jsonl", "report.html"


def fold_folder(out_dir: Path, number: int) -> Path:
    """Where the model of a fold lies in a folder of folds."""
    return out_dir / f"fold_{number}"


def checkpoints_of_folds(out_dir: Path) -> Iterator[Path]:
    """The `last.pth` of the folds that have one, in their order."""
    folders = (fold_folder(out_dir, number) for number in range(MAX_FOLDS))
    return (folder / LAST for folder in folders if (folder / LAST).is_file())


def model_files(models: Path | Sequence[Path]) -> list[Path]:
    """The files of models that --model names; a folder of folds stands for the best of each fold.

    Raises:
        UserError: a fold is not trained yet, or folds.csv is none.
    """
    files = []
    for model in [models] if isinstance(models, str | Path) else models:
        model = Path(model)
        if (model / FOLDS_FILE).is_file():
            count = Division.read(model / FOLDS_FILE, "fold").count
            own = [fold_folder(model, number) / BEST["miou"] for number in range(count)]
            missing = [path for path in own if not path.is_file()]
            if missing:
                raise UserError(
                    f"{missing[0]} is not there: {model} is a model once each of its {count} folds "
                    f"is trained; go on with train.py --out-dir {model} --resume."
                )
            files += own
        else:
            best = model / BEST["miou"]
            files.append(best if best.is_file() else model)
    return files
