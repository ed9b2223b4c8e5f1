"""Have the embeddings changed? An online two-sample test with a known rate of false alarms.

Maximum mean discrepancy, Gretton et al. 2012, between a reference and an exponential window of what comes, by random
Fourier features, Rahimi and Recht 2007; the window as in NEWMA, Keriven et al. 2020, arXiv:1805.08061.

The threshold is such that without a change an alarm comes once in `run_length` batches. Runs are bootstrapped, each
from the reference split anew, as in Cobb et al. 2022, arXiv:2108.00883, so that its own error is part of it; the level
that they reach after so many batches on average is taken.

Shapes: N reference vectors, B of a batch, D dimensions, R features, J directions."""

import numpy as np

from schemas.records import F32, F64

R = 256
BATCH = 64
FORGET = 0.1  # weight of the newest batch in the window
FILLED = 10  # batches of a window that is full: 1 / FORGET
RUNS, POOL = 512, 8192  # bootstrapped runs, and batches that they are drawn from
ROUNDS = 24  # halvings of the interval that the threshold is looked for in
J = 48  # largest directions that are followed; the rest is a constant, for it hardly varies


class MmdDrift:
    """One detector. Batches are of BATCH unit vectors, as they came."""

    def __init__(self, reference: F32, run_length: float, rng: np.random.Generator) -> None:
        self._n, d = reference.shape
        weights = rng.normal(size=(d, R)) / _bandwidth(reference, rng)
        self._weights = weights.astype(np.float32)
        self._phases = rng.uniform(0.0, 2.0 * np.pi, R).astype(np.float32)
        features = self.features(reference)
        self._mean = features.mean(0)
        self._variance = float(features.var(0, ddof=1).sum())
        self.threshold = _threshold(features, run_length, rng)
        self.begin()

    def begin(self) -> None:
        """The window begins anew, as after an alarm: of no batches yet."""
        self._window, self.batches, self._left = np.zeros(R), 0, 0.0

    def update(self, batch: F32) -> float | None:
        """The statistic after one more batch: 0 on average without a change, the squared discrepancy where there is
        one. None while the window is yet to fill."""
        return self.step(self.features(batch).mean(0))

    def features(self, z: F32) -> F64:
        """[B, D] -> [B, R]"""
        found = np.cos(z @ self._weights + self._phases) * np.float32(np.sqrt(2.0 / R))
        return np.asarray(found, np.float64)

    def step(self, mean_R: F64) -> float | None:
        """`update` by the mean of the batch's features."""
        self.batches += 1
        weight = _weight(self.batches)
        self._window = (1.0 - weight) * self._window + weight * mean_R
        self._left = (1.0 - weight) ** 2 * self._left + weight**2
        if self.batches < FILLED:
            return None
        noise = self._variance * (1.0 / self._n + self._left / BATCH)
        apart: float = np.square(self._window - self._mean).sum()
        return float(apart - noise)


def _bandwidth(z: F32, rng: np.random.Generator) -> float:
    """The median distance of two vectors."""
    a, b = rng.integers(0, len(z), (2, 2000))
    return max(float(np.median(np.linalg.norm(z[a] - z[b], axis=1))), 1e-3)


def _weight(batches: int) -> float:
    """Of the newest batch: the window is the mean of all until it is full."""
    return max(FORGET, 1.0 / batches)


def _threshold(features: F64, run_length: float, rng: np.random.Generator) -> float:
    """The level that bootstrapped runs reach after `run_length` batches on average. features: [N, R]"""
    n = len(features)
    centred = (features - features.mean(0)) * np.sqrt(n / (n - 1.0))
    _, vectors = np.linalg.eigh(centred.T @ centred)
    along = (centred @ vectors[:, -J:]).astype(np.float32)  # [N, J]
    variance = float(np.square(along).sum(1).mean())
    offsets = _resplit(along, rng)
    pool = _batch_means(along, rng)
    steps = int(4 * run_length)
    peaks = np.full((steps, RUNS), -np.inf, np.float32)  # the highest so far
    window, left, high = np.zeros_like(offsets), 0.0, peaks[0]
    for step in range(steps):
        weight = _weight(step + 1)
        window += np.float32(weight) * (pool[rng.integers(0, POOL, RUNS)] - window)
        left = (1.0 - weight) ** 2 * left + weight**2
        if step + 1 >= FILLED:
            apart = window - offsets
            # the smaller directions' part is its expectation, which is taken off again
            value = np.einsum("kj,kj->k", apart, apart) - variance * (1.0 / n + left / BATCH)
            high = np.maximum(high, value)
        peaks[step] = high
    low, above = 0.0, float(peaks.max())
    for _ in range(ROUNDS):
        level = (low + above) / 2
        waited, ended = _until(peaks, level)
        low, above = (level, above) if waited < run_length * ended else (low, level)
    return max((low + above) / 2, 1e-12)  # of a reference that is one vector all are 0


def _resplit(along: F32, rng: np.random.Generator) -> F32:
    """Errors of a reference's mean, of one split in two for each run. The halves' means differ by twice the error that
    the mean of the whole has: half of it is taken. [RUNS, J]"""
    n = len(along)
    sign = np.where(np.arange(n) % 2, 1.0, -1.0)[None].repeat(RUNS, 0)
    found = rng.permuted(sign, axis=1) @ along / n
    return np.asarray(found, np.float32)


def _batch_means(along: F32, rng: np.random.Generator) -> F32:
    """Means of batches drawn from the reference, zero on average. [POOL, J]"""
    total = np.zeros((POOL, along.shape[1]), np.float32)
    for _ in range(BATCH):
        total += along[rng.integers(0, len(along), POOL)]
    found: F32 = (total - total.mean(0)) / np.float32(BATCH)
    return found


def _until(peaks: F32, level: float) -> tuple[float, int]:
    """Batches that all runs waited until they reached the level or were cut off, and how many reached it: the ratio
    estimates the mean of a time that is cut off. peaks: [steps, RUNS]"""
    waited = (peaks <= level).sum(0) + 1.0
    ended = peaks[-1] > level
    return float(np.where(ended, waited, len(peaks)).sum()), max(int(ended.sum()), 1)
