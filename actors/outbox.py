"""Records on their way to Kafka: a bounded queue, and a thread that tries again until Kafka has them.

They arrive in the order of sending and without gaps, some perhaps twice: after a failure the producer is given
up, and what it had not confirmed is sent again by the next one, from the first."""

import threading
import time
from collections import deque
from typing import Any, NamedTuple

import kafka
import kafka.errors
import structlog

from actors.kafka_client import abandon, connected
from actors.kafka_cluster import Cluster
from actors.kafka_config import SourceConfig
from actors.kafka_errors import translated
from schemas.errors import AfreshError, SourceDown

log = structlog.get_logger()

MOST_RECORDS = 10_000
MOST_BYTES = 16 << 20
AT_ONCE = 1000

Headers = list[tuple[str, bytes]]  # of a letter: one may be added


class Letter(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    partition: int | None = None  # None: Kafka's choice

    @property
    def nbytes(self) -> int:
        return len(self.value) + len(self.key or b"") + 512


class Outbox:
    """Connects when the first record comes. `what` they are, for the log."""

    what = "records"

    def __init__(self, config: SourceConfig, name: str, max_request: int) -> None:
        self._config, self._cluster = config, Cluster(config)
        self._waiting: deque[Letter] = deque()  # the front stays until Kafka has it
        self._bytes = self._sent = self._durable = 0
        self._trouble = ""
        self._changed = threading.Condition()
        self._closing = False
        self._known: set[str] = set()
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._name, self._max_request = name, max_request

    def put(self, letter: Letter, wait: bool) -> None:
        """Raises SourceDown where it may wait for room and there is none in time."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            if wait and not self._changed.wait_for(self._has_room, self._config.timeout_s):
                raise SourceDown(
                    f"{len(self._waiting)} {self.what} wait for {letter.topic}: {self._trouble}"
                )
            self._waiting.append(letter)
            self._bytes += letter.nbytes
            self._sent += 1
            self._changed.notify_all()

    def wait_for_room(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._has_room, seconds)

    def flush(self) -> None:
        with self._changed:
            target = self._sent
            if not self._changed.wait_for(lambda: self._durable >= target, self._config.timeout_s):
                raise SourceDown(
                    f"{target - self._durable} {self.what} are not durable: "
                    f"{self._trouble or 'Kafka is slow'}"
                )

    def close(self) -> None:
        """What is not durable is left: `flush` first."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(2.0)

    def _has_room(self) -> bool:
        return len(self._waiting) < MOST_RECORDS and self._bytes < MOST_BYTES

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    break
                some = [self._waiting[i] for i in range(min(AT_ONCE, len(self._waiting)))]
            done, trouble = self._deliver(some)
            with self._changed:
                if trouble and not self._trouble:
                    log.warning(
                        f"{self.what}_held".replace(" ", "_"), reason=trouble, next="tried again"
                    )
                self._trouble = trouble
                for letter in (self._waiting.popleft() for _ in range(done)):
                    self._bytes -= letter.nbytes
                self._durable += done
                self._changed.notify_all()
                if trouble:
                    self._changed.wait_for(lambda: self._closing, 1.0)
        self._drop()
        self._cluster.close()

    def _deliver(self, letters: list[Letter]) -> tuple[int, str]:
        """How many from the front Kafka has taken, and why not the rest."""
        done = 0
        try:
            if self._producer is None:
                self._producer = self._connect()
            for topic in {letter.topic for letter in letters} - self._known:
                self._prepare(topic)
                self._known.add(topic)
            futures = [self._produce(letter) for letter in letters]
            end = time.monotonic() + self._config.timeout_s
            for future in futures:
                future.get(timeout=max(0.0, end - time.monotonic()))
                done += 1
        except kafka.errors.MessageSizeTooLargeError as error:
            self._drop()
            shorter = self._shortened(letters[done])
            if shorter is None:
                size = len(letters[done].value)
                return done, f"{letters[done].topic} takes no messages of {size} bytes: {error}"
            with self._changed:
                self._waiting[done] = shorter
                self._bytes -= letters[done].nbytes - shorter.nbytes
        except AfreshError as error:
            self._drop()
            return done, str(error)
        except (kafka.errors.KafkaError, OSError) as error:
            self._drop()  # an idempotent producer does not go on after a loss
            asked = f"to write to the topic {letters[done].topic!r}"
            return done, str(translated(error, self._config, asked))
        return done, ""

    def _produce(self, letter: Letter) -> Any:
        topic, key, value, headers, partition = letter
        return self._producer.send(topic, value, key, headers, partition)

    def _prepare(self, topic: str) -> None:
        """Asked before the first record of a topic, and again after a failure."""

    def _shortened(self, letter: Letter) -> Letter | None:
        """What to send in place of one that is too large; None: nothing."""
        del letter
        return None

    def _connect(self) -> Any:
        wait_ms = round(self._config.timeout_s * 1000)
        return connected(
            kafka.KafkaProducer,
            **self._config.client(),
            acks="all",
            enable_idempotence=True,
            max_in_flight_requests_per_connection=1,  # what follows a loss must not arrive
            delivery_timeout_ms=wait_ms * 2,
            max_block_ms=wait_ms,
            max_request_size=self._max_request,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        self._known.clear()  # a topic may have been deleted: it is looked for again
        if producer is not None:
            abandon(producer)
