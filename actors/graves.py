"""Removed edges in the rings of a graph's nodes, or of whole graphs: which rows are dead, and what they take along.

A tombstone is a row of its own (its neighbour `missing`). A row is live if it is no tombstone and the ring
holds none of the same edge behind it: of the same neighbour, or of a whole graph the same two ends, and edge type.
Dead rows stay in the ring, and leave it before their tombstone does, so that a ring without tombstones has no dead
rows: only slots with some come here. All of them are done at once: their rows lie flat, in order of (slot, time,
position).

Shapes: S slots, L rows of a ring, N rows of all S slots, K running totals."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from schemas.records import F64, I64, OFFSET_BITS, Bool, Rows, contributions
from schemas.stream import EDGE_TYPE, ENDS, NEIGHBOUR, TOMBSTONE, Shape

if TYPE_CHECKING:
    from actors.state import Marks, State

CHUNK = 4096  # slots scanned at once
MOST_BURIED = 10_000  # deleted nodes remembered: older ones are long gone from the mirror
FAR = np.iinfo(np.int64).max


def edges(rows: Rows, owner: I64, shape: Shape) -> tuple[I64, ...]:
    """What two rows of one edge have in common: keys for `lexsort`, the first counts most."""
    keys = [owner]
    if shape.whole:  # between the same two nodes, whichever is the source
        ends = np.sort(rows.categories[:, ENDS], axis=1)
        keys += [ends[:, 0], ends[:, 1]]
    else:
        keys.append(rows.categories[:, NEIGHBOUR])
    if shape.typed:
        at = EDGE_TYPE + shape.whole
        untyped = rows.missing[:, at]
        keys += [untyped.astype(np.int64), np.where(untyped, 0, rows.categories[:, at])]
    return tuple(keys)


def next_tombstone(rows: Rows, owner: I64, buries: Bool, shape: Shape) -> I64:
    """Of each row the index of the first tombstone behind it of the same edge; N where there is none.

    owner [N]: the row's slot, ascending, its rows in order. buries [N]: tombstones that count."""
    n = len(rows)
    keys = edges(rows, owner, shape)
    order = np.lexsort((np.arange(n), *reversed(keys)))
    same = np.ones(max(n - 1, 0), np.bool_)
    for key in keys:
        same &= np.diff(key[order]) == 0
    edge = np.concatenate(([0], np.cumsum(~same))) if n else np.zeros(0, np.int64)
    at = np.where(buries[order], np.arange(n), n)
    following = np.append(np.minimum.accumulate(at[::-1])[::-1], n)[1:]
    ours = following < n
    ours[ours] = edge[following[ours]] == edge[ours]
    out = np.full(n, n, np.int64)
    out[order[ours]] = order[following[ours]]
    return out


@dataclass(slots=True)
class Settled:
    """What a merge makes of S rings: their rows flat, and what changes beside them."""

    rows: Rows  # [N] in order, those that leave the ring and those too old for it included
    owner: I64  # [N] 0 to S - 1
    inside: Bool  # [N] was placed in the ring, if only to leave it again
    dead: Bool  # [N]
    totals: F64  # [S, K] of live rows
    first_us: I64  # [S] of the first live row; of the first row here where none is live


def bury(
    old: tuple[Rows, I64, Bool],
    new: tuple[Rows, I64, Bool],
    totals: F64,
    first_us: I64,
    window: int,
    shape: Shape,
) -> Settled:
    """Places new rows among old ones.

    old: rows, owner and which were dead. new: rows, owner and which are too old for the ring.
    totals [S, K], first_us [S]: before; where a slot is new, zeros and anything."""
    s = len(totals)
    rows = Rows.concat((old[0], new[0]))
    owner = np.concatenate((old[1], new[1]))
    was_live = np.concatenate((~old[2], np.zeros(len(new[0]), np.bool_)))
    inside = np.concatenate((np.ones(len(old[0]), np.bool_), ~new[2]))
    known = np.concatenate((old[2], np.zeros(len(new[0]), np.bool_)))
    fresh = np.arange(len(rows)) >= len(old[0])
    order = np.lexsort((np.arange(len(rows)), rows.position, rows.time_us, owner))
    rows = rows.take(order)
    owner = owner[order]
    was_live, inside, known, fresh = (x[order] for x in (was_live, inside, known, fresh))
    tombstone = rows.missing[:, TOMBSTONE]
    following = next_tombstone(rows, owner, tombstone & inside, shape)
    # what leaves the ring before its tombstone comes counts for ever, however records are batched
    reached = (following < len(rows)) & ((following - np.arange(len(rows)) < window) | ~inside)
    dead = known | tombstone | reached
    live = ~dead

    added = contributions(rows.numbers)
    came, went = fresh & live, was_live & dead
    out = totals.copy()
    for sign, which in ((1.0, came), (-1.0, went)):
        at = np.flatnonzero(which)
        if len(at):
            starts = np.flatnonzero(np.diff(owner[at], prepend=-1))
            out[owner[at[starts]]] += sign * np.add.reduceat(added[at], starts, axis=0)

    left = totals[:, 0] - np.bincount(
        owner[was_live], minlength=s
    )  # live rows that are no longer here
    opened = _gaps(rows, owner, was_live, s, shape)
    base = np.where(left > 0, np.maximum(totals[:, 1] - opened, 1.0), _any(owner, live, s))
    out[:, 1] = base + _gaps(rows, owner, live & inside, s, shape)
    out[out[:, 0] == 0] = 0.0  # sums of what came and went are not exactly nothing

    first_live = _first(rows.time_us, owner, live, s)
    first_came = _first(rows.time_us, owner, came, s)
    first = np.where(left > 0, np.minimum(first_us, first_came), first_live)
    lifeless = _first(rows.time_us, owner, np.ones(len(rows), np.bool_), s)
    return Settled(rows, owner, inside, dead, out, np.where(first < FAR, first, lifeless))


def _gaps(rows: Rows, owner: I64, which: Bool, s: int, shape: Shape) -> F64:
    """How many of these rows open a session after another one of their slot. [S]"""
    at = np.flatnonzero(which)
    opens = np.diff(rows.time_us[at]) > shape.session_gap_us
    opens &= np.diff(owner[at]) == 0
    return np.bincount(owner[at[1:]][opens], minlength=s).astype(np.float64)


def _any(owner: I64, which: Bool, s: int) -> F64:
    return (np.bincount(owner[which], minlength=s) > 0).astype(np.float64)


def _first(time_us: I64, owner: I64, which: Bool, s: int) -> I64:
    """The earliest of these rows' times; FAR where a slot has none. [S]"""
    out = np.full(s, FAR)
    np.minimum.at(out, owner[which], time_us[which])
    return out


@dataclass(slots=True)
class Buried:
    """Deleted nodes, and when: partitions are read apart, and after a restart in another order, so that
    what was produced before a deletion may come behind it."""

    since: dict[int, int] = field(
        default_factory=dict
    )  # category_hash -> produced, ms; the oldest first
    _sorted: tuple[I64, I64] | None = None  # nodes rising, and when; None: to be made

    def add(self, node: int, timestamp_ms: int) -> None:
        self._sorted = None
        self.since[node] = max(timestamp_ms, self.since.pop(node, 0))
        if len(self.since) > MOST_BURIED:
            del self.since[next(iter(self.since))]

    def before(self, nodes: I64, timestamp_ms: I64) -> Bool:
        """Which of N nodes were deleted after that. [N]"""
        if self._sorted is None:
            n = len(self.since)
            known = np.fromiter(self.since, np.int64, n)
            order = np.argsort(known)
            self._sorted = known[order], np.fromiter(self.since.values(), np.int64, n)[order]
        known, since = self._sorted
        at = np.minimum(np.searchsorted(known, nodes), len(known) - 1)
        return np.asarray((known[at] == nodes) & (timestamp_ms < since[at]))


# -- on the rings of a state ----------------------------------------------------------------------


def flat(state: "State", slots: I64) -> tuple[Rows, I64, tuple[I64, I64]]:
    """All rows of the slots' rings in order, which of `slots` each is of, and where it stands."""
    placed = state.placed[slots]
    n = np.minimum(placed, state.window)
    owner = np.repeat(np.arange(len(slots)), n)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(n) - n, n)
    at = slots[owner], ((placed - n)[owner] + nth) % state.window
    return Rows(*(getattr(state.rows, f.name)[at] for f in fields(Rows))), owner, at


def merge(state: "State", slots: I64, new: Rows, owner: I64) -> None:
    """Places rows in the slots' rings, late or not, and settles who is dead. owner [N]: which of `slots`."""
    rows, of, at = flat(state, slots)
    outside = np.zeros(len(new), np.bool_)
    placed = state.placed[slots]
    known = np.flatnonzero(placed[owner] > 0)
    if len(known):
        ring, last = slots[owner[known]], placed[owner[known]]
        newest = ring, (last - 1) % state.window
        oldest = ring, np.where(last > state.window, last % state.window, 0)
        time_us, position = new.time_us[known], new.position[known]
        # a removal of what is older may have left the ring too, and would not be known
        outside[known] = state.left(ring) & ~_later(state.rows, oldest, time_us, position)
        behind = ~outside[known] & ~_later(state.rows, newest, time_us, position)
        state.counts.too_old += int(np.count_nonzero(outside))
        state.counts.late += int(np.count_nonzero(behind))
    old = rows, of, state.dead[at]
    before = state.totals[slots], state.first_us[slots]
    found = bury(old, (new, owner, outside), *before, state.window, state.shape)
    state.totals[slots], state.first_us[slots] = found.totals, found.first_us
    placed = placed + np.bincount(owner[~outside], minlength=len(slots))
    state.placed[slots] = placed

    here = np.flatnonzero(found.inside)
    of = found.owner[here]
    n = np.bincount(of, minlength=len(slots))
    nth = np.arange(len(here)) - (np.cumsum(n) - n)[of]
    stays = nth >= (n - state.window)[of]
    here, of, nth = here[stays], of[stays], nth[stays]
    to = slots[of], ((placed - n)[of] + nth) % state.window
    for f in fields(Rows):
        getattr(state.rows, f.name)[to] = getattr(found.rows, f.name)[here]
    dead = found.dead[here]
    state.dead[to] = dead
    state.graves[slots] = _any(of, dead, len(slots)) > 0


def _later(rows: Rows, at: tuple[I64, I64], time_us: I64, position: I64) -> Bool:
    """Whether what comes stands behind the rows that are there, by (time, position)."""
    there = rows.time_us[at]
    return np.asarray((time_us > there) | ((time_us == there) & (position > rows.position[at])))


def live_at(state: "State", slots: I64, lengths: I64, at: I64) -> I64:
    """`at` [S, T], where the newest `lengths` rows of each ring stand, without the dead ones."""
    some = np.flatnonzero(state.graves[slots] & (lengths > 0))
    if not len(some):
        return at
    slots, lengths = slots[some], lengths[some]
    n = np.minimum(state.placed[slots], state.window)
    nth = np.arange(state.window)
    ring = ((state.placed[slots] - n)[:, None] + nth) % state.window
    live = (nth < n[:, None]) & ~state.dead[slots[:, None], ring]
    order = np.argsort(~live, axis=1, kind="stable")  # the live ones to the front
    first = live.sum(1) - lengths
    steps = first[:, None] + np.minimum(np.arange(at.shape[1]), lengths[:, None] - 1)
    out = at.copy()
    out[some] = np.take_along_axis(ring, np.take_along_axis(order, steps, 1), 1)
    return out


def forget_neighbours(state: "State", hashes: I64, positions: I64) -> I64:
    """Nodes are gone: rows that name them become tombstones. Returns the slots that lost live ones.

    hashes [N] of their names; positions [N] of the records that say so, which a slab may already hold."""
    touched = []
    for lo in range(0, len(state.names), CHUNK):
        there = slice(lo, min(lo + CHUNK, len(state.names)))
        neighbours = state.rows.categories[there, :, NEIGHBOUR]
        removed = state.rows.missing[there, :, NEIGHBOUR]
        named = among(neighbours, hashes)  # all at once: a pass for each takes too long
        named &= np.arange(state.window) < state.placed[there, None]
        slots, at = np.nonzero(named & ~removed)
        if state.marks is not None and len(slots):
            held = _held(state.marks, lo + slots, neighbours[slots, at], hashes, positions)
            slots, at = slots[~held], at[~held]
        removed[slots, at] = True
        touched.append(lo + slots)
    slots = np.unique(np.concatenate(touched)) if touched else np.zeros(0, np.int64)
    if len(slots):
        merge(state, slots, Rows.empty(state.shape), np.zeros(0, np.int64))
        state.unsettle(slots)
    return slots


def among(values: I64, ids: I64) -> Bool:
    """Which hashes are among `ids` [M], at least one: their lowest bits rule most out, at a tenth of `isin`'s time."""
    size = 1 << max(16, (8 * len(ids)).bit_length())
    seen = np.zeros(size, np.bool_)
    seen[ids & (size - 1)] = True
    out = seen[values & (size - 1)]
    there, ids = values[out], np.sort(ids)
    at = np.minimum(np.searchsorted(ids, there), len(ids) - 1)
    out[out] = ids[at] == there
    return np.asarray(out)


def _held(marks: "Marks", slots: I64, named: I64, hashes: I64, positions: I64) -> Bool:
    """Of rows which name one of `hashes`, whether their slab holds all deletions of it. [N]"""
    order = np.lexsort((positions, hashes))
    hashes, positions = hashes[order], positions[order]
    topics = positions >> OFFSET_BITS  # of one node's deletions in one topic the last one counts
    last = (np.diff(hashes, append=~hashes[-1:]) != 0) | (np.diff(topics, append=-1) != 0)
    hashes, positions = hashes[last], positions[last]
    first, end = (np.searchsorted(hashes, named, side) for side in ("left", "right"))
    held = np.ones(len(named), np.bool_)
    for nth in range(int((end - first).max())):
        there = np.flatnonzero(first + nth < end)
        held[there] &= marks.hold(slots[there], positions[first[there] + nth])
    return held


def leads_to(state: "State", first: int, last: int, nodes: I64) -> Bool:
    """Which of the slots from `first` to `last` have a row whose neighbour is one of these. [last - first]"""
    there = slice(first, last)
    named = among(state.rows.categories[there, :, NEIGHBOUR], nodes)
    named &= np.arange(state.window) < state.placed[there, None]
    return np.asarray(named.any(1))


def mark_dead(state: "State") -> None:
    """After a restore: a snapshot holds tombstones, not whom they bury."""
    for lo in range(0, len(state.names), CHUNK):
        there = slice(lo, min(lo + CHUNK, len(state.names)))
        in_ring = np.arange(state.window) < state.placed[there, None]
        stones = state.rows.missing[there, :, TOMBSTONE] & in_ring
        slots = lo + np.flatnonzero(stones.any(1))
        rows, owner, at = flat(state, slots)
        stone = rows.missing[:, TOMBSTONE]
        state.dead[at] = stone | (next_tombstone(rows, owner, stone, state.shape) < len(rows))
        state.graves[slots] = True
