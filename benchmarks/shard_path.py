"""The path of a shard against a bare loop over the same messages, in turns within one process.

Bare: the same client's poll, the same decoder, one pipelined 512-byte HSET for each record. The shard:
the real one, without Ray. In the even streams no micro-batch holds an entity twice, so that every record
costs it a step and a write; what it gains where they do is shown apart."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import kafka
import numpy as np
import redis

from actors.decode import DecodeConfig, make_decoder
from actors.embed import Releases
from actors.group import Group
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from actors.source import KafkaDeadLetters, KafkaSource, SourceConfig
from benchmarks import flow
from benchmarks.items import Item, at_least, shown
from daemon import servers
from learning.config_base import EncoderBase
from schemas.records import I64
from schemas.stream import StreamConfig

RECORDS = {"json": 60_000, "arrow": 120_000}
MESSAGES = {"json": 2048, "arrow": 4}  # of a micro-batch: some 2,000 records either way
BARS = {"json": 0.75, "arrow": 0.6}
ROUNDS, OVERSHOT = 6, 2048


def produce(brokers: str, topic: str, messages: list[bytes]) -> None:
    servers.create_topics(brokers, {topic: 1, f"{topic}.dlq": 1})
    producer = kafka.KafkaProducer(bootstrap_servers=brokers, linger_ms=20, batch_size=256 << 10)
    with closing(producer):
        for message in messages:
            producer.send(topic, message)
        producer.flush(60)


def messages(form: str, who: I64) -> list[bytes]:
    return flow.json_messages(who) if form == "json" else flow.arrow_messages(who)


class Bare:
    """poll > decode > HSET."""

    def __init__(
        self, brokers: str, url: str, topic: str, form: str, stream: StreamConfig = flow.STREAM
    ) -> None:
        self._decoder = make_decoder(stream, DecodeConfig(format=form))  # type: ignore[arg-type]
        self._redis = redis.Redis.from_url(url)
        self._vector = np.random.default_rng(0).bytes(4 * flow.ENCODER.dim)
        self._consumer = kafka.KafkaConsumer(
            bootstrap_servers=brokers, enable_auto_commit=False, isolation_level="read_committed",
            fetch_max_wait_ms=100, metrics_enabled=False,
        )  # fmt: skip
        part = kafka.TopicPartition(topic, 0)
        self._consumer.assign([part])
        self._consumer.seek_to_beginning(part)

    def turn(self, most: int) -> int:
        taken = 0
        for found in self._consumer.poll(20, most).values():
            at = np.array([record.offset for record in found])
            stamps = np.array([record.timestamp for record in found])
            decoded, _ = self._decoder.decode(
                0, at, stamps, [r.key for r in found], [r.value for r in found]
            )
            pipe = self._redis.pipeline(transaction=False)
            for name in (*decoded.entities, *decoded.neighbours):
                pipe.hset(f"bare:{name}", "vector", self._vector)
            pipe.execute()
            taken += len(decoded.entities)
        return taken

    def close(self) -> None:
        self._consumer.close(autocommit=False)
        self._redis.close()


class Served:
    """The shard, serving, its entities known and their vectors written; of a graph they are in the topic."""

    def __init__(
        self,
        brokers: str,
        url: str,
        topic: str,
        form: str,
        folder: Path,
        stream: StreamConfig = flow.STREAM,
        encoder: EncoderBase = flow.ENCODER,
    ) -> None:
        sizes = (encoder.window, encoder.state, 2 * flow.ENTITIES)
        group = Group.open(0, 1, (topic,), folder / "group-0", stream.shape, sizes)
        if stream.nodes:
            group.join(1)
        config = SourceConfig(brokers, topics=(topic,), start="earliest")
        ports = Ports(
            KafkaSource(config, topic, 1),
            make_decoder(stream, DecodeConfig(format=form)),  # type: ignore[arg-type]
            RedisSink(RedisConfig(url=url), topic),
            KafkaDeadLetters(config, topic),
            Releases(folder / "releases"),
        )
        self.shard = Shard(ShardConfig(snapshot_every_s=3600), [group], ports)
        self.group = group
        ports.source.pause(0, 0)
        if not stream.graph:
            group.apply([flow.history()])
        while group.phase != "serving" or group.state.owed.any() or group.snapshot is not None:
            self.shard.turn()
        ports.source.resume(0, 0)

    def turn(self, most: int) -> int:
        before = self.shard._stats.accepted
        self.shard.turn(most)
        return self.shard._stats.accepted - before

    def oldest(self) -> int:
        """The oldest release that Redis still holds of some entity."""
        return int(self.group.state.tag[: len(self.group.state.names)].min())

    def close(self) -> None:
        self.shard.close()


def race(bare: Bare, path: Served, form: str, records: int) -> Iterator[tuple[float, float]]:
    """Records per second of either, in turns: on a machine with others only neighbours in time compare."""
    share = records // ROUNDS - OVERSHOT
    for at in range(ROUNDS):
        each: list[float] = []
        for loop in (bare, path) if at % 2 else (path, bare):
            began, taken = time.perf_counter(), 0
            while taken < share:
                taken += loop.turn(MESSAGES[form])
                assert time.perf_counter() - began < 60, "the topic has no more records"
            each.append(taken / (time.perf_counter() - began))
        bare_rate, path_rate = each if at % 2 else each[::-1]
        if at:  # the first round warms up
            yield bare_rate, path_rate


def measure(brokers: str, url: str, form: str) -> list[Item]:
    out: list[Item] = []
    streams = {"even": flow.even, "skewed": flow.skewed}
    for kind, draw in streams.items():
        topic, n = f"bench-{form}-{kind}", RECORDS[form] // (1 if kind == "even" else 2)
        produce(brokers, topic, messages(form, draw(n)))
        with tempfile.TemporaryDirectory() as folder:
            flow.release(Path(folder) / "releases", 1)
            bare = Bare(brokers, url, topic, form)
            path = Served(brokers, url, topic, form, Path(folder))
            with closing(bare), closing(path):
                written = path.shard._stats.written
                taken = path.shard._stats.accepted
                rates = np.array(list(race(bare, path, form, n)))
                written = path.shard._stats.written - written
                taken = path.shard._stats.accepted - taken
        ratio = float(np.median(rates[:, 1] / rates[:, 0]))
        bare_rate, path_rate = np.median(rates, axis=0).tolist()
        name = f"shard path, {form}"
        if kind == "even":
            out.append(at_least(f"{name}, against the bare loop", ratio, "ratio", BARS[form]))
            out.append(shown(f"{name}", path_rate, "records/s"))
            out.append(shown(f"bare loop, {form}", bare_rate, "records/s"))
        else:
            out.append(shown(f"{name}, skewed entities: records to a write", taken / written, ""))
            out.append(shown(f"{name}, skewed entities, against the bare loop", ratio, "ratio"))
    return out
