"""How a model's error falls as photographs are added, and what more of them would bring.

Over the sizes that one can afford, the error follows a power law of their number, a straight line
between the logarithms (Hestness et al. 2017, arXiv 1712.00409; Figueroa et al. 2012, BMC Med.
Inform. Decis. Mak. 12: 8). Further on it comes to rest or, where more photographs also mean more
steps, falls faster for a while: so the exponent may drift as the number doubles, as the slope of a
local linear trend does (Wahba 1978, J. R. Stat. Soc. B 40: 364; Harvey 1989). The interval of what
is foretold then widens with the distance. Three numbers of a handful of trainings are little, so
nothing here gives the curve alone, but many versions of it, each as it could have come out with
other pictures to measure on and with other trainings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metrics import SeverityTable

DRAWS = 1000
COVERAGE = 0.90
# With each doubling of the photographs the slope changes by about half of the curve's mean slope:
# it can come to rest, or be twice as steep, within four doublings.
DRIFT = 0.5
VAGUE = 25.0  # variance of a level and a slope of which nothing is known, in natural logarithms
SMALLEST = 1e-6  # an error of 0 has no logarithm
WIDE = 4.0  # a forecast between bounds further apart than this factor proves nothing by holding
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


def drifted(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Covariance of a line whose slope drifts by 1 each unit: Wiener's process, integrated.

    Args:
        one, other: (A,) and (B,) positions >= 0, here doublings.

    Returns:
        (A, B).
    """
    less, more = np.minimum.outer(one, other), np.maximum.outer(one, other)
    return less**2 * (more / 2 - less / 6)


def draw_curves(
    own: np.ndarray,
    logs: np.ndarray,
    spread: np.ndarray,
    grid: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Draw curves that agree with noisy measurements of them.

    Each is drawn from all that are thinkable, and moved by how far it is off the measurements
    (Matheron's rule; Wilson et al. 2020, arXiv 2002.09309).

    Args:
        own: (S,) doublings at which was measured, the first of them 0.
        logs: (D, S) logarithms of the errors measured.
        spread: (D, S) their standard deviations.
        grid: (G,) doublings at which the curves are asked for.

    Returns:
        (D, G) logarithms of errors.
    """
    drift = DRIFT * np.polyfit(own, logs.mean(0), 1)[0]

    def covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return VAGUE * (1 + np.outer(one, other)) + drift**2 * drifted(one, other)

    draws, measured = logs.shape
    both = np.concatenate([own, grid])
    curves = random.multivariate_normal(np.zeros(len(both)), covariance(both, both), draws)
    off = logs - curves[:, :measured] - spread * random.standard_normal(logs.shape)
    known = covariance(own, own) + spread[:, :, None] ** 2 * np.eye(measured)
    moved = np.linalg.solve(known, off[:, :, None])[:, :, 0] @ covariance(own, grid)
    return curves[:, measured:] + moved


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
        sizes: (G,) numbers of photographs, rising, up to twice the most that were learnt.
        errors: (D, G) the mean training's error of each version.
        shaken: (D,) by which factor a single training of each version is off its curve.
    """

    sizes: np.ndarray
    errors: np.ndarray
    shaken: np.ndarray

    @classmethod
    def of(
        cls,
        counts: np.ndarray,
        errors: np.ndarray,
        trainings: np.ndarray,
        noise: Noise,
        draws: int = DRAWS,
    ) -> "Growth":
        """Draw versions that agree with what was measured.

        Args:
            counts: (S,) numbers of photographs, at least three, rising.
            errors: (draws, S) the mean of a size's trainings, a row for each draw of pictures; or
                (1, S), which leaves out what other pictures would have changed.
            trainings: (S,) of how many it is the mean.
            draws: how many versions.
        """
        random = np.random.default_rng(1)
        logs = np.log(np.maximum(np.broadcast_to(errors, (draws, len(counts))), SMALLEST))
        # What few repeats say of the spread is unsure itself (Student's t from its two parts).
        spread = noise.spread * np.sqrt(noise.freedom / random.chisquare(noise.freedom, draws))
        spread = np.maximum(spread, SMALLEST)
        sizes = np.union1d(np.geomspace(counts[0], 2 * counts[-1], 60), counts)
        own, grid = np.log2(counts / counts[0]), np.log2(sizes / counts[0])
        curves = draw_curves(own, logs, spread[:, None] / np.sqrt(trainings), grid, random)
        # Photographs of the same kind make no training worse.
        further = sizes > counts[-1]
        now = curves[:, ~further][:, -1:]
        curves[:, further] = np.minimum(curves[:, further], now)
        return cls(sizes, np.exp(curves), np.exp(spread * random.standard_normal(draws)))

    def at(self, size: float) -> np.ndarray:
        """The mean training's error (D,) with so many photographs, a share of at most 1."""
        errors = [np.interp(size, self.sizes, errors) for errors in self.errors]
        return np.minimum(errors, 1)  # what few and scattered trainings leave open goes further

    def expected(self, size: float) -> tuple[float, float, float]:
        """The mean training's error with so many photographs: the likely one, low and high."""
        return interval(self.at(size))

    def measured(self, size: float) -> tuple[float, float, float]:
        """What one training with so many photographs would measure: likely, low and high."""
        return interval(np.minimum(self.at(size) * self.shaken, 1))

    def gain(self, size: float, more: float) -> tuple[float, float, float]:
        """By how much the mean training's error falls between two sizes: likely, low, high."""
        return interval(self.at(size) - self.at(more))


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

    @property
    def verdict(self) -> str:
        """What the proof says of the forecast."""
        if not self.holds:
            return "the forecast did NOT hold"
        # At 1, the largest error there is, nothing above was excluded.
        wide = self.proof[2] >= 1 or self.proof[2] > WIDE * self.proof[1]
        return "the forecast was too wide to prove anything" if wide else "the forecast held"

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
            f"{low:.4f} to {high:.4f}). From {now} to {twice} the curve, whose likely error with "
            f"{now} is {self.growth.expected(now)[0]:.4f}, falls by {gain:.4f} ({least:.4f} to "
            f"{most:.4f}). Proof: from {self.counts[-2]} or fewer, {self.proof[1]:.4f} "
            f"to {self.proof[2]:.4f} was foretold for {now}, and {self.singles[-1].mean():.4f} was "
            f"measured: {self.verdict}."
        )


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and the bounds of the middle `COVERAGE` of some draws."""
    tail = (1 - COVERAGE) / 2
    low, middle, high = np.quantile(values, (tail, 0.5, 1 - tail))
    return float(middle), float(low), float(high)
