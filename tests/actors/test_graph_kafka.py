"""A graph on a real Kafka of four partitions and a real Redis: two shards, one of them killed in the middle."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import kafka as kafka_python
import msgspec
import numpy as np
import pytest
import redis

from actors.candidate import ReleaseConfig
from actors.capacity import StateConfig
from actors.decode import DecodeConfig
from actors.embed import encode_anew
from actors.encode import Release
from actors.folders import epoch_of
from actors.processes import Spec, open_shard
from actors.redis_client import RedisConfig
from actors.shard import Shard
from actors.shard_config import ShardConfig
from actors.source import SourceConfig
from daemon import servers
from learning.config import EncoderConfig, LearnerConfig, TemporalAttentionConfig
from schemas.errors import SourceError
from schemas.published import entity_key
from tests.fakes import Record
from tests.graphs import GROUPS, STREAM, deletion, edge, stream, whole
from tests.helpers import client_threads, eventually
from tests.services import ENCODER, adopt, make_release

Topics = Callable[..., str]
WIDE: EncoderConfig = msgspec.structs.replace(ENCODER, window=64)
ATTENTION: EncoderConfig = TemporalAttentionConfig(
    dim=8, hidden=8, window=64, category_dim=4, bucket_bits=6
)

# A connection that kafka-python 3.0.12 could not make leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")


@pytest.fixture
def spec(
    kafka: str,
    topics: Topics,
    stream: str,
    redis_server: str,
    database: redis.Redis,
    tmp_path: Path,
) -> Spec:
    source = SourceConfig(kafka, (topics("edges", partitions=GROUPS),))
    config = ShardConfig(snapshot_every_s=0.2)
    return Spec(
        stream, str(tmp_path), GROUPS, STREAM, source, DecodeConfig(), StateConfig(16), config,
        WIDE, LearnerConfig(), ReleaseConfig(), RedisConfig(redis_server),
    )  # fmt: skip


def produce(spec: Spec, records: list[Record]) -> None:
    with closing(kafka_python.KafkaProducer(bootstrap_servers=spec.source.hosts)) as producer:
        for r in records:
            producer.send(spec.source.topics[0], r.value, r.key, partition=r.group)
        producer.flush()


def opened(spec: Spec, mine: tuple[int, ...], restarts: int = 0) -> Shard:
    shard = open_shard(spec, dict.fromkeys(mine, epoch_of(1, restarts)), None)
    adopt(shard)
    return shard


def turn_until(shards: list[Shard], what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, [g for s in shards for g in s.stats().groups]
        for shard in shards:
            shard.turn()


def states(shards: list[Shard]) -> int:
    return sum(int(g.state.count.sum()) for s in shards for g in s.groups.values())


def serving(shards: list[Shard]) -> bool:
    groups = [g for s in shards for g in s.groups.values()]
    return all(
        g.phase == "serving" and not g.state.owed.any() and not g.deletions() for g in groups
    )


@pytest.mark.parametrize("encoder", [WIDE, ATTENTION], ids=["gru", "temporal_attention"])
def test_vectors_in_redis_are_those_of_all_edges_at_once(
    spec: Spec, database: redis.Redis, encoder: EncoderConfig
) -> None:
    spec = msgspec.structs.replace(spec, encoder=encoder)
    servers.create_topics(spec.source.hosts[0], {f"{spec.name}.mirror": GROUPS})
    make_release(spec.releases, 1, encoder, STREAM)
    records = [*stream(600, 60, 1), edge("lonely", "n1", 10**6)]
    records.append(edge("lonely", "n1", 10**6 + 1, op="remove"))
    wanted = whole(records, encoder.window, encoder.state)
    assert wanted.count.max() <= encoder.window  # else totals depend on the order: decisions/0005
    produce(spec, records[:300])
    shards = [opened(spec, (0, 2)), opened(spec, (1, 3))]
    turn_until(shards, lambda: all(g.snapshots for g in shards[0].groups.values()))
    produce(spec, records[300:])
    for _ in range(3):
        for shard in shards:
            shard.turn(20)
    shards[0].close()  # as it stands: nothing is drained
    shards[0] = opened(spec, (0, 2), restarts=1)
    total = int(wanted.count.sum())
    turn_until(shards, lambda: states(shards) == total and serving(shards))

    slots = np.array(sorted(wanted.index.values()), np.int64)
    vectors = encode_anew(wanted, slots, Release.load(spec.releases / "1"))
    for slot, vector in zip(slots.tolist(), vectors, strict=True):
        found = database.hgetall(entity_key(spec.name, 1, wanted.names[slot] or ""))
        assert int(found[b"count"]) == wanted.count[slot]
        np.testing.assert_allclose(np.frombuffer(found[b"vector"], "<f4"), vector, atol=1e-5)

    produce(spec, [deletion("n7")])
    gone = entity_key(spec.name, 1, "n7").encode()
    turn_until(shards, lambda: not database.hexists(gone, "vector") and serving(shards))
    for shard in shards:
        shard.drain()


def test_a_missing_mirror_is_refused_with_how_to_make_it(spec: Spec) -> None:
    with pytest.raises(SourceError, match=rf"--topic {spec.name}\.mirror --partitions 4 "):
        open_shard(spec, {0: 1}, None)
    servers.create_topics(spec.source.hosts[0], {f"{spec.name}.mirror": 3})
    with pytest.raises(SourceError, match=r"has 3 partitions, .* --partitions 4 "):
        open_shard(spec, {0: 1}, None)
