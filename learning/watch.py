"""The embeddings of what comes, against those of a reference that is kept as it came: raw windows, encoded anew by each
release, so that a release is no change of the world."""

import numpy as np

from learning.encoders.base import Encoder
from learning.kinds.events import subset
from learning.mmd import BATCH, MmdDrift
from learning.student import embed
from schemas.records import F32, Windows

REFERENCE = 2048  # windows
LEAST = 256  # ... where they are large
REFERENCE_BYTES = 16 << 20
RUN_LENGTH = 500.0  # batches to a false alarm, on average


class EmbeddingWatch:
    """Not of a graph's nodes: the learner is given their edges, not their windows."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.alarms = 0
        self.ratio = float("nan")  # of the statistic to its threshold
        self.renew()

    def renew(self) -> None:
        """What comes next is the reference."""
        self._parts: list[Windows] = []
        self._detector: MmdDrift | None = None
        self._encoder: Encoder | None = None
        self._waiting: Windows | None = None
        self._wanted = REFERENCE

    @property
    def complete(self) -> bool:
        return sum(map(len, self._parts)) >= self._wanted

    @property
    def served(self) -> bool:
        """Whether it has an encoder to look with."""
        return self._encoder is not None

    def add(self, windows: Windows) -> None:
        """What came. Of what comes between two looks the newest is looked at."""
        there = np.flatnonzero(np.diff(windows.offsets))  # a graph may have lost its last edge
        windows = subset(windows, there[-BATCH:] if self.complete else there)
        if not len(windows):
            return
        if not self.complete:
            if not self._parts:
                room = REFERENCE_BYTES * len(windows) // max(windows.nbytes, 1)
                self._wanted = min(max(room, LEAST), REFERENCE)
            self._parts.append(windows)
            return
        both = windows if self._waiting is None else Windows.concat([self._waiting, windows])
        self._waiting = subset(both, np.arange(max(len(both) - BATCH, 0), len(both)))

    def serve(self, encoder: Encoder) -> None:
        """A new release: the reference is encoded anew, and the window begins anew."""
        self._encoder = encoder
        if not self.complete:
            return
        self._parts = [subset(Windows.concat(self._parts), np.arange(self._wanted))]
        rng = np.random.default_rng(self._seed)
        self._detector = MmdDrift(self._vectors(self._parts[0]), RUN_LENGTH, rng)

    def look(self) -> bool:
        """Encodes a batch of what came, if there is one. Whether that is an alarm."""
        if self._detector is None or self._waiting is None or len(self._waiting) < BATCH:
            return False
        batch, self._waiting = self._waiting, None
        found = self._detector.update(self._vectors(batch))
        if found is None:
            return False
        self.ratio = found / self._detector.threshold
        if self.ratio <= 1.0:
            return False
        self.alarms += 1
        self._detector.begin()
        return True

    def _vectors(self, windows: Windows) -> F32:
        assert self._encoder is not None
        found: F32 = embed(self._encoder, windows).cpu().numpy()
        return found

    def reference(self) -> Windows | None:
        """For a snapshot; None before it is complete."""
        return Windows.concat(self._parts) if self.complete else None

    def restore(self, reference: Windows) -> None:
        self.renew()
        self._parts, self._wanted = [reference], len(reference)
