"""What a shard needs of its neighbours; the real ones and the fakes of the tests promise the same."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from schemas.records import I64, Told, Windows

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
"""Of one message: names, which may repeat, and values."""


class Batch(NamedTuple):
    """Records of one topic of one group, in order of offsets (which may have gaps)."""

    group: int
    topic: int  # index into Source.topics
    offsets: I64  # [N]
    timestamps_ms: I64  # [N] when produced
    keys: list[bytes | None]
    values: list[bytes | None]
    next_offset: int
    headers: list[Headers] | None = None  # where the source reads them: of a stream of images

    def cut(self, lo: int, hi: int) -> "Batch":
        """Records lo to hi, of the same `next_offset`."""
        return self._replace(
            offsets=self.offsets[lo:hi],
            timestamps_ms=self.timestamps_ms[lo:hi],
            keys=self.keys[lo:hi],
            values=self.values[lo:hi],
            headers=None if self.headers is None else self.headers[lo:hi],
        )


class Source(Protocol):
    """Partition i of every topic is group i."""

    topics: tuple[str, ...]
    up: bool

    def start(self, group: int, positions: list[int] | None) -> list[int]:
        """Reads the group from `positions` (one per topic); None: from the configured start. Returns them.

        Raises SourceError where they cannot be had any more, or the partitions changed."""

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        """What has come, of started groups, but for paused topics of them. SourceError stops the stream."""

    def pause(self, group: int, topic: int) -> None: ...
    def resume(self, group: int, topic: int) -> None: ...
    def idle(self, group: int, topic: int) -> bool:
        """Whether it is known that nothing is left to poll, a moment ago."""
        ...

    def lag(self, group: int) -> int:
        """Records that are there but not yet polled."""

    def commit(self, group: int, positions: list[int]) -> None:
        """For lag tools only; failures are not raised."""

    def close(self) -> None: ...


class DeadLetters(Protocol):
    def send(self, batch: Batch, at: int, error: str, reason: str, row: int | None) -> None:
        """Hands over record `at` of the batch; durable after `flush`."""

    def flush(self) -> None:
        """Raises SourceDown where some are not durable."""

    def close(self) -> None: ...


class Mirror(Protocol):
    """The stream's internal topic: what a graph's other groups must know. Partition i is for group i."""

    def send(self, group: int, message: bytes) -> None:
        """Hands over a message, in this order; durable after `flush`. Never waits."""

    def wait_for_room(self, seconds: float) -> bool:
        """Whether more may be sent; waits until it may."""
        ...

    def flush(self) -> None:
        """Raises SourceDown where some are not durable."""

    def close(self) -> None: ...


class LearnerPort(Protocol):
    processes: int
    """How many learner's processes there were: a new one is told again what nodes have of their own."""

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        """Windows cut when the group stood at `positions`. False: full, and nothing was taken."""

    def poll(self) -> None:
        """Time passed: what was taken goes out, also when nothing more comes."""

    def describe(self, told: Told) -> bool:
        """What was said of nodes. To be asked again and again, until the learner has taken it; never waits."""
        ...

    def forget(self, entities: list[int]) -> int:
        """Deleted entities (category_hash of their names) leave the replay, with all windows offered before.

        To be asked again and again: how many from the front the learner has durably taken note of."""
