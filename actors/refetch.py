"""Images that a release encodes again from behind their URIs: fetched beside the stream, some at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from actors.encode import Release
from actors.fetch import Fetcher
from actors.images import newest_first
from actors.rejected import Rejected
from actors.state import State
from schemas.records import I64, U8, Bool, ImageRows

MOST = 256  # entities at a time
log = structlog.get_logger()
Found = list[U8 | Rejected]


@dataclass(frozen=True)
class Batch:
    """Under way: of these entities [M] the images at `slot`, `place` in the rings [N], as they were then."""

    slots: I64
    slot: I64
    place: I64
    position: I64
    answer: Future[Found]


class Refetch:
    """Of one group. pixels: of an image's file, or why there are none."""

    def __init__(self, fetcher: Fetcher, pixels: Callable[[bytes], U8 | Rejected]) -> None:
        self._fetcher, self._pixels = fetcher, pixels
        self._pool: ThreadPoolExecutor | None = None
        self._batch: Batch | None = None
        self._failed = np.zeros(0, np.int64)  # entities that the release under way does not reach

    @property
    def busy(self) -> bool:
        return self._batch is not None

    def forget(self) -> None:
        """A new release: what could not be had is tried again."""
        self._failed = np.zeros(0, np.int64)

    def wanted(self, state: State, slots: I64, release: int) -> Bool:
        """[M] who has images of another release that are worth a try."""
        return _stale(state, slots, release)[1].any(1) & ~np.isin(slots, self._failed)

    def begin(self, state: State, slots: I64, release: int) -> None:
        rows = state.rows
        assert isinstance(rows, ImageRows)
        at, stale = _stale(state, slots, release)
        slot, place = np.repeat(slots, stale.sum(1)), at[stale]
        uris = [bytes(u).rstrip(b"\0").decode() for u in rows.uri[slot, place]]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "refetch")
        answer = self._pool.submit(self._get, uris)
        self._batch = Batch(slots, slot, place, rows.position[slot, place], answer)

    def end(self, state: State, release: Release) -> I64 | None:
        """The entities whose images have come and are encoded, [M]; None while they are under way."""
        batch, rows = self._batch, state.rows
        assert batch is not None and isinstance(rows, ImageRows)
        if not batch.answer.done():
            return None
        self._batch = None
        found = batch.answer.result()
        have = np.array([not isinstance(f, Rejected) for f in found], np.bool_)
        lost = [f for f in found if isinstance(f, Rejected)]
        if lost:
            log.warning("images_not_encoded_again", images=len(lost), reason=str(lost[0]))
        self._failed = np.union1d(self._failed, batch.slot[~have])
        # an entity may have gone since, and a ring have moved on
        have &= rows.position[batch.slot, batch.place] == batch.position
        have &= state.count[batch.slot] > 0
        if have.any():
            which = batch.slot[have], batch.place[have]
            some = np.stack([f for f, ok in zip(found, have, strict=True) if ok])  # type: ignore[misc]
            rows.vector[which] = release.encode_images(some)
            rows.release[which] = release.number
        return batch.slots[state.count[batch.slots] > 0]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _get(self, uris: Sequence[str]) -> Found:
        # as they come: of the files no more than `fetches` are held
        found = {
            at: data if isinstance(data, Rejected) else self._pixels(data)
            for at, data in self._fetcher.each(uris)
        }
        return [found[at] for at in range(len(uris))]


def _stale(state: State, slots: I64, release: int) -> tuple[I64, Bool]:
    """Places [M, T] in the rings, and which of them hold an image with a URI and a vector of another release."""
    rows = state.rows
    assert isinstance(rows, ImageRows)
    at, valid = newest_first(state, slots)
    where = slots[:, None], at
    return at, valid & (rows.release[where] != release) & (rows.uri[where][..., 0] > 0)
