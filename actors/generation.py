"""One generation's vectors of a group's entities: made as records come, and for whom they are owed.

A group has the one that is served, and while another is being filled, that one too: both see the same rows, and each
has its own of what its releases left (`State.beside`).

Shapes: M entities."""

from dataclasses import dataclass, field

import numpy as np

from actors import images
from actors.embed import Releases, embed, encode_anew
from actors.encode import Release
from actors.images import Images
from actors.refetch import Refetch, within
from actors.sink import Vectors
from actors.state import State, Touched
from schemas.published import EDGE
from schemas.records import I64
from schemas.stream import DIRECTION, NEIGHBOUR

QUEUE = 16_384


def _none() -> I64:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Generation:
    state: State
    images: Images | None = None  # of a stream of images
    refetch: Refetch | None = None  # ... that keeps their URIs
    queue: I64 = field(default_factory=_none)  # owed slots, most recent first
    turn: int = 0  # the slot from which on others than the most recent are paid

    def beside(self, release: Release) -> "Generation":
        """Another one, which this release begins: nothing of it is there yet, and all is owed."""
        twin = self.state.beside(release.manifest.kept, release.manifest.window)
        return Generation(twin, self.images, self.refetch and self.refetch.another())

    # -- vectors out ------------------------------------------------------------------------------

    def live(
        self, touched: Touched, release: Release, releases: Releases
    ) -> tuple[I64, Vectors, int]:
        """The touched entities' slots and vectors, windows encoded anew."""
        if self.images is None:
            slots = touched.slots
            vectors, made_by, anew = embed(self.state, touched, release, releases)
        else:
            slots, vectors, made_by, anew = images.live(self.state, touched, release)
        return slots, self._vectors(slots, vectors, made_by), anew

    def owed(self, most: int, release: Release) -> tuple[I64, Vectors] | None:
        """Up to `most` owed entities, the most recently touched first, encoded by the release."""
        state = self.state
        if self.refetch is not None and self.refetch.busy:
            fetched = self.refetch.end(state, release)
            if fetched is not None:
                return self._owed_images(fetched, release)
        if self.images is not None:
            # a turn has time for so many; of URIs it encodes what was fetched alone
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
                return self._owed_images(slots, release)
            if len(slots):
                vectors = encode_anew(state, slots, release)
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
            slots = slots[: max(1, within(state.anchored(slots), self.images.most))]
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

    # -- who is owed one --------------------------------------------------------------------------

    def paid(self, slots: I64, release: int) -> None:
        """Redis gets these. Vectors of an older release stay owed: the current one is still to reach them, but
        for images, which were encoded again if they could be."""
        if self.images is None:
            self.state.owed[slots] = self.state.tag[slots] != release
        elif self.refetch is None:
            self.state.owed[slots] = False
        else:
            self.state.owed[slots] = self.refetch.wanted(self.state, slots, release)

    def owe_release(self, release: int, *, everybody: bool) -> None:
        """Resident entities that another release encoded are to be written again, or all of them."""
        state, n = self.state, len(self.state.names)
        stale = state.tag[:n] != release
        if self.images is not None and state.shape.keep == "nothing":
            stale &= state.tag[:n] == 0  # there is nothing to encode again
        state.owed[:n] |= (state.count[:n] > 0) & (stale | everybody)
        if self.refetch is not None:
            self.refetch.forget()
        self.queue = _none()

    def owe_everything(self) -> None:
        n = len(self.state.names)
        self.state.owed[:n] = self.state.count[:n] > 0
        self.queue = _none()

    @property
    def still(self) -> int:
        """How many are owed."""
        return int(np.count_nonzero(self.state.owed[: len(self.state.names)]))


def _edges(state: State, slots: I64) -> list[bytes]:
    """Of each node the edges that its vector is made of, packed as EDGE."""
    lengths = state.anchored(slots)
    rows, _ = state.padded(slots, lengths)
    packed = np.empty(rows.time_us.shape, EDGE)
    packed["time_us"], packed["neighbour"] = rows.time_us, rows.categories[..., NEIGHBOUR]
    packed["direction"] = rows.numbers[..., DIRECTION]
    return [packed[m, :n].tobytes() for m, n in enumerate(lengths.tolist())]
