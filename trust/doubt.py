"""How far the result of each picture can be trusted, from what travels with the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.text import counted
from inference.prediction import Prediction
from inference.predictor import Predictor
from metrics import SeverityTable
from reporting.gallery import Doubt
from trust.calibration import Calibration, doubt, fewest, how_pictures_pass, read_calibration
from trust.familiarity import Familiarity, read_familiarity


@dataclass(frozen=True)
class Judge:
    """Says of predictions how far they can be trusted.

    Args:
        predictor: that made them.
        coverage: probability with which the true severity shall lie in its interval.
        calibration: the model's, None for no interval.
        familiarity: of each of the predictor's members, None where that is not known.
    """

    predictor: Predictor
    coverage: float
    calibration: Calibration | None
    familiarity: list[Familiarity] | None

    def __call__(self, images: list[np.ndarray], said: list[Prediction]) -> list[Doubt]:
        """Judge the predictions of pictures, HWC uint8 RGB."""
        unlike = self._unlike(images) if images and self.familiarity else [None] * len(images)
        return [
            Doubt(prediction.sums.confidence(), own, *self._interval(prediction))
            for prediction, own in zip(said, unlike, strict=True)
        ]

    def _unlike(self, images: list[np.ndarray]) -> list[float]:
        """The mean of what the members say."""
        members = zip(self.predictor.members, self.familiarity, strict=True)
        shares = [known.unlike(member.features(images)) for member, known in members]
        return np.mean(shares, axis=0).tolist()

    def _interval(self, prediction: Prediction) -> tuple[float | None, float | None]:
        """Of the last symptom's severity."""
        names = self.predictor.classes.names
        table = SeverityTable.of(names)
        if self.calibration is None or not table.symptoms:
            return None, None
        severity = float(table.severity(prediction.sums.pixels))
        own = float(doubt(prediction.sums, table)[-1])
        asked = names[table.symptoms[-1]], severity, own, self.coverage
        return self.calibration.interval(*asked) or (None, None)


def make_judge(
    models: Sequence[Path], predictor: Predictor, coverage: float, say: Callable[[str], None]
) -> Judge:
    """The judge of a model's predictions; the predictor gets the temperature of its calibration.

    Args:
        say: gets a sentence where the calibration does not hold.

    Raises:
        UserError: what the model carries is damaged.
    """
    calibration = read_calibration(models)
    if calibration is not None:
        predictor.temperature = calibration.temperature
        if calibration.passed != how_pictures_pass(predictor):
            say(
                "The model was calibrated with other --imgsz, --tile, --overlap, --keep-aspect or "
                "--tta: severities get no interval. Calibrate with the same flags to have one."
            )
            calibration = None
        elif calibration.errors and calibration.pictures < fewest(coverage):
            many = counted(calibration.pictures, "picture|pictures")
            say(
                f"The model was calibrated on {many}, and --coverage "
                f"{coverage:g} needs {fewest(coverage)}: severities get no interval."
            )
    return Judge(predictor, coverage, calibration, read_familiarity(models))
