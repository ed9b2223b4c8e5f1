"""A thread beside a Kafka source: all that takes a question and an answer."""

import threading
import time
from collections.abc import Iterable, Mapping

import structlog

from actors.kafka_cluster import Cluster, Partition
from schemas.errors import SourceDown, SourceError

log = structlog.get_logger()

ENDS_EVERY_S = 2.0
TOPICS_EVERY_S = 10.0
LOOKS = 3
"""In so many looks in a row, ENDS_EVERY_S apart, must be seen what may pass: a broker that starts again does
not know its topics for a moment."""


class Watch:
    """Ends of partitions, changes of topics, commits. Only its thread waits for Kafka."""

    def __init__(
        self, cluster: Cluster, topics: tuple[str, ...], groups: int, consumer_group: str
    ) -> None:
        self.up = True
        self._cluster, self._topics, self._groups = cluster, topics, groups
        self._consumer_group = consumer_group
        self._ids: dict[str, str] = {}
        self._ends: dict[Partition, int] = {}
        self._watched: tuple[Partition, ...] = ()
        self._commits: dict[Partition, int] = {}
        self._commit_failures = 0
        self._error: SourceError | None = None
        self._strange, self._strange_at = 0, 0.0
        self._topics_at = 0.0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-watch", daemon=True)
        self._thread.start()

    def add(self, partitions: Iterable[Partition]) -> None:
        self._watched = tuple(dict.fromkeys((*self._watched, *partitions)))
        self._wake.set()

    def end(self, partition: Partition) -> int:
        """One past the newest record when last asked; 0 before that."""
        return self._ends.get(partition, 0)

    def passed(self, partition: Partition, position: int) -> bool:
        """Whether an end is known, and the position is not before it."""
        end = self._ends.get(partition)
        return end is not None and position >= end

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Later positions replace earlier ones that were not yet committed."""
        self._commits = self._commits | dict(positions)
        self._wake.set()

    def check(self) -> None:
        """Raises what the thread found that stops the stream."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Commits what is to be committed; waits for a second, after that the thread ends alone."""
        self._closing.set()
        self._wake.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._turn()
            self._wake.wait(ENDS_EVERY_S)
            self._wake.clear()
        if self._commits and self.up:
            self._commit()
        self._cluster.close()

    def _turn(self) -> None:
        try:
            if self._commits:
                self._commit()
            now = time.monotonic()
            if now - self._topics_at >= TOPICS_EVERY_S or not self._ids:
                self._compare()
                self._topics_at = now
            self._ends = self._cluster.ends(self._watched)
        except SourceDown as error:
            self._strange = 0
            if self.up and not self._closing.is_set():
                log.warning("kafka_down", reason=str(error), next="tried again until it answers")
            self.up = False
        except Changed as error:
            self._error = error
        except SourceError as error:
            self._wonder(error)
        except Exception as error:  # a dead watch would see no more changes
            self._wonder(SourceError(f"What Kafka answered is not understood: {error!r}"))
        else:
            if not self.up:
                log.info("kafka_up")
            self.up, self._strange = True, 0

    def _wonder(self, error: SourceError) -> None:
        """Stops the stream unless it passes."""
        now = time.monotonic()
        if self._strange and now - self._strange_at < ENDS_EVERY_S:
            return  # woken early: this look says nothing new
        self._strange, self._strange_at = self._strange + 1, now
        self.up = False
        if self._strange >= LOOKS:
            self._error = error
        elif self._strange == 1:
            log.warning("kafka_strange", reason=str(error), next="looked at again")

    def _compare(self) -> None:
        for topic, (count, identity) in self._cluster.describe().items():
            if count != self._groups:
                raise changed(topic, self._groups, count)
            if self._ids.setdefault(topic, identity) != identity:
                raise Changed(
                    f"The topic {topic!r} was deleted and created anew: its offsets mean other "
                    "records now. Start a stream of another name, or move this one's state away."
                )

    def _commit(self) -> None:
        positions = self._commits
        try:
            self._cluster.commit(self._consumer_group, positions)
        except (SourceDown, SourceError) as error:
            self._commit_failures += 1
            if self._commit_failures == 2:  # a first commit finds no coordinator yet
                log.warning("commit_failed", reason=str(error), next="only lag tools miss it")
            return
        self._commit_failures = 0
        self._commits = {p: at for p, at in self._commits.items() if positions.get(p) != at}


class Changed(SourceError):
    """A topic is not what it was: it does not pass."""


def changed(topic: str, expected: int, count: int) -> Changed:
    return Changed(
        f"The topic {topic!r} has {count} partitions; the stream began with {expected}. Keys have "
        "moved to other partitions, away from their entities' states. Start a stream of another "
        "name from source.start, or read from a topic whose partitions stay as they are."
    )
