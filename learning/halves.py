"""An entity cut in two: what it did first and what it did then. Vectors of both should find each other."""

import dataclasses
import math

import numpy as np

from learning.kinds.events import totals_before
from schemas.records import I64, ImageRows, Windows
from schemas.stream import CHANNELS

LEAST = 4  # rows of an entity that is cut
ENTITIES = 32  # with several sessions: where there are fewer, all are cut at their middle
KEPT = 0.75  # of an image's side, in either part


def halves(
    windows: Windows, session_gap_us: int, between: bool | None = None
) -> tuple[Windows, Windows]:
    """The earlier and the later part of each entity's rows. Of an image the upper left and the lower right part of it,
    which share its middle.

    between: two sessions, at those nearest to the middle of the rows, of the entities that have several; else at the
    middle itself, of those with LEAST rows. None: as `several` says. Parts of one session find each other by when it
    was, and not by whose it is (docs/benchmarks.md, Months)."""
    if isinstance(windows.rows, ImageRows):
        return _part(windows, 0), _part(windows, 1)
    if between is None:
        between = several(windows, session_gap_us)
    which, middle = (_gaps if between else _middles)(windows, session_gap_us)
    start, end = windows.offsets[which], windows.offsets[which + 1]
    earlier = cut(windows, which, start, middle - start, session_gap_us)
    return earlier, cut(windows, which, middle, end - middle, session_gap_us)


def several(windows: Windows, session_gap_us: int) -> bool:
    """Whether enough entities have sessions to be cut between."""
    return (
        not isinstance(windows.rows, ImageRows)
        and len(_gaps(windows, session_gap_us)[0]) >= ENTITIES
    )


def _middles(windows: Windows, _: int) -> tuple[I64, I64]:
    """Which windows are cut, and the first row of each later part."""
    n = np.diff(windows.offsets)
    which = np.flatnonzero(n >= LEAST)
    return which, windows.offsets[which] + n[which] // 2


def _gaps(windows: Windows, session_gap_us: int) -> tuple[I64, I64]:
    """As `_middles`, where a session opens; either part has half of LEAST rows at least."""
    opens = 1 + np.flatnonzero(np.diff(windows.rows.time_us) > session_gap_us)
    owner = np.searchsorted(windows.offsets, opens, side="right") - 1
    start, end = windows.offsets[owner], windows.offsets[owner + 1]
    long = np.minimum(opens - start, end - opens) >= LEAST // 2
    opens, owner, off = opens[long], owner[long], np.abs(2 * opens - start - end)[long]
    order = np.lexsort([off, owner])
    which, first = np.unique(owner[order], return_index=True)
    return which, opens[order][first]


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


def newest_rows(windows: Windows, which: I64, length: I64, gap_us: int) -> Windows:
    """Of some windows their last `length` rows; what went before is in the totals."""
    return cut(windows, which, windows.offsets[which + 1] - length, length, gap_us)


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
