"""How a model's error falls as photographs are added, and what more of them would bring.

Over the sizes that one can afford, the error follows err(n) = a + b n^-c with a floor a that no
number of photographs passes (Figueroa et al. 2012, BMC Med. Inform. Decis. Mak. 12: 8; Hestness et
al. 2017, arXiv 1712.00409). Three numbers of a handful of trainings are little, so nothing here
gives the curve alone: it is fitted to many versions of what was measured, each as it could have
come out with other pictures to measure on and with other trainings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metrics import SeverityTable

DRAWS = 1000
COVERAGE = 0.90
EXPONENTS = np.geomspace(0.05, 2.0, 160)  # 2.3 % apart
SMALLEST = 1e-6  # an error of 0 has no logarithm
CANNOT_KNOW = (
    "This is for photographs of the same kind, masks drawn as these are, and the same flags. It "
    "cannot know what other plants, cameras or seasons would bring, nor whether the curve goes on "
    "as it began."
)


def picture_weights(pictures: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each of the pictures to measure on is drawn, (draws, pictures): the bootstrap."""
    return np.random.default_rng(seed).multinomial(pictures, [1 / pictures] * pictures, size=draws)


def miou_errors(areas: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 - mIoU over pictures.

    Args:
        areas: (P, 3, K) pixels of each picture that are right, true and predicted.
        weights: (D, P), how often each picture counts.

    Returns:
        (D,) errors; a class that is nowhere in a draw is left out of it.
    """
    pictures, _, classes = areas.shape
    sums = weights.astype(float) @ areas.reshape(pictures, -1).astype(float)
    right, true, predicted = sums.reshape(-1, 3, classes).swapaxes(0, 1)
    union = true + predicted - right
    iou = np.divide(right, union, out=np.zeros_like(right), where=union > 0)
    return 1 - iou.sum(1) / np.maximum((union > 0).sum(1), 1)


def severity_errors(areas: np.ndarray, weights: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The mean error |predicted - true| of the last symptom's severity, (D,) in [0, 1]."""
    table = SeverityTable.of(names)
    off = np.abs(table.severity(areas[:, 2]) - table.severity(areas[:, 1]))
    return weights @ off / weights.sum(1)


def fit_power_law(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The curves a + b n^-c with a, b >= 0 whose relative errors have the least squares.

    Args:
        sizes: (S,) numbers of photographs.
        errors: (D, S) positive, one curve a row.

    Returns:
        (D, 3) a, b and c, c one of `EXPONENTS`. For each c, a and b are a linear problem with an
        exact answer, so no search can fail or stop early.
    """
    errors = np.maximum(np.asarray(errors, float), SMALLEST)
    flat = 1 / errors[:, None]  # (D, 1, S); the targets are all 1
    bent = (sizes / sizes[0]) ** -EXPONENTS[:, None] * flat  # (D, C, S)
    ff, fb, bb = (flat * flat).sum(-1), (flat * bent).sum(-1), (bent * bent).sum(-1)
    f, b = flat.sum(-1), bent.sum(-1)
    determinant = np.maximum(ff * bb - fb * fb, 1e-12 * ff * bb)
    floor, fall = (f * bb - b * fb) / determinant, (b * ff - f * fb) / determinant
    # A negative one is 0 at the constrained optimum, and the other alone is fitted again.
    floor, fall = (
        np.where(floor < 0, 0, np.where(fall < 0, f / ff, floor)),
        np.where(fall < 0, 0, np.where(floor < 0, b / bb, fall)),
    )
    loss = ((floor[..., None] * flat + fall[..., None] * bent - 1) ** 2).sum(-1)
    best = loss.argmin(1)
    row = np.arange(len(errors))
    exponent = EXPONENTS[best]
    return np.stack([floor[row, best], fall[row, best] * sizes[0] ** exponent, exponent], axis=1)


def power_law(curves: np.ndarray, size: float) -> np.ndarray:
    """The errors (D,) of curves (D, 3) with so many photographs."""
    a, b, c = curves.T
    return a + b * size**-c


@dataclass(frozen=True)
class Noise:
    """How far trainings on equally many photographs differ: other photographs, another seed.

    Args:
        spread: standard deviation of the error's logarithm.
        freedom: degrees of freedom that it was estimated with.
    """

    spread: float
    freedom: int

    @classmethod
    def of(cls, repeats: list[np.ndarray]) -> "Noise":
        """Of the errors of each size's trainings, of which one at least has several."""
        logs = [np.log(np.maximum(errors, SMALLEST)) for errors in repeats]
        freedom = sum(len(own) - 1 for own in logs)
        squares = sum(((own - own.mean()) ** 2).sum() for own in logs)
        return cls(float(np.sqrt(squares / freedom)), freedom)


@dataclass(frozen=True)
class Growth:
    """Versions of a learning curve.

    Args:
        curves: (D, 3), as `fit_power_law` returns them.
        shaken: (D,) by which factor a single training of each version is off its curve.
    """

    curves: np.ndarray
    shaken: np.ndarray

    @classmethod
    def of(
        cls,
        sizes: np.ndarray,
        errors: np.ndarray,
        trainings: np.ndarray,
        noise: Noise,
        draws: int = DRAWS,
    ) -> "Growth":
        """Fit each version of what was measured.

        Args:
            sizes: (S,) numbers of photographs, at least three, rising.
            errors: (draws, S) the mean of a size's trainings, a row for each draw of pictures; or
                (1, S), which leaves out what other pictures would have changed.
            trainings: (S,) of how many it is the mean.
            draws: how many versions.
        """
        random = np.random.default_rng(1)
        # What few repeats say of the spread is unsure itself (Student's t from its two parts).
        spread = noise.spread * np.sqrt(noise.freedom / random.chisquare(noise.freedom, draws))
        errors = np.broadcast_to(errors, (draws, len(sizes)))
        off = random.standard_normal((draws, len(sizes))) / np.sqrt(trainings)
        curves = fit_power_law(np.asarray(sizes, float), errors * np.exp(spread[:, None] * off))
        return cls(curves, np.exp(spread * random.standard_normal(draws)))

    def expected(self, size: float) -> tuple[float, float, float]:
        """The mean training's error with so many photographs: the likely one, low and high."""
        return interval(power_law(self.curves, size))

    def measured(self, size: float) -> tuple[float, float, float]:
        """What one training with so many photographs would measure: likely, low and high."""
        return interval(power_law(self.curves, size) * self.shaken)

    def gain(self, size: float, more: float) -> tuple[float, float, float]:
        """By how much the mean training's error falls between two sizes: likely, low, high."""
        return interval(power_law(self.curves, size) - power_law(self.curves, more))


@dataclass(frozen=True)
class Outlook:
    """What trainings on more and more photographs foretell of one error.

    Args:
        counts: (S,) numbers of photographs, rising.
        singles: of each number its trainings' errors.
        growth: the curve through all of them.
        proof: likely, low and high error of a training on all photographs, foretold from the
            trainings on fewer alone.
    """

    counts: list[int]
    singles: list[np.ndarray]
    growth: Growth
    proof: tuple[float, float, float]

    @classmethod
    def of(
        cls,
        counts: list[int],
        areas: list[list[np.ndarray]],
        measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> "Outlook":
        """Measure trainings and fit.

        Args:
            areas: for each of at least four numbers of photographs, for each of its trainings, the
                (P, 3, K) pixels that `measure` takes, always of the same pictures.
            measure: `miou_errors` or the like.
        """
        pictures = len(areas[0][0])
        every, drawn = np.ones((1, pictures)), picture_weights(pictures)
        singles = [np.array([measure(own, every)[0] for own in runs]) for runs in areas]
        means = np.stack([np.mean([measure(own, drawn) for own in runs], 0) for runs in areas], 1)
        sizes, trainings = np.array(counts), np.array([len(runs) for runs in areas])
        noise = Noise.of(singles)
        growth = Growth.of(sizes, means, trainings, noise)
        # What is foretold was measured on the same pictures: no draws of them.
        point = np.array([[own.mean() for own in singles[:-1]]])
        earlier = Growth.of(sizes[:-1], point, trainings[:-1], Noise.of(singles[:-1]))
        return cls(counts, singles, growth, earlier.measured(counts[-1]))

    @property
    def holds(self) -> bool:
        """Whether the trainings on fewer photographs foretold the one on all."""
        return bool(self.proof[1] <= self.singles[-1].mean() <= self.proof[2])

    def points(self) -> list[tuple[int, float]]:
        """Each training's number of photographs and error."""
        each = zip(self.counts, self.singles, strict=True)
        return [(count, float(error)) for count, own in each for error in own]

    def rows(self) -> list[list]:
        """The lines of a table: photographs, kind of the figure, error, low, high."""
        now, twice = self.counts[-1], 2 * self.counts[-1]
        return [
            *([count, "measured", error, "", ""] for count, error in self.points()),
            [now, "foretold from fewer", *self.proof],
            [now, "curve", *self.growth.expected(now)],
            [twice, "curve", *self.growth.expected(twice)],
            [twice, "one training", *self.growth.measured(twice)],
        ]

    def describe(self) -> str:
        """What twice the photographs would bring, and whether such a forecast held before."""
        now, twice = self.counts[-1], 2 * self.counts[-1]
        likely, low, high = self.growth.measured(twice)
        gain, least, most = self.growth.gain(now, twice)
        return (
            f"with {twice} photographs rather than {now} probably {likely:.4f} ({COVERAGE:.0%}: "
            f"{low:.4f} to {high:.4f}); that is {gain:.4f} less than now ({least:.4f} to "
            f"{most:.4f}). Proof: from {self.counts[-2]} or fewer, {self.proof[1]:.4f} "
            f"to {self.proof[2]:.4f} was foretold for {now}, and {self.singles[-1].mean():.4f} was "
            f"measured: the forecast {'held' if self.holds else 'did NOT hold'}."
        )


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and the bounds of the middle `COVERAGE` of some draws."""
    tail = (1 - COVERAGE) / 2
    low, middle, high = np.quantile(values, (tail, 0.5, 1 - tail))
    return float(middle), float(low), float(high)
