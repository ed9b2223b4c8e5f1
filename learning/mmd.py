"""Have the embeddings changed? An online two-sample test with a known rate of false alarms.

Maximum mean discrepancy, Gretton et al. 2012, between a reference and an exponential window of what comes, by random
Fourier features, Rahimi and Recht 2007; the window as in NEWMA, Keriven et al. 2020, arXiv:1805.08061.

The threshold is such that without a change an alarm comes once in `run_length` batches. By the central limit theorem
the two means differ by a Gaussian whose covariance is that of the features: its runs are simulated, and the level that
they reach after so many batches on average is taken. The reference's own error is part of it.

Shapes: N reference vectors, B of a batch, D dimensions, R features, J eigenvalues."""

import numpy as np

from schemas.records import F32, F64

R = 256
BATCH = 64
FORGET = 0.1  # weight of the newest batch in the window
FILLED = 10  # batches of a window that is full: 1 / FORGET
RUNS, ROUNDS = (
    256,
    24,
)  # simulated runs; halvings of the interval that the threshold is looked for in
J = 48  # eigenvalues that are simulated; the rest is a constant, for it hardly varies


class MmdDrift:
    """One detector. Batches are of BATCH unit vectors, as they came."""

    def __init__(self, reference: F32, run_length: float, rng: np.random.Generator) -> None:
        self._n, d = reference.shape
        weights = rng.normal(size=(d, R)) / _bandwidth(reference, rng)
        self._weights = weights.astype(np.float32)
        self._phases = rng.uniform(0.0, 2.0 * np.pi, R).astype(np.float32)
        features = self._features(reference)
        self._mean = features.mean(0)
        covariance = np.cov(features.T)
        self._variance = float(np.trace(covariance))
        self.threshold = _threshold(covariance, self._n, run_length, rng)
        self.begin()

    def begin(self) -> None:
        """The window begins anew, as after an alarm."""
        self._window, self._batches, self._left = np.zeros(R), 0, 0.0

    def update(self, batch: F32) -> float | None:
        """The statistic after one more batch: 0 on average without a change, the squared discrepancy where there is
        one. None while the window is yet to fill."""
        self._batches += 1
        weight = _weight(self._batches)
        self._window = (1.0 - weight) * self._window + weight * self._features(batch).mean(0)
        self._left = (1.0 - weight) ** 2 * self._left + weight**2
        if self._batches < FILLED:
            return None
        noise = self._variance * (1.0 / self._n + self._left / BATCH)
        apart: float = np.square(self._window - self._mean).sum()
        return float(apart - noise)

    def _features(self, z: F32) -> F64:
        found = np.cos(z @ self._weights + self._phases) * np.float32(np.sqrt(2.0 / R))
        return np.asarray(found, np.float64)


def _bandwidth(z: F32, rng: np.random.Generator) -> float:
    """The median distance of two vectors."""
    a, b = rng.integers(0, len(z), (2, 2000))
    return max(float(np.median(np.linalg.norm(z[a] - z[b], axis=1))), 1e-3)


def _weight(batches: int) -> float:
    """Of the newest batch: the window is the mean of all until it is full."""
    return max(FORGET, 1.0 / batches)


def _threshold(covariance: F64, n: int, run_length: float, rng: np.random.Generator) -> float:
    """The level that simulated runs reach after `run_length` batches on average."""
    eigenvalues = np.clip(np.linalg.eigvalsh(covariance)[::-1], 0.0, None)
    top, rest = np.sqrt(eigenvalues[:J]), eigenvalues[J:].sum()
    steps = int(4 * run_length)
    peaks = np.full((RUNS, steps), -np.inf, np.float32)  # the highest so far
    offset = rng.normal(size=(RUNS, len(top))) * top / np.sqrt(n)
    window, left, high = np.zeros_like(offset), 0.0, np.full(RUNS, -np.inf)
    for step in range(steps):
        weight = _weight(step + 1)
        new = rng.normal(size=window.shape) * top / np.sqrt(BATCH)
        window = (1.0 - weight) * window + weight * new
        left = (1.0 - weight) ** 2 * left + weight**2
        if step + 1 >= FILLED:
            # the small eigenvalues' part is its expectation, which is taken off again
            expected = (eigenvalues.sum() - rest) * (1.0 / n + left / BATCH)
            high = np.maximum(high, np.square(window - offset).sum(1) - expected)
        peaks[:, step] = high
    low, above = 0.0, float(peaks.max())
    for _ in range(ROUNDS):
        level = (low + above) / 2
        reached = peaks > level
        ended = reached.any(1)
        # of an exponential time, cut off: all that was waited, over the runs that ended
        waited = np.where(ended, reached.argmax(1) + 1.0, steps).sum() / max(int(ended.sum()), 1)
        low, above = (level, above) if waited < run_length else (low, level)
    return (low + above) / 2
