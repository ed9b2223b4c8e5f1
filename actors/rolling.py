"""When which group of a shard is snapshotted: one at a time, slab by slab between two micro-batches."""

from collections.abc import Callable, Sequence

import structlog

from actors.group import Group
from actors.ports import Source
from schemas.errors import SnapshotError

log = structlog.get_logger()


class Rolling:
    """settle: waits for the write under way, for what is owed is copied; flush: makes durable what a snapshot passes;
    forgets: of the learner, see Offers."""

    def __init__(
        self,
        groups: Sequence[Group],
        every_s: float,
        source: Source,
        settle: Callable[[], None],
        flush: Callable[[], None],
        forgets: Callable[[], list[int]],
        clock: Callable[[], float],
    ) -> None:
        self._groups, self._every_s, self._source = groups, every_s, source
        self._settle, self._flush, self._forgets = settle, flush, forgets
        self._clock = clock
        self._due: dict[int, float] = {}
        for i, group in enumerate(groups):
            # a first snapshot at once pins where a new group began; the others take turns
            part = (i + 1) / len(groups) if group.positions else 0.0
            group.opened_at = clock()
            self._due[group.number] = clock() + every_s * part

    @property
    def under_way(self) -> bool:
        return any(group.snapshot is not None for group in self._groups)

    def turn(self, *, begin: bool) -> float | None:
        """Begins a snapshot that is due, if it may; copies a slab of the one under way, and returns how long that
        took; ends the one that is done."""
        for group in self._groups:
            if group.snapshot is not None:
                if group.snapshot.done():
                    self._end(group)
                elif group.snapshot.ready():
                    self._settle()
                    began = self._clock()
                    if group.snapshot.turn(group.positions):
                        return self._clock() - began
                return None
        # not while slabs are ahead of the positions: a new one would not say of whom
        caught_up = [group for group in self._groups if group.state.marks is None]
        due = min(caught_up, key=lambda group: self._due[group.number], default=None)
        if due is not None and self._clock() >= self._due[due.number] and begin:
            self._due[due.number] = self._clock() + self._every_s
            self._settle()
            due.begin_snapshot(self._flush, self._forgets())
        return None

    def last(self) -> None:
        """One more of every group, here and now."""
        for group in self._groups:
            self._finish(group)  # the one under way is older than what was taken since
            if group.state.marks is not None:
                continue  # still catching up: the snapshot it was restored from is as good
            group.begin_snapshot(self._flush, self._forgets())
            self._finish(group)

    def finish(self) -> None:
        """Those under way, here and now: nothing is taken meanwhile, so that all is as of one position."""
        for group in self._groups:
            self._finish(group)

    def _finish(self, group: Group) -> None:
        while group.snapshot is not None:
            if group.snapshot.done():
                self._end(group)
            elif not group.snapshot.turn(group.positions):
                group.snapshot.wait(0.005)

    def _end(self, group: Group) -> None:
        snapshot, group.snapshot = group.snapshot, None
        assert snapshot is not None
        try:
            snapshot.result()
        except SnapshotError as error:
            group.snapshot_failures += 1
            log.error(
                "snapshot_failed", group=group.number, reason=str(error), next="tried again in time"
            )
            return
        group.snapshots += 1
        group.snapshot_at = self._clock()
        self._source.commit(group.number, snapshot.positions)
