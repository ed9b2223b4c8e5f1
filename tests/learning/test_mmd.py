"""The two-sample test on embeddings: silent for as long as it says, and quick where something changed."""

import numpy as np
import pytest

from learning.mmd import BATCH, FILLED, RUNS, MmdDrift, _batch_means, _resplit
from schemas.records import F32

RUN_LENGTH = 100.0


def mixture(rng: np.random.Generator, n: int, shares: tuple[float, ...], d: int = 16) -> F32:
    """Unit vectors about a few directions."""
    centres = np.random.default_rng(9).normal(size=(len(shares), d))
    z = centres[rng.choice(len(shares), n, p=shares)] + rng.normal(size=(n, d)) * 0.4
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


SAME, OTHER = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)


def runs(shares: tuple[float, ...], most: int, seed: int, times: int) -> list[int]:
    """Batches to the first alarm, of detectors with references of their own."""
    found = []
    for at in range(times):
        rng = np.random.default_rng([seed, at])
        drift = MmdDrift(mixture(rng, 2000, SAME), RUN_LENGTH, rng)
        values = (drift.update(mixture(rng, BATCH, shares)) or 0.0 for _ in range(most))
        found.append(next((n for n, x in enumerate(values, 1) if x > drift.threshold), most))
    return found


def test_without_a_change_an_alarm_comes_once_in_so_many_batches() -> None:
    found = runs(SAME, 1000, 0, 30)
    assert np.mean(found) == pytest.approx(RUN_LENGTH, rel=0.45)  # 30 runs: a standard error of 18%


def test_a_change_is_seen_within_a_few_batches() -> None:
    assert np.mean(runs(OTHER, 100, 1, 10)) < FILLED + 5


def test_the_statistic_is_nothing_on_average_and_the_discrepancy_where_there_is_one() -> None:
    rng = np.random.default_rng(2)
    drift = MmdDrift(mixture(rng, 4000, SAME), RUN_LENGTH, rng)
    quiet = [drift.update(mixture(rng, BATCH, SAME)) or 0.0 for _ in range(400)]
    assert abs(np.mean(quiet[20:])) < 0.2 * drift.threshold
    loud = [drift.update(mixture(rng, BATCH, OTHER)) or 0.0 for _ in range(200)]
    other = drift.features(mixture(rng, 20_000, OTHER)).mean(0)
    wanted = np.square(other - drift._mean).sum()
    assert np.mean(loud[50:]) == pytest.approx(wanted, rel=0.1)


def test_a_window_that_begins_anew_has_forgotten() -> None:
    rng = np.random.default_rng(3)
    drift = MmdDrift(mixture(rng, 2000, SAME), RUN_LENGTH, rng)
    for _ in range(30):
        drift.update(mixture(rng, BATCH, OTHER))
    drift.begin()
    first = [drift.update(mixture(rng, BATCH, SAME)) for _ in range(FILLED)]
    assert first[:-1] == [None] * (FILLED - 1)
    assert first[-1] is not None and first[-1] < 2 * drift.threshold


def test_one_seed_gives_one_detector() -> None:
    found = []
    for _ in range(2):
        rng = np.random.default_rng(4)
        drift = MmdDrift(mixture(rng, 500, SAME), RUN_LENGTH, rng)
        some = [drift.update(mixture(rng, BATCH, OTHER)) for _ in range(FILLED)]
        found.append((drift.threshold, some[-1]))
    assert found[0] == found[1]


def test_a_reference_that_is_split_anew_has_the_error_of_its_mean() -> None:
    rng = np.random.default_rng(5)
    along = rng.exponential(size=(1000, 8)).astype(np.float32)
    along -= along.mean(0)
    found = _resplit(along, rng)
    wanted = along.var(0) / len(along)
    assert found.var(0).mean() == pytest.approx(wanted.mean(), rel=0.1)
    assert np.abs(found.mean(0)).max() < 4 * np.sqrt(wanted.max() / RUNS)


def test_batches_of_the_reference_are_nothing_on_average_and_vary_as_batches_do() -> None:
    rng = np.random.default_rng(6)
    along = rng.exponential(size=(1000, 8)).astype(np.float32)
    along -= along.mean(0)
    found = _batch_means(along, rng)
    assert np.abs(found.mean(0)).max() < 1e-5
    assert found.var(0).mean() == pytest.approx(along.var(0).mean() / BATCH, rel=0.05)
