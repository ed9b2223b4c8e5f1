"""Rows that come late into a ring of events or images: placed by (time, position). Graphs: see graves.py."""

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from schemas.records import Rows

if TYPE_CHECKING:
    from actors.state import State


def merge(state: "State", slot: int, new: Rows) -> None:
    """Rows among which some are older than what the entity has: placed by (time, position)."""
    placed, gap = int(state.placed[slot]), state.shape.session_gap_us
    old = _ring(state, slot)
    whole = not (placed > state.window or state.gone[slot])  # nothing has left the ring yet
    opened = np.count_nonzero(np.diff(old.time_us) > gap)
    before_ring = 1.0 if whole else state.totals[slot, 1] - opened
    if not whole:  # what is older than the ring has no place in it
        oldest = old.time_us[0], old.position[0]
        fits = (new.time_us > oldest[0]) | ((new.time_us == oldest[0]) & (new.position > oldest[1]))
        state.counts.too_old += int(np.count_nonzero(~fits))
        new = new.take(fits)
    newest = old.time_us[-1], old.position[-1]
    behind = (new.time_us < newest[0]) | ((new.time_us == newest[0]) & (new.position <= newest[1]))
    state.counts.late += int(np.count_nonzero(behind))
    merged = Rows.concat((old, new))
    merged = merged.take(np.lexsort((np.arange(len(merged)), merged.position, merged.time_us)))
    state.totals[slot, 1] = before_ring + np.count_nonzero(np.diff(merged.time_us) > gap)
    placed += len(new)
    merged = merged.take(slice(-state.window, None))
    to = (placed - len(merged) + np.arange(len(merged))) % state.window
    for f in fields(state.rows):
        getattr(state.rows, f.name)[slot, to] = getattr(merged, f.name)
    state.not_in_twin(slot)
    state.placed[slot] = placed


def _ring(state: "State", slot: int) -> Rows:
    placed = int(state.placed[slot])
    n = min(placed, state.window)
    at = (placed - n + np.arange(n)) % state.window
    return state.rows.take((np.full(n, slot), at))
