"""The learner of graphs: edges in, each learnt from as of the moment before it, in order; and nodes as they are."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from learning import learner_state, nodes
from learning.config import EncoderConfig, LearnerConfig, NextInteractionConfig
from learning.config_base import refuse
from learning.contract import Objective
from learning.edges import SOURCE, TARGET, EdgeReplay, Examples, Store, some
from learning.encoders.graph import GraphEncoder
from learning.field_learner import NORMALISER_WINDOWS, FieldLearner
from learning.held_out import held_out, lowered
from learning.kinds.events import pad, subset
from learning.kinds.graph import Graph
from learning.learner import EVALUATED
from learning.learner_state import HELD_BYTES
from learning.nodes import Drawn
from learning.student import moved
from schemas.records import Bool, Told, Windows
from schemas.stream import NEIGHBOUR, Shape


class GraphLearner(FieldLearner):
    """`receive` takes edges by their source: windows of one row. Held out are nodes: their edges enter the
    adjacency and are scored, but are no example to learn from, nor the nodes negatives."""

    replay: EdgeReplay
    held: Store

    def __init__(
        self,
        config: LearnerConfig,
        encoder: EncoderConfig,
        shape: Shape,
        own_objectives: Sequence[tuple[str, float, Objective]] | None = None,
        device: str = "cpu",
    ) -> None:
        if not shape.graph:
            raise refuse("stream.kind", '"events"', f'the encoder needs "graph": {encoder}')
        super().__init__(config, encoder, shape, own_objectives, device)

    def _remember(self) -> None:
        c, shape, window = self.config.replay, self.shape, self.encoder_config.window
        own = [o for o in self.config.objective if isinstance(o, NextInteractionConfig)]
        self.contrast = own[0] if own else NextInteractionConfig()
        self._count_fields()
        self.kind = Graph(self.encoder.config)
        self.replay = EdgeReplay(c, shape, window, self.contrast)
        self.held = Store(min(HELD_BYTES, c.max_bytes // 8), shape, window, self.contrast.nodes)

    def inherit(self, flat: learner_state.Flat, meta: learner_state.Meta) -> None:
        """The graph, its edges and what their fields are like: they are no encoder's."""
        same = meta["encoder"]["bucket_bits"] == self.encoder.config.bucket_bits
        for name, part in self.parts().items():
            if name != "admission" or same:  # else categories are admitted as they come
                found = learner_state.under(flat, name)
                part.load_state_dict({k: np.asarray(v) for k, v in found.items()})
        self.records = len(self.replay)

    def receive(self, windows: Windows) -> int:
        """Takes edges in; returns how many there were."""
        self.received += len(windows)
        self._admit_both(windows)
        self.replay.add(windows)
        if not self.needs.edges:  # nothing waits to be learnt from
            self.replay.enter(self.replay.waiting)
        self.records += len(windows)
        return len(windows)

    def describe(self, told: Told) -> None:
        """What nodes have of their own; the newest that was said counts."""
        later = told.time_us > self.replay.table.said_us(told.node)
        self.records += int(np.count_nonzero(later))  # what is told again is no new record
        self.replay.table.put(told.node, told.features, told.time_us, told.position)

    def _admit_both(self, windows: Windows) -> None:
        """Counts the categories of both ends' rows: the far one has the source for its neighbour."""
        rows, own = windows.rows, self.encoder.own_categories
        apart = held_out(windows.entity, self.share)
        apart |= held_out(rows.categories[:, NEIGHBOUR], self.share)
        far = rows.categories.copy()
        far[:, NEIGHBOUR] = windows.entity
        for categories in (rows.categories, far):
            self.admission.add(categories[~apart][:, own], rows.missing[~apart][:, own])

    def _ready(self) -> bool:
        enough = len(self.replay if self.needs.edges else self.replay.adjacency) >= 2
        return enough and (self.updates > 0 or self.received >= self._first)

    @property
    def _first(self) -> int:
        """Edges before the first update."""
        return max(self.config.min_entities, self.config.batch_entities)

    def prepare(self) -> None:
        if self.updates == 0 and not self.moments.n.any():  # the normaliser needs neighbourhoods
            self.replay.enter(self._first // 2)
            self._measure(self.windows(NORMALISER_WINDOWS, held=False))
        super().prepare()

    def _set_bounds(self) -> None:
        super()._set_bounds()
        self._renormalise_nodes(fold=False)

    def _renormalise(self) -> None:
        super()._renormalise()
        self._renormalise_nodes()

    @torch.no_grad()
    def _renormalise_nodes(self, *, fold: bool = True) -> None:
        if self.shape.node_numbers:
            numbers = torch.from_numpy(self.replay.table.everything().numbers)
            for encoder in (self.encoder, self.ema):
                assert isinstance(encoder, GraphEncoder)
                encoder.node.renormalise(numbers, fold=fold)

    def _measure(self, windows: Windows) -> None:
        there = np.flatnonzero(np.diff(windows.offsets) > 0)[:NORMALISER_WINDOWS]
        if len(there):
            view = moved(pad(subset(windows, there), 0), self.device)
            self.moments.add(self.encoder.fields, self.encoder.own(view))

    def _draw(self) -> Drawn | None:
        """Edges, nodes or both: what the objectives need. None where one of them is not there."""
        self._lower_share()
        size, needs, drawn = self.config.batch_entities, self.needs, Drawn()
        if needs.edges:
            drawn.edges = self.replay.draw(size, self.share, self.held, self.rng)
            if drawn.edges is None or len(drawn.edges) < 2:
                return None
        if needs.nodes:
            drawn.nodes = nodes.draw(self.replay, size, needs, self.share, self.looked, self.rng)
            self.looked = self.replay.adjacency.clock
            if drawn.nodes is None:
                return None
        if self.updates % 16 == 0:
            self._measure(self.windows(NORMALISER_WINDOWS, held=False))
        return drawn

    def _lower_share(self) -> None:
        known, c = len(self.replay.adjacency), self.config
        if self.share <= c.held_out_share or known < 1.05 * self.counted + 16:
            return
        self.counted = known
        every = self.replay.adjacency.id[self.replay.adjacency.known()]
        apart = int(held_out(every, self.share).sum())
        share = lowered(self.share, apart, c.held_out_share, c.held_out_entities)
        if share < self.share:
            self.share = share

            def still(e: Examples) -> Bool:
                ends = e.nodes[:, [SOURCE, TARGET]]
                return np.asarray(held_out(ends.ravel(), share).reshape(ends.shape).any(1))

            self.held.keep(still)

    def _held_parts(self) -> Iterator[Drawn]:
        kept = self.held.newest(EVALUATED) if self.needs.edges else None
        if self.needs.edges and kept is None:
            return
        n = len(kept) if kept else len(self.windows(EVALUATED, held=True))
        size = self.config.batch_entities
        rng = np.random.default_rng(self.config.seed)
        for start in range(0, max(1, n - size + 1), size):
            part = Drawn(self.replay.described(_part(kept, start, size)) if kept else None)
            if self.needs.nodes:
                part.nodes = nodes.held(self.replay, size, self.needs, self.share, rng)
                if part.nodes is None:
                    return
            yield part

    def windows(self, n: int, *, held: bool) -> Windows:
        return self.replay.newest(n, self.share, held=held)


def _part(examples: Examples, start: int, size: int) -> Examples:
    at = np.arange(len(examples))
    return some(examples, (at >= start) & (at < start + size))
