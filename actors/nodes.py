"""What is said of a graph's nodes, in one group: taken in, told on to the learner, spread to the neighbours' vectors.

Shapes: M nodes."""

from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from actors.graves import Buried, leads_to
from actors.state import State
from schemas.records import I64, Decoded

SPREAD = 4096  # slots looked through at one turn
UNHEARD = 65_536  # nodes noted one by one for the learner


def _none() -> I64:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class News:
    """Which nodes something new was said of, and who has not heard of it yet."""

    new: set[int] = field(default_factory=set)  # whose neighbours are still to be looked for
    spreading: I64 = field(default_factory=_none)  # those that are looked for now
    upto: int = 0  # ... up to this slot
    unheard: dict[int, None] = field(default_factory=dict)  # of this group, for the learner
    told_upto: int = 0  # ... and behind this slot all of them

    def take(self, parts: list[Decoded], state: State, buried: Buried) -> None:
        """What is said of nodes, wherever it was said; deletions take it along."""
        for gone in (gone for part in parts for gone in part.gone):
            buried.add(gone.node, gone.timestamp_ms)
        nodes = state.nodes
        if nodes is None:
            return
        for part in parts:
            nodes.forget(np.array([gone.node for gone in part.gone], np.int64))
            told = part.told
            if told is None:
                continue
            ended = np.zeros(len(told), np.bool_)
            if buried.since:
                ended = buried.before(told.node, told.timestamp_ms)
            for gone in part.gone:
                ended |= (told.node == gone.node) & (told.row >= 0) & (told.row < gone.before)
            told = told.take(~ended)
            known = nodes.put(told.node, told.features, told.time_us, told.position)
            self.new.update(known.tolist())
            self.unheard |= dict.fromkeys(told.node[told.row >= 0].tolist())
        if len(self.unheard) > UNHEARD:  # the learner is behind: later all of them are told again
            self.unheard, self.told_upto = {}, 0

    def spread(self, state: State) -> None:
        """Whose edges lead to nodes of whom something new was said is owed a vector: some slots at each turn, so
        that the stream does not wait however many there are."""
        if not len(self.spreading):
            if not self.new:
                return
            new = np.fromiter(self.new, np.int64, len(self.new))
            self.spreading, self.new, self.upto = np.sort(new), set(), 0
        first, self.upto = self.upto, min(self.upto + SPREAD, len(state.names))
        slots = first + np.flatnonzero(leads_to(state, first, self.upto, self.spreading))
        state.owe(slots)
        if self.upto >= len(state.names):
            self.spreading = _none()

    def untold(self, state: State, most: int) -> I64:
        """Nodes of this group that the learner is to be told of: up to `most`, which then count as told. [M]"""
        ids = np.array(list(islice(self.unheard, most)), np.int64)
        for node in ids.tolist():
            del self.unheard[node]
        if not len(ids) and self.told_upto < len(state.names):
            first, self.told_upto = self.told_upto, self.told_upto + most
            slots = np.arange(first, min(self.told_upto, len(state.names)))
            ids = state.hashes(slots[state.count[slots] > 0])
        return ids

    def __len__(self) -> int:
        """Of how many nodes the neighbours may not have heard."""
        return len(self.new) + len(self.spreading)

    @property
    def pending(self) -> list[int]:
        """Of whom the neighbours may not have heard."""
        return [*self.new, *self.spreading.tolist()]
