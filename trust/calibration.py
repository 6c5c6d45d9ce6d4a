"""What a model's numbers mean on pictures that it has not seen: an interval, a probability.

From predictions on pictures with known masks, none of which the model was trained on: the errors of
severity give later severities an interval (conformal prediction), and one temperature makes
probabilities as often right as they say (Guo et al. 2017). Both travel with the model.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import write_text
from common.text import counted, read_text
from config import ClassTable
from data.splits import FOLDS_FILE
from inference.prediction import SoftCounts
from inference.predictor import Predictor
from metrics import SeverityTable
from models.checkpoint import add_to_checkpoint, read_checkpoint
from models.digests import sha256
from training.run_files import model_files

CALIBRATION_FILE = "calibration.json"
BINS = 15
MOST_ERRORS = 10_000  # of a symptom; more would say the same
# What is added to the doubt of a picture, in shares of the plant: nobody's error is exactly 0.
FLOOR = 0.001
TEMPERATURES = 0.05, 20.0  # where the best one is looked for


@dataclass(frozen=True)
class Calibration:
    """What predictions on known masks taught about a model.

    Args:
        temperature: what its scores are divided by before they become probabilities.
        errors: by symptom the sorted errors of the pictures' severity, each in units of its
            picture's doubt (see `doubt`).
        passed: how the pictures passed (see `how_pictures_pass`); elsewhere errors are others.
        out_of_fold: whether each picture was predicted by the fold that had not seen it, and not by
            the model itself.
    """

    temperature: float
    errors: dict[str, list[float]]
    passed: list
    out_of_fold: bool

    @classmethod
    def of(
        cls, records: list[dict], predictor: Predictor, out_of_fold: bool = False
    ) -> "Calibration":
        """Learn from the records of `inference.evaluation.evaluate_pairs`."""
        names = predictor.classes.names
        table = SeverityTable.of(names)
        areas = np.stack([record["areas"] for record in records])
        off = np.abs(table.shares(areas[:, 2]) - table.shares(areas[:, 1]))
        off /= np.stack([doubt(record["soft"], table) for record in records])
        if len(off) > MOST_ERRORS:
            off = np.random.default_rng(0).choice(off, MOST_ERRORS, replace=False)
        errors = {
            names[index]: np.sort(column).tolist()
            for index, column in zip(table.symptoms, off.T, strict=True)
        }
        log_probs, targets, _ = sampled(records)
        passed = how_pictures_pass(predictor)
        return cls(best_temperature(log_probs, targets), errors, passed, out_of_fold)

    @property
    def pictures(self) -> int:
        """How many it was learnt from."""
        return min(map(len, self.errors.values()), default=0)

    def interval(
        self, symptom: str, severity: float, doubt: float, coverage: float
    ) -> tuple[float, float] | None:
        """Where the true severity of a picture lies with a probability of at least `coverage`.

        Args:
            severity: the predicted one, in [0, 1].
            doubt: of the symptom (see `doubt`).

        Returns:
            both ends in [0, 1], or None with too few pictures (see `fewest`).
        """
        bound = conformal_quantile(np.array(self.errors.get(symptom, ())), coverage)
        if bound is None:
            return None
        return max(0.0, severity - bound * doubt), min(1.0, severity + bound * doubt)

    @classmethod
    def from_plain(cls, plain: object, where: Path) -> "Calibration":
        """Rebuild one from a file, which may be a stranger's.

        Raises:
            UserError: it is none.
        """
        try:
            temperature = float(plain["temperature"])
            errors = {
                str(name): sorted(float(value) for value in values)
                for name, values in plain["errors"].items()
            }
            made = cls(temperature, errors, list(plain["passed"]), bool(plain["out_of_fold"]))
            values = [temperature, *(value for part in errors.values() for value in part)]
            low, high = TEMPERATURES
            if not low <= temperature <= high or len(values) > 255 * MOST_ERRORS:
                raise ValueError
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"The calibration in {where} is damaged; make it anew with evaluate.py --calibrate."
            ) from error
        return made


def how_pictures_pass(predictor: Predictor) -> list:
    """What of a predictor's options changes its errors, in plain types."""
    return [
        [*member.size, member.keep_aspect, member.tile, member.overlap, member.flips]
        for member in predictor.members
    ]


def doubt(soft: SoftCounts, table: SeverityTable) -> np.ndarray:
    """By how much a picture's severities may be off, in shares of the plant, (S,).

    The share of the plant that would be wrong if each pixel were drawn anew with its probability:
    a scale for the errors, not their size.
    """
    plant = max(soft.pixels[list(table.whole)].sum(), 1)
    return soft.doubt[list(table.symptoms)] / plant + FLOOR


def describe_calibration(calibration: Calibration, path: Path) -> str:
    """A sentence on what was learnt, and where it lies."""
    count, least = calibration.pictures, fewest(0.9)
    text = f"Calibrated on {counted(count, 'picture|pictures')}, kept in {path}; temperature "
    text += f"{calibration.temperature:.2f}."
    if not calibration.errors:
        text = f"The calibration of the probabilities is kept in {path}; temperature "
        text += f"{calibration.temperature:.2f}. No class is a symptom: there is no severity."
    elif count < least:
        text += f" An interval at 90 % needs {least} pictures: severities have none yet."
    return text


# --- On the disk ---


def carry(models: Sequence[Path], calibration: Calibration) -> Path:
    """Store a calibration with its model: in the checkpoint, or in the folder of folds.

    Returns:
        the file.

    Raises:
        UserError: the model is none that can carry it.
    """
    path = _carrier(models)
    if path is None:
        raise UserError(
            "--calibrate needs one checkpoint, or one folder of folds, that carries the calibration"
            "; pass --model with one of these."
        )
    if path.name == CALIBRATION_FILE:
        write_text(path, json.dumps(asdict(calibration), indent=1) + "\n")
    else:
        add_to_checkpoint(path, calibration=asdict(calibration))
    return path


def read_calibration(models: Sequence[Path]) -> Calibration | None:
    """The calibration that a model carries, if it has one.

    Raises:
        UserError: it is damaged.
    """
    path = _carrier(models)
    if path is None or not path.is_file():
        return None
    if path.name != CALIBRATION_FILE:
        plain = read_checkpoint(path).get("calibration")
        return None if plain is None else Calibration.from_plain(plain, path)
    try:
        plain = json.loads(read_text(path))
    except (ValueError, RecursionError):
        plain = None
    return Calibration.from_plain(plain, path)


def _carrier(models: Sequence[Path]) -> Path | None:
    """The one file that carries a model's calibration."""
    if len(models) == 1 and (models[0] / FOLDS_FILE).is_file():
        return models[0] / CALIBRATION_FILE
    files = model_files(models)
    return files[0] if len(files) == 1 and files[0].suffix.lower() != ".onnx" else None


def digests_of(models: Sequence[Path]) -> list[str]:
    """The SHA-256 of all that results depend on: of each model's file, and of a calibration."""
    paths = [*model_files(models), *(path / CALIBRATION_FILE for path in models)]
    return [sha256(path) for path in paths if path.is_file()]


# --- Severity's interval ---


def conformal_quantile(errors: np.ndarray, coverage: float) -> float | None:
    """The bound that the next error keeps with a probability of at least `coverage`.

    The ceil((n + 1) coverage)-th smallest of n errors: as if the next picture's error were as
    likely to take any place among them (Vovk et al. 2005; Lei et al. 2018, section 2).

    Returns:
        None where n is too small for the coverage, as 8 errors for 90 %.
    """
    rank = math.ceil((len(errors) + 1) * coverage - 1e-9)
    return float(np.partition(errors, rank - 1)[rank - 1]) if rank <= len(errors) else None


def fewest(coverage: float) -> int:
    """How many pictures `conformal_quantile` needs."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


# --- Probabilities ---


def softened(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, K) at a temperature, of the logarithms of those at 1."""
    scaled = log_probs.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    powers = np.exp(scaled)
    return powers / powers.sum(1, keepdims=True)


def best_temperature(log_probs: np.ndarray, targets: np.ndarray) -> float:
    """The temperature with the least cross entropy on pixels (N, K) and (N,) of known class.

    Cross entropy has one minimum in the inverse temperature; a golden section finds it.
    """

    def loss(log_temperature: float) -> float:
        probs = softened(log_probs, math.exp(log_temperature))
        own = probs[np.arange(len(targets)), targets]
        return -float(np.log(np.maximum(own, 1e-12)).mean())

    low, high = map(math.log, TEMPERATURES)
    golden = (math.sqrt(5) - 1) / 2
    inner = [high - golden * (high - low), low + golden * (high - low)]
    losses = [loss(value) for value in inner]
    while high - low > 1e-3:
        if losses[0] < losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - golden * (high - low)
            losses[0] = loss(inner[0])
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + golden * (high - low)
            losses[1] = loss(inner[1])
    return math.exp((low + high) / 2)


def sampled(records: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sampled pixels of all pictures: log_probs (N, K), targets (N,), edge (N,)."""
    samples = [record["sample"] for record in records]
    parts = zip(*((part.log_probs, part.targets, part.edge) for part in samples), strict=True)
    return tuple(map(np.concatenate, parts))


def reliability_figures(
    records: list[dict], classes: ClassTable, temperature: float | None = None
) -> dict:
    """How far the probabilities of a split can be believed, as they are and at a temperature.

    Args:
        records: of `inference.evaluation.evaluate_pairs`.
        temperature: that of the model's calibration; None for the best one for these pictures.

    Returns:
        `temperature`; `before` and `after`, each with the steps of `reliability` (`steps`) and the
        expected calibration error (`error`) of the most probable class's probability, the error
        near borders of classes (`edge_error`) and elsewhere (`inner_error`), and of each class's
        own probability (`class_errors`). Empty where no pixel was sampled.
    """
    log_probs, targets, edge = sampled(records)
    if not len(targets):
        return {}
    temperature = temperature or best_temperature(log_probs, targets)
    figures = {"temperature": temperature}
    for when, value in (("before", 1.0), ("after", temperature)):
        probs = softened(log_probs, value)
        said, hits = probs.max(1), probs.argmax(1) == targets
        steps = reliability(said, hits)
        figures[when] = {
            "steps": steps,
            "error": calibration_error(steps),
            "edge_error": calibration_error(reliability(said[edge], hits[edge])),
            "inner_error": calibration_error(reliability(said[~edge], hits[~edge])),
            "class_errors": {
                name: calibration_error(reliability(probs[:, index], targets == index))
                for index, name in enumerate(classes.names)
            },
        }
    return figures


def reliability(confidences: np.ndarray, hits: np.ndarray) -> list[dict]:
    """How often probabilities (N,) in each of `BINS` steps are right, `hits` (N,) boolean.

    Returns:
        a dictionary for each step that holds pixels: its `share` of them, its mean probability
        `said`, and the share that is right, `seen`.
    """
    steps = np.minimum((confidences * BINS).astype(int), BINS - 1)
    counts, said, seen = (
        np.bincount(steps, weights, BINS) for weights in (None, confidences, hits.astype(float))
    )
    return [
        {"share": c / len(steps), "said": p / c, "seen": h / c}
        for c, p, h in zip(counts.tolist(), said.tolist(), seen.tolist(), strict=True)
        if c
    ]


def calibration_error(steps: list[dict]) -> float:
    """Expected calibration error: the mean distance of what is said from what is seen."""
    return sum(step["share"] * abs(step["said"] - step["seen"]) for step in steps)
