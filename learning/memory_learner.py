"""The learner of a graph whose encoder has a memory: each edge is learnt from once, in order, no windows are cut.

A batch's edges enter the adjacency and the memories; what is learnt from is each node's newest edge before the
example's, its step taken anew with gradient from the state before it. An edge of which one end's state before it is
gone (edges came late, were removed, or share its very time) is no example. Past edges are not replayed: their
states would be of older weights."""

from dataclasses import dataclass, field

import numpy as np

from learning import learner_state
from learning.adjacency import COLUMNS
from learning.config import GraphMemoryConfig, NextInteractionConfig, ReplayConfig
from learning.contract import View
from learning.edges import SOURCE, TARGET, EdgeReplay, Examples, Store, slots_of, some
from learning.encoders.graph_memory import GraphMemoryEncoder
from learning.graph_learner import GraphLearner
from learning.held_out import held_out
from learning.kinds.events import Arrays, tensors
from learning.kinds.graph import Graph
from learning.memory import Found, Memory
from schemas.records import F32, I64, Bool, Features, Rows
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

OF_MEMORY, OF = ("memory", "before_us"), "windows."


@dataclass(slots=True)
class Remembered(Examples):
    """Examples whose rows are each node's newest edge, K = 1; the states before these, [B, C, n]; and the windows
    that pairs are scored by, where an objective learns to."""

    memory: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    before_us: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    windows: Examples | None = None

    def arrays(self) -> Arrays:
        mine = {name: getattr(self, name) for name in OF_MEMORY}
        of = {} if self.windows is None else self.windows.arrays()
        return Examples.arrays(self) | mine | {f"{OF}{name}": a for name, a in of.items()}

    @classmethod
    def of_arrays(cls, a: Arrays) -> "Remembered":
        plain = Examples.of_arrays(a)
        found = cls(**{name: getattr(plain, name) for name in Examples.__slots__})
        found.memory, found.before_us = (a[name] for name in OF_MEMORY)
        of = {k.removeprefix(OF): v for k, v in a.items() if k.startswith(OF)}
        found.windows = Examples.of_arrays(of) if of else None
        return found


class MemoryGraph(Graph):
    """Graph, its view "nodes" with `memory` and `before_us` where the examples have them."""

    def _of_edges(
        self,
        examples: Examples,
        rng: np.random.Generator,
        augment: bool,
        into: tuple[dict[str, View], Arrays, Arrays],
    ) -> None:
        super()._of_edges(examples, rng, augment, into)
        if not isinstance(examples, Remembered):
            return
        views = into[0]
        columns: Arrays = {name: getattr(examples, name) for name in OF_MEMORY}
        flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in columns.items()}
        views["nodes"] = views["nodes"] | tensors(flat)
        if examples.windows is not None:
            pairs: dict[str, View] = {}
            super()._of_edges(examples.windows, rng, False, (pairs, {}, {}))
            views |= {name: pairs[name] for name in ("source", "target")}


class MemoryReplay(EdgeReplay):
    """An EdgeReplay that keeps no past edges, and whose nodes have memories. Its encoder steps them."""

    def __init__(
        self,
        config: ReplayConfig,
        shape: Shape,
        window: int,
        contrast: NextInteractionConfig,
        encoder: GraphMemoryEncoder,
    ) -> None:
        super().__init__(config, shape, window, contrast)
        self.memory = Memory(shape, self.adjacency.slots, window, encoder.config.hidden)
        self.encoder = encoder
        # windows must hold what was there before each edge: see EdgeReplay._fresh
        self.part = window if contrast.pairs else max(window, self.adjacency.slots // 8)

    def draw(self, n: int, share: float, held: Store, rng: np.random.Generator) -> Examples | None:
        """The next n edges, each once."""
        parts: list[Examples] = []
        while n > 0 and self.waiting:
            source, rows = self._pop(min(n, self.part))
            n -= len(source)
            part = self._learnt(source, rows, share, held, rng)
            if len(part):
                parts.append(part)
        return self.described(Remembered.concat(parts)) if parts else None

    def _learnt(
        self, source: I64, rows: Rows, share: float, held: Store, rng: np.random.Generator
    ) -> Examples:
        super()._enter(source, rows, self.part)
        target = rows.categories[:, NEIGHBOUR]
        adds = np.flatnonzero(~rows.missing[:, NEIGHBOUR])
        nodes, collides = self._contrasted(source[adds], target[adds], share, rng)
        time_us = rows.time_us[adds]
        found = self._advance(source, rows, nodes, time_us)
        apart = held_out(source[adds], share) | held_out(target[adds], share)
        if apart.any():
            held.add(self._windowed(nodes[apart], time_us[apart], collides[apart]))
        lost = found.lost.reshape(nodes.shape)
        keep = ~(apart | lost[:, SOURCE] | lost[:, TARGET])
        examples = self._remembered(nodes, time_us, found, collides | lost)
        if self._contrast.pairs:
            examples.windows = self._windowed(nodes, time_us, examples.collides)
        return some(examples, keep)

    def _enter(self, source: I64, rows: Rows, at_once: int = 0) -> None:
        """Without being learnt from."""
        at_once = at_once or self.part
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            super()._enter(source[part], rows.take(part), at_once)
            none = np.zeros((0, 1), np.int64)
            self._advance(source[part], rows.take(part), none, none[:, 0])

    def _advance(self, source: I64, rows: Rows, nodes: I64, time_us: I64) -> Found:
        ends, both = both_ends(source, rows)
        slots = slots_of(self.adjacency, np.concatenate([ends, nodes.ravel()]))
        asked_us = np.repeat(time_us, nodes.shape[1])
        far_of = self._far if self.shape.noded else None
        n = len(ends)
        return self.memory.advance(
            self.encoder, self.adjacency, slots[:n], both, far_of, slots[n:], asked_us
        )

    def _far(self, nodes: I64, time_us: I64) -> Features:
        return self.table.get(nodes, time_us)

    def _remembered(self, nodes: I64, time_us: I64, found: Found, collides: Bool) -> Remembered:
        columns = (getattr(found.rows, name) for name in COLUMNS)
        rows = Rows(*(c.reshape(*nodes.shape, 1, *c.shape[1:]) for c in columns))
        length = found.has.astype(np.int64).reshape(nodes.shape)
        state = np.where(found.has[:, None], found.state, np.float32(0.0))
        return Remembered(
            nodes, time_us, rows, length, collides, None,
            state.reshape(*nodes.shape, state.shape[1]), found.before_us.reshape(nodes.shape),
        )  # fmt: skip

    def forget(self, ids: I64) -> None:
        """Nodes that had edges with these have a memory of them, which is made anew from what is left."""
        a = self.adjacency
        slots = slots_of(a, ids)
        live = np.fromiter(a.index.values(), np.int64, len(a.index))
        self.memory.forget(slots[slots >= 0])
        placed = a.placed[live]
        super().forget(ids)
        self.memory.stale[live[a.placed[live] != placed]] = True

    def state_dict(self) -> Arrays:
        used = np.fromiter(self.adjacency.index.values(), np.int64, len(self.adjacency.index))
        self.memory.reconcile(self.adjacency, used)
        memory = self.memory.state_dict(used)
        return super().state_dict() | {f"memory.{name}": a for name, a in memory.items()}

    def load_state_dict(self, state: Arrays) -> None:
        super().load_state_dict(state)
        prefix = "memory."
        of = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if of:
            self.memory.load_state_dict(of, self.adjacency)

    def begin_memories(self) -> None:
        """Of all nodes, from the edges that are kept of each."""
        slots = self.adjacency.known()
        self.memory.reconcile(self.adjacency, slots)
        self.memory.count[slots] = self.adjacency.placed[slots]
        self.memory.stale[slots] = True


class MemoryLearner(GraphLearner):
    """A GraphLearner that learns from each edge once. It needs an encoder with a memory."""

    def _remember(self) -> None:
        super()._remember()
        assert isinstance(self.encoder_config, GraphMemoryConfig)
        assert isinstance(self.encoder, GraphMemoryEncoder)
        c, window = self.config.replay, self.encoder_config.window
        self.kind = MemoryGraph(self.encoder_config)
        self.replay = MemoryReplay(c, self.shape, window, self.contrast, self.encoder)

    def inherit(self, flat: learner_state.Flat, meta: learner_state.Meta) -> None:
        """As GraphLearner, without memories: they are of the other encoder's weights."""
        assert isinstance(self.replay, MemoryReplay)
        of = "replay.memory."
        super().inherit({k: v for k, v in flat.items() if not k.startswith(of)}, meta)
        self.replay.begin_memories()


def both_ends(source: I64, rows: Rows) -> tuple[I64, Rows]:
    """Edges by their source -> the rows of both ends [E], edge by edge; of a loop one."""
    n = len(rows)
    two = rows.take(np.repeat(np.arange(n), 2))
    ends = np.repeat(source, 2)
    ends[1::2] = rows.categories[:, NEIGHBOUR]
    two.numbers[1::2, DIRECTION], two.categories[1::2, NEIGHBOUR] = 0.0, source
    keep = np.ones(2 * n, np.bool_)
    keep[1::2] = ends[1::2] != source
    return ends[keep], two.take(keep)
