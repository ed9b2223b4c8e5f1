"""Records that cannot be used -> `<topic>.dlq`, with the reason.

A thread produces, and tries again until Kafka has them."""

import hashlib
from typing import Any

import pyarrow as pa
import structlog

from actors.arrow_guard import batches
from actors.kafka_config import SourceConfig
from actors.outbox import MOST_BYTES, MOST_RECORDS, Headers, Letter, Outbox
from actors.ports import Batch, DeadLetters

__all__ = ["MOST_BYTES", "MOST_RECORDS", "KafkaDeadLetters"]

log = structlog.get_logger()

KEPT_BYTES = 64 << 10
"""Of a value that is too large, so much."""
KEPT_KEY = 4 << 10
"""Of a key: no entity's name is as long, and a topic that takes 64 KB must take the letter."""
MOST_REASON = 2000

_EXPANDED = 1 << 40  # the decoder has looked at what is in the message


class KafkaDeadLetters(Outbox, DeadLetters):
    """Connects when the first bad record comes."""

    what = "dead letters"

    def __init__(self, config: SourceConfig, stream_name: str) -> None:
        super().__init__(config, f"dead-letters-{stream_name}", config.dlq.max_bytes + (1 << 20))

    def send(self, batch: Batch, at: int, error: str, reason: str, row: int | None) -> None:
        self.put(_letter(self._config, batch, at, (error, reason, row)), wait=True)

    def _prepare(self, topic: str) -> None:
        """Created where it is missing; asked again until it is there."""
        if self._cluster.create(topic, self._config.dlq.partitions):
            log.info("dead_letter_topic_created", topic=topic)

    def _shortened(self, letter: Letter) -> Letter | None:
        return _shortened(letter) if len(letter.value) > KEPT_BYTES else None


def _letter(
    config: SourceConfig, batch: Batch, at: int, why: tuple[str, str, int | None]
) -> Letter:
    error, reason, row = why
    topic = config.topics[batch.topic]
    headers: Headers = [
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
        value = arrow_stream(value, row)
    key = batch.keys[at]
    if key is not None and len(key) > KEPT_KEY:
        digest = hashlib.sha256(key).hexdigest().encode()
        headers += [("key_size", b"%d" % len(key)), ("key_sha256", digest)]
        key = key[:KEPT_KEY]
    letter = Letter(topic + config.dlq.suffix, key, value, headers)
    return letter if len(value) <= config.dlq.max_bytes else _shortened(letter)


def arrow_stream(value: Any, row: int | None) -> bytes:
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
