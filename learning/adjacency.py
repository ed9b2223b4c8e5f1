"""The most recent edges of every node, as they were at any recent moment: the learner's own replica.

Rings of rows, each edge once on each side. What is asked is always *as of* a time: edges at or after it are
not among the neighbours, so that nothing is learnt from its own future, whatever has been added since.
Shapes: P asked nodes, R rows of a ring, K rows of a window."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from learning.held_out import mixed
from schemas.records import I64, Bool, Rows, Windows
from schemas.stream import DIRECTION, EDGE_TYPE, NEIGHBOUR, Shape

Arrays = dict[str, npt.NDArray[Any]]
SLACK = 2  # rings hold so many windows: what came since does not push out what was there before
# for as many edges of one node as a window has: see EdgeReplay
PAST = 32  # nodes that a node's own edges ever led to, at random, kept beyond the ring
COLUMNS = ("time_us", "position", "numbers", "categories", "missing")
OWN = ("placed", "touched", "id", "past", "led")


def dead(rows: Rows, there: Bool, typed: bool) -> Bool:
    """Which rows [P, R] are tombstones, or have a later tombstone of their edge. Rows in order of time."""
    out = rows.missing[..., NEIGHBOUR] & there
    some = np.flatnonzero(out.any(1))
    if len(some):
        tomb, hashes = out[some], rows.categories[some]
        same = hashes[:, :, None, NEIGHBOUR] == hashes[:, None, :, NEIGHBOUR]
        if typed:
            kind = np.where(rows.missing[some, :, EDGE_TYPE], 0, hashes[..., EDGE_TYPE])
            same &= kind[:, :, None] == kind[:, None, :]
        later = np.triu(np.ones(same.shape[1:], np.bool_), 1)
        out[some] |= (same & later & tomb[:, None, :]).any(2)
    return np.asarray(out)


def newest_of(column: npt.NDArray[Any], many: I64, size: int) -> npt.NDArray[Any]:
    """Of rows that stand along the axis behind those of `many`, the first `many` taken: the newest `size` of them at
    most, in as many places."""
    at = np.maximum(many - size, 0)[..., None] + np.arange(size)
    at = np.minimum(at, column.shape[many.ndim] - 1)
    more = (1,) * (column.ndim - at.ndim)
    return np.take_along_axis(column, at.reshape(at.shape + more), many.ndim)


@dataclass(slots=True)
class Adjacency:
    """Rings of up to `slots` nodes, whose ids are category_hash of their names."""

    shape: Shape
    window: int
    slots: int
    leads: bool = (
        True  # keep a sample of whom each node's own edges led to: `past_targets` reads it
    )
    rows: Rows = field(init=False)  # columns [slots, R, ...]
    placed: I64 = field(init=False)  # [slots] rows in the ring, the first of its places
    touched: I64 = field(init=False)  # [slots] clock when last touched; orders eviction
    id: I64 = field(init=False)
    past: I64 = field(init=False)  # [slots, PAST] ids, the first min(`led`, PAST) of them
    led: I64 = field(init=False)  # [slots] how many there ever were
    taken: Bool = field(init=False)  # [slots] those of known nodes
    index: dict[int, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    clock: int = 0
    removals: int = 0  # tombstones ever added; without any the search for the dead is left out

    def __post_init__(self) -> None:
        e, r, s = self.slots, SLACK * self.window, self.shape
        self.rows = Rows(  # np.empty: memory is taken as slots are used
            np.empty((e, r), np.int64),
            np.empty((e, r), np.int64),
            np.empty((e, r, s.numbers), np.float32),
            np.empty((e, r, s.categories), np.int64),
            np.empty((e, r, s.categories), np.bool_),
        )
        self.placed, self.touched, self.id, self.led = (np.zeros(e, np.int64) for _ in range(4))
        self.taken = np.zeros(e, np.bool_)
        self.past = np.empty((e, PAST), np.int64)
        self.free = list(range(e - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.index)

    def known(self) -> I64:
        """The slots of all nodes, rising."""
        return np.flatnonzero(self.taken)

    def add(self, source: I64, rows: Rows) -> None:
        """Edges by their source's row [N], in order; the other end's row is made here."""
        n = len(rows)
        if not n:
            return
        self.removals += int(np.count_nonzero(rows.missing[:, NEIGHBOUR]))
        target = rows.categories[:, NEIGHBOUR]
        loops = source == target
        back = rows.take(~loops)
        back = Rows(
            back.time_us, back.position, back.numbers.copy(), back.categories.copy(), back.missing
        )
        back.numbers[:, DIRECTION] = 0.0
        back.categories[:, NEIGHBOUR] = source[~loops]
        ids = np.concatenate([source, target[~loops]])
        both = Rows.concat((rows, back))
        slots = self.slots_for(ids)
        if self.leads:
            self._lead(slots[:n], target)
        order = np.lexsort((np.concatenate([np.arange(n), np.flatnonzero(~loops)]), slots))
        self._merge(slots[order], both.take(order))

    def _merge(self, slots: I64, rows: Rows) -> None:
        """Rows into the rings, which stay in order of time; of more than fit the oldest go. slots ascending."""
        starts = np.flatnonzero(np.diff(slots, prepend=-1))
        lengths = np.diff(starts, append=len(slots))
        steps, ring = np.arange(int(lengths.max(initial=0))), SLACK * self.window
        at = starts[:, None] + np.minimum(steps, lengths[:, None] - 1)
        which = slots[starts]
        there = np.concatenate([self._there(which), steps < lengths[:, None]], 1)
        both = {
            name: np.concatenate([getattr(self.rows, name)[which], getattr(rows, name)[at]], axis=1)
            for name in COLUMNS
        }
        stamps = np.where(there, both["time_us"], np.iinfo(np.int64).max)
        order = np.argsort(stamps, axis=1, kind="stable")  # what is there first, oldest first
        n = there.sum(1)
        first = np.maximum(n - ring, 0)
        chosen = np.take_along_axis(order, first[:, None] + np.arange(ring), axis=1)
        line = np.arange(len(which))[:, None]
        for name in COLUMNS:
            getattr(self.rows, name)[which] = both[name][line, chosen]
        self.placed[which] = np.minimum(n, ring)

    def _lead(self, slots: I64, targets: I64) -> None:
        """A sample of each node's targets, each once: the k-th takes a place with probability PAST / k."""
        known = (self.past[slots] == targets[:, None]) & (np.arange(PAST) < self.led[slots, None])
        at = np.flatnonzero(~known.any(1))
        pairs = np.unique(np.stack([slots[at], targets[at]]), axis=1)
        slots, targets = pairs[0], pairs[1]
        k = self.led[slots] + np.arange(len(slots)) - np.searchsorted(slots, slots)
        place = np.where(k < PAST, k, mixed(targets + k).view(np.uint64) % (k + 1).view(np.uint64))
        np.add.at(self.led, slots, 1)
        taken = place < PAST
        self.past[slots[taken], place[taken].astype(np.int64)] = targets[taken]

    def past_targets(self, slots: I64, n: int, rng: np.random.Generator) -> I64:
        """Nodes [P, n] that each node's own edges led to; the node itself where there were none."""
        many = np.minimum(np.where(slots < 0, 0, self.led[slots]), PAST)
        pick = (rng.random((len(slots), n)) * np.maximum(many, 1)[:, None]).astype(np.int64)
        found = self.past[slots[:, None], pick]
        return np.where(many[:, None] > 0, found, self.id[slots][:, None])

    def slots_for(self, ids: I64) -> I64:
        """The slots of these nodes; unknown ones get one, the least recently touched go."""
        self.clock += 1
        found = np.fromiter((self.index.get(i, -1) for i in ids.tolist()), np.int64, len(ids))
        self.touched[found[found >= 0]] = self.clock
        new = list(dict.fromkeys(ids[found < 0].tolist()))
        if new:
            if len(new) > len(self.free):
                self._evict(len(new) - len(self.free))
            for node in new:
                slot = self.free.pop()
                self.index[node], self.id[slot], self.taken[slot] = slot, node, True
                self.placed[slot] = self.led[slot] = 0
                self.touched[slot] = self.clock
            missing = np.flatnonzero(found < 0)
            found[missing] = [self.index[i] for i in ids[missing].tolist()]
        return found

    def _evict(self, wanted: int) -> None:
        used = self.known()
        used = used[self.touched[used] < self.clock]
        if len(used) < wanted:
            raise ValueError(
                f"{wanted} new nodes at once, and only {len(used)} of {self.slots} slots can be freed: "
                "raise learner.replay.max_bytes."
            )
        n = min(len(used), max(wanted, self.slots // 64))
        self._release(used[np.argpartition(self.touched[used], n - 1)[:n]])

    def _release(self, slots: I64) -> None:
        for slot in slots.tolist():
            del self.index[int(self.id[slot])]
            self.taken[slot] = False
            self.free.append(slot)

    def forget(self, ids: I64) -> None:
        """Drops these nodes, and every row that names one as a neighbour."""
        ids = np.unique(ids)
        known = [self.index[i] for i in ids.tolist() if i in self.index]
        self._release(np.array(known, np.int64))
        live = self.known()
        gone = np.isin(self.past[live], ids)
        self.past[live] = np.where(gone, self.id[live][:, None], self.past[live])
        named = np.isin(self.rows.categories[live][..., NEIGHBOUR], ids) & self._there(live)
        for slot in live[named.any(1)].tolist():
            keep = ~np.isin(self.rows.categories[slot, :, NEIGHBOUR], ids)
            keep &= self._there(np.array([slot]))[0]
            n = int(keep.sum())
            for name in COLUMNS:
                column = getattr(self.rows, name)
                column[slot, :n] = column[slot][keep]
            self.placed[slot] = n

    # -- what was there -----------------------------------------------------------------------------

    def _there(self, slots: I64) -> Bool:
        """[P, R] which places of the rings are taken."""
        return np.asarray(np.arange(SLACK * self.window) < self.placed[slots][:, None])

    def as_of(self, slots: I64, time_us: I64) -> tuple[Rows, I64]:
        """Of the newest K rows of each node before its time those that are live, oldest first, padded behind; how
        many. [P, K]

        As a ring of K rows would have it, tombstones included. slots below zero: nodes without any."""
        known = slots >= 0
        at = np.where(known, slots, 0)
        rows = Rows(*(getattr(self.rows, name)[at] for name in COLUMNS))
        there = self._there(at) & known[:, None] & (rows.time_us < time_us[:, None])
        end = there.sum(1)  # in order of time: those before it come first
        there &= np.arange(there.shape[1]) >= (end - self.window)[:, None]
        if self.removals:
            there &= ~dead(rows, there, self.shape.typed)
        length = there.sum(1)
        chosen = np.argsort(~there, axis=1, kind="stable")
        last = np.maximum(length - 1, 0)[:, None]
        steps = np.minimum(np.arange(self.window), last)
        chosen = np.take_along_axis(chosen, steps, axis=1)
        out = rows.take((np.arange(len(at))[:, None], chosen))
        out.time_us[length == 0] = time_us[length == 0, None]
        out.numbers[length == 0] = np.nan
        out.missing[length == 0] = True
        return out, length

    def windows(self, slots: I64) -> Windows:
        """All live rows (K at most) of these nodes now, flat."""
        now = np.full(len(slots), np.iinfo(np.int64).max)
        rows, length = self.as_of(slots, now)
        keep = np.arange(self.window) < length[:, None]
        flat = rows.take(keep)
        first = np.where(length > 0, rows.time_us[:, 0], 0)
        offsets = np.concatenate([[0], np.cumsum(length)])
        return Windows(
            flat, offsets, np.zeros((len(slots), self.shape.totals)), first, self.id[slots]
        )

    # -- snapshot -----------------------------------------------------------------------------------

    def state_dict(self) -> Arrays:
        used = self.known()
        columns = {name: getattr(self.rows, name)[used] for name in COLUMNS}
        own = {name: getattr(self, name)[used] for name in OWN}
        counts = np.array([self.clock, self.removals])
        return {**columns, **own, "slot": used, "free": np.array(self.free), "counts": counts}

    def load_state_dict(self, state: Arrays) -> None:
        """Of another number of slots: the most recently touched nodes that there is room for; of rings of another
        length the newest rows."""
        ring, placed = SLACK * self.window, state["placed"]
        if state["time_us"].shape[1] != ring:
            rows = {name: newest_of(state[name], placed, ring) for name in COLUMNS}
            state = {**state, **rows, "placed": np.minimum(placed, ring)}
        used, free = state["slot"], state["free"]
        keep = np.arange(len(used))
        if len(used) + len(free) != self.slots:
            keep = np.sort(np.argsort(-state["touched"], kind="stable")[: self.slots])
            used = np.arange(len(keep))
            free = np.arange(self.slots - 1, len(keep) - 1, -1)
        for name in COLUMNS:
            getattr(self.rows, name)[used] = state[name][keep]
        for name in OWN:
            getattr(self, name)[used] = state[name][keep]
        self.index = dict(zip(state["id"][keep].tolist(), used.tolist(), strict=True))
        self.taken[:] = False
        self.taken[used] = True
        self.free = free.tolist()
        self.clock, self.removals = state["counts"].tolist()
