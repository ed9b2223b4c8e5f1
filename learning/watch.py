"""The embeddings of what comes, against those of a reference that is kept as it came: raw windows, encoded anew by each
release, so that a release is no change of the world.

Nor is a longer history: of each window the newest rows are compared, as many as a window of the reference has at the
median, without what came before them. Shorter windows are left out."""

from collections import deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from learning.encoders.base import Encoder
from learning.halves import newest_rows
from learning.kinds.events import subset
from learning.mmd import BATCH, FILLED, MmdDrift
from learning.student import embed
from schemas.records import F32, I64, Bool, Windows
from schemas.stream import NEIGHBOUR

REFERENCE = 2048  # windows
LEAST = 256  # ... where they are large
REFERENCE_BYTES = 16 << 20
RUN_LENGTH = 500.0  # batches to a false alarm, on average
RECENT = FILLED  # batches that were looked at last: they fill the window of another release
ENOUGH = 4  # ... of which a second opinion needs so many


class Sample(NamedTuple):
    """Windows, and the vector of each."""

    windows: Windows
    vectors: F32  # [B, D]


class EmbeddingWatch:
    """`add` what comes, `look` now and then, `serve` each new release. Of a graph's nodes give windows of those that
    were touched."""

    def __init__(self, seed: int, *, nodes: bool = False) -> None:
        self._seed, self._nodes = seed, nodes
        self.alarms = 0
        self.renew()

    def renew(self) -> None:
        """What comes next is the reference."""
        self.ratio = float("nan")  # of the statistic to its threshold
        self._parts: list[Windows] = []
        self._held = (
            0  # windows in them: thousands of parts are not counted again with each that comes
        )
        self._detector: MmdDrift | None = None
        self._encoder: Encoder | None = None
        self._waiting: Windows | None = None
        self._wanted = REFERENCE
        self._rows = 0  # of a window that are compared; 0: not known yet
        self._reference_z: F32 | None = None
        self._recent: deque[Sample] = deque(maxlen=RECENT)

    @property
    def complete(self) -> bool:
        return self._held >= self._wanted

    @property
    def served(self) -> bool:
        """Whether it has an encoder to look with."""
        return self._encoder is not None

    def add(self, windows: Windows) -> None:
        """What came. Of what comes between two looks the newest is looked at."""
        there = np.flatnonzero(np.diff(windows.offsets) >= max(self._rows, 1))
        windows = subset(windows, there[-BATCH:] if self.complete else there)
        if not len(windows):  # a graph may have lost its last edge
            return
        windows = windows if not self._rows else self._newest(windows)
        if not self.complete:
            if not self._parts:
                room = REFERENCE_BYTES * len(windows) // max(windows.nbytes, 1)
                self._wanted = min(max(room, LEAST), REFERENCE)
            self._parts.append(windows)
            self._held += len(windows)
            if self._held >= self._wanted:
                self._measure()
            return
        both = windows if self._waiting is None else Windows.concat([self._waiting, windows])
        self._waiting = subset(both, np.arange(max(len(both) - BATCH, 0), len(both)))

    def _measure(self) -> None:
        """How many rows are compared; of the reference that leaves half of the windows at least."""
        whole = Windows.concat(self._parts)
        whole = subset(whole, np.arange(min(len(whole), self._wanted)))
        self._rows = max(int(np.median(np.diff(whole.offsets))), 1)
        self._parts = [self._newest(whole)]
        self._held = self._wanted = len(self._parts[0])

    def _newest(self, windows: Windows) -> Windows:
        """The newest rows of those that have so many, as if nothing had been before."""
        which = np.flatnonzero(np.diff(windows.offsets) >= self._rows)
        found = newest_rows(windows, which, np.full(len(which), self._rows), 0)
        first_us = found.rows.time_us[found.offsets[:-1]]
        return replace(found, first_us=first_us, totals=np.zeros_like(found.totals))

    def serve(self, encoder: Encoder) -> None:
        """A new release: the reference is encoded anew, and so is what was looked at since the last alarm: a window
        that began anew would of a slow stream not be full before the next release."""
        self._encoder = encoder
        if not self.complete:
            return
        rng = np.random.default_rng(self._seed)
        since = self._detector.batches if self._detector is not None else 0
        self._recent = deque(
            (Sample(s.windows, self._vectors(s.windows)) for s in self._recent), RECENT
        )
        self._reference_z = self._vectors(self._parts[0])
        self._detector = MmdDrift(self._reference_z, RUN_LENGTH, rng)
        for sample in list(self._recent)[-since:] if since else ():
            if len(sample.windows) == BATCH:  # of a smaller one somebody was deleted
                self._detector.update(sample.vectors)

    def look(self) -> bool:
        """Encodes a batch of what came, if there is one. Whether that is an alarm."""
        if self._detector is None or self._waiting is None or len(self._waiting) < BATCH:
            return False
        batch, self._waiting = self._waiting, None
        self._recent.append(Sample(batch, self._vectors(batch)))
        found = self._detector.update(self._recent[-1].vectors)
        if found is None:
            return False
        self.ratio = found / self._detector.threshold
        if self.ratio <= 1.0:
            return False
        self.alarms += 1
        self._detector.begin()
        return True

    def samples(self) -> tuple[Sample, Sample] | None:
        """The reference, and what was looked at last; None while either is too little."""
        if self._reference_z is None or sum(len(s.windows) for s in self._recent) < ENOUGH * BATCH:
            return None
        windows = Windows.concat([s.windows for s in self._recent])
        now = Sample(windows, np.concatenate([s.vectors for s in self._recent]))
        return Sample(self._parts[0], self._reference_z), now

    def forget(self, entities: I64) -> None:
        """Drops windows of these, and of nodes those that name one as a neighbour; of a reference that was complete
        fewer are left, and where they are too few it begins anew."""
        complete = self.complete
        kept = [self._others(part, entities) for part in self._parts]
        if all(map(np.all, kept)) and not self._recent and self._waiting is None:
            return
        self._parts = [subset(p, np.flatnonzero(k)) for p, k in zip(self._parts, kept, strict=True)]
        self._held = sum(map(len, self._parts))
        if complete:
            self._wanted = self._held
            if self._wanted < LEAST // 4:  # where they are large it had no more from the start
                self.renew()
                return
        if self._reference_z is not None:
            self._reference_z = self._reference_z[kept[0]]
        if self._waiting is not None:
            which = np.flatnonzero(self._others(self._waiting, entities))
            self._waiting = subset(self._waiting, which)
        for at, (windows, vectors) in enumerate(self._recent):
            keep = self._others(windows, entities)
            if not keep.all():
                self._recent[at] = Sample(subset(windows, np.flatnonzero(keep)), vectors[keep])

    def _others(self, windows: Windows, entities: I64) -> Bool:
        """[B] which windows are not of these."""
        keep = ~np.isin(windows.entity, entities)
        if self._nodes:
            named = np.isin(windows.rows.categories[:, NEIGHBOUR], entities)
            keep[np.repeat(np.arange(len(windows)), np.diff(windows.offsets))[named]] = False
        return np.asarray(keep)

    def _vectors(self, windows: Windows) -> F32:
        assert self._encoder is not None
        found: F32 = embed(self._encoder, windows).cpu().numpy()
        return found

    def reference(self) -> Windows | None:
        """For a snapshot; None before it is complete."""
        return Windows.concat(self._parts) if self.complete else None

    def restore(self, reference: Windows) -> None:
        self.renew()
        self._parts = [reference]
        self._measure()
