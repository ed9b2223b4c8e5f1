"""The state of one partition group: per entity a ring of its last L records, counts, totals, recurrent state.

Every column is one array over all slots, reserved whole at the start and committed by the system page by
page on first touch: growing copies nothing, and a gather needs no loop over slabs. A slab is up to SLAB
consecutive slots, the unit of snapshots (`actors/snapshot.py`).

Shapes: E slots, L rows of a ring, M entities touched by a micro-batch, K running totals, H recurrent state.
"""

from copy import copy
from dataclasses import dataclass, field, fields, replace
from itertools import repeat

import numpy as np

from actors import graves, late_rows
from actors.capacity import NAME_BYTES, entity_bytes
from learning.node_table import ENTRY, NodeTable
from schemas.errors import SettingsError
from schemas.records import (
    F64,
    I64,
    OFFSET_BITS,
    Bool,
    Decoded,
    ImageRows,
    Rows,
    Windows,
    category_hash,
    contributions,
)
from schemas.stream import TOMBSTONE, Shape

SLAB = 4096
_OFFSET_MASK = (1 << OFFSET_BITS) - 1


@dataclass(slots=True)
class Touched:
    """What one micro-batch did: M entities, and its rows in order of (entity, time, position)."""

    slots: I64  # [M]
    starts: I64  # [M] the entity's rows are rows[starts[m] : starts[m] + lengths[m]]
    lengths: I64  # [M]
    rows: Rows
    late: Bool  # [M] not all of them are newer than what was there: their vector is encoded anew
    totals: F64  # [M, K] before these rows
    last_us: I64  # [M] time of the newest row before these
    deleted: list[str]
    accepted: int  # records taken, deletions and rows of entities deleted since included
    quiet: Bool | None = None  # [M] of images: nothing that readers would see is new; None: of none


@dataclass(slots=True)
class Counts:
    entities: int = 0
    evicted: int = 0
    deleted: int = 0
    late: int = 0
    too_old: int = 0


@dataclass(slots=True)
class Marks:
    """What a snapshot's slabs already hold: slab s was copied when topic t stood at offsets[s, t]."""

    offsets: I64  # [slabs, topics]
    slab: I64  # [E] slab the slot was restored from; -1: not restored

    def hold(self, slots: I64, position: I64) -> Bool:
        """Whether each record is part of what was restored of its entity."""
        slab = self.slab[slots]
        topic = position >> OFFSET_BITS
        return np.asarray((slab >= 0) & ((position & _OFFSET_MASK) < self.offsets[slab, topic]))


@dataclass(slots=True)
class State:
    """Rings and totals of up to `slots` entities; `hidden` is the width H of the recurrent state."""

    shape: Shape
    window: int
    hidden: int
    slots: int
    rows: Rows = field(init=False)  # columns [E, L, ...]
    placed: I64 = field(init=False)  # [E] rows ever placed in the ring
    count: I64 = field(init=False)  # [E] records, those not in the ring included; 0: a free slot
    totals: F64 = field(init=False)
    first_us: I64 = field(init=False)
    last_us: I64 = field(init=False)
    since_us: I64 = field(init=False)
    touched: I64 = field(init=False)  # [E] the clock when last touched; orders eviction
    tag: I64 = field(init=False)  # [E] release of `recurrent`; 0: it must be encoded anew
    recurrent: np.ndarray = field(init=False)  # [E, H] float32
    owed: Bool = field(init=False)  # [E] Redis does not hold the vector it should
    dead: Bool = field(init=False)  # [E, L] rows of removed edges and their tombstones; see graves
    graves: Bool = field(init=False)  # [E] whether the ring has any
    gone: Bool = field(init=False)  # [E] rows left the ring though it is not full: it was shorter
    index: dict[str, int] = field(default_factory=dict)
    names: list[str | None] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    clock: int = 0
    life_us: int = -(1 << 62)  # no life that ended began later: a new one's `since` is greater
    counts: Counts = field(default_factory=Counts)
    marks: Marks | None = None
    nodes: NodeTable | None = None  # of a graph whose nodes have features: those of all groups
    anchor: int = (
        0  # L of the anchor rule, at most `window`, which it is where nothing else is said
    )
    twin: "State | None" = None  # for another generation's releases: see `beside`

    def __post_init__(self) -> None:
        e, w, s = self.slots, self.window, self.shape
        self.anchor = self.anchor or w
        columns = (
            np.zeros((e, w), np.int64),
            np.zeros((e, w), np.int64),
            np.zeros((e, w, s.numbers), np.float32),
            np.zeros((e, w, s.categories), np.int64),
            np.zeros((e, w, s.categories), np.bool_),
        )
        self.rows = Rows(*columns)
        if s.side:
            pixels, uri = (np.zeros((e, w, n), np.uint8) for n in (s.kept_pixels, s.kept_uri))
            vectors = np.zeros((e, w, 0), np.float32)
            self.rows = ImageRows(*columns, pixels, uri, vectors, np.zeros((e, w), np.int64))
        self.totals = np.zeros((e, s.totals), np.float64)
        self.graves, self.gone = np.zeros(e, np.bool_), np.zeros(e, np.bool_)
        self.dead = np.zeros((e if s.graph else 0, w), np.bool_)
        for name in ("placed", "count", "first_us", "last_us", "since_us", "touched"):
            setattr(self, name, np.zeros(e, np.int64))
        self.begin(self.hidden, self.anchor)

    # -- what releases leave ----------------------------------------------------------------------

    def begin(self, hidden: int, anchor: int) -> None:
        """For releases with this width H and L: no entity has a vector of theirs."""
        e, w = self.slots, self.window
        self.hidden, self.anchor = hidden, min(anchor, w)
        self.tag, self.owed = np.zeros(e, np.int64), np.zeros(e, np.bool_)
        self.recurrent = np.zeros((e, 0 if self.shape.side else hidden), np.float32)
        if isinstance(self.rows, ImageRows):
            vectors, release = np.zeros((e, w, hidden), np.float32), np.zeros((e, w), np.int64)
            self.rows = replace(self.rows, vector=vectors, release=release)

    def beside(self, hidden: int, anchor: int) -> "State":
        """The same entities and rows for the releases of another generation; all are owed their vector."""
        self.twin = None
        twin = copy(self)
        twin.begin(hidden, anchor)
        twin.owed[:] = self.count > 0
        self.twin = twin
        return twin

    def become(self, twin: "State") -> None:
        """Its generation is the one that is served."""
        self.hidden, self.anchor, self.rows = twin.hidden, twin.anchor, twin.rows
        self.tag, self.owed, self.recurrent = twin.tag, twin.owed, twin.recurrent
        self.twin = None

    def owe(self, slots: I64) -> None:
        """Redis does not hold the vectors that it should, of any generation."""
        self.owed[slots] = True
        if self.twin is not None:
            self.twin.owed[slots] = True

    def unsettle(self, slots: I64) -> None:
        """Their recurrent states no longer hold."""
        self.tag[slots] = 0
        if self.twin is not None:
            self.twin.tag[slots] = 0

    def anew(self, touched: Touched) -> Bool:
        """[M] whose vector stepping from the state before does not give."""
        n, half = self.count[touched.slots], max(self.anchor // 2, 1)  # of one image all are anew
        return np.asarray(touched.late | (n // half > (n - touched.lengths) // half))

    # -- records in -------------------------------------------------------------------------------

    def apply(self, decoded: Decoded) -> Touched:
        """Takes a micro-batch of one group into the state. Each record changes its entity once."""
        accepted = len(decoded.entities)
        entities, rows, deleted = decoded.entities, decoded.rows, list[str]()
        upsert, origin = decoded.upsert, decoded.origin
        if origin is None:
            origin = rows.position
        if decoded.deleted.any():
            keep, deleted = self._delete_in(decoded)
            entities, rows = [decoded.entities[i] for i in keep.tolist()], rows.take(keep)
            upsert, origin = upsert[keep], origin[keep]
        self.clock += 1
        slots = np.fromiter(map(self.index.get, entities, repeat(-1)), np.int64, len(entities))
        if self.marks is not None:
            known = np.flatnonzero(slots >= 0)
            held = np.zeros(len(slots), np.bool_)
            held[known] = self.marks.hold(slots[known], rows.position[known])
            if held.any():
                keep = np.flatnonzero(~held)
                accepted -= len(slots) - len(keep)
                slots, rows = slots[keep], rows.take(keep)
                upsert, origin = upsert[keep], origin[keep]
                entities = [entities[i] for i in keep.tolist()]
        rows = replace(rows, position=origin)  # what was skipped went by where it was read
        new = np.flatnonzero(slots < 0)
        self.touched[slots[slots >= 0]] = (
            self.clock
        )  # not to be evicted by this batch's own newcomers
        if len(new):
            self._admit(slots, new.tolist(), entities, rows.time_us)
        described = slots[upsert], rows.time_us[upsert]
        if upsert.any():
            slots, rows = slots[~upsert], rows.take(~upsert)
        order = np.lexsort((np.arange(len(slots)), rows.position, rows.time_us, slots))
        slots, rows = slots[order], rows.take(order)
        starts = np.flatnonzero(np.diff(slots, prepend=-1))
        touched = self._place(
            slots[starts], starts, np.diff(starts, append=len(slots)), rows, deleted, accepted
        )
        return self._describe(touched, *described) if upsert.any() else touched

    def _describe(self, touched: Touched, slots: I64, time_us: I64) -> Touched:
        """Records that say something of their node: counted, and in no ring."""
        np.add.at(self.count, slots, 1)
        bare = self.placed[slots] == 0  # else the times are those of its rows
        np.maximum.at(self.last_us, slots[bare], time_us[bare])
        self.first_us[slots[bare]] = self.last_us[slots[bare]]
        more = np.setdiff1d(slots, touched.slots)
        none = np.zeros(len(more), np.int64)
        return replace(
            touched,
            slots=np.concatenate([touched.slots, more]),
            starts=np.concatenate([touched.starts, none]),
            lengths=np.concatenate([touched.lengths, none]),
            late=np.ones(len(touched.slots) + len(more), np.bool_),
            totals=np.concatenate([touched.totals, self.totals[more]]),
            last_us=np.concatenate([touched.last_us, self.last_us[more]]),
        )

    def _place(
        self, slots: I64, starts: I64, lengths: I64, rows: Rows, deleted: list[str], accepted: int
    ) -> Touched:
        before, totals = self.last_us[slots], self.totals[slots]
        known = self.placed[slots] > 0
        newest = self.rows.position[slots, (self.placed[slots] - 1) % self.window]
        first_us, first_at = rows.time_us[starts], rows.position[starts]
        late = known & ((first_us < before) | ((first_us == before) & (first_at <= newest)))
        slow = self._slow(slots, lengths, rows, late) if self.shape.graph else late
        gaps = np.diff(rows.time_us, prepend=0)
        gaps[starts] = np.where(known, first_us - before, 0)
        opens = gaps > self.shape.session_gap_us
        opens[starts] |= ~known
        added = contributions(rows.numbers)
        added[:, 1] = opens
        if len(starts):
            sums = np.add.reduceat(added, starts, axis=0)
            if late.any():
                sums[late, 1] = 0.0  # their gaps change behind them too: see late_rows
            if self.shape.graph:
                sums[slow] = 0.0
            self.totals[slots] += sums
        earliest = np.where(known, np.minimum(self.first_us[slots], first_us), first_us)
        if self.shape.graph:
            at = np.flatnonzero(np.repeat(slow, lengths))
            owner = np.repeat(np.arange(np.count_nonzero(slow)), lengths[slow])
            if len(at):
                graves.merge(self, slots[slow], rows.take(at), owner)
                earliest[slow] = self.first_us[slots[slow]]
        else:
            for m in np.flatnonzero(late).tolist():
                late_rows.merge(
                    self, int(slots[m]), rows.take(slice(starts[m], starts[m] + lengths[m]))
                )
        self._append(slots, starts, lengths, rows, ~slow)
        self.count[slots] += lengths
        ends = rows.time_us[starts + lengths - 1]
        self.last_us[slots] = np.where(known, np.maximum(before, ends), ends)
        self.first_us[slots] = earliest
        always = self.shape.graph or self.shape.side > 0
        late = np.ones_like(late) if always else late
        return Touched(slots, starts, lengths, rows, late, totals, before, deleted, accepted)

    def _slow(self, slots: I64, lengths: I64, rows: Rows, late: Bool) -> Bool:
        """Whose ring changes before its end: rows come late, or edges are removed, or the newest row is
        dead, so that the gap to the newest live one is not known. [M]"""
        slow = late | (
            self.graves[slots] & self.dead[slots, (self.placed[slots] - 1) % self.window]
        )
        stones = rows.missing[:, TOMBSTONE]
        if stones.any():
            slow[np.repeat(np.arange(len(slots)), lengths)[stones]] = True
        return np.asarray(slow)

    def _append(self, slots: I64, starts: I64, lengths: I64, rows: Rows, in_order: Bool) -> None:
        """Rows newer than all that their entity has."""
        each = np.repeat(np.arange(len(slots)), lengths)
        rank = np.arange(len(rows)) - starts[each]
        at = np.flatnonzero(in_order[each] & (rank >= lengths[each] - self.window))
        to = slots[each[at]], (self.placed[slots[each[at]]] + rank[at]) % self.window
        for f in fields(self.rows):
            getattr(self.rows, f.name)[to] = getattr(rows, f.name)[at]
        self.not_in_twin(to)
        self.placed[slots[in_order]] += lengths[in_order]
        if self.graves[slots].any():
            self.dead[to] = False
            some = slots[in_order & self.graves[slots]]
            self.graves[some] = self.dead[some].any(1)

    def not_in_twin(self, to: tuple[I64, I64] | int) -> None:
        """What a ring has there is another image than the one whose vector the twin has."""
        if self.twin is not None and isinstance(self.twin.rows, ImageRows):
            self.twin.rows.release[to] = 0

    # -- entities come and go ---------------------------------------------------------------------

    def _admit(self, slots: I64, new: list[int], entities: list[str], time_us: I64) -> None:
        """Gives slots to the names that have none; `slots` is filled in place."""
        newcomers = dict.fromkeys(entities[i] for i in new)
        wanted = len(newcomers) - (self.slots - len(self.names)) - len(self.free)
        if wanted > 0:
            self._evict(wanted)
        for name in newcomers:
            self.slot_for(name)
        at = np.fromiter((self.index[entities[i]] for i in new), np.int64, len(new))
        slots[new] = at
        self.touched[at] = self.clock
        first = np.unique(at, return_index=True)
        began = time_us[np.asarray(new)[first[1]]]
        self.since_us[first[0]] = np.maximum(began, self.life_us + 1)
        self.counts.entities = len(self.index)

    def slot_for(self, name: str) -> int:
        """A free slot, which is the new name's from now on."""
        if self.free:
            slot = self.free.pop()
            self.names[slot] = name
        else:
            slot = len(self.names)
            self.names.append(name)
        self.index[name] = slot
        return slot

    def _evict(self, wanted: int) -> None:
        """Frees at least `wanted` slots: the least recently touched, some more at once to do it seldom."""
        used = np.flatnonzero(self.count[: len(self.names)] > 0)
        used = used[self.touched[used] < self.clock]
        if len(used) < wanted:
            raise SettingsError(
                f"one micro-batch touches more entities than the {self.slots} that a partition group has "
                "room for. Raise state.max_memory_mb, or lower shard.max_records."
            )
        n = min(len(used), max(wanted, self.slots // 64))
        for slot in used[np.argpartition(self.touched[used], n - 1)[:n]].tolist():
            self._release(slot)
        self.counts.evicted += n

    def _release(self, slot: int) -> None:
        name = self.names[slot]
        assert name is not None
        del self.index[name]
        self.names[slot] = None
        self.free.append(slot)
        self.life_us = max(self.life_us, int(self.since_us[slot]))
        self.totals[slot] = 0.0
        self.owed[slot] = self.gone[slot] = False
        if self.twin is not None:
            self.twin.owed[slot], self.twin.tag[slot] = False, 0
        if self.graves[slot]:
            self.dead[slot] = self.graves[slot] = False
        for column in (
            self.placed,
            self.count,
            self.tag,
            self.last_us,
            self.first_us,
            self.touched,
        ):
            column[slot] = 0
        if self.marks is not None:
            self.marks.slab[slot] = -1

    def _delete_in(self, decoded: Decoded) -> tuple[I64, list[str]]:
        """Forgets the deleted entities. Which rows are left, those behind their last deletion; who is gone."""
        last: dict[str, int] = {}
        for i in np.flatnonzero(decoded.deleted).tolist():
            name = decoded.entities[i]
            slot = self.index.get(name)
            at = decoded.rows.position[i : i + 1]
            if (
                slot is not None
                and self.marks is not None
                and self.marks.hold(np.array([slot]), at)[0]
            ):
                continue
            last[name] = i
        for name in last:
            slot = self.index.get(name)
            if slot is not None:
                self._release(slot)
        self.counts.deleted += len(last)
        self.counts.entities = len(self.index)
        keep = [
            i
            for i, (name, gone) in enumerate(
                zip(decoded.entities, decoded.deleted.tolist(), strict=True)
            )
            if not gone and i > last.get(name, -1)
        ]
        return np.array(keep, np.int64), list(last)

    # -- windows out ------------------------------------------------------------------------------

    def left(self, slots: I64) -> Bool:
        """[M] which rings no longer hold all that was placed in them."""
        return np.asarray((self.placed[slots] > self.window) | self.gone[slots])

    def held(self, slots: I64, most: int | None = None) -> I64:
        """How many rows each slot's ring holds among its newest `most` (None: all); of a graph live ones. [M]"""
        n = np.minimum(self.placed[slots], self.window if most is None else most)
        some = np.flatnonzero(self.graves[slots])
        if len(some):
            step, of = np.arange(int(n[some].max())), slots[some, None]
            dead = self.dead[of, (self.placed[of] - 1 - step) % self.window]
            n[some] -= (dead & (step < n[some, None])).sum(1)
        return n

    def anchored(self, slots: I64) -> I64:
        """w of the anchor rule for each slot; of a graph the live ones of the newest L rows, of images those L. [M]"""
        if self.shape.graph or self.shape.side:
            return self.held(slots, self.anchor)
        n, half = self.count[slots], self.anchor // 2
        return np.minimum(np.where(n < half, n, half + n % half), self.held(slots))

    def padded(self, slots: I64, lengths: I64) -> tuple[Rows, F64]:
        """The newest `lengths` rows of each slot, as columns [M, T, ...] padded behind, and the totals before.

        Where that is none (a node without live edges) there is one blank row, as of its newest record."""
        steps = np.arange(int(lengths.max(initial=1)))
        start = self.placed[slots] - lengths
        at = (start[:, None] + np.minimum(steps, lengths[:, None] - 1)) % self.window
        valid = steps < lengths[:, None]
        lonely = lengths == 0
        if lonely.any() or self.graves[slots].any():
            at = graves.live_at(self, slots, lengths, at)
            rows = self.rows.take((slots[:, None], at))
            rows.time_us[lonely], rows.position[lonely] = self.last_us[slots[lonely], None], 0
            rows.numbers[lonely], rows.categories[lonely] = np.nan, 0
            rows.missing[lonely], valid[lonely] = True, False
        else:
            rows = self.rows.take((slots[:, None], at))
        flat = contributions(rows.numbers.reshape(valid.size, self.shape.numbers))
        flat[:, 1] = (
            np.diff(rows.time_us, axis=1, prepend=rows.time_us[:, :1]) > self.shape.session_gap_us
        ).ravel()
        inside = (flat.reshape(*valid.shape, self.shape.totals) * valid[:, :, None]).sum(1)
        return rows, self.totals[slots] - inside

    def hashes(self, slots: I64) -> I64:
        """category_hash of the names. [M]"""
        names = [category_hash(self.names[slot] or "") for slot in slots.tolist()]
        return np.array(names, np.int64)

    def windows(self, slots: I64) -> Windows:
        """All rows that each slot's ring holds, flat."""
        lengths = self.held(slots)
        rows, totals = self.padded(slots, lengths)
        valid = np.arange(rows.time_us.shape[1]) < lengths[:, None]
        flat = rows.take(valid)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        return Windows(flat, offsets, totals, self.first_us[slots], self.hashes(slots))

    @property
    def nbytes(self) -> int:
        """Bytes that the entities so far take."""
        each = entity_bytes(self.shape, self.window, self.hidden) + NAME_BYTES
        known = 0 if self.nodes is None else self.nodes.used * (self.shape.node_bytes + ENTRY)
        return len(self.names) * each + known
