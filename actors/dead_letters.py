"""Records that cannot be used -> `<topic>.dlq`, with the reason.

A thread produces, and tries again until Kafka has them."""

import hashlib
import threading
import time
from collections import deque
from typing import Any, NamedTuple

import kafka
import kafka.errors
import pyarrow as pa
import structlog

from actors.arrow_guard import batches
from actors.kafka_client import abandon, connected
from actors.kafka_cluster import Cluster
from actors.kafka_config import SourceConfig
from actors.kafka_errors import translated
from actors.ports import Batch, DeadLetters
from schemas.errors import AfreshError, SourceDown

log = structlog.get_logger()

KEPT_BYTES = 64 << 10
"""Of a value that is too large, so much."""
KEPT_KEY = 4 << 10
"""Of a key: no entity's name is as long, and a topic that takes 64 KB must take the letter."""
MOST_REASON = 2000
MOST_RECORDS = 10_000
MOST_BYTES = 16 << 20
AT_ONCE = 1000

_EXPANDED = 1 << 40  # the decoder has looked at what is in the message

Headers = list[tuple[str, bytes]]


class Letter(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    headers: Headers

    @property
    def nbytes(self) -> int:
        return len(self.value) + len(self.key or b"") + 512


class KafkaDeadLetters(DeadLetters):
    """Connects when the first bad record comes."""

    def __init__(self, config: SourceConfig, stream_name: str) -> None:
        self._config, self._cluster = config, Cluster(config)
        self._waiting: deque[Letter] = deque()  # the front stays until Kafka has it
        self._bytes = self._sent = self._durable = 0
        self._trouble = ""
        self._changed = threading.Condition()
        self._closing = False
        self._known: set[str] = set()
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._name = f"dead-letters-{stream_name}"

    def send(self, batch: Batch, at: int, error: str, reason: str, row: int | None) -> None:
        letter = _letter(self._config, batch, at, (error, reason, row))
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            if not self._changed.wait_for(self._has_room, self._config.timeout_s):
                raise SourceDown(
                    f"{len(self._waiting)} dead letters wait for {letter.topic}: {self._trouble}"
                )
            self._waiting.append(letter)
            self._bytes += letter.nbytes
            self._sent += 1
            self._changed.notify_all()

    def flush(self) -> None:
        with self._changed:
            target = self._sent
            if not self._changed.wait_for(lambda: self._durable >= target, self._config.timeout_s):
                raise SourceDown(
                    f"{target - self._durable} dead letters are not durable: "
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
                    log.warning("dead_letters_held", reason=trouble, next="tried again")
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
                self._create(topic)
            futures = [self._produce(letter) for letter in letters]
            end = time.monotonic() + self._config.timeout_s
            for future in futures:
                future.get(timeout=max(0.0, end - time.monotonic()))
                done += 1
        except kafka.errors.MessageSizeTooLargeError as error:
            self._drop()
            if len(letters[done].value) <= KEPT_BYTES:
                return done, f"{letters[done].topic} takes no messages of 64 KB: {error}"
            shorter = _shortened(letters[done])
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
        topic, key, value, headers = letter
        return self._producer.send(topic, value, key, headers)

    def _connect(self) -> Any:
        wait_ms = round(self._config.timeout_s * 1000)
        return connected(
            kafka.KafkaProducer,
            **self._config.client(),
            acks="all",
            enable_idempotence=True,
            delivery_timeout_ms=wait_ms * 2,
            max_block_ms=wait_ms,
            max_request_size=self._config.dlq.max_bytes + (1 << 20),
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )

    def _create(self, topic: str) -> None:
        """Where it is missing; asked again until it is there."""
        if self._cluster.create(topic, self._config.dlq.partitions):
            log.info("dead_letter_topic_created", topic=topic)
        self._known.add(topic)

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        self._known.clear()  # a topic may have been deleted: it is looked for again
        if producer is not None:
            abandon(producer)


def _letter(
    config: SourceConfig, batch: Batch, at: int, why: tuple[str, str, int | None]
) -> Letter:
    error, reason, row = why
    topic = config.topics[batch.topic]
    headers = [
        ("reason", reason[:MOST_REASON].encode(errors="replace")),
        ("error", error.encode()),
        ("topic", topic.encode()),
        ("partition", b"%d" % batch.group),
        ("offset", b"%d" % batch.offsets[at]),
        ("time", b"%d" % batch.timestamps_ms[at]),
    ]
    value: Any = batch.values[at]
    if row is not None:
        headers.append(("row", b"%d" % row))
    if value is None:
        headers.append(("value", b"null"))
        value = b""
    elif row is not None or isinstance(value, pa.RecordBatch):
        value = _ipc(value, row)
    key = batch.keys[at]
    if key is not None and len(key) > KEPT_KEY:
        digest = hashlib.sha256(key).hexdigest().encode()
        headers += [("key_size", b"%d" % len(key)), ("key_sha256", digest)]
        key = key[:KEPT_KEY]
    letter = Letter(topic + config.dlq.suffix, key, value, headers)
    return letter if len(value) <= config.dlq.max_bytes else _shortened(letter)


def _ipc(value: Any, row: int | None) -> bytes:
    """A stream of one row of an arrow message, numbered through all its batches, or of all rows."""
    found = batches(value, _EXPANDED) if isinstance(value, bytes) else [value]
    if row is not None:
        for batch in found:
            if row < batch.num_rows:
                found = [batch.slice(row, 1)]
                break
            row -= batch.num_rows
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found[0].schema) as writer:
        for batch in found:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _shortened(letter: Letter) -> Letter:
    """The first 64 KB, and what identifies the whole."""
    digest = hashlib.sha256(letter.value).hexdigest().encode()
    size = b"%d" % len(letter.value)
    return letter._replace(
        value=letter.value[:KEPT_BYTES],
        headers=[*letter.headers, ("size", size), ("sha256", digest)],
    )
