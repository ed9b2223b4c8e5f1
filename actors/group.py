"""One partition group: its state, positions, epoch and phase; what a shard owns a set of.

Phases: `starting` until the fence is raised in Redis; `replaying` until all topics have passed the positions
that Redis has seen; `waiting` before the first release; `serving`. In all but the last, records change the
state and nothing is written: their entities are *owed*, and written once when serving begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from actors import group_meta, images
from actors.decode import BadRecord, Decoder
from actors.edges import Edges
from actors.embed import Releases, embed, encode_anew
from actors.encode import Release
from actors.folders import Folder, folders, newest
from actors.graves import Buried, forget_neighbours
from actors.images import Images
from actors.mirror import Marks
from actors.nodes import News
from actors.partitioner import partitions_of
from actors.ports import Batch
from actors.quarantine import Quarantine, joined, plain
from actors.refetch import Refetch, within
from actors.sink import Sink, Vectors, WriteResult
from actors.snapshot import GroupSnapshot, restore
from actors.state import State, Touched
from learning.node_table import NodeTable
from schemas.published import EDGE
from schemas.records import I64, OFFSET_BITS, Decoded, Windows
from schemas.stats import GroupStats
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

Sizes = tuple[int, int, int] | tuple[int, int, int, int]
"""Window L, hidden H, slots E; and of how many nodes, of all groups, a graph's features are kept (else E)."""

QUEUE = 16_384
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
    buried: Buried = field(default_factory=Buried)  # deleted nodes of a graph
    images: Images | None = None  # of a stream of images
    refetch: Refetch | None = None  # ... that keeps their URIs
    news: News = field(default_factory=News)  # what is said of nodes of a graph
    phase: str = "starting"
    silent_until: list[int] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)  # positions that Redis is known to have taken
    loss: int = 0  # which filling of Redis we write; another number after each loss
    acked_loss: int = 0  # ... and the one that Redis is known to have
    swap: int = 0  # up to which swap of releases `state.owed` tells what Redis lacks
    owed_deletions: dict[str, None] = field(default_factory=dict)
    forgets: list[int] = field(default_factory=list)  # of the snapshot: see Shard
    # what Redis was last seen to hold; `acked` never falls, for slabs of a snapshot may rest on it
    held: list[int] = field(default_factory=list)
    held_loss: int = 0
    queue: I64 = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # owed slots, most recent first
    turn: int = 0  # the slot from which on others than the most recent are paid
    writes: int = 0
    snapshots: int = 0
    snapshot_failures: int = 0
    snapshot_at: float | None = None
    opened_at: float = 0.0  # by the shard's clock
    snapshot: GroupSnapshot | None = None

    @classmethod
    def open(
        cls,
        number: int,
        epoch: int,
        topics: tuple[str, ...],
        folder: Path,
        shape: Shape,
        sizes: Sizes,
        fields: Sequence[str] = (),
    ) -> "Group":
        """Restores the newest snapshot that verifies. `positions` is empty where there is none.

        fields: names of the columns, numbers first."""

        def load(found: Folder) -> Group:
            group_meta.check(found, topics, fields, graph=shape.graph)
            state = _state(shape, sizes)
            group = cls(number, epoch, topics, state, restore(found, state), folder)
            group_meta.take(group, found.meta)
            return group

        group = newest(folder, load)
        group = group or cls(number, epoch, topics, _state(shape, sizes), [], folder)
        group.fields = tuple(fields)
        return group

    def join(self, groups: int) -> None:
        """The group is one of so many of a graph: edges have their far ends in all of them."""
        topics = len(self.topics) - (groups > 1)
        shape = self.state.shape
        self.edges = Edges(shape, self.number, self.epoch, groups, topics, self.mirrored)
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
        if quiet is not None and len(quiet) and len(touched.slots):
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
            self.state.owed[forget_neighbours(self.state, nodes, positions)] = True
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
        self.state.owed[touched.slots if quiet is None else touched.slots[~quiet]] = True
        for name in touched.deleted:
            self.owed_deletions[name] = None

    def forget_vectors(self, touched: Touched) -> None:
        """The recurrent state of entities that were touched without being encoded no longer holds."""
        if self.images is None:
            self.state.tag[touched.slots] = 0

    # -- vectors out ------------------------------------------------------------------------------

    def live(self, touched: Touched, releases: Releases) -> tuple[I64, Vectors, list[str], int]:
        """The touched entities' slots and vectors, names to delete, windows encoded anew."""
        if self.images is None:
            slots = touched.slots
            vectors, release, anew = embed(self.state, touched, releases)
        else:
            assert releases.current is not None
            slots, vectors, release, anew = images.live(self.state, touched, releases.current)
        deletions = [name for name in touched.deleted if name not in self.state.index]
        return slots, self._vectors(slots, vectors, release), deletions, anew

    def deletions(self) -> list[str]:
        """Names owed a deletion; who has come back since is owed a vector instead."""
        if self.owed_deletions:
            self.owed_deletions = {
                n: None for n in self.owed_deletions if n not in self.state.index
            }
        return list(self.owed_deletions)

    def owed(self, most: int, releases: Releases) -> tuple[I64, Vectors] | None:
        """Up to `most` owed entities, the most recently touched first, encoded by the current release."""
        assert releases.current is not None
        state = self.state
        if self.refetch is not None and self.refetch.busy:
            fetched = self.refetch.end(state, releases.current)
            if fetched is not None:
                return self._owed_images(fetched, releases.current)
        if (
            self.images is not None
        ):  # a turn has time for so many; of URIs it encodes what was fetched alone
            most = (max if self.refetch is not None else min)(most, self.images.most)
        while True:
            if not len(self.queue):
                owed = np.flatnonzero(state.owed[: len(state.names)])
                if not len(owed):
                    return None
                self.queue = self.next_owed(owed)
            slots, self.queue = self.queue[:most], self.queue[most:]
            slots = slots[state.owed[slots]]
            if self.images is not None and len(slots):
                return self._owed_images(slots, releases.current)
            if len(slots):
                vectors = encode_anew(state, slots, releases.current)
                return slots, self._vectors(slots, vectors, state.tag[slots])

    def _owed_images(self, slots: I64, release: Release) -> tuple[I64, Vectors] | None:
        """As `owed`; None where all of them have first to be fetched. Those stay owed."""
        state = self.state
        assert self.images is not None
        if self.refetch is not None:
            fetch = self.refetch.wanted(state, slots, release.number)
            if fetch.any():
                if not self.refetch.busy:
                    self.refetch.begin(state, slots[fetch], release.number, self.images.most)
                slots = slots[~fetch]
                if not len(slots):
                    return None
        elif state.shape.kept_pixels:  # as far as there is time; of one entity all
            slots = slots[: max(1, within(state.held(slots), self.images.most))]
        state.owed[slots] = False  # also of those that have no vector yet
        slots, vectors, made_by, _ = images.encode_anew(state, slots, release)
        return slots, self._vectors(slots, vectors, made_by)

    def next_owed(self, owed: I64) -> I64:
        """Whom to pay next, the most recently touched first. Of very many half are those whose turn it is: where
        slots are owed again and again (neighbours of a node of which something new is said every second) the
        quiet ones would never be."""
        age = -self.state.touched[owed]
        if len(owed) > QUEUE:  # to sort a million would hold the stream up
            recent = owed[np.argpartition(age, QUEUE // 2)[: QUEUE // 2]]
            behind = owed[np.searchsorted(owed, self.turn) :][: QUEUE // 2]
            self.turn = int(behind[-1]) + 1 if len(behind) else 0
            owed = np.union1d(recent, behind)
            age = -self.state.touched[owed]
        return owed[np.argsort(age, kind="stable")]

    def _vectors(self, slots: I64, vectors: np.ndarray, release: I64) -> Vectors:
        state = self.state
        names = [state.names[slot] or "" for slot in slots.tolist()]
        edges = _edges(state, slots) if state.shape.unit == "node" else []
        time_us = state.last_us[slots]
        if state.nodes is not None:
            time_us = np.maximum(time_us, state.nodes.said_us(state.hashes(slots)))
        columns = time_us, state.count[slots], state.since_us[slots]
        return Vectors(names, vectors, release, *columns, edges)

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
        """Redis gets these. Vectors of an older release stay owed: the current one is still to reach them, but
        for images, which were encoded again if they could be."""
        if self.images is None:
            self.state.owed[slots] = self.state.tag[slots] != current
        elif self.refetch is None:
            self.state.owed[slots] = False
        else:
            self.state.owed[slots] = self.refetch.wanted(self.state, slots, current)
        for name in deletions:
            self.owed_deletions.pop(name, None)

    def refused(self, slots: I64, deletions: list[str]) -> None:
        """Redis did not get what was thought to be paid; slots may have been freed since."""
        self.state.owed[slots[self.state.count[slots] > 0]] = True
        self.owed_deletions |= dict.fromkeys(deletions)

    def owe_release(self, current: int, swap: int) -> None:
        """After a swap, resident entities of another release are to be written again.

        All of them where this is not the next swap after the one that the state knows of: what came
        between may have been written over in Redis by a process whose memory of it is gone."""
        n = len(self.state.names)
        resident = self.state.count[:n] > 0
        known = swap - self.swap in (0, 1)
        stale = self.state.tag[:n] != current
        if self.images is not None and self.state.shape.keep == "nothing":
            stale &= self.state.tag[:n] == 0  # there is nothing to encode again
        self.state.owed[:n] |= resident & (stale | (not known))
        if self.refetch is not None:
            self.refetch.forget()
        self.swap = swap
        self.queue = np.zeros(0, np.int64)

    def owe_everything(self) -> None:
        """Redis came back empty or older."""
        n = len(self.state.names)
        self.state.owed[:n] = self.state.count[:n] > 0
        self.queue = np.zeros(0, np.int64)
        self.loss = max(self.loss, self.epoch << 20) + 1

    # -- snapshots --------------------------------------------------------------------------------

    def begin_snapshot(self, before_commit: Callable[[], None], forgets: list[int]) -> None:
        n = 1 + max((int(p.name.split("-")[1]) for p in folders(self.folder)[:1]), default=0)
        meta = group_meta.of(self, forgets)
        self.snapshot = GroupSnapshot(
            self.folder, f"{self.epoch}-{n}", self.state, self.positions, meta, before_commit
        )

    # -- stats ------------------------------------------------------------------------------------

    def stats(self, lag: int, now: float, paused: bool, held_back: int = 0) -> GroupStats:
        state, n = self.state, len(self.state.names)
        tagged = (state.count[:n] > 0) & (state.tag[:n] > 0)
        if self.images is not None:  # what is not to be encoded again holds no release up
            tagged &= state.owed[:n]
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
            to_encode=int(np.count_nonzero(state.owed[:n])) + len(self.news),
            snapshot_age_s=now - (self.opened_at if self.snapshot_at is None else self.snapshot_at),
            snapshots=self.snapshots,
            snapshot_failures=self.snapshot_failures,
        )


def _state(shape: Shape, sizes: Sizes) -> State:
    window, hidden, slots = sizes[:3]
    state = State(shape, window, hidden, slots)
    if shape.noded:
        state.nodes = NodeTable(shape, sizes[-1])
    return state


def _edges(state: State, slots: I64) -> list[bytes]:
    """The live edges of each node, packed as EDGE."""
    lengths = state.held(slots)
    rows, _ = state.padded(slots, lengths)
    packed = np.empty(rows.time_us.shape, EDGE)
    packed["time_us"], packed["neighbour"] = rows.time_us, rows.categories[..., NEIGHBOUR]
    packed["direction"] = rows.numbers[..., DIRECTION]
    return [packed[m, :n].tobytes() for m, n in enumerate(lengths.tolist())]
