"""Fields that were named later: what Kafka still has of them is put into the rows that came before.

A group that was restored with new fields *lacks* them up to where it stood: those rows are in the rings, and say that
the field is missing. The records are read again from the earliest there are, between micro-batches, and found in the
rings by their positions. What they add to the running totals is added at once at the end, between two snapshots: a
group that is restored in the middle begins again. What Kafka no longer has stays missing.

Shapes: N records, E slots, L rows of a ring, F numbers that are lacking."""

from collections.abc import Sequence

import numpy as np
import structlog

from actors.decode import Decoder
from actors.group import Group
from actors.ports import Source
from schemas.records import I64, OFFSET_BITS, Rows, contributions

log = structlog.get_logger()
RECORDS = 2048  # of one turn


class Refill:
    """Of a shard's groups that lack fields. source: another than that of the stream, from the earliest on."""

    def __init__(self, source: Source, decoder: Decoder, groups: Sequence[Group]) -> None:
        self._source, self._decoder = source, decoder
        lacking = [group for group in groups if group.lacking]
        self._of = {g.number: _Lacking(g, source.start(g.number, None)) for g in lacking}
        for group in lacking:
            log.info("fields_read_again", group=group.number, fields=sorted(group.lacking))

    @property
    def left(self) -> int:
        """Records still to be read, at most."""
        return sum(each.left for each in self._of.values())

    def turn(self) -> None:
        """Takes some records."""
        for batch in self._source.poll(RECORDS, 0.0):
            each = self._of[batch.group]
            _, decoded, _ = each.group.decode(batch, self._decoder, 0)
            index = each.group.state.index
            slots = np.array([index.get(name, -1) for name in decoded.entities], np.int64)
            there = np.flatnonzero((slots >= 0) & ~decoded.deleted)
            each.take(slots[there], decoded.rows.take(there))
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
        names = group.fields[: state.shape.numbers], group.fields[state.shape.numbers :]
        self._numbers, self._categories = (
            np.array([i for i, name in enumerate(of) if name in lacking], np.int64) for of in names
        )
        self._until = np.max(list(lacking.values()), axis=0)  # of each topic
        own = [lacking[names[0][i]] for i in self._numbers]
        self._before = np.array(own, np.int64).reshape(len(own), len(reached))  # [F, topics]
        self._since = state.since_us.copy()
        self._totals = np.zeros((state.slots, 3, len(own)))

    def left_of(self, topic: int) -> int:
        return max(int(self._until[topic]) - self.reached[topic], 0)

    @property
    def left(self) -> int:
        return sum(map(self.left_of, range(len(self.reached))))

    def take(self, slots: I64, rows: Rows) -> None:
        """Records [N] of entities that are here, as they are with all fields."""
        state = self.group.state
        mine = (
            state.since_us[slots] == self._since[slots]
        )  # else of another life than was restored,
        mine &= rows.time_us >= state.first_us[slots]  # or of one before
        slots, rows = slots[mine], rows.take(mine)
        match = state.rows.position[slots] == rows.position[:, None]  # [N, L]
        match &= np.arange(state.window) < state.placed[slots, None]
        found = np.flatnonzero(match.any(1))
        slot, at = slots[found], match[found].argmax(1)
        for column in self._numbers.tolist():
            state.rows.numbers[slot, at, column] = rows.numbers[found, column]
        for column in self._categories.tolist():
            state.rows.categories[slot, at, column] = rows.categories[found, column]
            state.rows.missing[slot, at, column] = rows.missing[found, column]
        self.filled += len(found)
        offset, topic = rows.position & ((1 << OFFSET_BITS) - 1), rows.position >> OFFSET_BITS
        added = contributions(rows.numbers[:, self._numbers])[:, 2:].reshape(len(rows), 3, -1)
        counts = offset[:, None] < self._before[:, topic].T  # later ones came with the field
        np.add.at(self._totals, slots, added * counts[:, None])

    def end(self) -> None:
        group, state = self.group, self.group.state
        same = (state.since_us == self._since)[:, None]
        for block in range(3):
            at = 2 + block * state.shape.numbers + self._numbers
            state.totals[:, at] += np.where(same, self._totals[:, block], 0.0)
        group.lacking.clear()
        if group.next is not None:  # what was encoded of it until now saw less
            group.next.state.tag[:] = 0
            group.next.owe_everything()
