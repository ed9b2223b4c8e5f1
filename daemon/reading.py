"""What the commands read from Redis, and the one thing they write to Kafka: `forget`."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import kafka
import kafka.errors
import msgspec
import numpy as np
from redis.exceptions import RedisError

from actors.kafka_client import connected
from actors.kafka_errors import translated
from actors.redis_client import connect, explain
from daemon.scatter import Sample
from daemon.settings import Settings
from schemas.errors import AfreshError, SinkDown
from schemas.published import EDGE, current_key, encoder_key, entity_key, group_key
from schemas.records import F32, category_hash

FIELDS = ("vector", "release", "time_us", "count", "since")
PAGE = 1000
MOST_PAGES = 100
T = TypeVar("T")


class Reader:
    """Reads as any consumer would: `current` first, then hashes of its generation."""

    def __init__(self, settings: Settings) -> None:
        self._stream = settings.name
        self._config = settings.redis
        self._redis = connect(settings.redis, lambda connection: connection.on_connect())

    def _ask(self, exchange: Callable[[], T]) -> T:
        """Raises SinkDown, which says what Redis refuses."""
        try:
            return exchange()
        except UnicodeEncodeError as why:
            raise AfreshError(
                f"{why.object!r} is no name: it is not UTF-8. Name another."
            ) from None
        except (RedisError, OSError) as why:
            raise SinkDown(
                f"Redis at {self._config.address}: {explain(why, self._config)}"
            ) from None

    def generation(self) -> int:
        """Raises AfreshError before the first release."""
        key = current_key(self._stream)
        found: Any = self._ask(lambda: self._redis.hmget(key, ["generation"]))[0]
        if found is None:
            raise AfreshError(
                f"Redis has no {current_key(self._stream)}: there is no release of {self._stream!r} yet, or "
                "this is another Redis. `afresh status` tells what the daemon waits for."
            )
        return int(found)

    def released(self) -> bool:
        """Whether there was a release: before the first, Redis holds no vector of anybody."""
        key = current_key(self._stream)
        return self._ask(lambda: self._redis.hmget(key, ["release"]))[0] is not None

    def group(self, entity: str) -> int | None:
        """The partition group that last wrote the entity."""
        key = entity_key(self._stream, self.generation(), entity)
        found: Any = self._ask(lambda: self._redis.hget(key, "group"))
        return None if found is None else int(found)

    def passed(self, records: list[tuple[str, int, int]]) -> bool:
        """Whether Redis is past all of these (topic, partition, offset)."""
        pipeline = self._redis.pipeline(transaction=False)
        for _, partition, _ in records:
            pipeline.hget(group_key(self._stream, partition), "positions")
        return all(
            found is not None and json.loads(found).get(topic, 0) > offset
            for (topic, _, offset), found in zip(records, self._ask(pipeline.execute), strict=True)
        )

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
        return [_entity(values) for values in self._ask(pipeline.execute)]

    def score(self, source: str, targets: list[str], now_us: int) -> list[tuple[str, float, bool]]:
        """Of each target: its name, the logit of the source's next edge leading to it, whether it is known.

        By the current release's graph `score`, from what both nodes' field `neighbours` holds."""
        release: Any = self._ask(lambda: self._redis.hget(current_key(self._stream), "release"))
        generation = self.generation()
        found: Any = self._ask(
            lambda: self._redis.hmget(
                encoder_key(self._stream, int(release)), ["manifest", "score_onnx"]
            )
        )
        manifest = msgspec.json.decode(found[0] or b"{}")
        graph, wanted = found[1], manifest.get("score_sha256")
        if not graph:
            raise AfreshError(
                f"{self._stream!r} scores no pairs: its release {int(release)} has no graph for it. Only streams "
                'whose nodes are embedded do (stream.kind = "graph", stream.unit = "node").'
            )
        if hashlib.sha256(graph).hexdigest() != wanted:
            raise AfreshError(
                f"The graph `score` of release {int(release)} in Redis is altered: its SHA-256 is not the "
                "manifest's. The daemon writes it anew once `current` is gone or it is restarted."
            )
        pipeline = self._redis.pipeline(transaction=False)
        for name in (source, *targets):
            pipeline.hget(entity_key(self._stream, generation, name), "neighbours")
        own, *others = self._ask(pipeline.execute)
        if own is None:
            raise AfreshError(f"Redis has no node {source!r} in {self._stream!r}.")
        known = [
            (name, edges) for name, edges in zip(targets, others, strict=True) if edges is not None
        ]
        logits = scored(graph, (source, own), known, now_us) if known else []
        by_name = dict(zip([name for name, _ in known], logits, strict=True))
        return [(name, by_name.get(name, float("-inf")), name in by_name) for name in targets]

    def everything(self, cap: int = 1_000_000) -> tuple[list[str], F32]:
        """Names and vectors [N, D] of up to `cap` entities."""
        prefix = entity_key(self._stream, self.generation(), "")
        names: list[str] = []
        vectors: list[bytes] = []
        keys: list[bytes] = []
        found = self._redis.scan_iter(match=_escaped(prefix) + "*", count=PAGE)
        while (key := self._ask(lambda: next(found, None))) is not None:
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

    def sample(self, n: int) -> Sample:
        """The `n` newest of some of the entities: SCAN ends once it has found twice as many."""
        generation = self.generation()
        prefix = entity_key(self._stream, generation, "")
        match, keys, cursor = _escaped(prefix) + "*", list[bytes](), 0
        for _ in range(MOST_PAGES):  # others' keys may be among them
            at = cursor
            found: Any = self._ask(lambda at=at: self._redis.scan(at, match=match, count=PAGE))  # type: ignore[misc]
            cursor = found[0]
            keys += found[1]
            if not cursor or len(keys) >= 2 * n:
                break
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys[: 2 * n]:
            pipeline.hmget(key, ["vector", "time_us"])
        rows = zip(keys, self._ask(pipeline.execute), strict=False)
        there = [(int(time), key, vector) for key, (vector, time) in rows if vector is not None]
        there.sort(reverse=True)
        names = [key.decode()[len(prefix) :] for _, key, _ in there[:n]]
        vectors = (
            np.frombuffer(b"".join(v for _, _, v in there[:n]), "<f4").reshape(len(names), -1)
            if names
            else np.zeros((0, 0), np.float32)
        )
        return Sample(generation, names, vectors, np.array([time for time, _, _ in there[:n]]))

    def _fetch(
        self, prefix: str, keys: list[bytes], names: list[str], vectors: list[bytes]
    ) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hget(key, "vector")
        for key, vector in zip(keys, self._ask(pipeline.execute), strict=True):
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


def scored(
    graph: bytes, source: tuple[str, bytes], targets: list[tuple[str, bytes]], now_us: int
) -> list[float]:
    """Logits of pairs of one node with each of some others; nodes are names with packed edges (EDGE)."""
    from actors.encode import session

    n = len(targets)
    feed = _side("source", [source[1]] * n) | _side("target", [edges for _, edges in targets])
    feed["source_id"] = np.full(n, category_hash(source[0]))
    feed["target_id"] = np.array([category_hash(name) for name, _ in targets])
    feed["now_us"] = np.full(n, now_us)
    logits: list[float] = session(graph, 1).run(None, feed)[0].tolist()
    return logits


def _side(side: str, edges: list[bytes]) -> dict[str, Any]:
    rows = [np.frombuffer(packed, EDGE) for packed in edges]
    length = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), max(int(length.max()), 1)), EDGE)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    columns = {f"{side}_{name}": np.ascontiguousarray(padded[name]) for name in EDGE.names or ()}
    return {**columns, f"{side}_length": length}


def _entity(values: list[bytes | None]) -> dict[str, Any] | None:
    if values[0] is None:
        return None
    numbers = {name: int(value or 0) for name, value in zip(FIELDS[1:], values[1:], strict=True)}
    return {"vector": np.frombuffer(values[0], "<f4"), **numbers}


def _escaped(text: str) -> str:
    """A literal for SCAN's pattern."""
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in text)


def forget(settings: Settings, entity: str, timeout_s: float) -> bool:
    """Produces null values and waits until their group has taken them and Redis has let the entity go.

    False, at once, before the first release: then nobody has a vector. Raises AfreshError when it takes longer, or
    nobody can have such a name."""
    _check_name(settings, entity)
    reader = Reader(settings)
    before = reader.lookup([entity])[0] if reader.released() else None
    sent = _send_deletions(settings, entity, reader.group(entity) if before else None, timeout_s)
    if not reader.released():
        return False
    until = time.monotonic() + timeout_s
    while not (reader.passed(sent) and _gone(before, reader.lookup([entity])[0])):
        if time.monotonic() > until:
            raise SinkDown(
                f"{entity!r} is not forgotten after {timeout_s:.0f} s. The deletion is in Kafka and will be "
                "carried out when the daemon gets to it: see `afresh status` for its lag."
            )
        time.sleep(0.05)
    return True


def _check_name(settings: Settings, entity: str) -> None:
    """Such a deletion would be a dead letter, and be waited for in vain."""
    limit = settings.decode.max_entity_bytes
    try:
        size = len(entity.encode())
    except UnicodeEncodeError:
        raise AfreshError(f"{entity!r} is no name: it is not UTF-8. Name another.") from None
    if not 0 < size <= limit:
        raise AfreshError(
            f"The name has {size} bytes; names have 1 to {limit} (decode.max_entity_bytes): nobody has this one."
        )


def _gone(before: dict[str, Any] | None, now: dict[str, Any] | None) -> bool:
    """Whether its old life is over; records that came after the deletion may have begun another."""
    if now is None or before is None:
        return True
    return bool(now["since"] != before["since"] or now["count"] < before["count"])


def _send_deletions(
    settings: Settings, entity: str, partition: int | None, timeout_s: float
) -> list[tuple[str, int, int]]:
    """One into every topic: what an older record of another topic brings back, its own ends again.

    Topic, partition and offset of each. partition: where the entity is known to be; None: by its name."""
    topics = settings.source.topics
    try:
        producer = connected(kafka.KafkaProducer, **settings.source.client(), acks="all")
        try:
            key = entity.encode()
            told = [producer.send(t, key=key, value=None, partition=partition) for t in topics]
            producer.flush(timeout_s)
            found = [future.get(timeout_s) for future in told]
        finally:
            producer.close(1)
    except (kafka.errors.KafkaError, OSError) as error:
        listed = ", ".join(topics)
        raise translated(error, settings.source, f"to write to {listed}") from error
    return [(at.topic, at.partition, at.offset) for at in found]
