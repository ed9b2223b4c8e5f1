"""Edges have two ends: rows of a graph for both nodes, here or, through the mirror, in another group.

Shapes: N records of a micro-batch, E of them edges (the rest are deletions, or of nodes)."""

from dataclasses import dataclass, replace

import numpy as np

from actors.columns import Hashes
from actors.cut import Columns
from actors.mirror import Marks, Origin, Reader, messages
from actors.partitioner import partitions_of
from schemas.records import I64, OFFSET_BITS, Bool, Decoded, Gone, Rows, Windows
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

UNNAMED = Columns()
MAX_NAME = 4096  # of a node, in bytes: decode.max_entity_bytes cuts before


@dataclass(slots=True)
class Spread:
    """A decoded micro-batch of one topic, dealt to those whom it concerns."""

    here: Decoded  # rows of both ends, next to each other
    away: list[tuple[int, bytes]]  # for whom, a message of the mirror
    windows: Windows  # the E edges as their sources see them: windows of one row, for the learner


class Edges:
    """Of one group. marks: what the group has taken of the mirror, the group's own."""

    def __init__(
        self,
        shape: Shape,
        group: int,
        epoch: int,
        groups: int,
        topics: int,
        marks: Marks,
        names: tuple[Columns, Columns] = (UNNAMED, UNNAMED),
    ) -> None:
        """topics: how many hold the stream's edges, the mirror not counted. names: of the rows' columns, and of those
        of messages that do not name theirs."""
        self._columns = names[0]
        self._shape, self._group, self._epoch = shape, group, epoch
        self._groups, self._hashes = groups, Hashes()
        self.mirror = topics if groups > 1 else -1  # the mirror's index among the group's topics
        limits = groups, topics, MAX_NAME
        self.reader = Reader(shape, group, limits, marks, names)

    def hashes(self, names: list[str]) -> I64:
        return np.fromiter(map(self._hashes.__getitem__, names), np.int64, len(names))

    def here(self, decoded: Decoded) -> Decoded:
        """Rows of both ends, next to each other, of those that are of this group."""
        far, _, here = self._far(decoded, self.hashes(decoded.entities))
        return _both(decoded, far, here)

    def _far(self, decoded: Decoded, sources: I64) -> tuple[Rows, I64, I64]:
        """The far nodes' rows [N], the groups that they are of [N], and which of them are of this one."""
        rows = decoded.rows
        far = Rows(
            rows.time_us, rows.position, rows.numbers.copy(), rows.categories.copy(), rows.missing
        )
        far.numbers[:, DIRECTION], far.categories[:, NEIGHBOUR] = 0.0, sources
        two = decoded.edge & (sources != rows.categories[:, NEIGHBOUR])  # a loop has one row
        to = np.full(len(rows), self._group)
        if self._groups > 1 and two.any():
            names = [decoded.neighbours[i] for i in np.flatnonzero(two).tolist()]
            to[two] = partitions_of(names, self._groups)
        return far, to, np.flatnonzero(two & (to == self._group))

    def spread(self, topic: int, decoded: Decoded) -> Spread:
        rows = decoded.rows
        sources = self.hashes(decoded.entities)
        far, to, both = self._far(decoded, sources)
        here = _both(decoded, far, both)
        deletions = np.flatnonzero(decoded.deleted).tolist()
        if deletions:
            order = np.flatnonzero(here.deleted)
            here.gone = [
                Gone(
                    int(before),
                    int(sources[i]),
                    int(rows.position[i]),
                    int(decoded.timestamp_ms[i]),
                )
                for before, i in zip(order, deletions, strict=True)
            ]
        edge = decoded.edge
        of = rows.take(edge)
        windows = Windows(
            of,
            np.arange(len(of) + 1),
            np.zeros((len(of), self._shape.totals)),
            of.time_us,
            sources[edge],
        )
        return Spread(here, self._away(topic, decoded, far, to), windows)

    def _away(self, topic: int, decoded: Decoded, far: Rows, to: I64) -> list[tuple[int, bytes]]:
        """What other groups must know: their nodes' rows, every deletion, and what is said of any node."""
        if self._groups == 1:
            return []
        offset = far.position & ((1 << OFFSET_BITS) - 1)
        first = np.flatnonzero(np.diff(offset, prepend=-1))
        nth = np.arange(len(to)) - np.repeat(first, np.diff(first, append=len(to)))
        out, upsert = [], decoded.upsert
        every = decoded.deleted | upsert
        for group in range(self._groups):
            which: Bool = (to == group) | every
            if group == self._group or not which.any():
                continue
            at = np.flatnonzero(which)
            # neither a deletion nor what is said of a node has a neighbour: rows without a name are these
            names = [decoded.neighbours[i] for i in at.tolist()]
            origin = Origin(self._epoch, self._group, topic, offset[at], nth[at])
            features = decoded.told.features if decoded.told is not None else None
            stamps = decoded.timestamp_ms[at]
            sent = messages(
                origin, names, far.take(at), stamps, (upsert[at], features), self._columns
            )
            out += [(group, message) for message in sent]
        return out


def _both(decoded: Decoded, far: Rows, at: I64) -> Decoded:
    """All rows, and behind the rows `at` those of the far node."""
    n = len(decoded.entities)
    order = np.argsort(np.concatenate([np.arange(n), at]), kind="stable")
    which = np.concatenate([np.arange(n), at])[order]
    both = [*decoded.entities, *(decoded.neighbours[i] for i in at.tolist())]
    told = decoded.told
    if told is not None:
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        told = replace(told, row=place[told.row])
    return Decoded(
        Rows.concat((decoded.rows, far.take(at))).take(order),
        [both[i] for i in order.tolist()],
        decoded.deleted[which],
        decoded.timestamp_ms[which],
        told=told,
    )
