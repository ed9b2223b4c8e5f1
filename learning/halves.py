"""An entity cut in two: what it did first and what it did then. Vectors of both should find each other."""

import dataclasses
import math

import numpy as np

from learning.kinds.events import totals_before
from schemas.records import I64, ImageRows, Windows
from schemas.stream import CHANNELS

LEAST = 4  # rows of an entity that is cut
KEPT = 0.75  # of an image's side, in either part


def halves(windows: Windows, session_gap_us: int) -> tuple[Windows, Windows]:
    """The earlier and the later half of each entity's rows, of the entities with LEAST rows at least. Of an image the
    upper left and the lower right part of it, which share its middle."""
    if isinstance(windows.rows, ImageRows):
        return _part(windows, 0), _part(windows, 1)
    n = np.diff(windows.offsets)
    which = np.flatnonzero(n >= LEAST)
    start, n = windows.offsets[which], n[which]
    middle = start + n // 2
    earlier = cut(windows, which, start, middle - start, session_gap_us)
    return earlier, cut(windows, which, middle, start + n - middle, session_gap_us)


def cut(windows: Windows, which: I64, start: I64, length: I64, gap_us: int) -> Windows:
    """Of some windows `length` rows from row `start` on, a run each."""
    ends = np.cumsum(length)
    at = np.arange(int(length.sum())) + np.repeat(start - ends + length, length)
    return Windows(
        windows.rows.take(at),
        np.concatenate([[0], ends]),
        totals_before(windows, which, start, gap_us),
        windows.first_us[which],
        windows.entity[which],
        None if windows.own is None else windows.own.take(which),
        None if windows.far is None else windows.far.take(at),
    )


def _part(windows: Windows, corner: int) -> Windows:
    rows = windows.rows
    assert isinstance(rows, ImageRows)
    side = math.isqrt(rows.pixels.shape[1] // CHANNELS)
    kept = max(1, round(KEPT * side))
    at = slice(0, kept) if corner == 0 else slice(side - kept, side)
    pixels = rows.pixels.reshape(len(rows), side, side, CHANNELS)[:, at, at]
    return dataclasses.replace(
        windows, rows=dataclasses.replace(rows, pixels=pixels.reshape(len(rows), -1))
    )
