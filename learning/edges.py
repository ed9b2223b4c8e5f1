"""Edges kept for learning: each with both ends' neighbours, and other nodes', as they were just before it.

Half of a batch are the newest edges, each learnt from before it enters the adjacency that later ones see; half
are drawn from those that were. Shapes: B edges, C nodes of an example: source, target, then the negatives."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learning.adjacency import COLUMNS, PAST, SLACK, Adjacency, newest_of
from learning.config import NextInteractionConfig, ReplayConfig
from learning.held_out import held_out
from learning.kinds.events import subset
from learning.node_table import ENTRY, Described, NodeTable
from schemas.records import I64, Bool, Rows, Windows
from schemas.stream import NEIGHBOUR, Shape

Arrays = dict[str, npt.NDArray[Any]]
RECENT = 65_536  # ends of so many edges, of which negatives are drawn by their degree
PENDING = (
    16_384  # edges that wait; past it the oldest enter the adjacency without being learnt from
)
SOURCE, TARGET = 0, 1


@dataclass(slots=True)
class Examples:
    """B edges. nodes: ids [B, C]; rows: columns [B, C, K], the newest edges of each node strictly before the
    edge's time, padded behind `length` [B, C]; collides [B, C]: no negative, whatever it was drawn as."""

    nodes: I64
    time_us: I64  # [B]
    rows: Rows
    length: I64
    collides: Bool
    described: Described | None = None  # what was said of nodes before the edge; not kept

    def __len__(self) -> int:
        return len(self.time_us)

    def arrays(self) -> Arrays:
        rows = {f"rows.{name}": getattr(self.rows, name) for name in COLUMNS}
        plain = {n: getattr(self, n) for n in ("nodes", "time_us", "length", "collides")}
        return {**rows, **plain}

    @classmethod
    def of_arrays(cls, a: Arrays) -> "Examples":
        rows = Rows(*(a[f"rows.{name}"] for name in COLUMNS))
        return cls(a["nodes"], a["time_us"], rows, a["length"], a["collides"])

    @classmethod
    def concat(cls, parts: "list[Examples]") -> "Examples":
        each = [part.arrays() for part in parts]
        return cls.of_arrays({name: np.concatenate([a[name] for a in each]) for name in each[0]})


class Store:
    """A FIFO of examples, flat columns."""

    def __init__(self, max_bytes: int, shape: Shape, window: int, nodes: int) -> None:
        self.slots = max(2, max_bytes // (nodes * (window * shape.row_bytes + 17) + 8))
        self._nodes, self._window = nodes, window
        self._columns: Arrays = {}
        self.placed = 0

    def __len__(self) -> int:
        return min(self.placed, self.slots)

    def add(self, examples: Examples) -> None:
        arrays = examples.arrays()
        if not self._columns:  # np.empty: memory is taken as slots are used
            self._columns = {
                name: np.empty((self.slots, *a.shape[1:]), a.dtype) for name, a in arrays.items()
            }
        at = (self.placed + np.arange(len(examples))) % self.slots
        for name, a in arrays.items():
            self._columns[name][at] = a
        self.placed += len(examples)

    def take(self, at: I64) -> Examples:
        return Examples.of_arrays({name: a[at] for name, a in self._columns.items()})

    def newest(self, n: int) -> Examples | None:
        n = min(n, len(self))
        return self.take((self.placed - n + np.arange(n)) % self.slots) if n else None

    def keep(self, which: Callable[[Examples], Bool]) -> None:
        """Drops all others."""
        if not self._columns:
            return
        at = (self.placed - len(self) + np.arange(len(self))) % self.slots
        kept = self.take(at)
        stay = which(kept)
        if not stay.all():
            self.placed = 0
            self.add(some(kept, stay))

    def forget(self, ids: I64) -> None:
        """Examples in which one of these takes part, or is a neighbour, go."""

        def free(e: Examples) -> Bool:
            gone = np.isin(e.nodes, ids).any(1)
            return np.asarray(~(gone | np.isin(e.rows.categories[..., NEIGHBOUR], ids).any((1, 2))))

        self.keep(free)

    def state_dict(self) -> Arrays:
        used = {name: a[: len(self)] for name, a in self._columns.items()}
        return {**used, "placed": np.array([self.placed, self.slots])}

    def load_state_dict(self, state: Arrays) -> None:
        """What fits of one that had other room; nothing of one with other negatives; of longer windows the newest
        rows."""
        columns = {name: a for name, a in state.items() if name != "placed"}
        placed, slots = state["placed"].tolist()
        self.placed, self._columns = 0, {}
        if not columns or columns["nodes"].shape[1] != self._nodes:
            return
        n = len(columns["nodes"])
        if columns["rows.time_us"].shape[2] != self._window:
            length = columns["length"]
            rows = {k: a for k, a in columns.items() if k.startswith("rows.")}
            columns |= {k: newest_of(a, length, self._window) for k, a in rows.items()}
            columns["length"] = np.minimum(length, self._window)
        if slots != self.slots:
            newest = (placed - n + np.arange(n)) % slots
            columns = {name: a[newest[-self.slots :]] for name, a in columns.items()}
            placed = min(n, self.slots)
        self.add(Examples.of_arrays(columns))
        self.placed = placed


class EdgeReplay:
    """The learner's live adjacency, the edges that wait to be learnt from, and examples of past ones."""

    def __init__(
        self, config: ReplayConfig, shape: Shape, window: int, contrast: NextInteractionConfig
    ) -> None:
        self._config, self._contrast, self.shape = config, contrast, shape
        entry = shape.node_bytes + ENTRY if shape.noded else 0
        each = SLACK * window * shape.row_bytes + 8 * PAST + 200
        slots = max(64, 8 * window, config.max_bytes // 2 // (each + entry))
        self.adjacency = Adjacency(shape, window, slots, leads=contrast.historical > 0)
        self.table = NodeTable(shape, slots if shape.noded else 1)
        self.store = Store(config.max_bytes // 2, shape, window, contrast.nodes)
        self._waiting: deque[tuple[I64, Rows]] = deque()
        self.waiting = 0
        self._ends = np.zeros(RECENT, np.int64)
        self._ended = 0
        self.unlearnt = 0  # edges that entered without being learnt from

    def __len__(self) -> int:
        """Edges that can be learnt from."""
        return len(self.store) + self.waiting

    def add(self, edges: Windows) -> None:
        """Edges by their source: one row per window, in order."""
        self._waiting.append((edges.entity, edges.rows))
        self.waiting += len(edges)
        while self.waiting > PENDING:
            self.enter(min(self.waiting - PENDING, 1024))

    def _pop(self, n: int) -> tuple[I64, Rows]:
        """The n oldest of those that wait."""
        sources, parts, left = [], [], n
        while left and self._waiting:
            source, rows = self._waiting.popleft()
            if len(source) > left:
                self._waiting.appendleft((source[left:], rows.take(slice(left, None))))
                source, rows = source[:left], rows.take(slice(left))
            sources.append(source)
            parts.append(rows)
            left -= len(source)
        self.waiting -= n - left
        if not sources:
            return np.zeros(0, np.int64), Rows.empty(self.shape)
        return np.concatenate(sources), Rows.concat(parts)

    def _enter(self, source: I64, rows: Rows, at_once: int = 0) -> None:
        """`at_once`: edges, where it need not be known what was there before each; else a window's."""
        at_once = at_once or self.adjacency.window
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            self.adjacency.add(source[part], rows.take(part))
        ends = rows.categories[~rows.missing[:, NEIGHBOUR], NEIGHBOUR][-RECENT:]
        self._ends[(self._ended + np.arange(len(ends))) % RECENT] = ends
        self._ended += len(ends)

    def enter(self, n: int) -> None:
        """Lets the n oldest that wait into the adjacency without learning from them."""
        source, rows = self._pop(n)
        self._enter(source, rows)
        self.unlearnt += len(source)

    def draw(self, n: int, share: float, held: Store, rng: np.random.Generator) -> Examples | None:
        """Up to n edges: half of them those that wait. share: of held-out nodes; their edges go to `held`."""
        fresh = self._fresh(max(1, round(n * self._config.fresh)), share, held, rng)
        old = min(n - (len(fresh) if fresh else 0), len(self.store))
        parts = [fresh] if fresh else []
        if old:
            parts.append(self.store.take(rng.integers(0, len(self.store), old)))
        if fresh is not None:
            self.store.add(fresh)
        return self.described(Examples.concat(parts)) if parts else None

    def _fresh(
        self, n: int, share: float, held: Store, rng: np.random.Generator
    ) -> Examples | None:
        """In parts of a window at most: more edges of one node would push out what was there before them."""
        parts = []
        while n > 0 and self.waiting:
            source, rows = self._pop(min(n, self.adjacency.window))
            n -= len(source)
            self._enter(source, rows)  # what is cut is as of before each edge
            adds = np.flatnonzero(~rows.missing[:, NEIGHBOUR])
            if not len(adds):
                continue
            source, target = source[adds], rows.categories[adds, NEIGHBOUR]
            cut = self._cut(source, target, rows.time_us[adds], share, rng)
            apart = held_out(source, share) | held_out(target, share)
            if apart.any():
                held.add(some(cut, apart))
            if not apart.all():
                parts.append(some(cut, ~apart))
        return Examples.concat(parts) if parts else None

    def _cut(
        self, source: I64, target: I64, time_us: I64, share: float, rng: np.random.Generator
    ) -> Examples:
        nodes, collides = self._contrasted(source, target, share, rng)
        return self._windowed(nodes, time_us, collides)

    def _contrasted(
        self, source: I64, target: I64, share: float, rng: np.random.Generator
    ) -> tuple[I64, Bool]:
        """The nodes of examples [B, C], negatives drawn, and which of them collide."""
        a, c, n = self.adjacency, self._contrast, len(source)
        past = a.past_targets(slots_of(a, source), c.historical, rng)
        recent = self._ends[rng.integers(0, max(1, min(self._ended, RECENT)), (n, c.matched))]
        known = a.known()
        anyone = a.id[known[rng.integers(0, len(known), (n, c.random))]]
        nodes = np.concatenate([source[:, None], target[:, None], past, recent, anyone], 1)
        collides = (nodes == target[:, None]) | (nodes == source[:, None])
        collides |= held_out(nodes.ravel(), share).reshape(nodes.shape)
        collides[:, : TARGET + 1] = False
        return nodes, collides

    def _windowed(self, nodes: I64, time_us: I64, collides: Bool) -> Examples:
        """Examples with each node's newest edges before the time."""
        a, shape = self.adjacency, nodes.shape
        flat, length = a.as_of(slots_of(a, nodes.ravel()), np.repeat(time_us, shape[1]))
        columns = (getattr(flat, name) for name in COLUMNS)
        rows = Rows(*(c.reshape(*shape, *c.shape[1:]) for c in columns))
        return Examples(nodes, time_us, rows, length.reshape(shape), collides)

    def described(self, examples: Examples) -> Examples:
        """With what is known of the nodes and was said before each edge; of a node of which something newer was
        said since, nothing: examples keep no features, which would be most of their size."""
        if self.shape.noded:
            far = examples.rows.categories[..., NEIGHBOUR]
            examples.described = self.table.describe(examples.nodes, far, examples.time_us)
        return examples

    def newest(self, n: int, share: float = 0.0, *, held: bool = False) -> Windows:
        """Windows of the n most recently touched nodes that have edges, of those held out or of the others."""
        a = self.adjacency
        slots = a.known()
        slots = slots[held_out(a.id[slots], share) == held]
        slots = slots[np.argsort(-a.touched[slots], kind="stable")[: 2 * n]]
        windows = a.windows(slots)
        windows = subset(windows, np.flatnonzero(np.diff(windows.offsets) > 0)[:n])
        return self.known(windows)

    def touched(self, n: int, since: int, rng: np.random.Generator) -> Windows:
        """Windows of n nodes, as they are now, of those that edges came to since the adjacency's clock was `since`."""
        a = self.adjacency
        slots = a.known()
        windows = a.windows(rng.permutation(slots[a.touched[slots] > since])[:n])
        return self.known(subset(windows, np.flatnonzero(np.diff(windows.offsets))))

    def known(self, windows: Windows) -> Windows:
        """With what is known of the nodes now."""
        if self.shape.noded:
            windows.own = self.table.get(windows.entity)
            windows.far = self.table.get(windows.rows.categories[:, NEIGHBOUR])
        return windows

    def forget(self, ids: I64) -> None:
        self.adjacency.forget(ids)
        self.store.forget(ids)
        self.table.forget(ids)
        parts = list(self._waiting)
        self._waiting.clear()
        self.waiting = 0
        for source, rows in parts:
            keep = ~(np.isin(source, ids) | np.isin(rows.categories[:, NEIGHBOUR], ids))
            self._waiting.append((source[keep], rows.take(keep)))
            self.waiting += int(keep.sum())
        gone = np.isin(self._ends, ids)
        left = self._ends[: min(self._ended, RECENT)][~gone[: min(self._ended, RECENT)]]
        self._ends[: len(left)], self._ended = left, len(left)

    # -- snapshot -----------------------------------------------------------------------------------

    def _things(self) -> dict[str, Adjacency | Store | NodeTable]:
        return {"adjacency": self.adjacency, "store": self.store, "table": self.table}

    def state_dict(self) -> Arrays:
        source, rows = self._pop(self.waiting)
        self._waiting.append((source, rows))
        self.waiting = len(source)
        out = {
            f"{p}.{k}": v
            for p, thing in self._things().items()
            for k, v in thing.state_dict().items()
        }
        waiting = {f"waiting.{name}": getattr(rows, name) for name in COLUMNS}
        counts = np.array([self._ended, self.unlearnt])
        return {**out, **waiting, "waiting.source": source, "ends": self._ends, "counts": counts}

    def load_state_dict(self, state: Arrays) -> None:
        for part, thing in self._things().items():
            prefix = f"{part}."
            found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if found:  # tables came later than the format
                thing.load_state_dict(found)
        rows = Rows(*(state[f"waiting.{name}"].copy() for name in COLUMNS))
        self._waiting = deque([(state["waiting.source"].copy(), rows)])
        self.waiting = len(rows)
        self._ends = state["ends"].copy()
        self._ended, self.unlearnt = state["counts"].tolist()


def slots_of(adjacency: Adjacency, ids: I64) -> I64:
    """Slots of the nodes; -1 where one is not known."""
    found = (adjacency.index.get(i, -1) for i in ids.tolist())
    return np.fromiter(found, np.int64, len(ids))


def some(examples: Examples, which: Bool) -> Examples:
    """A part of them, of the same type."""
    return examples.of_arrays({name: a[which] for name, a in examples.arrays().items()})
