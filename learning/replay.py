"""Windows kept for learning: half of each batch is fresh, half is drawn from all there are.

Bounded in bytes, flat columns, no object per window. An entity owns a few windows of different
ages; a newer window replaces the one that holds its earlier rows. When full, a random old one
goes, so that what is kept fades slowly instead of falling off an edge.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from learning.config import ReplayConfig
from learning.held_out import mixed
from schemas.records import I64, Bool, Rows, Windows
from schemas.stream import Shape

State = dict[str, npt.NDArray[Any]]


class Replay:
    """Slots of `window` rows each; row columns are [slots · window], the others [slots]."""

    def __init__(self, config: ReplayConfig, shape: Shape, window: int) -> None:
        slot = window * shape.row_bytes + 8 * shape.totals + 50
        self._config = config
        self._window = window
        self._falls = shape.graph  # counts may: removed edges do not count
        self.slots = max(2, config.max_bytes // slot)
        self._rows = Rows(  # np.empty: memory is taken as slots are used
            np.empty(self.slots * window, np.int64),
            np.empty(self.slots * window, np.int64),
            np.empty((self.slots * window, shape.numbers), np.float32),
            np.empty((self.slots * window, shape.categories), np.int64),
            np.empty((self.slots * window, shape.categories), np.bool_),
        )
        self._totals = np.empty((self.slots, shape.totals))
        self._length, self._first_us, self._entity, self._time_us, self._key, self._count = (
            np.zeros(self.slots, np.int64) for _ in range(6)
        )
        self._fresh = np.zeros(self.slots, np.bool_)
        self._free = 0  # slots from here on were never used
        self._sorted = np.empty(0, np.int64)  # keys in use, in order
        self._slot_of = np.empty(0, np.int64)  # their slots

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def fresh(self) -> int:
        """Windows not learnt from yet."""
        return int(self._fresh.sum())

    @property
    def entities(self) -> npt.NDArray[np.int64]:
        """Every entity once."""
        return np.unique(self._entity[self._slot_of])

    def add(self, windows: Windows, rng: np.random.Generator) -> I64:
        """Keeps windows of no more than `window` rows (their newest); returns how many rows of
        each were not seen before."""
        n = np.diff(windows.offsets)
        count = windows.totals[:, 0].astype(np.int64) + n
        era = count // self._window
        key = self._keys(windows.entity, era)
        seen = np.maximum(self._count_of(key), self._count_of(self._keys(windows.entity, era - 1)))
        # a key's older era, or an entity that began anew; a graph has lost edges
        seen = np.minimum(seen, count) if self._falls else np.where(seen > count, 0, seen)
        last = _last_of_each(key)
        self._put(last, key, count, self._slots_for(key[last], rng), windows)
        return np.clip(count - seen, 0, n)

    def _keys(self, entity: I64, era: I64) -> I64:
        return mixed(entity + era % self._config.per_entity)

    def _find(self, key: I64) -> tuple[I64, Bool]:
        """Place of each key in the sorted ones, and whether it is there."""
        at = np.searchsorted(self._sorted, key)
        there = np.zeros(len(key), np.bool_)
        inside = at < len(self._sorted)
        there[inside] = self._sorted[at[inside]] == key[inside]
        return at, there

    def _count_of(self, key: I64) -> I64:
        at, there = self._find(key)
        count = np.zeros(len(key), np.int64)
        count[there] = self._count[self._slot_of[at[there]]]
        return count

    def _slots_for(self, key: I64, rng: np.random.Generator) -> I64:
        """A slot for each of these distinct keys; -1 where more came than there is room."""
        room = self.slots - len(self)
        new = key[~self._find(key)[1]]
        if len(new) > room:
            old = np.flatnonzero(~np.isin(self._sorted, key))
            gone = rng.permutation(old)[: len(new) - room]
            self._remove(gone)
        new = new[: self.slots - len(self)]
        slots = self._unused(len(new))
        order = np.argsort(new)
        at = np.searchsorted(self._sorted, new[order])
        self._sorted = np.insert(self._sorted, at, new[order])
        self._slot_of = np.insert(self._slot_of, at, slots[order])
        at, there = self._find(key)
        out = np.full(len(key), -1, np.int64)
        out[there] = self._slot_of[at[there]]
        return out

    def _unused(self, n: int) -> I64:
        fresh_memory = np.arange(self._free, min(self.slots, self._free + n))
        self._free += len(fresh_memory)
        if len(fresh_memory) == n:
            return fresh_memory
        used = np.zeros(self._free, np.bool_)
        used[self._slot_of] = True
        used[fresh_memory] = True
        return np.concatenate([fresh_memory, np.flatnonzero(~used)[: n - len(fresh_memory)]])

    def _remove(self, places: I64) -> None:
        self._fresh[self._slot_of[places]] = False
        self._sorted = np.delete(self._sorted, places)
        self._slot_of = np.delete(self._slot_of, places)

    def _put(self, which: I64, key: I64, count: I64, slots: I64, windows: Windows) -> None:
        which, slots = which[slots >= 0], slots[slots >= 0]
        end = windows.offsets[which + 1]
        n = np.minimum(end - windows.offsets[which], self._window)
        if (n < end - windows.offsets[which]).any():
            raise ValueError(f"A window has more than {self._window} rows; cut it first.")
        source, target = _runs(end - n, n), _runs(slots * self._window, n)
        for f in fields(Rows):
            getattr(self._rows, f.name)[target] = getattr(windows.rows, f.name)[source]
        self._totals[slots] = windows.totals[which]
        self._length[slots] = n
        self._first_us[slots] = windows.first_us[which]
        self._entity[slots] = windows.entity[which]
        self._time_us[slots] = windows.rows.time_us[end - 1]
        self._key[slots] = key[which]
        self._count[slots] = count[which]
        self._fresh[slots] = True

    def draw(self, n: int, rng: np.random.Generator) -> Windows:
        """Up to n windows, each of another entity; the fresh ones among them are fresh no more."""
        fresh = np.sort(self._slot_of[self._fresh[self._slot_of]])
        fresh = rng.permutation(fresh)[: round(n * self._config.fresh)]
        chosen = np.concatenate([fresh, self._stratified(2 * n, rng)])
        _, first = np.unique(self._entity[chosen], return_index=True)
        chosen = chosen[np.sort(first)][:n]
        self._fresh[chosen] = False
        return self.take(chosen)

    def _stratified(self, n: int, rng: np.random.Generator) -> I64:
        """Equally many from equal spans of time; within one, entities count alike."""
        slots = self._slot_of
        if not len(slots):
            return slots
        time_us, strata = self._time_us[slots], self._config.strata
        oldest = int(time_us.min())
        width = (int(time_us.max()) - oldest) // strata + 1
        which = ((time_us - oldest) // width).astype(np.uint16)  # 16 bits: a radix sort
        slots = slots[np.argsort(which, kind="stable")]
        bound = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=strata))])
        stratum = rng.permutation(np.arange(n) % strata)
        low, high = bound[stratum], bound[stratum + 1]
        empty = low == high
        low[empty], high[empty] = 0, len(slots)
        return np.asarray(slots[rng.integers(low, high)])

    def take(self, slots: I64) -> Windows:
        """The windows of these slots."""
        n = self._length[slots]
        return Windows(
            self._rows.take(_runs(slots * self._window, n)),
            np.concatenate([[0], np.cumsum(n)]),
            self._totals[slots],
            self._first_us[slots],
            self._entity[slots],
        )

    def newest(self, n: int) -> Windows:
        """One window each of the n entities with the smallest hashes: the same, while they last."""
        order = self._slot_of[np.argsort(self._time_us[self._slot_of], kind="stable")[::-1]]
        _, first = np.unique(self._entity[order], return_index=True)
        return self.take(order[first[:n]])

    def forget(self, entities: I64) -> None:
        """Drops every window of these."""
        self._remove(np.flatnonzero(np.isin(self.owners(), entities)))

    def owners(self) -> I64:
        """The entity of every window kept."""
        return np.asarray(self._entity[self._slot_of])

    def state_dict(self) -> State:
        """Everything, without the room not used."""
        kept = self.take(self._slot_of)
        rows = {f"rows.{f.name}": getattr(kept.rows, f.name) for f in fields(Rows)}
        one = {name: getattr(self, f"_{name}")[self._slot_of] for name in _PER_SLOT}
        return {**rows, **one, "slot_of": self._slot_of.copy(), "free": np.array([self._free])}

    def load_state_dict(self, state: State) -> None:
        slots = state["slot_of"]
        if len(slots) and int(slots.max()) >= self.slots:
            raise ValueError("The snapshot's replay is larger than learner.replay.max_bytes.")
        target = _runs(slots * self._window, state["length"])
        for f in fields(Rows):
            getattr(self._rows, f.name)[target] = state[f"rows.{f.name}"]
        self._fresh[:] = False
        for name in _PER_SLOT:
            getattr(self, f"_{name}")[slots] = state[name]
        self._slot_of, self._sorted = slots.copy(), state["key"].copy()
        self._free = int(state["free"][0])


_PER_SLOT = ("totals", "length", "first_us", "entity", "time_us", "key", "count", "fresh")


def _runs(start: I64, length: I64) -> I64:
    """start[0], start[0]+1, ... for length[0] numbers, then start[1], ..."""
    ends = np.cumsum(length)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - ends + length, length)


def _last_of_each(key: I64) -> I64:
    """Index of the last occurrence of each distinct key."""
    _, first = np.unique(key[::-1], return_index=True)
    return np.sort(len(key) - 1 - first)
