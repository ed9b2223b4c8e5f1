"""Fields that were named later: what Kafka still has of them is put into the rows that came before.

A group that was restored with new fields *lacks* them up to where it stood: those rows are in the rings, and say that
the field is missing. The records are read again from the earliest there are, between micro-batches, and found in the
rings by their positions. What they add to the running totals is added at once at the end, between two snapshots: a
group that is restored in the middle begins again. What Kafka no longer has stays missing.

Of a graph's nodes each group reads its own partition again, and no mirror. So of an edge whose source is of another
group, and of what was said of a node of another group, new fields stay missing. No encoder of graphs reads totals:
there they are left alone.

Shapes: N records, E slots, L rows of a ring, F numbers that are lacking."""

from collections.abc import Sequence

import numpy as np
import structlog

from actors.cut import Columns
from actors.decode import Decoder
from actors.group import Group
from actors.ports import Source
from schemas.records import I64, OFFSET_BITS, Bool, Decoded, Rows, contributions
from schemas.stream import DIRECTION, NEIGHBOUR

log = structlog.get_logger()
RECORDS = 2048  # of one turn


class Refill:
    """Of a shard's groups that lack fields. source: another than that of the stream, from the earliest on, without the
    mirror."""

    def __init__(self, source: Source, decoder: Decoder, groups: Sequence[Group]) -> None:
        self._source, self._decoder = source, decoder
        lacking = [group for group in groups if group.lacking]
        self._of = {g.number: _Lacking(g, source.start(g.number, None)) for g in lacking}
        for group in lacking:
            names = sorted(group.lacking)
            log.info("fields_read_again", group=group.number, fields=names)
            if group.edges is not None and group.edges.mirror >= 0:
                of = "edges from nodes of other groups, and what was said of those"
                log.warning("fields_missing_before", group=group.number, fields=names, of=of)

    @property
    def left(self) -> int:
        """Records still to be read, at most."""
        return sum(each.left for each in self._of.values())

    def turn(self) -> None:
        """Takes some records."""
        for batch in self._source.poll(RECORDS, 0.0):
            each = self._of[batch.group]
            _, decoded, _ = each.group.decode(batch, self._decoder, 0)
            each.take(decoded)
            each.reached[batch.topic] = max(each.reached[batch.topic], batch.next_offset)
            if not each.left_of(batch.topic):
                self._source.pause(batch.group, batch.topic)

    def end(self) -> None:
        """Once nothing is left and no snapshot is under way: the groups lack nothing."""
        for each in self._of.values():
            each.end()
            log.info("fields_filled", group=each.group.number, rows=each.filled)
        self._source.close()


class _Lacking:
    """What one group lacks, and how far that was read again."""

    def __init__(self, group: Group, reached: list[int]) -> None:
        self.group, self.reached, self.filled = group, list(reached), 0
        state, lacking = group.state, group.lacking
        names = Columns.of(group.fields, state.shape).blocks
        self._numbers, self._categories, *self._of_nodes = (
            np.array([i for i, name in enumerate(of) if name in lacking], np.int64) for of in names
        )
        self._until = np.max(list(lacking.values()), axis=0)  # of each topic
        own = [lacking[names[0][i]] for i in self._numbers]
        self._before = np.array(own, np.int64).reshape(len(own), -1)  # [F, topics]
        self._since = state.since_us.copy()
        self._totals = np.zeros((state.slots, 3, len(own)))

    def left_of(self, topic: int) -> int:
        return max(int(self._until[topic]) - self.reached[topic], 0)

    @property
    def left(self) -> int:
        return sum(map(self.left_of, range(len(self.reached))))

    def take(self, decoded: Decoded) -> None:
        """Records as they are with all fields."""
        group, told = self.group, decoded.told
        if told is not None and group.state.nodes is not None:
            self.filled += group.state.nodes.fill(told, *self._of_nodes)
        if group.edges is not None:
            decoded = group.edges.here(decoded)
        index = group.state.index
        slots = np.array([index.get(name, -1) for name in decoded.entities], np.int64)
        there = np.flatnonzero((slots >= 0) & decoded.edge)
        self._fill(slots[there], decoded.rows.take(there))

    def _fill(self, slots: I64, rows: Rows) -> None:
        """Rows [N] of entities that are here."""
        state = self.group.state
        mine = (
            state.since_us[slots] == self._since[slots]
        )  # else of another life than was restored,
        mine &= rows.time_us >= state.first_us[slots]  # or of one before
        slots, rows = slots[mine], rows.take(mine)
        match = self._same(slots, rows)
        found = np.flatnonzero(match.any(1))
        slot, at = slots[found], match[found].argmax(1)
        for column in self._numbers.tolist():
            state.rows.numbers[slot, at, column] = rows.numbers[found, column]
        for column in self._categories.tolist():
            state.rows.categories[slot, at, column] = rows.categories[found, column]
            state.rows.missing[slot, at, column] = rows.missing[found, column]
        self.filled += len(found)
        if state.shape.graph:
            return
        offset, topic = rows.position & ((1 << OFFSET_BITS) - 1), rows.position >> OFFSET_BITS
        added = contributions(rows.numbers[:, self._numbers])[:, 2:].reshape(len(rows), 3, -1)
        counts = offset[:, None] < self._before[:, topic].T  # later ones came with the field
        np.add.at(self._totals, slots, added * counts[:, None])

    def _same(self, slots: I64, rows: Rows) -> Bool:
        """Where in its ring each row is. [N, L]"""
        state = self.group.state
        there = state.rows
        match = there.position[slots] == rows.position[:, None]
        match &= there.time_us[slots] == rows.time_us[:, None]
        match &= np.arange(state.window) < state.placed[slots, None]
        if state.shape.unit == "node":  # another group's records have such positions too
            match &= there.categories[slots, :, NEIGHBOUR] == rows.categories[:, None, NEIGHBOUR]
            match &= there.numbers[slots, :, DIRECTION] == rows.numbers[:, None, DIRECTION]
        return np.asarray(match)

    def end(self) -> None:
        group, state = self.group, self.group.state
        same = (state.since_us == self._since)[:, None]
        for block in range(3):
            at = 2 + block * state.shape.numbers + self._numbers
            state.totals[:, at] += np.where(same, self._totals[:, block], 0.0)
        group.lacking.clear()
        group.news.told_upto = 0  # the learner is told again
        if group.next is not None:  # what was encoded of it until now saw less
            group.next.state.tag[:] = 0
            group.next.owe_everything()
