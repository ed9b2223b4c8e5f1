"""One partition group: its state, positions, epoch and phase; what a shard owns a set of.

Phases: `starting` until the fence is raised in Redis; `replaying` until all topics have passed the positions
that Redis has seen; `waiting` before the first release; `serving`. In all but the last, records change the
state and nothing is written: their entities are *owed*, and written once when serving begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import structlog

from actors import group_meta
from actors.cut import Columns
from actors.decode import BadRecord, Decoder
from actors.edges import Edges
from actors.embed import Releases
from actors.encode import Release
from actors.folders import Folder, newest, next_name
from actors.generation import Generation
from actors.graves import Buried, forget_neighbours
from actors.images import Images
from actors.mirror import Marks
from actors.nodes import News
from actors.partitioner import partitions_of
from actors.ports import Batch
from actors.quarantine import Quarantine, joined, plain
from actors.sink import Sink, Vectors, WriteResult
from actors.snapshot import GroupSnapshot, restore
from actors.state import State, Touched
from learning.node_table import NodeTable
from schemas.records import I64, OFFSET_BITS, Decoded, Windows
from schemas.stats import GroupStats
from schemas.stream import NEIGHBOUR, Shape


class Sizes(NamedTuple):
    """Of a group's state."""

    window: int  # rows of a ring
    hidden: int  # H
    slots: int  # E
    nodes: int = 0  # of all groups: of so many a graph's features are kept; 0: E
    anchor: int = 0  # L of what is served; 0: the window


LOSS = "#loss"  # beside the positions in Redis (no topic has such a name); absent before the first loss
log = structlog.get_logger()
OFFSET_MASK = (1 << OFFSET_BITS) - 1


@dataclass(slots=True)
class Group:
    number: int
    epoch: int
    topics: tuple[str, ...]
    state: State
    positions: list[int]
    folder: Path
    fields: tuple[str, ...] = ()
    partitions: int = 0  # of each topic, where entities are checked to belong here; 0: unchecked
    quarantine: Quarantine | None = None  # None: what crashes the decoder does so again
    edges: Edges | None = None  # of a graph
    mirrored: Marks = field(default_factory=dict)  # how far the mirror was taken, by its sources
    unnamed: Columns = field(
        default_factory=Columns
    )  # of messages of the mirror that do not say what they have
    buried: Buried = field(default_factory=Buried)  # deleted nodes of a graph
    served: Generation = field(init=False)  # whose vectors readers have
    next: Generation | None = None  # ... and will have, once all entities have one
    next_release: int = 0  # which fills it
    news: News = field(default_factory=News)  # what is said of nodes of a graph
    phase: str = "starting"
    silent_until: list[int] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)  # positions that Redis is known to have taken
    loss: int = 0  # which filling of Redis we write; another number after each loss
    acked_loss: int = 0  # ... and the one that Redis is known to have
    swap: int = 0  # up to which swap of releases `state.owed` tells what Redis lacks
    owed_deletions: dict[str, None] = field(default_factory=dict)
    forgets: list[int] = field(default_factory=list)  # of the snapshot: see Shard
    lacking: dict[str, list[int]] = field(default_factory=dict)
    """Fields that rows lack which came before these positions: see refill.py."""
    # what Redis was last seen to hold; `acked` never falls, for slabs of a snapshot may rest on it
    held: list[int] = field(default_factory=list)
    held_loss: int = 0
    writes: int = 0
    snapshots: int = 0
    snapshot_failures: int = 0
    snapshot_at: float | None = None
    opened_at: float = 0.0  # by the shard's clock
    snapshot: GroupSnapshot | None = None

    def __post_init__(self) -> None:
        self.served = Generation(self.state)

    @property
    def images(self) -> Images | None:
        """Of a stream of images."""
        return self.served.images

    @classmethod
    def open(
        cls,
        number: int,
        epoch: int,
        topics: tuple[str, ...],
        folder: Path,
        shape: Shape,
        sizes: tuple[int, ...],
        fields: Sequence[str] = (),
    ) -> "Group":
        """Restores the newest snapshot that verifies. `positions` is empty where there is none.

        sizes: as Sizes. fields: names of the columns, numbers first."""

        def load(found: Folder) -> Group:
            group_meta.check(found, topics, fields, shape)
            state = _state(shape, Sizes(*sizes))
            group = cls(number, epoch, topics, state, restore(found, state, fields), folder)
            group_meta.take(group, found.meta)
            group_meta.note_new_fields(group, found.meta, fields)
            return group

        group = newest(folder, load)
        if group is None:
            state = _state(shape, Sizes(*sizes))
            group = cls(number, epoch, topics, state, [], folder, unnamed=Columns.of(fields, shape))
        group.fields = tuple(fields)
        return group

    def join(self, groups: int) -> None:
        """The group is one of so many of a graph: edges have their far ends in all of them."""
        topics = len(self.topics) - (groups > 1)
        shape = self.state.shape
        names = Columns.of(self.fields, shape), self.unnamed
        self.edges = Edges(shape, self.number, self.epoch, groups, topics, self.mirrored, names)
        self.partitions = groups

    # -- phases -----------------------------------------------------------------------------------

    def raise_fence(self, sink: Sink) -> None:
        """Shuts older owners out of Redis, then learns how far readers have been brought."""
        self.silent_until = self.check_fence(sink)
        self.phase = "replaying"

    def check_fence(self, sink: Sink) -> list[int]:
        """Raises the fence where it is not there, and returns Redis's positions.

        If they are behind what Redis has acknowledged, all is owed again; likewise where Redis was emptied
        and another process has filled a part of it since."""
        seen = sink.raise_fence(self.number, self.epoch)
        positions = [seen.get(topic, 0) for topic in self.topics]
        loss = seen.get(LOSS, 0)
        if loss != self.held_loss or any(map(int.__lt__, positions, self.held)):
            log.warning(
                "redis_lost_data", group=self.number, next="all its entities are written again"
            )
            self.owe_everything()
            self.held, self.held_loss = list(positions), loss
        return positions

    def advance(self, released: bool) -> bool:
        """Moves on to the phase that positions and release allow. True when serving has just begun."""
        marks = self.state.marks
        if marks is not None and np.all(marks.offsets.max(0, initial=0) <= self.positions):
            self.state.marks = None  # all that the slabs held is behind us
        if self.phase == "replaying" and all(map(int.__ge__, self.positions, self.silent_until)):
            self.phase = "waiting"
        if self.phase == "waiting" and released:
            self.phase = "serving"
            return True
        return False

    @property
    def encodes(self) -> bool:
        """Of images: whether they are encoded as they come. Where pixels are kept that can wait."""
        return self.phase == "serving" or not self.state.shape.kept_pixels

    # -- records in -------------------------------------------------------------------------------

    def decode(
        self, batch: Batch, decoder: Decoder, reached: int
    ) -> tuple[Batch, Decoded, list[BadRecord]]:
        """The batch less what was decoded before, below the offset `reached`, decoded."""
        if len(batch.offsets) and batch.offsets[0] < reached:
            batch = batch.cut(int(np.searchsorted(batch.offsets, reached)), len(batch.offsets))
        if self.edges is not None and batch.topic == self.edges.mirror:
            decoded, bad = self.edges.reader.read(batch)
        else:
            decode = self.quarantine.decode if self.quarantine else plain
            decoded, bad = decode(batch, decoder)
        if self.partitions > 1 and decoded.entities:
            decoded, misplaced = self._misplaced(batch, decoded)
            bad = [*bad, *misplaced]
        return batch, decoded, bad

    def _misplaced(self, batch: Batch, decoded: Decoded) -> tuple[Decoded, list[BadRecord]]:
        """Records whose entity belongs to another partition: its owner would not see them."""
        belongs = partitions_of(decoded.entities, self.partitions)
        keep = belongs == self.number
        if keep.all():
            return decoded, []
        rows = np.flatnonzero(~keep)
        at = np.searchsorted(batch.offsets, decoded.rows.position[rows] & OFFSET_MASK)
        messages, firsts, counts = np.unique(at, return_index=True, return_counts=True)
        other = ", or set source.check_partition = false if all topics are dealt by another one"
        if self.edges is not None:  # there it may not be set
            other = ", also an edge by its source"
        bad = [
            BadRecord(
                message,
                "misplaced",
                f"the entity {decoded.entities[row]!r} belongs to partition {belongs[row]}, this is "
                f"{self.number}{f', as do {n - 1} more rows of the message' if n > 1 else ''}: key the topic "
                f"by entity with Kafka's default partitioner (murmur2){other}.",
            )
            for message, row, n in zip(
                messages.tolist(), rows[firsts].tolist(), counts.tolist(), strict=True
            )
        ]
        return decoded.take(keep), bad

    def passed(self, topic: int, next_offset: int) -> None:
        """All below is taken by the next `apply`."""
        self.positions[topic] = max(self.positions[topic], next_offset)

    def apply(self, parts: list[Decoded], quiet: I64 | None = None) -> Touched:
        """Takes what was decoded into the state; whom Redis does not know yet is owed.

        quiet: positions of images that say nothing new to readers."""
        if self.edges is not None:
            self.news.take(parts, self.state, self.buried)
        decoded = parts[0] if len(parts) == 1 else joined(parts)
        if self.edges is not None:
            decoded = self._without_buried(decoded, self.edges)
        touched = self.state.apply(decoded)
        if quiet is not None and len(quiet) and len(touched.slots) and self.next is None:
            loud = ~np.isin(touched.rows.position, quiet)
            news = np.logical_or.reduceat(loud, touched.starts)
            news |= self.state.count[touched.slots] == touched.lengths  # a life began
            touched.quiet = ~(news | self.state.owed[touched.slots])
        self.owe(touched)
        return touched

    def without_buried(self, edges: Windows, decoded: Decoded) -> Windows:
        """The edges (windows of one row) of these records without those of nodes that were deleted since they
        were produced: the learner has forgotten these."""
        if not self.buried.since:
            return edges
        stamps = decoded.timestamp_ms[decoded.edge]
        ended = self.buried.before(edges.entity, stamps)
        ended |= self.buried.before(edges.rows.categories[:, NEIGHBOUR], stamps)
        return edges.of_one_row(~ended) if ended.any() else edges

    def _without_buried(self, decoded: Decoded, edges: Edges) -> Decoded:
        """Deleted nodes are nobody's neighbours: not in the rings, nor in what came before in the batch,
        nor in what was produced before and comes later. Nor does the mirror bring them back."""
        rows, buried = decoded.rows, self.buried
        for gone in decoded.gone:
            named = rows.categories[: gone.before, NEIGHBOUR] == gone.node
            rows.missing[: gone.before, NEIGHBOUR] |= named
        if decoded.gone:
            nodes = np.array([g.node for g in decoded.gone], np.int64)
            positions = np.array([g.position for g in decoded.gone], np.int64)
            self.state.owe(forget_neighbours(self.state, nodes, positions))
        if not buried.since:
            return decoded
        ended = buried.before(rows.categories[:, NEIGHBOUR], decoded.timestamp_ms)
        rows.missing[:, NEIGHBOUR] |= ended & ~decoded.deleted
        mirrored = np.flatnonzero(rows.position >> OFFSET_BITS == edges.mirror)
        keep = np.ones(len(rows), np.bool_)
        own = edges.hashes([decoded.entities[i] for i in mirrored.tolist()])
        keep[mirrored] = ~buried.before(own, decoded.timestamp_ms[mirrored])
        return decoded if keep.all() else decoded.take(keep)

    def owe(self, touched: Touched) -> None:
        """Until `paid`: what stops halfway is written later from the state."""
        quiet = touched.quiet
        self.state.owe(touched.slots if quiet is None else touched.slots[~quiet])
        for name in touched.deleted:
            self.owed_deletions[name] = None

    def forget_vectors(self, touched: Touched) -> None:
        """The recurrent state of entities that were touched without being encoded no longer holds."""
        if self.images is None:
            self.state.unsettle(touched.slots)

    # -- vectors out ------------------------------------------------------------------------------

    def live(self, touched: Touched, releases: Releases) -> tuple[I64, Vectors, list[str], int]:
        """The touched entities' slots and vectors, names to delete, windows encoded anew."""
        assert releases.current is not None
        slots, vectors, anew = self.served.live(touched, releases.current, releases)
        deletions = [name for name in touched.deleted if name not in self.state.index]
        return slots, vectors, deletions, anew

    def deletions(self) -> list[str]:
        """Names owed a deletion; who has come back since is owed a vector instead."""
        if self.owed_deletions:
            self.owed_deletions = {
                n: None for n in self.owed_deletions if n not in self.state.index
            }
        return list(self.owed_deletions)

    def post(
        self, sink: Sink, generation: int, vectors: Vectors, deletions: list[str]
    ) -> Callable[[], WriteResult]:
        """One fenced pipeline: positions, then vectors. It or its answer may raise SinkDown or Fenced."""
        self.writes += 1
        reached = list(self.positions)
        positions = dict(zip(self.topics, reached, strict=True))
        if loss := self.loss:
            positions[LOSS] = loss
        answer = sink.post(
            self.number, self.epoch, self.writes, generation, positions, vectors, deletions
        )

        def acknowledged() -> WriteResult:
            result = answer()
            self.acked[:] = reached  # in place: a snapshot under way must not say less
            self.acked_loss = self.held_loss = loss
            self.held = reached
            return result

        return acknowledged

    def paid(self, slots: I64, deletions: list[str], current: int) -> None:
        """Redis gets these."""
        self.served.paid(slots, current)
        for name in deletions:
            self.owed_deletions.pop(name, None)

    def refused(self, slots: I64, deletions: list[str]) -> None:
        """Redis did not get what was thought to be paid; slots may have been freed since."""
        self.state.owe(slots[self.state.count[slots] > 0])
        self.owed_deletions |= dict.fromkeys(deletions)

    def owe_release(self, current: Release, swap: int) -> None:
        """After a swap, resident entities of another release are to be written again.

        All of them where this is not the next swap after the one that the state knows of: what came
        between may have been written over in Redis by a process whose memory of it is gone."""
        m, state = current.manifest, self.state
        if self.next is not None and self.next_release == current.number:
            state.become(self.next.state)
            self.served = Generation(state, self.images, self.next.refetch, self.next.queue)
        elif (state.hidden, state.anchor) != (m.kept, min(m.window, state.window)):
            state.begin(m.kept, m.window)
        self.next, self.next_release, state.twin = None, 0, None
        self.served.owe_release(current.number, everybody=swap - self.swap not in (0, 1))
        self.swap = swap

    def fill(self, release: Release | None) -> None:
        """Another generation is begun beside the one that is served, or given up."""
        self.next = None if release is None else self.served.beside(release)
        self.next_release = 0 if release is None else release.number
        if release is None:
            self.state.twin = None

    def owe_everything(self) -> None:
        """Redis came back empty or older."""
        for generation in filter(None, (self.served, self.next)):
            generation.owe_everything()
        self.loss = max(self.loss, self.epoch << 20) + 1

    # -- snapshots --------------------------------------------------------------------------------

    def begin_snapshot(self, before_commit: Callable[[], None], forgets: list[int]) -> None:
        name = next_name(self.folder, self.epoch)
        meta = group_meta.of(self, forgets)
        self.snapshot = GroupSnapshot(
            self.folder, name, self.state, self.positions, meta, before_commit
        )

    # -- stats ------------------------------------------------------------------------------------

    def stats(self, lag: int, now: float, paused: bool, held_back: int = 0) -> GroupStats:
        state, n = self.state, len(self.state.names)
        tagged = (state.count[:n] > 0) & (state.tag[:n] > 0)
        if self.images is not None:  # what is not to be encoded again holds no release up
            tagged &= state.owed[:n]
        unfilled, serving = 0 if self.next is None else self.next.still, self.phase == "serving"
        tags = state.tag[:n][tagged]
        return GroupStats(
            group=self.number,
            phase="paused" if paused else self.phase,
            positions=dict(zip(self.topics, self.positions, strict=True)),
            lag=lag,
            held_back=held_back,
            entities=state.counts.entities,
            evicted=state.counts.evicted,
            deleted=state.counts.deleted,
            late=state.counts.late,
            too_old=state.counts.too_old,
            state_bytes=state.nbytes,
            release=int(tags.max(initial=0)),
            oldest_release=int(tags.min()) if len(tags) else 0,
            to_encode=self.served.still + len(self.news),
            to_fill=unfilled,
            filled=self.next_release if serving and not unfilled and not self.lacking else 0,
            snapshot_age_s=now - (self.opened_at if self.snapshot_at is None else self.snapshot_at),
            snapshots=self.snapshots,
            snapshot_failures=self.snapshot_failures,
        )


def _state(shape: Shape, sizes: Sizes) -> State:
    state = State(shape, sizes.window, sizes.hidden, sizes.slots, anchor=sizes.anchor)
    if shape.noded:
        state.nodes = NodeTable(shape, sizes.nodes or sizes.slots)
    return state
