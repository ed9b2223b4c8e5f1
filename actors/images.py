"""Vectors of images. Each image is encoded when it comes; an entity's vector is the mean of its newest ones'.

What a new release encodes again is what the ring keeps of an image: its pixels, its URI, or nothing.

Shapes: N images, M entities, T images of a ring, P bytes of an image, D dimensions."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from actors.duplicates import Duplicates
from actors.encode import Release
from actors.state import State, Touched
from schemas.records import F32, I64, Bool, Decoded, ImageRows, Windows, category_hash
from schemas.stats import ShardStats
from schemas.stream import ImageConfig, Shape

TURN_S = 0.1  # encoding takes about so long of one turn of the shard, whatever an image costs
LEAST = 16  # images of a turn
BATCH_BYTES = 64 << 20  # of the pixels of a turn
REWRITE_US = (
    60_000_000  # an entity is written once in so much of its time, though its images are copies
)


class Images:
    """Of one shard. `most`: how many images a turn should take."""

    def __init__(
        self,
        config: ImageConfig,
        shape: Shape,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shape, self._clock = shape, clock
        self.stats = ShardStats()  # the shard's own, once it has taken this
        self._duplicates = None if config.duplicate is None else Duplicates(config.duplicate)
        self._room = max(1, BATCH_BYTES // shape.pixels)
        self.most = min(256, self._room)

    def take(self, state: State, decoded: Decoded, release: Release | None) -> tuple[Windows, I64]:
        """Encodes what came, if there is a release, and leaves of it what a ring keeps.

        Returns what is to be learnt from, and the positions of the images that change nothing for readers."""
        rows = decoded.rows
        assert isinstance(rows, ImageRows)
        there, n = ~decoded.deleted, len(rows)
        learnt, quiet = there, np.zeros(n, np.bool_)
        rows.vector = np.zeros((n, state.hidden), np.float32)
        if release is not None and there.any():
            began, at = self._clock(), np.flatnonzero(there)
            rows.vector[at] = release.encode_images(rows.pixels[at])
            rows.release[at] = release.number
            self._adapt(len(at), self._clock() - began)
            self.stats.encoded += len(at)
            if self._duplicates is not None:
                found = [state.index.get(decoded.entities[i], -1) for i in at.tolist()]
                slots = np.array(found, np.int64)
                before = self._before(state, slots, release)
                copies, same = self._duplicates.judge(rows.vector[at], before)
                same &= state.anchor == 1  # a mean moves with each copy
                learnt = there.copy()
                learnt[at[copies]] = False
                # the next one is compared with what readers have: many small changes are a large one
                rows.vector[at[same]] = before[same]
                now_us = rows.time_us[at] // REWRITE_US
                quiet[at[same]] = (now_us == state.last_us[slots] // REWRITE_US)[same]
                self.stats.duplicates += int(np.count_nonzero(copies | same))
        windows = _windows(rows, decoded.entities, np.flatnonzero(learnt), self._shape)
        if not self._shape.kept_pixels:
            decoded.rows = replace(rows, pixels=rows.pixels[:, :0])
        return windows, rows.position[quiet]

    def fit(self, slots: int) -> None:
        """A turn touches no more entities than a group has room for."""
        self._room = min(self._room, slots)
        self.most = min(self.most, self._room)

    def _adapt(self, n: int, seconds: float) -> None:
        if n >= LEAST:
            fits = int(n * TURN_S / max(seconds, 1e-4))
            self.most = min(max(LEAST, (self.most + fits) // 2), self._room)

    @staticmethod
    def _before(state: State, slots: I64, release: Release) -> F32:
        """The vector of the newest image that each one's entity had, zero where there is none of the release.

        slots: -1 where the entity is new."""
        newest = (state.placed[slots] - 1) % state.window
        rows = state.rows
        assert isinstance(rows, ImageRows)
        mine = (slots >= 0) & (state.placed[slots] > 0)
        mine &= rows.release[slots, newest] == release.number
        return np.where(mine[:, None], rows.vector[slots, newest], np.float32(0.0))


def _windows(rows: ImageRows, entities: list[str], at: I64, shape: Shape) -> Windows:
    """A window of each image."""
    names = [category_hash(entities[i]) for i in at.tolist()]
    mine = replace(rows.take(at), uri=rows.uri[at, :0], vector=rows.vector[at, :0])
    totals = np.zeros((len(at), shape.totals))
    return Windows(mine, np.arange(len(at) + 1), totals, mine.time_us, np.array(names, np.int64))


def live(state: State, touched: Touched, release: Release) -> tuple[I64, F32, I64, int]:
    """Vectors of the touched entities that have one and of which readers see something new: their slots [M],
    vectors [M, D], the releases that made them [M], and how many images were encoded anew."""
    slots = touched.slots if touched.quiet is None else touched.slots[~touched.quiet]
    return encode_anew(state, slots, release)


def encode_anew(state: State, slots: I64, release: Release) -> tuple[I64, F32, I64, int]:
    """As `live`, of any entities: their images of other releases are encoded again where their pixels are kept."""
    anew = _encode_kept(state, slots, release) if state.shape.kept_pixels else 0
    vectors, made_by = means(state, slots)
    state.tag[slots] = made_by
    has = made_by > 0
    return slots[has], vectors[has], made_by[has], anew


def newest_first(state: State, slots: I64) -> tuple[I64, Bool]:
    """Places [M, T] in each slot's ring of the images that its vector is of, and which hold one."""
    step = np.arange(state.anchor)
    at = (state.placed[slots][:, None] - 1 - step) % state.window
    return at, step < state.anchored(slots)[:, None]


def _encode_kept(state: State, slots: I64, release: Release) -> int:
    rows = state.rows
    assert isinstance(rows, ImageRows)
    at, valid = newest_first(state, slots)
    stale = valid & (rows.release[slots[:, None], at] != release.number)
    which = np.repeat(slots, stale.sum(1)), at[stale]
    if len(which[0]):
        rows.vector[which] = release.encode_images(rows.pixels[which])
        rows.release[which] = release.number
    return len(which[0])


def means(state: State, slots: I64) -> tuple[F32, I64]:
    """Of each slot the mean, of unit length, of the vectors that one release made of its images, [M, D], and that
    release [M]: the one of the newest image that has a vector; 0 where none has."""
    rows = state.rows
    assert isinstance(rows, ImageRows)
    at, valid = newest_first(state, slots)
    release = np.where(valid, rows.release[slots[:, None], at], 0)
    line = np.arange(len(slots))
    first = np.argmax(release > 0, axis=1)
    made_by = release[line, first]
    newest = rows.vector[slots, at[line, first]]
    if state.anchor == 1:
        return newest, made_by
    mine = (release == made_by[:, None])[:, :, None]
    total = np.where(mine, rows.vector[slots[:, None], at], np.float32(0.0)).sum(1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # images that are each other's opposite have no mean direction: the newest's is taken
    mean = np.where(length > 1e-6, total / np.maximum(length, 1e-6), newest)
    return mean.astype(np.float32), made_by
