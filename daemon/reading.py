"""What the commands read from Redis, and the one thing they write to Kafka: `forget`."""

import time
from typing import Any

import kafka
import kafka.errors
import numpy as np

from actors.redis_client import connect
from daemon.settings import Settings
from schemas.errors import AfreshError, SinkDown, SourceDown
from schemas.published import current_key, entity_key
from schemas.records import F32

FIELDS = ("vector", "release", "time_us", "count", "since")
PAGE = 1000


class Reader:
    """Reads as any consumer would: `current` first, then hashes of its generation."""

    def __init__(self, settings: Settings) -> None:
        self._stream = settings.name
        self._redis = connect(settings.redis, lambda connection: connection.on_connect())

    def generation(self) -> int:
        """Raises AfreshError before the first release."""
        found = self._redis.hget(current_key(self._stream), "generation")
        if found is None:
            raise AfreshError(
                f"Redis has no {current_key(self._stream)}: there is no release of {self._stream!r} yet, or "
                "this is another Redis. `afresh status` tells what the daemon waits for."
            )
        return int(found)

    def released(self) -> bool:
        """Whether there was a release: before the first, Redis holds no vector of anybody."""
        return bool(self._redis.exists(current_key(self._stream)))

    def remove(self) -> None:
        """Deletes all that the stream has in Redis: the demo's way to leave a shared server clean."""
        prefix = current_key(self._stream).removesuffix("current")
        keys = list(self._redis.scan_iter(match=_escaped(prefix) + "*", count=PAGE))
        for lo in range(0, len(keys), PAGE):
            self._redis.delete(*keys[lo : lo + PAGE])

    def lookup(self, entities: list[str]) -> list[dict[str, Any] | None]:
        """What Redis holds of each entity; None where there is nothing."""
        generation = self.generation()
        pipeline = self._redis.pipeline(transaction=False)
        for entity in entities:
            pipeline.hmget(entity_key(self._stream, generation, entity), FIELDS)
        return [_entity(values) for values in pipeline.execute()]

    def everything(self, cap: int = 1_000_000) -> tuple[list[str], F32]:
        """Names and vectors [N, D] of up to `cap` entities."""
        prefix = entity_key(self._stream, self.generation(), "")
        names: list[str] = []
        vectors: list[bytes] = []
        keys: list[bytes] = []
        for key in self._redis.scan_iter(match=_escaped(prefix) + "*", count=PAGE):
            keys.append(key)
            if len(keys) == PAGE:
                self._fetch(prefix, keys, names, vectors)
                keys = []
            if len(names) + len(keys) >= cap:
                break
        self._fetch(prefix, keys, names, vectors)
        if not names:
            raise AfreshError(f"Redis has no vectors of {self._stream!r} yet.")
        return names, np.frombuffer(b"".join(vectors), "<f4").reshape(len(names), -1)

    def _fetch(
        self, prefix: str, keys: list[bytes], names: list[str], vectors: list[bytes]
    ) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hget(key, "vector")
        for key, vector in zip(keys, pipeline.execute(), strict=True):
            if vector is not None:  # a marker of a deletion has none
                names.append(key.decode()[len(prefix) :])
                vectors.append(vector)

    def neighbours(self, entity: str, k: int, cap: int) -> tuple[list[dict[str, Any]], int, bool]:
        """The k nearest by cosine, how many were compared, whether `cap` cut that short."""
        mine = self.lookup([entity])[0]
        if mine is None:
            raise AfreshError(f"Redis has no vector of {entity!r} in {self._stream!r}.")
        names, vectors = self.everything(cap)
        cosine = vectors @ mine["vector"]
        best = [i for i in np.argsort(-cosine)[: k + 1].tolist() if names[i] != entity][:k]
        counts = self.lookup([names[i] for i in best])
        found = [
            {"entity": names[i], "cosine": float(cosine[i]), "count": e["count"] if e else 0}
            for i, e in zip(best, counts, strict=True)
        ]
        return found, len(names), len(names) >= cap


def _entity(values: list[bytes | None]) -> dict[str, Any] | None:
    if values[0] is None:
        return None
    numbers = {name: int(value or 0) for name, value in zip(FIELDS[1:], values[1:], strict=True)}
    return {"vector": np.frombuffer(values[0], "<f4"), **numbers}


def _escaped(text: str) -> str:
    """A literal for SCAN's pattern."""
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in text)


def forget(settings: Settings, entity: str, timeout_s: float) -> None:
    """Produces the null value and waits until Redis holds no vector. Raises AfreshError when it still does."""
    reader = Reader(settings)
    try:
        producer = kafka.KafkaProducer(**settings.source.client(), acks="all")
        try:
            future = producer.send(settings.source.topics[0], key=entity.encode(), value=None)
            producer.flush(timeout_s)
            future.get(timeout_s)
        finally:
            producer.close(1)
    except kafka.errors.KafkaError as error:
        raise SourceDown(f"Kafka did not take the deletion of {entity!r}: {error}") from error
    until = time.monotonic() + timeout_s
    while reader.released() and reader.lookup([entity])[0] is not None:
        if time.monotonic() > until:
            raise SinkDown(
                f"{entity!r} is still in Redis after {timeout_s:.0f} s. The deletion is in Kafka and will be "
                "carried out when the daemon gets to it: see `afresh status` for its lag."
            )
        time.sleep(0.05)
