"""Questions to Kafka beside the stream: partitions, offsets, commits. They block."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import kafka
import kafka.errors
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from actors.kafka_client import connected
from actors.kafka_config import SourceConfig
from actors.kafka_errors import RIGHTS, translated
from schemas.errors import SettingsError, SourceDown, SourceError

Partition = tuple[str, int]


class Cluster:
    """Connects when first asked, and anew after every failure. Safe from several threads."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._client: Any = None
        self._lock = threading.Lock()

    def describe(self) -> dict[str, tuple[int, str]]:
        """Each topic's number of partitions, and its id. SourceError where one is missing."""
        found = {t["name"]: t for t in self._ask("describe_topics", list(self._config.topics))}
        out = {}
        for topic in self._config.topics:
            told = found.get(topic)
            error = kafka.errors.for_code(told["error_code"]) if told else None
            if told is not None and error is kafka.errors.NoError:
                out[topic] = len(told["partitions"]), str(told.get("topic_id", ""))
            elif error is None or error is kafka.errors.UnknownTopicOrPartitionError:
                remedy = "Create it, or mend source.topics."
                if topic == self._config.mirror_topic:
                    remedy = mirror_remedy(
                        self._config, topic, next(iter(out.values()), (0, ""))[0]
                    )
                raise SourceError(f"The topic {topic!r} does not exist on {self.hosts}. {remedy}")
            elif issubclass(error, kafka.errors.RetriableError):
                raise SourceDown(f"The topic {topic!r} on {self.hosts} is not ready: {error()}.")
            elif issubclass(error, RIGHTS):
                raise translated(error(), self._config, f"to describe and read the topic {topic!r}")
            else:
                raise SourceError(f"The topic {topic!r} on {self.hosts}: {error()}.")
        return out

    def partitions(self) -> int:
        """The number of partitions that all topics have."""
        counts = {topic: count for topic, (count, _) in self.describe().items()}
        mirror = self._config.mirror_topic
        if len(set(counts.values())) > 1 and mirror in counts:
            raise SourceError(
                f"The topic {mirror!r} has {counts[mirror]} partitions, and "
                f"{self._config.topics[0]!r} has {counts[self._config.topics[0]]}. Delete it. "
                + mirror_remedy(self._config, mirror, counts[self._config.topics[0]])
            )
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
            raise SourceError(
                f"The topics of a stream need equal numbers of partitions, keyed alike; {listed}. "
                "Copy them into topics that have, or make them streams of their own."
            )
        return next(iter(counts.values()))

    def ends(self, partitions: Iterable[Partition], committed: bool = True) -> dict[Partition, int]:
        """One past the newest record; `committed`: of those before any open transaction."""
        return self._offsets(partitions, OffsetSpec.LATEST, committed)

    def begins(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return self._offsets(partitions, OffsetSpec.EARLIEST, True)

    def at(self, partitions: Iterable[Partition], ms: int) -> dict[Partition, int]:
        """The first records produced at that instant or later; the ends where there are none."""
        asked = list(partitions)
        ends = self.ends(asked)
        found = self._offsets(asked, ms, True)
        return {p: found[p] if found.get(p, -1) >= 0 else ends[p] for p in asked}

    def commit(self, group: str, positions: Mapping[Partition, int]) -> None:
        """Raises SourceDown or SourceError."""
        offsets = {
            kafka.TopicPartition(*p): kafka.structs.OffsetAndMetadata(offset, "", -1)
            for p, offset in positions.items()
        }
        asked = f"to read (commit) as the group {group!r}"
        for part, error in self._ask("alter_group_offsets", group, offsets, what=asked).items():
            if issubclass(error, RIGHTS):
                raise translated(error(), self._config, asked)
            if error is not kafka.errors.NoError:
                raise SourceError(f"{part.topic}, partition {part.partition}: {error.__name__}")

    def create(self, topic: str, partitions: int) -> bool:
        """False where it is there already."""
        if topic in self._ask("list_topics"):
            return False
        wanted = {"num_partitions": partitions, "replication_factor": -1}
        try:
            self._ask("create_topics", {topic: wanted}, what=f"to create the topic {topic!r}")
        except kafka.errors.TopicAlreadyExistsError:
            return False
        return True

    def close(self) -> None:
        with self._lock:
            self._drop()

    @property
    def hosts(self) -> str:
        return ", ".join(self._config.hosts)

    def _offsets(
        self, partitions: Iterable[Partition], spec: Any, committed: bool
    ) -> dict[Partition, int]:
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        asked = {kafka.TopicPartition(*p): spec for p in partitions}
        if not asked:
            return {}
        topics = ", ".join(sorted({p.topic for p in asked}))
        answer = self._ask("list_partition_offsets", asked, level, what=f"to describe {topics}")
        return {(p.topic, p.partition): found.offset for p, found in answer.items()}

    def _ask(self, method: str, *args: Any, what: str = "") -> Any:
        with self._lock:
            try:
                if self._client is None:
                    self._client = connected(kafka.KafkaAdminClient, **self._config.client())
                return getattr(self._client, method)(*args)
            except kafka.errors.TopicAlreadyExistsError:
                raise
            except SettingsError as error:  # a secret's file is being replaced
                raise SourceDown(str(error)) from error
            except (kafka.errors.KafkaError, OSError) as error:
                self._drop()
                raise translated(error, self._config, what) from error

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except (kafka.errors.KafkaError, OSError, RuntimeError):
                return


def mirror_remedy(config: SourceConfig, mirror: str, partitions: int = 0) -> str:
    """How the internal topic of a graph is made."""
    number = str(partitions or "as many as source.topics have")
    return (
        "A graph's partition groups tell each other through it of edges that concern both; it needs as many "
        f"partitions as the stream's topics. Create it: kafka-topics.sh --bootstrap-server "
        f"{config.hosts[0]} --create --topic {mirror} --partitions {number} "
        "--config cleanup.policy=delete --config retention.ms=604800000"
    )
