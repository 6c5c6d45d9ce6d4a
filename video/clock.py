"""Times of frames: exact ones from rounded, missing or damaged time stamps, and back to ticks."""

import math
from fractions import Fraction

MAX_GAP = 3600  # seconds between two frames; a longer gap is a damaged time stamp
MAX_TIME_BASE = 1_000_000  # ticks a second: mp4's 32-bit tables then hold pauses of an hour


class Clock:
    """Give each frame its exact time.

    Some containers round time stamps (Matroska to milliseconds), some frames have none, damaged
    ones run backwards. As long as the stamps are the frame rate's own, rounded, the exact times are
    given; from the first that is not, the video is of variable rate and its stamps are kept.

    Args:
        tick: unit of the time stamps, seconds.
        rate: frames a second.
        start: where zero is, seconds.
    """

    def __init__(self, tick: Fraction, rate: Fraction, start: Fraction):
        self.index = 0
        self.start = start
        self._tick = tick
        self.period = 1 / rate
        self.regular = tick * 10 <= self.period  # a coarser stamp is meant as it is
        self._first = self._last = Fraction(0)

    def time_of(self, pts: int | None) -> Fraction:
        """Seconds of the next frame, whose stamp is `pts` ticks."""
        following = self._last + self.period if self.index else Fraction(0)
        time = following if pts is None else pts * self._tick - self.start
        if self.index == 0:
            if not 0 <= time <= MAX_GAP:
                self.start, time = self.start + time, Fraction(0)
            self._first = time
        elif not 0 < time - self._last <= MAX_GAP:
            time = following
        if self.regular:
            exact = self._first + self.index * self.period
            self.regular = abs(time - exact) <= self._tick
            time = exact if self.regular else time
        self.index += 1
        self._last = time
        return time


def common_time_base(rate: Fraction, tick: Fraction) -> Fraction:
    """The coarsest tick that holds both exact frame times and the source's own time stamps."""
    wanted = math.lcm(rate.numerator, tick.denominator), tick.denominator, rate.numerator
    return Fraction(1, next((ticks for ticks in wanted if ticks <= MAX_TIME_BASE), 90_000))
