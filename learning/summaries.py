"""A window in a few plain figures of each field, by which fields that moved are named. Shapes: N rows, B windows."""

from collections.abc import Sequence

import numpy as np

from learning.drift import INTERVAL
from schemas.records import F64, I64, ImageRows, Windows, symlog
from schemas.stream import CHANNELS

ROWS = "rows"  # how many a window has
COLOURS = ("red", "green", "blue")
Known = list[tuple[I64, F64]]
"""Of each category field: values, sorted, and the log of each one's share."""


def known(windows: Windows) -> Known:
    """How often each value is in these windows."""
    found = []
    for at in range(windows.rows.categories.shape[1]):
        there = windows.rows.categories[~windows.rows.missing[:, at], at]
        values, count = np.unique(there, return_counts=True)
        found.append((values, np.log(count / max(len(there), 1))))
    return found


def summaries(windows: Windows, names: Sequence[str], shares: Known) -> dict[str, F64]:
    """By field [B, P]: of a number mean, spread and share missing; of categories how usual they are and the share
    missing; the time between records, and how many there are; of images mean and spread of each colour.

    names: of the columns, numbers first. shares: `known` of other windows. No window may be empty."""
    rows = windows.rows
    if isinstance(rows, ImageRows):
        pixels = rows.pixels[windows.offsets[1:] - 1].reshape(len(windows), -1, CHANNELS)
        of = {"mean": pixels.mean(1), "spread": pixels.std(1)}
        return {c: np.stack([v[:, i] for v in of.values()], 1) for i, c in enumerate(COLOURS)}
    width = rows.numbers.shape[1]
    found: dict[str, F64] = {}
    for at, name in enumerate(names[:width]):
        x = symlog(rows.numbers[:, at])
        found[name] = _moments(windows, x, ~np.isnan(x))
    for at, name in enumerate(names[width : width + len(shares)]):
        values, share = shares[at]
        found[name] = _moments(
            windows, _usual(rows.categories[:, at], values, share), ~rows.missing[:, at]
        )
    gap = np.diff(rows.time_us, prepend=rows.time_us[:1])
    inside = np.ones(len(rows), np.bool_)
    inside[windows.offsets[:-1]] = False
    n = np.diff(windows.offsets)
    if inside.any():
        found[INTERVAL] = _moments(windows, np.log1p(np.maximum(gap, 0) * 1e-6), inside)
    found[ROWS] = np.log(n)[:, None]
    return found


def _moments(windows: Windows, x: F64, there: np.ndarray) -> F64:
    """Mean, spread and share missing of what is there. [B, 3]"""
    start, n = windows.offsets[:-1], np.diff(windows.offsets)
    x = np.where(there, x, 0.0)
    some = np.add.reduceat(there.astype(np.float64), start)
    safe = np.maximum(some, 1.0)
    mean = np.add.reduceat(x, start) / safe
    square = np.add.reduceat(x * x, start) / safe
    return np.stack([mean, np.sqrt(np.maximum(square - mean * mean, 0.0)), 1.0 - some / n], 1)


def _usual(column: I64, values: I64, share: F64) -> F64:
    """Log of each value's share; one that is not known is rarer than all."""
    if not len(values):
        return np.zeros(len(column))
    at = np.minimum(np.searchsorted(values, column), len(values) - 1)
    return np.where(values[at] == column, share[at], share.min() - 1.0)
