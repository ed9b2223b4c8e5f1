"""`forget` waits for the group that the entity is of; the commands say plainly where Redis fails."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka as kafka_python
import numpy as np
import pytest
import redis

from actors.partitioner import partition_of
from daemon.children import free_ports
from daemon.reading import Reader, forget
from daemon.settings import Settings, load
from schemas.errors import AfreshError, SinkDown
from schemas.published import current_key, entity_key, group_key
from tests.helpers import eventually

WHO, GROUPS = "e5", 3


@pytest.fixture
def config(tmp_path: Path, kafka: str, redis_server: str, topics: Callable[..., str]) -> Path:
    named = [topics(name, partitions=GROUPS) for name in ("one", "two")]
    path = tmp_path / "settings.toml"
    path.write_text(f"""
    name = "reading-{tmp_path.name}"
    state_dir = "{tmp_path}/state"
    stream = {{ entity = "who", time = "at", field = [{{ name = "x", type = "number" }}] }}
    source = {{ brokers = "{kafka}", topics = {named} }}
    redis = {{ url = "{redis_server}" }}
    """)
    return path


@pytest.fixture
def settings(config: Path) -> Settings:
    return load(config)


def released(settings: Settings, client: "redis.Redis", **entity: Any) -> None:
    """Redis as a daemon leaves it: a release, one entity, no positions yet."""
    client.hset(current_key(settings.name), mapping={"release": 1, "generation": 1, "dim": 2})
    vector = np.ones(2, "<f4").tobytes()
    fields = {"vector": vector, "release": 1, "time_us": 9, "count": 4, "since": 5} | entity
    client.hset(entity_key(settings.name, 1, WHO), mapping=fields)


def reaches(settings: Settings, client: "redis.Redis", group: int, offset: int) -> None:
    where = json.dumps(dict.fromkeys(settings.source.topics, offset))
    client.hset(group_key(settings.name, group), "positions", where)


def deletions(settings: Settings) -> list[tuple[str, int, bytes, None]]:
    """Everything in the topics."""
    with closing(kafka_python.KafkaConsumer(bootstrap_servers=settings.source.hosts)) as reader:
        parts = [
            kafka_python.TopicPartition(t, p) for t in settings.source.topics for p in range(GROUPS)
        ]
        reader.assign(parts)
        reader.seek_to_beginning(*parts)
        found: list[Any] = []

        def all_there() -> bool:
            for records in reader.poll(100).values():
                found.extend(records)
            return len(found) >= sum(reader.end_offsets(parts).values())

        eventually(all_there)
    return [(r.topic, r.partition, r.key, r.value) for r in found]


def test_before_a_release_every_topic_gets_the_deletion_and_nobody_waits(
    settings: Settings, database: "redis.Redis"
) -> None:
    assert forget(settings, WHO, 10) is False
    home = partition_of(WHO.encode(), GROUPS)
    wanted = [(topic, home, WHO.encode(), None) for topic in settings.source.topics]
    assert sorted(deletions(settings)) == sorted(wanted)


def test_it_waits_for_the_group_even_where_redis_has_no_vector(
    settings: Settings, database: "redis.Redis"
) -> None:
    """An evicted entity may be in the state of its group, or come back from an older record."""
    home = partition_of(WHO.encode(), GROUPS)
    released(settings, database)
    database.delete(entity_key(settings.name, 1, WHO))
    reaches(settings, database, home, 0)
    with pytest.raises(SinkDown, match="not forgotten"):
        forget(settings, WHO, 1)
    reaches(settings, database, home, 2)  # past the second deletion, too
    assert forget(settings, WHO, 10) is True


def test_the_entity_may_have_come_back_and_is_looked_for_where_it_is(
    settings: Settings, database: "redis.Redis"
) -> None:
    other = (partition_of(WHO.encode(), GROUPS) + 1) % GROUPS  # dealt by another partitioner
    released(settings, database, group=other)
    reaches(settings, database, other, 99)
    with pytest.raises(SinkDown, match="not forgotten"):
        forget(settings, WHO, 1)  # it is as it was
    assert {place for _, place, _, _ in deletions(settings)} == {other}


@pytest.mark.parametrize(
    ("name", "why"), [("", "0 bytes"), ("é" * 257, "514 bytes"), ("a\udcff", "UTF-8")]
)
def test_a_name_that_nobody_can_have_is_refused_before_anything_is_sent(
    settings: Settings, name: str, why: str
) -> None:
    """Its deletion would be a dead letter."""
    with pytest.raises(AfreshError, match=why):
        forget(settings, name, 10)
    assert deletions(settings) == []


def test_a_name_that_is_not_utf8_is_one_line(settings: Settings, database: "redis.Redis") -> None:
    released(settings, database)
    with pytest.raises(AfreshError, match="not UTF-8"):
        Reader(settings).lookup([WHO, "a\udcff"])


def test_a_sample_has_the_newest_whose_vector_is_there(
    settings: Settings, database: "redis.Redis"
) -> None:
    released(settings, database)  # WHO, of time 9
    for i in range(30):
        vector = np.array([i, 1], "<f4").tobytes()
        database.hset(
            entity_key(settings.name, 1, f"n{i}"), mapping={"vector": vector, "time_us": 100 + i}
        )
        database.hset(f"another:{i}", "vector", vector)
    database.hset(entity_key(settings.name, 1, "deleted"), "epoch", 1)
    found = Reader(settings).sample(20)
    assert found.names == [f"n{i}" for i in range(29, 9, -1)]
    assert found.time_us.tolist() == list(range(129, 109, -1))
    assert found.vectors[:, 0].tolist() == list(range(29, 9, -1))
    assert len(Reader(settings).sample(100).names) == 31


def test_a_sample_of_nobody_is_empty(settings: Settings, database: "redis.Redis") -> None:
    database.hset(current_key(settings.name), mapping={"release": 1, "generation": 1, "dim": 2})
    assert Reader(settings).sample(20).names == []


@pytest.mark.parametrize("what", [["lookup", WHO], ["neighbours", WHO], ["forget", WHO]])
def test_a_redis_that_does_not_answer_is_one_line(config: Path, what: list[str]) -> None:
    (port,) = free_ports(1)
    text = config.read_text()
    config.write_text(text[: text.index("redis = ")] + f'redis.url = "redis://127.0.0.1:{port}"\n')
    command = [sys.executable, "-m", "daemon", *what, "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 6
    assert "Traceback" not in done.stderr and str(port) in done.stderr
