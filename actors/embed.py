"""Vectors by the anchor rule: `step` from the state before where it may, `encode` of the window where it must.

Shapes: M entities, D dimensions, H recurrent state, K totals."""

from pathlib import Path
from threading import Thread

import numpy as np
import structlog

from actors.cut import Columns
from actors.encode import IMAGES, Release
from actors.served import served
from actors.state import State, Touched
from schemas.errors import ReleaseError
from schemas.records import F32, I64, Bool, Features, contributions
from schemas.stream import NEIGHBOUR, Shape

CHUNK = 256  # windows in one call: larger ones run no faster on a CPU and hold the stream up
log = structlog.get_logger()


class Releases:
    """The releases that entities' states may carry, loaded; `current` is the one to encode with, `next` the one of
    another generation that is being filled.

    `swap` counts how often the service's current release has changed, up to the one here."""

    def __init__(self, folder: Path, threads: int = 1, there: Columns | None = None) -> None:
        self.folder, self.threads, self._there = folder, threads, there
        self.current: Release | None = None
        self.next: Release | None = None
        self.swap = 0
        self.waits = False  # to be `bound` no more
        self.others: tuple[
            int, ...
        ] = ()  # generations beside the current: a deletion is theirs too
        self._loaded: dict[int, Release | None] = {}
        self._came: Release | None = None
        self._loading: Thread | None = None
        self._refused: set[tuple[int, int]] = set()

    def refresh(self, *, bound: bool = False) -> bool:
        """Looks for a newer current release; loads it beside the stream. True when it has just changed.

        bound: not to one of another generation now, for a snapshot copies what this one left."""
        if self._loading is not None and self._loading.is_alive():
            return False
        if self._came is not None:
            self._loaded[self._came.number] = self._came
            self._came = None
        now = served(self.folder)
        self.others = now.others
        if now.swap != self.swap and (found := self._ready(now.release, now.swap)):
            self.waits = bound and self._opens(found)
            if self.waits:  # readers are there already
                self.others = (*now.others, found.manifest.generation)
            else:
                self.current, self.swap, self.next = found, now.swap, None
                return True
        if now.swap == self.swap:  # the one before first
            self.next = self._ready(now.next, now.swap) if now.next else None
        return False

    def _opens(self, release: Release) -> bool:
        now = self.current
        return now is not None and now.manifest.generation != release.manifest.generation

    def _ready(self, number: int, swap: int) -> Release | None:
        """If it is loaded; else it is being loaded from now on, unless that was tried."""
        found = self._loaded.get(number)
        if found is None and (number, swap) not in self._refused:
            self._loading = Thread(target=self._load, args=(number, swap), daemon=True)
            self._loading.start()
        return found

    def _load(self, number: int, swap: int) -> None:
        try:
            release = Release.load(self.folder / str(number), self.threads, self._there)
            self._warm(release)
            self._came = release
        except Exception as error:  # whatever the runtime raises: it would be tried at every turn
            self._refused.add((number, swap))
            log.error(
                "release_refused",
                release=number,
                reason=str(error),
                next="the one before is served",
            )

    def _warm(self, release: Release) -> None:
        """The first run of a session allocates: not in the stream's time."""
        m = release.manifest
        there = self._there or Columns.released(m)
        if m.side:
            release.encode_images(np.zeros((IMAGES, there.pixels), np.uint8))
            return
        numbers, categories, *of_nodes = map(len, there.blocks)
        shape = Shape(
            numbers,
            categories,
            m.session_gap_us,
            node_numbers=of_nodes[0],
            node_categories=of_nodes[1],
        )
        state = State(shape, 2, m.state, 1)
        state.placed[0] = state.count[0] = 1
        rows, totals = state.padded(np.zeros(CHUNK, np.int64), np.ones(CHUNK, np.int64))
        own, far = Features.empty(shape, CHUNK), Features.empty(shape, CHUNK, 1)
        ones = np.ones(CHUNK, np.int64)
        release.encode(rows, ones, totals, 0 * ones, own, far)

    def of(self, number: int, generation: int) -> Release | None:
        """The release that a state is tagged with; None if it cannot be had or is of another generation."""
        if number not in self._loaded:
            try:
                folder = self.folder / str(number)
                self._loaded[number] = Release.load(folder, self.threads, self._there)
            except ReleaseError:
                self._loaded[number] = None
        found = self._loaded[number]
        return found if found is not None and found.manifest.generation == generation else None

    def forget(self, used: frozenset[int]) -> None:
        """Drops the sessions of releases that no state carries any more."""
        keep = used | {r.number for r in (self.current, self.next) if r is not None}
        self._loaded = {number: r for number, r in self._loaded.items() if number in keep}


def embed(
    state: State, touched: Touched, release: Release, releases: Releases
) -> tuple[F32, I64, int]:
    """Vectors [M, D] of the touched entities after the micro-batch, their releases [M], windows encoded anew.

    Entities whose state carries an older release are stepped by that one: the new one reaches them in the
    background, or when they must be encoded anew anyway."""
    slots = touched.slots
    fresh = state.count[slots] == touched.lengths
    state.recurrent[slots[fresh]] = 0.0
    state.tag[slots[fresh]] = release.number
    must = state.anew(touched)
    anew = must.copy()
    vectors = np.empty((len(slots), release.manifest.dim), np.float32)
    for tag in np.unique(state.tag[slots[~must]]).tolist():
        stepping = releases.of(tag, release.manifest.generation) if tag else None
        at = np.flatnonzero(~must & (state.tag[slots] == tag))
        if stepping is None:
            anew[at] = True
        else:
            vectors[at] = _step(state, touched, at, fresh[at], stepping)
    at = np.flatnonzero(anew)
    vectors[at] = encode_anew(state, slots[at], release)
    return vectors, state.tag[slots], len(at)


def encode_anew(state: State, slots: I64, release: Release) -> F32:
    """The anchor rule's vectors of the slots from their windows; their states follow. [M, D]"""
    vectors = np.empty((len(slots), release.manifest.dim), np.float32)
    lengths = state.anchored(slots)
    # an encoder of events reads its last row: a node without live edges has a blank one
    least = 1 if release.manifest.step else 0
    order = np.argsort(lengths, kind="stable")  # windows of like length together: little padding
    for at in np.split(order, np.arange(CHUNK, len(order), CHUNK)):
        if len(at):
            part = slots[at]
            rows, totals = state.padded(part, lengths[at])
            own = far = None
            if state.nodes is not None:
                own = state.nodes.get(state.hashes(part))
                far = state.nodes.get(rows.categories[..., NEIGHBOUR])
            vectors[at], state.recurrent[part] = release.encode(
                rows, np.maximum(lengths[at], least), totals, state.first_us[part], own, far
            )
    state.tag[slots] = release.number
    return vectors


def _step(state: State, touched: Touched, at: I64, fresh: Bool, release: Release) -> F32:
    """Rounds: the first new record of each entity, then the second of those that have one, ..."""
    slots, starts, lengths = touched.slots[at], touched.starts[at], touched.lengths[at]
    vectors = np.empty((len(at), release.manifest.dim), np.float32)
    totals = touched.totals[at]
    totals[fresh, 1] = 1.0  # the first record opens the first session
    previous = np.where(fresh, touched.rows.time_us[starts], touched.last_us[at])
    recurrent = state.recurrent[slots]
    live = np.arange(len(at))
    for r in range(int(lengths.max(initial=0))):
        if r:
            live = live[lengths[live] > r]
        rows = touched.rows.take(starts[live] + r)
        vectors[live], recurrent[live] = release.step(
            rows, previous[live], totals[live], state.first_us[slots[live]], recurrent[live]
        )
        added = contributions(rows.numbers)
        added[:, 1] = rows.time_us - previous[live] > state.shape.session_gap_us
        totals[live] += added
        previous[live] = rows.time_us
    state.recurrent[slots] = recurrent
    return vectors
