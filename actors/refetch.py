"""Images that a release encodes again from behind their URIs: fetched beside the stream, some at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

import numpy as np
import structlog

from actors.encode import Release
from actors.fetch import Fetcher
from actors.images import newest_first
from actors.rejected import Rejected
from actors.state import State
from schemas.records import I64, U8, Bool, ImageRows

log = structlog.get_logger()
Found = list[U8 | Rejected]


@dataclass(frozen=True)
class Batch:
    """Under way: of these entities [M] the images at `slot`, `place` in the rings [N], as they were then."""

    slots: I64
    slot: I64
    place: I64
    position: I64
    since: I64  # with `slot` it says whose life it is
    answer: Future[Found]


class Refetch:
    """Of one group. fetcher: not that of the stream, which would wait for a store that hangs. pixels: of an image's
    file, or why there are none."""

    def __init__(self, fetcher: Fetcher, pixels: Callable[[bytes], U8 | Rejected]) -> None:
        self._fetcher, self._pixels = fetcher, pixels
        self._batch: Batch | None = None
        self._failed = np.zeros(0, np.int64)  # entities that the release under way does not reach

    def another(self) -> "Refetch":
        """For another generation."""
        return Refetch(self._fetcher, self._pixels)

    @property
    def busy(self) -> bool:
        return self._batch is not None

    def forget(self) -> None:
        """A new release: what could not be had is tried again."""
        self._failed = np.zeros(0, np.int64)

    def wanted(self, state: State, slots: I64, release: int) -> Bool:
        """[M] who has images of another release that are worth a try."""
        return _stale(state, slots, release)[1].any(1) & ~np.isin(slots, self._failed)

    def begin(self, state: State, slots: I64, release: int, most: int) -> None:
        """most: images at a time, which one turn encodes; all of one entity's at least."""
        rows = state.rows
        assert isinstance(rows, ImageRows)
        at, stale = _stale(state, slots, release)
        many = stale.sum(1)
        n = max(1, within(many, most))
        slot, place = np.repeat(slots[:n], many[:n]), at[:n][stale[:n]]
        uris = [bytes(u).rstrip(b"\0").decode() for u in rows.uri[slot, place]]
        answer: Future[Found] = Future()
        position, since = rows.position[slot, place], state.since_us[slot]
        self._batch = Batch(slots[:n], slot, place, position, since, answer)
        Thread(target=self._get, args=(uris, answer), name="refetch", daemon=True).start()

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
        # an entity may have gone since, its slot be another's, and a ring have moved on
        there = (state.count[batch.slot] > 0) & (state.since_us[batch.slot] == batch.since)
        there &= rows.position[batch.slot, batch.place] == batch.position
        self._failed = np.union1d(self._failed, batch.slot[there & ~have])
        have &= there
        if have.any():
            which = batch.slot[have], batch.place[have]
            some = np.stack([f for f, ok in zip(found, have, strict=True) if ok])  # type: ignore[misc]
            rows.vector[which] = release.encode_images(some)
            rows.release[which] = release.number
        return batch.slots[state.count[batch.slots] > 0]

    def _get(self, uris: Sequence[str], answer: Future[Found]) -> None:
        try:  # as they come: of the files no more than `fetches` are held
            found = {
                at: data if isinstance(data, Rejected) else self._pixels(data)
                for at, data in self._fetcher.each(uris)
            }
            answer.set_result([found[at] for at in range(len(uris))])
        except BaseException as error:
            answer.set_exception(error)


def _stale(state: State, slots: I64, release: int) -> tuple[I64, Bool]:
    """Places [M, T] in the rings, and which of them hold an image with a URI and a vector of another release."""
    rows = state.rows
    assert isinstance(rows, ImageRows)
    at, valid = newest_first(state, slots)
    where = slots[:, None], at
    return at, valid & (rows.release[where] != release) & (rows.uri[where][..., 0] > 0)


def within(many: I64, most: int) -> int:
    """How many of the first have no more than `most` together."""
    return int(np.searchsorted(np.cumsum(many), most, side="right"))
