"""Has a figure moved? One number after another: a loss, a rate, a time. Needs no torch.

ADWIN, Bifet & Gavaldà 2007, doi:10.1137/1.9781611972771.42, of river: its core alone, for `river.drift` loads pandas
and SciPy, 150 MB in each process."""

import math

import numpy as np
from river._river_rust.drift import AdaptiveWindowing

FIRST = 256  # values that the scale is of; they are looked at once it is known
SPREAD = 8.0  # deviations that are taken for ADWIN's range of 0 to 1; what is further off counts as its end
DELTA, CLOCK, BUCKETS, SHORTEST, GRACE = 0.002, 32, 5, 5, 10
"""river's defaults: sure to so much; looked at every so many values."""


class ScalarDrift:
    """One figure. falls: whether it is an alarm too where it falls; else only where it rises."""

    def __init__(self, *, falls: bool = False) -> None:
        self._falls = falls
        self._first: list[float] = []
        self._low, self._width = 0.0, 0.0
        self._window = _window()
        self.alarms = 0

    def update(self, value: float) -> bool:
        """Whether this is an alarm. What is no finite number is passed over."""
        if not math.isfinite(value):
            return False
        if not self._width:
            self._first.append(value)
            if len(self._first) < FIRST:
                return False
            self._width = SPREAD * max(float(np.std(self._first)), 1e-9)
            self._low = float(np.mean(self._first)) - self._width / 2
            given, self._first = self._first, []
            return sum(map(self._add, given)) > 0
        return self._add(value)

    def _add(self, value: float) -> bool:
        before = self._mean()
        if not self._window.update(min(max((value - self._low) / self._width, 0.0), 1.0)):
            return False
        alarm = self._falls or self._mean() > before
        self._window = _window()  # else one change is found again and again
        self.alarms += alarm
        return alarm

    def _mean(self) -> float:
        return float(self._window.get_total() / max(self._window.get_width(), 1.0))


def _window() -> AdaptiveWindowing:
    return AdaptiveWindowing(
        delta=DELTA,
        clock=CLOCK,
        max_buckets=BUCKETS,
        min_window_length=SHORTEST,
        grace_period=GRACE,
    )
