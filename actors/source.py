"""Kafka as a source: partition i of every topic is group i, assigned by us, at offsets of ours.

`poll` never waits for longer than it is told, whatever Kafka does; a thread beside it (`Watch`)
asks for partition counts and ends, commits for lag tools, and knows whether Kafka answers."""

import time
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import kafka
import kafka.errors
import numpy as np
import structlog

from actors.dead_letters import KafkaDeadLetters
from actors.kafka_client import connected
from actors.kafka_cluster import Cluster
from actors.kafka_config import DlqConfig, SourceConfig, start_ms
from actors.kafka_errors import REFUSALS, translated
from actors.kafka_expand import TooLarge, expand_at_most
from actors.kafka_watch import Watch, changed
from actors.ports import Batch, Source
from schemas.errors import SourceDown, SourceError

__all__ = ["DlqConfig", "KafkaDeadLetters", "KafkaSource", "SourceConfig", "partitions"]

log = structlog.get_logger()

_OFFSET, _TIMESTAMP, _KEY, _VALUE, _HEADERS = (
    itemgetter(kafka.consumer.fetcher.ConsumerRecord._fields.index(name))
    for name in ("offset", "timestamp", "key", "value", "headers")
)


def partitions(config: SourceConfig) -> int:
    """The number of partitions of every topic, which is the number of groups.

    Raises SourceError where a topic is missing or they differ, SourceDown where nobody answers."""
    cluster = Cluster(config)
    try:
        return cluster.partitions()
    finally:
        cluster.close()


class KafkaSource(Source):
    """`groups`: of the whole stream; those to read are started one by one. headers: whether they are read too."""

    def __init__(
        self, config: SourceConfig, stream_name: str, groups: int, headers: bool = False
    ) -> None:
        self.topics, self.up = config.topics, True
        self._config, self._headers = config, headers
        expand_at_most(config.max_expanded_bytes)
        self._cluster = Cluster(config)
        try:
            count = self._cluster.partitions()
            if count != groups:
                raise changed(self.topics[0], groups, count)
            self._consumer = self._connect()
        except BaseException:
            self._cluster.close()
            raise
        self._next: dict[kafka.TopicPartition, int] = {}
        self._paused: set[kafka.TopicPartition] = set()
        self._looked = 0.0
        self._watch = Watch(
            self._cluster, config.topics, groups, config.group or f"afresh-{stream_name}"
        )

    def start(self, group: int, positions: list[int] | None) -> list[int]:
        names = [(topic, group) for topic in self.topics]
        if positions is None:
            positions = self._configured(names)
        else:
            self._reachable(names, positions)
        parts = self._of(group)
        self._consumer.assign([*self._next, *parts])
        for part, position in zip(parts, positions, strict=True):
            self._consumer.seek(part, position)
            self._next[part] = position
        self._watch.add(names)
        return list(positions)

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        self._watch.check()
        self.up = self._watch.up
        try:
            found = self._consumer.poll(round(timeout_s * 1000), max_records)
            batches = [self._batch(part, records) for part, records in found.items()]
            return batches + self._passed(idle=not batches)
        except kafka.errors.OffsetOutOfRangeError as error:
            raise self._out_of_range(error) from error
        except TooLarge as error:
            raise SourceError(
                f"{error} when expanded, and source.max_expanded_bytes is "
                f"{self._config.max_expanded_bytes}. If they are meant, raise it and start again; if not, "
                "delete them from the topic (kafka-delete-records) and begin from what there is."
            ) from error
        except kafka.errors.CorruptRecordError as error:
            raise SourceError(
                f"Kafka sent a damaged record: {error}. Start again; if it says so again, the "
                "broker's disk has it."
            ) from error
        except kafka.errors.KafkaError as error:
            if error.retriable or isinstance(error, kafka.errors.KafkaConnectionError):
                return []  # the watch tells, and the consumer tries again by itself
            if isinstance(error, REFUSALS):
                raise translated(
                    error, self._config, f"to read {', '.join(self.topics)}"
                ) from error
            raise SourceError(f"Kafka at {self._cluster.hosts}: {error!r}.") from error

    def pause(self, group: int, topic: int) -> None:
        part = self._of(group)[topic]
        self._consumer.pause(part)
        self._paused.add(part)

    def resume(self, group: int, topic: int) -> None:
        part = self._of(group)[topic]
        self._consumer.resume(part)
        # kafka-python 3.0.12 keeps what it had parsed of a paused partition, and never comes
        # back to it once another partition was read: drop it, and it is fetched again.
        self._consumer._fetcher._paused_partition_records.pop(part, None)
        self._paused.discard(part)

    def idle(self, group: int, topic: int) -> bool:
        part = self._of(group)[topic]
        return self._watch.passed((part.topic, group), self._next[part])

    def lag(self, group: int) -> int:
        return sum(
            max(
                0,
                self._watch.end((part.topic, part.partition)) - self._next[part],
                self._known(part),
            )
            for part in self._of(group)
        )

    def commit(self, group: int, positions: list[int]) -> None:
        self._watch.commit({(t, group): at for t, at in zip(self.topics, positions, strict=True)})

    def close(self) -> None:
        self._watch.close()
        try:
            self._consumer.close(autocommit=False, timeout_ms=1000)
        except (kafka.errors.KafkaError, OSError) as error:
            log.warning("source_close_failed", reason=str(error))

    # -- records ----------------------------------------------------------------------------------

    def _batch(self, part: kafka.TopicPartition, records: Sequence[Any]) -> Batch:
        position = self._consumer.position(part, timeout_ms=0)
        self._next[part] = position
        return Batch(
            part.partition,
            self.topics.index(part.topic),
            np.fromiter(map(_OFFSET, records), np.int64, len(records)),
            np.fromiter(map(_TIMESTAMP, records), np.int64, len(records)),
            list(map(_KEY, records)),
            list(map(_VALUE, records)),
            position,
            list(map(_HEADERS, records)) if self._headers else None,
        )

    def _passed(self, idle: bool) -> list[Batch]:
        """Batches of nothing: positions move past compacted records and transactions' marks, too.

        Else a group that replays until a position behind such a mark waits for another record."""
        now = time.monotonic()
        if not idle and now - self._looked < 1.0:
            return []
        self._looked = now
        moved = []
        for part, before in self._next.items():
            if part not in self._paused and self._position(part) > before:
                moved.append(self._batch(part, ()))
        return moved

    def _position(self, part: kafka.TopicPartition) -> int:
        position = self._consumer.position(part, timeout_ms=0)
        return self._next[part] if position is None else position

    def _known(self, part: kafka.TopicPartition) -> int:
        """Lag by what the last answer for the partition said."""
        newest = self._consumer.highwater(part)
        return 0 if newest is None else newest - self._next[part]

    # -- where to begin ---------------------------------------------------------------------------

    def _connect(self) -> Any:
        options = self._config.client()
        try:
            return connected(
                kafka.KafkaConsumer,
                **options,
                auto_offset_reset="none",
                enable_auto_commit=False,
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                fetch_max_bytes=self._config.max_records_bytes,
                max_partition_fetch_bytes=self._config.max_partition_bytes,
                fetch_max_wait_ms=100,  # a resumed partition waits for the request under way
                metrics_enabled=False,
            )
        except kafka.errors.KafkaError as error:
            raise translated(error, self._config) from error

    def _of(self, group: int) -> list[kafka.TopicPartition]:
        return [kafka.TopicPartition(topic, group) for topic in self.topics]

    def _configured(self, names: list[tuple[str, int]]) -> list[int]:
        ms = start_ms(self._config.start)
        mirror = [name for name in names if name[0] == self._config.mirror_topic]
        if ms is not None:
            found = self._cluster.at(names, ms)
        elif self._config.start == "latest":
            found = self._cluster.ends(names)
        else:
            found = self._cluster.begins(names)
        # whole, whatever the start: another group may have begun before this one
        found = {**found, **self._cluster.begins(mirror)}
        return [found[name] for name in names]

    def _reachable(self, names: list[tuple[str, int]], positions: list[int]) -> None:
        begins, ends = self._cluster.begins(names), self._cluster.ends(names, committed=False)
        for name, position in zip(names, positions, strict=True):
            if not begins[name] <= position <= ends[name]:
                raise _gone(name, position, begins[name], ends[name])

    def _out_of_range(self, error: Exception) -> SourceError | SourceDown:
        wanted = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        for part, position in wanted.items():
            name = (part.topic, part.partition)
            try:
                begin = self._cluster.begins([name])[name]
                end = self._cluster.ends([name], committed=False)[name]
            except (SourceDown, SourceError):
                break
            return _gone(name, position, begin, end)
        return SourceError(f"Kafka at {self._cluster.hosts} no longer has the offsets: {error}.")


def _gone(name: tuple[str, int], position: int, begin: int, end: int) -> SourceError:
    topic, partition = name
    why = (
        "Older ones were deleted by retention before they were read: let the topic keep records "
        "for longer than an outage may last"
        if position < begin
        else "The topic was deleted and created anew, or lost records"
    )
    return SourceError(
        f"{topic}, partition {partition}: the next record to read is {position}, Kafka has {begin} "
        f"to {end}. {why}. To go on from what there is, move the group's folder (group-{partition} "
        "in the stream's state folder) away: it is then read from source.start."
    )
