"""What nodes have of their own, the newest that was said of each: by the hash of their names.

Any group holds those of all nodes, so that an edge's far end is known wherever it is. What was said later by
(time, position) wins, whatever comes first: to put again what is there changes nothing. NumPy only: shards hold
one, and the learner does. Shapes: N nodes, S slots."""

from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.records import I64, Features, Told
from schemas.stream import Shape

Arrays = dict[str, npt.NDArray[Any]]
COLUMNS = ("numbers", "categories", "missing")
OWN = ("id", "time_us", "position", "touched")
ENTRY = 8 * len(OWN) + 120  # bytes of a node beside its features, its place in the index included


@dataclass(slots=True)
class Described:
    """What some nodes have of their own, each once; `own` and `far` are places in it, of nodes and of the far nodes
    of their edges. The last of `features` is of a node of which nothing is known."""

    features: Features  # [F + 1]
    own: I64
    far: I64


@dataclass(slots=True)
class NodeTable:
    """Features of up to `slots` nodes; past that the ones that were written longest ago go."""

    shape: Shape
    slots: int
    features: Features = field(init=False)  # columns [S]
    id: I64 = field(init=False)
    time_us: I64 = field(init=False)  # when it was said
    position: I64 = field(init=False)
    touched: I64 = field(init=False)  # clock when written; orders eviction
    index: dict[int, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    used: int = 0  # slots that were ever taken
    clock: int = 0
    evicted: int = 0

    def __post_init__(self) -> None:
        self.features = Features(  # np.empty: memory is taken as slots are used
            np.empty((self.slots, self.shape.node_numbers), np.float32),
            np.empty((self.slots, self.shape.node_categories), np.int64),
            np.empty((self.slots, self.shape.node_categories), np.bool_),
        )
        for name in OWN:
            setattr(self, name, np.zeros(self.slots, np.int64))

    def __len__(self) -> int:
        return len(self.index)

    def put(self, ids: I64, features: Features, time_us: I64, position: I64) -> I64:
        """Takes what was said of N nodes, in any order, some perhaps of one node. Returns the ids [M] of those
        of whom it is the newest, be it again."""
        self.clock += 1
        order = np.lexsort((position, time_us, ids))
        last = order[np.flatnonzero(np.diff(ids[order], append=~ids[order[-1:]]))]
        at = self._find(ids[last])
        known = np.maximum(at, 0)
        later = time_us[last] > self.time_us[known]
        later |= (time_us[last] == self.time_us[known]) & (position[last] >= self.position[known])
        keep = (at < 0) | later
        last, at = last[keep], at[keep]
        if len(last) > self.slots:
            last, at = last[-self.slots :], at[-self.slots :]
        self.touched[at[at >= 0]] = self.clock
        new = np.flatnonzero(at < 0)
        at[new] = self._admit(ids[last[new]])
        for name in COLUMNS:
            getattr(self.features, name)[at] = getattr(features, name)[last]
        self.id[at], self.time_us[at], self.position[at] = ids[last], time_us[last], position[last]
        self.touched[at] = self.clock
        return ids[last]

    def get(self, ids: I64, before_us: I64 | None = None) -> Features:
        """Of nodes, in the axes of `ids`; missing where nothing is known, or where what is was said at
        `before_us` (which goes with `ids`) or later."""
        every, back = np.unique(ids, return_inverse=True)
        at = self._find(every)[back.reshape(ids.shape)]
        unknown = at < 0
        if before_us is not None and len(self.index):
            unknown |= self.time_us[np.maximum(at, 0)] >= before_us
        if not len(self.index):
            return Features.empty(self.shape, *ids.shape)
        found = self.features.take(np.maximum(at, 0))
        found.numbers[unknown], found.missing[unknown] = np.nan, True
        return found

    def describe(self, own: I64, far: I64, before_us: I64 | None = None) -> Described:
        """Of nodes `own` [N, ...] and `far` [N, ..., K]; without what was said at `before_us` [N] or later."""
        every, at = np.unique(np.concatenate([own.ravel(), far.ravel()]), return_inverse=True)
        features = Features.concat([self.get(every), Features.empty(self.shape, 1)])
        places = at[: own.size].reshape(own.shape), at[own.size :].reshape(far.shape)
        if before_us is not None:
            said = self.said_us(every)
            own, far = (
                np.where(said[p] < before_us.reshape(-1, *(1,) * (p.ndim - 1)), p, len(every))
                for p in places
            )
            return Described(features, own, far)
        return Described(features, *places)

    def said_us(self, ids: I64) -> I64:
        """When what is known of these was said; 0 where nothing is. [N]"""
        at = self._find(ids)
        return np.where(at < 0, 0, self.time_us[np.maximum(at, 0)])

    def fill(self, told: Told, numbers: I64, categories: I64) -> int:
        """Puts some of the columns in, of what is known by these very records. Returns of how many nodes."""
        at = self._find(told.node)
        same = at >= 0
        same &= (self.time_us[at] == told.time_us) & (self.position[at] == told.position)
        at, of = at[same, None], told.features.take(same)
        self.features.numbers[at, numbers] = of.numbers[:, numbers]
        self.features.categories[at, categories] = of.categories[:, categories]
        self.features.missing[at, categories] = of.missing[:, categories]
        return len(at)

    def forget(self, ids: I64) -> None:
        for node in ids.tolist():
            slot = self.index.pop(node, None)
            if slot is not None:
                self.free.append(slot)

    def told(self, ids: I64) -> Told:
        """What is known of these, each once, as it was said; of whom nothing is known there is none."""
        at = self._find(np.unique(ids))
        at = at[at >= 0]
        none = np.full(len(at), -1)
        features = self.features.take(at)
        return Told(self.id[at], none, self.time_us[at], self.position[at], 0 * none, features)

    def everything(self) -> Features:
        """Of all nodes that something is known of. [N]"""
        return self.features.take(np.fromiter(self.index.values(), np.int64, len(self.index)))

    def _find(self, ids: I64) -> I64:
        return np.fromiter(map(self.index.get, ids.tolist(), repeat(-1)), np.int64, len(ids))

    def _admit(self, ids: I64) -> I64:
        wanted = len(ids) - (self.slots - self.used) - len(self.free)
        if wanted > 0:
            self._evict(wanted)
        slots = []
        for node in ids.tolist():
            if self.free:
                slot = self.free.pop()
            else:
                slot, self.used = self.used, self.used + 1
            self.index[node] = slot
            slots.append(slot)
        return np.array(slots, np.int64)

    def _evict(self, wanted: int) -> None:
        used = np.fromiter(self.index.values(), np.int64, len(self.index))
        used = used[self.touched[used] < self.clock]
        n = min(len(used), max(wanted, self.slots // 64))
        self.forget(self.id[used[np.argpartition(self.touched[used], n - 1)[:n]]])
        self.evicted += n

    # -- snapshot -----------------------------------------------------------------------------------

    def part(self, first: int, last: int) -> Arrays:
        """The slots from `first` to `last` as columns, those in use."""
        at = np.arange(first, min(last, self.used))
        there = np.fromiter(
            map(self.index.get, self.id[at].tolist(), repeat(-1)), np.int64, len(at)
        )
        at = at[there == at]
        columns = {name: getattr(self.features, name)[at] for name in COLUMNS}
        return columns | {name: getattr(self, name)[at] for name in OWN}

    def take_part(self, a: Arrays) -> None:
        """What `part` gave; of more than there is room for, the ones written last stay."""
        order = np.argsort(a["touched"], kind="stable")
        for at in np.split(order, np.arange(self.slots, len(order), self.slots)):
            if len(at):
                features = Features(*(a[name][at] for name in COLUMNS))
                self.put(a["id"][at], features, a["time_us"][at], a["position"][at])

    def state_dict(self) -> Arrays:
        return self.part(0, self.used)

    def load_state_dict(self, state: Arrays) -> None:
        self.take_part(state)
