"""What the learner remembers of each node for an encoder with a memory: exact states, for one step of truncated
backpropagation through time.

Kept per node: its newest edge's row and the state before it, so that the last step is taken anew with gradient; and
the states after it. A batch is advanced without gradient by each node's rank of its edges in it, so that no state is
stale; what is asked of a node as of a time is its newest edge before that time, be it of the same batch.

The anchor rule (schemas/published.py) makes a state begin anew with every half window: two states run, one since the
last anchor but one, which serves, and one since the last, which takes its place at the next anchor.
Shapes: S slots of the adjacency, E ends of a batch's edges, U nodes among them, Q asked, n hidden."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learning.adjacency import COLUMNS, Adjacency
from learning.contract import View
from learning.encoders.graph_memory import GraphMemoryEncoder
from learning.kinds.events import tensors
from schemas.records import F32, I64, Bool, Features, Rows
from schemas.stream import NEIGHBOUR, Shape

Arrays = dict[str, npt.NDArray[Any]]
FarOf = Callable[[I64, I64], Features]
"""Features of nodes [E] as they were said before times [E]."""
KEPT = ("id", "count", "begun", "has", "stale", "before_us", "before", "after")


@dataclass(slots=True)
class Found:
    """Of Q nodes: the newest edge before the time asked, and the state before it."""

    rows: Rows  # [Q]
    before_us: I64  # [Q] when the edge before that one was; its own time where there is none
    state: F32  # [Q, n]
    has: Bool  # [Q] there is such an edge
    lost: Bool  # [Q] cannot be said: it knows of later edges, or some of this batch came late or were removed


class Memory:
    """Beside an adjacency, by its slots."""

    def __init__(self, shape: Shape, slots: int, window: int, hidden: int) -> None:
        self.half = window // 2
        self.rows = Rows(  # np.empty: memory is taken as slots are used
            np.empty(slots, np.int64),
            np.empty(slots, np.int64),
            np.empty((slots, shape.numbers), np.float32),
            np.empty((slots, shape.categories), np.int64),
            np.empty((slots, shape.categories), np.bool_),
        )
        self.id, self.count, self.begun = (np.zeros(slots, np.int64) for _ in range(3))
        self.before_us = np.zeros(slots, np.int64)
        self.has, self.stale = np.zeros(slots, np.bool_), np.zeros(slots, np.bool_)
        self.before = np.empty((slots, hidden), np.float32)
        self.after = np.empty((slots, 2, hidden), np.float32)

    def _reset(self, slots: I64, count: I64 | int) -> None:
        self.has[slots] = self.stale[slots] = False
        self.count[slots] = self.begun[slots] = count

    def reconcile(self, adjacency: Adjacency, slots: I64) -> None:
        """Slots that have changed hands begin anew."""
        new = slots[self.id[slots] != adjacency.id[slots]]
        self.id[new] = adjacency.id[new]
        self._reset(new, 0)

    @torch.no_grad()
    def advance(
        self,
        encoder: GraphMemoryEncoder,
        adjacency: Adjacency,
        slots: I64,
        rows: Rows,
        far_of: FarOf | None,
        asked: I64,
        asked_us: I64,
    ) -> Found:
        """Takes the ends' rows [E], which are in the adjacency, in order; answers for the slots asked [Q], -1 a
        node that is not known."""
        known = np.maximum(asked, 0)
        self.reconcile(adjacency, np.concatenate([slots, known]))
        order = np.argsort(slots, kind="stable")
        slots, rows = slots[order], rows.take(order)
        broken = np.union1d(self._broken(slots, rows), known[self.stale[known]])
        good = ~np.isin(slots, broken)
        events = _Events(self, slots[good], rows.take(good))
        new = events.run(encoder, self, far_of)
        found = self._answer(events, new, asked, asked_us)
        found.lost |= np.isin(asked, broken)
        events.store(self, new)
        self.count[broken] += np.bincount(
            np.searchsorted(broken, slots[~good]), minlength=len(broken)
        )
        self.rebuild(encoder, adjacency, broken, far_of)
        return found

    def _broken(self, slots: I64, rows: Rows) -> I64:
        """Nodes whose state is not the one before and a step: an edge came late, or was removed, or the ring
        was changed. Ascending."""
        first = np.diff(slots, prepend=-1) != 0
        before = np.concatenate([rows.time_us[:1], rows.time_us[:-1]])
        before[first] = np.where(
            self.has[slots[first]], self.rows.time_us[slots[first]], np.iinfo(np.int64).min
        )
        wrong = (rows.time_us < before) | rows.missing[:, NEIGHBOUR] | self.stale[slots]
        return np.unique(slots[wrong])

    def rebuild(
        self, encoder: GraphMemoryEncoder, adjacency: Adjacency, slots: I64, far_of: FarOf | None
    ) -> None:
        """The states of these nodes from their live edges, as the anchor rule has them."""
        if not len(slots):
            return
        windows, n = adjacency.windows(slots), self.count[slots]
        live = np.diff(windows.offsets)
        w = np.minimum(live, np.where(n < self.half, n, self.half + n % self.half))
        self._reset(slots, n - w)
        ends = np.cumsum(w)
        at = np.arange(int(w.sum())) + np.repeat(windows.offsets[1:] - ends, w)
        events = _Events(self, np.repeat(slots, w), windows.rows.take(at))
        events.store(self, events.run(encoder, self, far_of))

    def _answer(self, events: "_Events", new: "_Cells", asked: I64, asked_us: I64) -> Found:
        """Of nodes in the batch their newest edge of it before the time, else what was kept before the batch."""
        everyone = _Cells.stored(self, np.maximum(asked, 0))
        node = np.searchsorted(events.nodes, asked)
        inside = node < len(events.nodes)
        inside[inside] = events.nodes[node[inside]] == asked[inside]
        if inside.any():
            q = np.flatnonzero(inside)
            place = events.newest_before(node[q], asked_us[q])
            here = place >= 0
            everyone.put(q[here], new, place[here])
        has = everyone.has & (asked >= 0)
        late = has & (everyone.rows.time_us >= asked_us)  # the state before its edge is gone
        return Found(everyone.rows, everyone.before_us, everyone.before, has & ~late, late)

    def forget(self, slots: I64) -> None:
        """Nodes that are no more."""
        self._reset(slots, 0)
        self.id[slots] = 0

    def nbytes(self) -> int:
        kept = sum(getattr(self, name).nbytes for name in KEPT)
        return int(kept + self.rows.nbytes)

    # -- snapshot -----------------------------------------------------------------------------------

    def state_dict(self, used: I64) -> Arrays:
        """Of the slots that are used."""
        rows = {f"rows.{name}": getattr(self.rows, name)[used] for name in COLUMNS}
        return {**rows, **{name: getattr(self, name)[used] for name in KEPT}}

    def load_state_dict(self, state: Arrays, adjacency: Adjacency) -> None:
        """Into an adjacency that was restored: what it has no room for is left out."""
        slots = np.array([adjacency.index.get(i, -1) for i in state["id"].tolist()], np.int64)
        keep = slots >= 0
        for name in KEPT:
            getattr(self, name)[slots[keep]] = state[name][keep]
        for name in COLUMNS:
            getattr(self.rows, name)[slots[keep]] = state[f"rows.{name}"][keep]


@dataclass(slots=True)
class _Cells:
    """Edges and the states before them. [N]"""

    rows: Rows
    before_us: I64
    before: F32
    has: Bool

    @classmethod
    def stored(cls, memory: Memory, slots: I64) -> "_Cells":
        return cls(
            memory.rows.take(slots),
            memory.before_us[slots],
            memory.before[slots],
            memory.has[slots],
        )

    def put(self, at: I64, other: "_Cells", which: I64) -> None:
        for name in COLUMNS:
            getattr(self.rows, name)[at] = getattr(other.rows, name)[which]
        self.before_us[at], self.before[at] = other.before_us[which], other.before[which]
        self.has[at] = other.has[which]


class _Events:
    """Ends of edges, by node and in order of time within each."""

    def __init__(self, memory: Memory, slots: I64, rows: Rows) -> None:
        self.slots, self.rows = slots, rows
        self.first = np.flatnonzero(np.diff(slots, prepend=-1))
        self.nodes = slots[self.first]
        sizes = np.diff(self.first, append=len(slots))
        self.node = np.repeat(np.arange(len(self.nodes)), sizes)
        self.rank = np.arange(len(slots)) - np.repeat(self.first, sizes)
        self.last = self.first + sizes - 1
        count = memory.count[self.nodes]
        self.k = count[self.node] + self.rank  # edges before each
        self.counts = count + sizes
        before = np.concatenate([rows.time_us[:1], rows.time_us[:-1]])
        before[self.first] = np.where(
            memory.has[self.nodes], memory.rows.time_us[self.nodes], rows.time_us[self.first]
        )
        self.before_us = before  # its own time where a node's first edge has none before it
        self.opens = ~memory.has[slots] & (self.rank == 0)

    def newest_before(self, node: I64, time_us: I64) -> I64:
        """The event [Q] of each node (a place in `nodes`) that is its newest before the time; -1: none."""
        times, at = np.unique(self.rows.time_us, return_inverse=True)
        width = len(times) + 1
        keys = self.node * width + at
        found = np.searchsorted(keys, node * width + np.searchsorted(times, time_us)) - 1
        return np.where((found >= 0) & (self.node[np.maximum(found, 0)] == node), found, -1)

    def run(self, encoder: GraphMemoryEncoder, memory: Memory, far_of: FarOf | None) -> _Cells:
        """The state before each event; those after the newest ones go into the memory's columns."""
        e, half = len(self.slots), memory.half
        if not e:
            return _Cells(self.rows, self.before_us, memory.before[:0], memory.has[:0])
        first = np.flatnonzero((self.k % half == 0) | self.opens)  # of a run: no edge before it
        each = np.concatenate([np.arange(e), first])
        before_us = np.concatenate([self.before_us, self.rows.time_us[first]])
        both = _inputs(encoder, self.rows.take(each), before_us, far_of)
        f_EF = both[:e]
        young_EF = f_EF.index_copy(0, torch.from_numpy(first), both[e:])
        # Each event belongs to the run of states that began at the anchor before it, and to the one that began
        # at the anchor before that, if there is one.
        run, begun = self.k // half, memory.begun[self.slots] // half
        old = np.flatnonzero(run > begun)
        runs = _Runs(
            np.concatenate([self.node, self.node[old]]), np.concatenate([run, run[old] - 1])
        )
        states = self._states(memory, runs)
        before, last = runs.gru(encoder, torch.cat([young_EF, f_EF[old]]), states)
        elder = np.zeros(e, np.int64)
        elder[old] = e + np.arange(len(old))
        serves = np.where(((self.k + 1) % half == 0) | (run == begun), np.arange(e), elder)
        new = self.counts // half
        memory.after[self.nodes, 0] = runs.of(last, np.arange(len(self.nodes)), new - 1)
        memory.after[self.nodes, 1] = runs.of(last, np.arange(len(self.nodes)), new)
        return _Cells(self.rows, self.before_us, before[serves], np.ones(e, np.bool_))

    def _states(self, memory: Memory, runs: "_Runs") -> F32:
        """What each run begins with: what is kept of it, or zeros."""
        slots = self.nodes[runs.node]
        age = (
            memory.count[slots] // memory.half - runs.run
        )  # 1: the older of those kept, 0: the younger
        kept = memory.after[slots, np.where(age == 1, 0, 1)]
        there = memory.has[slots] & ((age == 0) | (age == 1))
        return np.where(there[:, None], kept, np.float32(0.0))

    def store(self, memory: Memory, cells: _Cells) -> None:
        for name in COLUMNS:
            getattr(memory.rows, name)[self.nodes] = getattr(self.rows, name)[self.last]
        memory.before_us[self.nodes] = cells.before_us[self.last]
        memory.before[self.nodes] = cells.before[self.last]
        memory.has[self.nodes], memory.count[self.nodes] = True, self.counts


class _Runs:
    """Sequences of events that a state runs through: of each node, by number. N elements, R runs."""

    def __init__(self, node: I64, run: I64) -> None:
        """Elements of one node and run in order of time."""
        width = int(run.max()) + 2
        keys = node * width + run
        order = np.argsort(keys, kind="stable")
        at = np.flatnonzero(np.diff(keys[order], prepend=-1))
        sizes = np.diff(at, append=len(keys))
        longest = np.argsort(-sizes, kind="stable")  # first, as packed sequences have them
        self._width, self._keys, self._place = width, keys[order][at], np.argsort(longest)
        self.node, self.run = self._keys[longest] // width, self._keys[longest] % width
        self._rank = np.empty(len(keys), np.int64)
        self._rank[order] = np.arange(len(keys)) - np.repeat(at, sizes)
        self._row = np.empty(len(keys), np.int64)
        self._row[order] = np.repeat(self._place, sizes)
        self._sizes = np.bincount(self._rank)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def gru(self, encoder: GraphMemoryEncoder, x_NF: Tensor, states: F32) -> tuple[F32, F32]:
        """The state before each element [N, n], and that after each run [R, n]."""
        packed = self._starts[self._rank] + self._row
        x = torch.empty_like(x_NF)
        x[packed] = x_NF
        weight, bias = encoder.into_gates()
        _, across, _, inner = encoder.weights()
        weights = [w.detach().cpu() for w in (weight, across, bias, inner)]
        h0 = torch.from_numpy(states)
        sizes = torch.from_numpy(self._sizes)
        out, last = torch.gru(x, sizes, h0[None], weights, True, 1, 0.0, False, False)
        first = self._rank == 0
        earlier = self._starts[np.maximum(self._rank - 1, 0)] + self._row
        before = out.numpy()[np.where(first, 0, earlier)]
        before[first] = states[self._row[first]]
        return before, last[0].numpy()

    def of(self, last: F32, node: I64, run: I64) -> F32:
        """The state after each node's run of this number; zeros where there is none."""
        keys = node * self._width + run
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        there = (self._keys[at] == keys) & (run >= 0) & (run < self._width)
        return np.where(there[:, None], last[self._place[at]], np.float32(0.0))


def _inputs(
    encoder: GraphMemoryEncoder, rows: Rows, before_us: I64, far_of: FarOf | None
) -> Tensor:
    """What the GRU reads of edges, on the CPU. [E, F]"""
    view = view_of(rows, before_us)
    if far_of is not None:
        far = far_of(rows.categories[:, NEIGHBOUR], rows.time_us).named("far")
        view |= tensors({name: a[:, None] for name, a in far.items()})
    device = encoder.out.weight.device
    view = {name: t.to(device) for name, t in view.items()}
    return encoder.inputs(view)[:, 0].detach().cpu()


def view_of(rows: Rows, before_us: I64) -> View:
    """Single edges as windows of one row."""
    columns = {name: getattr(rows, name)[:, None] for name in COLUMNS if name != "position"}
    return tensors({**columns, "before_us": before_us, "length": np.ones(len(rows), np.int64)})
