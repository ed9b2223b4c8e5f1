"""Stand-ins for servers, which keep the same promises; `tests/contracts/` holds them to it.

Faults are items of the stream: each happens once, when reading comes to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from actors.ports import Batch, DeadLetters, Headers, Source
from schemas.errors import SourceError


class Record(NamedTuple):
    value: bytes | None
    key: bytes | None = None
    group: int = 0
    topic: int = 0
    time_ms: int = 0
    headers: Headers = ()


class Crashed(BaseException):
    """What a killed process would not have caught either."""


@dataclass(frozen=True)
class Crash:
    """Reading on raises Crashed."""

    group: int = 0
    topic: int = 0


@dataclass(frozen=True)
class Down:
    """The source does not answer for so many polls."""

    polls: int = 1
    group: int = 0
    topic: int = 0


@dataclass(frozen=True)
class Gap:
    """Offsets without records, as compaction and transactions leave them."""

    offsets: int = 1
    group: int = 0
    topic: int = 0


Item: TypeAlias = Record | Crash | Down | Gap


@dataclass
class _Log:
    entries: list[tuple[int, Item]] = field(default_factory=list)
    end: int = 0


class MemorySource(Source):
    """A broker in memory. A Record without a group goes to group 0; `start` may come again, after
    a crash."""

    def __init__(
        self, items: Sequence[Item] = (), topics: tuple[str, ...] = ("memory",), groups: int = 1
    ) -> None:
        self.topics, self.up = topics, True
        self.committed: dict[int, list[int]] = {}
        self._logs = {(g, t): _Log() for g in range(groups) for t in range(len(topics))}
        self._positions: dict[tuple[int, int], int] = {}
        self._paused: set[tuple[int, int]] = set()
        self._down = 0
        self.put(*items)

    def put(self, *items: Item) -> None:
        for item in items:
            log = self._logs[item.group, item.topic]
            log.entries.append((log.end, item))
            log.end += item.offsets if isinstance(item, Gap) else isinstance(item, Record)

    def start(self, group: int, positions: list[int] | None) -> list[int]:
        positions = list(positions or [0] * len(self.topics))
        for topic, position in enumerate(positions):
            end = self._logs[group, topic].end
            if not 0 <= position <= end:
                raise SourceError(
                    f"{self.topics[topic]}: {position} is wanted; there are 0 to {end}."
                )
            self._positions[group, topic] = position
            self._paused.discard((group, topic))
        return positions

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        del timeout_s  # there is nothing to wait for
        batches = []
        for (group, topic), position in self._positions.items():
            if self._down or (group, topic) in self._paused or max_records <= 0:
                continue
            batch = self._read(group, topic, max_records)
            if batch.next_offset > position:
                self._positions[group, topic] = batch.next_offset
                batches.append(batch)
                max_records -= len(batch.offsets)
        self.up = not self._down
        self._down = max(0, self._down - 1)
        return batches

    def _read(self, group: int, topic: int, most: int) -> Batch:
        log = self._logs[group, topic]
        position = self._positions[group, topic]
        found: list[tuple[int, Record]] = []
        for entry in list(log.entries):
            offset, item = entry
            if offset < position and not (
                isinstance(item, Gap) and offset + item.offsets > position
            ):
                continue
            if len(found) == most:
                break
            if isinstance(item, Record):
                found.append((offset, item))
                position = offset + 1
            elif isinstance(item, Gap):
                position = offset + item.offsets
            elif found:
                break  # the fault is met by the next poll
            else:
                log.entries.remove(entry)
                if isinstance(item, Crash):
                    raise Crashed
                self._down = item.polls
                break
        return Batch(
            group,
            topic,
            np.array([offset for offset, _ in found], np.int64),
            np.array([record.time_ms for _, record in found], np.int64),
            [record.key for _, record in found],
            [record.value for _, record in found],
            position,
            [record.headers for _, record in found],
        )

    def pause(self, group: int, topic: int) -> None:
        self._paused.add((group, topic))

    def resume(self, group: int, topic: int) -> None:
        self._paused.discard((group, topic))

    def idle(self, group: int, topic: int) -> bool:
        return self._positions[group, topic] >= self._logs[group, topic].end

    def lag(self, group: int) -> int:
        return sum(
            self._logs[at].end - position
            for at, position in self._positions.items()
            if at[0] == group
        )

    def commit(self, group: int, positions: list[int]) -> None:
        self.committed[group] = list(positions)

    def close(self) -> None:
        self._positions.clear()


class Letter(NamedTuple):
    batch: Batch
    at: int
    error: str
    reason: str
    row: int | None


class MemoryDeadLetters(DeadLetters):
    """`letters` are handed over, the first `durable` of them flushed."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.durable = 0

    def send(self, batch: Batch, at: int, error: str, reason: str, row: int | None) -> None:
        self.letters.append(Letter(batch, at, error, reason, row))

    def flush(self) -> None:
        self.durable = len(self.letters)

    def close(self) -> None:
        pass
