"""Random windows for the tests of learning."""

import numpy as np

from schemas.records import Rows, Windows, contributions
from schemas.stream import Shape

START_US = 1_600_000_000_000_000


def random_rows(rng: np.random.Generator, n: int, shape: Shape, kinds: int = 50) -> Rows:
    """Rows in order of time, with ties, gaps, missing and large values."""
    gaps = rng.choice([0, 1, 10**6, 3 * 10**9, 10**11], n)
    time_us = START_US + np.cumsum(gaps * rng.integers(1, 5, n))
    numbers = rng.standard_normal((n, shape.numbers)).astype(np.float32) * 10
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    numbers[rng.random(numbers.shape) < 0.02] = 3e38
    hashes = rng.integers(-(2**63), 2**63 - 1, kinds)
    categories = rng.choice(hashes, (n, shape.categories))
    missing = rng.random((n, shape.categories)) < 0.2
    return Rows(time_us, np.arange(n), numbers, categories, missing)


def totals_of(rows: Rows, shape: Shape) -> np.ndarray:
    """The totals through the last of an entity's first rows, row by row."""
    totals = np.zeros(shape.totals)
    for at in range(len(rows)):
        totals += contributions(rows.numbers[at : at + 1])[0]
        gap = rows.time_us[at] - rows.time_us[at - 1] if at else shape.session_gap_us + 1
        totals[1] += gap > shape.session_gap_us
    return totals


def window_of(rows: Rows, first: int, last: int, shape: Shape, entity: int) -> Windows:
    """Rows first..last-1 of an entity whose records are `rows`."""
    totals = totals_of(rows.take(slice(0, first)), shape)
    totals[1] = totals_of(rows.take(slice(0, first + 1)), shape)[1]
    return Windows(
        rows.take(slice(first, last)),
        np.array([0, last - first]),
        totals[None],
        rows.time_us[:1].copy(),
        np.array([entity], np.int64),
    )


def joined(parts: list[Windows]) -> Windows:
    lengths = [np.diff(w.offsets) for w in parts]
    return Windows(
        Rows.concat([w.rows for w in parts]),
        np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        np.concatenate([w.totals for w in parts]),
        np.concatenate([w.first_us for w in parts]),
        np.concatenate([w.entity for w in parts]),
    )


def random_windows(
    rng: np.random.Generator, entities: int, shape: Shape, longest: int = 12
) -> Windows:
    """One window each of new entities, some with records before it."""
    parts = []
    for _ in range(entities):
        before = int(rng.integers(0, 5))
        n = int(rng.integers(1, longest + 1))
        rows = random_rows(rng, before + n, shape)
        entity = int(rng.integers(-(2**63), 2**63 - 1))
        parts.append(window_of(rows, before, before + n, shape, entity))
    return joined(parts)
