"""The rights that docs/security.md lists are enough for everything, and whatever is missing is named."""

import gc
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any

import kafka as kafka_python
import kafka.errors
import numpy as np
import pytest
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from actors import kafka_watch
from actors.kafka_cluster import Cluster
from actors.ports import Batch
from actors.source import KafkaDeadLetters, KafkaSource, SourceConfig, partitions
from daemon import servers
from schemas.errors import SourceDown, SourceError
from tests.helpers import client_threads, eventually
from tests.security.support import USER, Broker, documented

Right = tuple[ResourceType, str, ACLOperation]
Config = Callable[..., SourceConfig]

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")


@pytest.fixture(autouse=True)
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kafka_watch, "ENDS_EVERY_S", 0.1)
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")
    gc.collect()


def right(line: str, stream: str) -> Right:
    """A line of kafka-acls.sh as what it grants."""
    words = shlex.split(line)
    given = dict(pairwise(words))
    assert given["--allow-principal"] == f"User:{USER}"
    kind = "group" if "--group" in given else "topic"
    name = given[f"--{kind}"].replace("orders", stream)
    return ResourceType[kind.upper()], name, ACLOperation[given["--operation"].upper()]


def rights(stream: str) -> list[Right]:
    return [right(line, stream) for line in documented("sh", "kafka-acls.sh") if "--add" in line]


def grant(broker: Broker, given: list[Right]) -> None:
    rules = [
        ACL(f"User:{USER}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
        for kind, name, operation in given
    ]
    with closing(kafka_python.KafkaAdminClient(bootstrap_servers=broker.plain)) as admin:
        assert not admin.create_acls(rules)["failed"]


@pytest.fixture
def config(secured: Broker, topic: str, login: dict[str, str]) -> Iterator[Config]:
    """Settings of USER, who has all that is documented but what is named."""

    def granted(*without: ACLOperation, of: str = "") -> SourceConfig:
        grant(secured, [r for r in rights(topic) if r[2] not in without or (of and of not in r[1])])
        return SourceConfig(secured.sasl, (topic,), timeout_s=2.0, **login)  # type: ignore[arg-type]

    yield granted
    everything = ACLFilter(
        f"User:{USER}", None, ACLOperation.ANY, ACLPermissionType.ANY,
        ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY),
    )  # fmt: skip
    with closing(kafka_python.KafkaAdminClient(bootstrap_servers=secured.plain)) as admin:
        admin.delete_acls([everything])


def committed(broker: Broker, group: str) -> dict[Any, Any]:
    with closing(kafka_python.KafkaAdminClient(bootstrap_servers=broker.plain)) as admin:
        with suppress(kafka.errors.NotCoordinatorError):  # it has none before the first commit
            return {
                p: found.offset for p, found in admin.list_group_offsets([group])[group].items()
            }
    return {}


def dead(letters: KafkaDeadLetters) -> None:
    one = np.array([7])
    letters.send(Batch(0, 0, one, one, [b"k"], [b"{"], 8), 0, "not_json", "no", None)
    letters.flush()


def test_what_is_documented_is_enough(secured: Broker, topic: str, config: Config) -> None:
    given = config()
    with closing(kafka_python.KafkaProducer(bootstrap_servers=secured.plain)) as producer:
        producer.send(topic, b"1", partition=0)
    assert partitions(given) == 1
    with closing(KafkaSource(given, topic, 1)) as source:
        source.start(0, None)
        eventually(lambda: source.poll(10, 0.05), 20)
        assert source.lag(0) == 0
        source.commit(0, [1])
        part = kafka_python.TopicPartition(topic, 0)
        eventually(lambda: committed(secured, f"afresh-{topic}") == {part: 1}, 20)
    with closing(KafkaDeadLetters(given, topic)) as letters:
        dead(letters)


def test_without_any_right_on_the_topic_it_does_not_start(topic: str, config: Config) -> None:
    given = config(ACLOperation.READ)
    with pytest.raises(SourceError) as caught:
        partitions(given)
    assert f"refuses the user 'afresh' the right to describe and read the topic '{topic}'" in str(
        caught.value
    )
    assert "docs/security.md" in str(caught.value)


def test_without_the_right_to_read_it_stops(secured: Broker, topic: str, config: Config) -> None:
    given = config(ACLOperation.READ)
    grant(secured, [(ResourceType.TOPIC, topic, ACLOperation.DESCRIBE)])
    with closing(KafkaSource(given, topic, 1)) as source:
        source.start(0, None)

        def refused() -> str:
            try:
                source.poll(10, 0.05)
            except SourceError as error:
                return str(error)
            return ""

        assert f"refuses the user 'afresh' the right to read {topic}" in eventually(refused, 20)


def test_without_the_right_to_write_dead_letters_wait(topic: str, config: Config) -> None:
    given = config(ACLOperation.WRITE)
    with closing(KafkaDeadLetters(given, topic)) as letters:
        with pytest.raises(SourceDown) as caught:
            dead(letters)
        text = str(caught.value)
    assert f"the user 'afresh' the right to write to the topic '{topic}.dlq'" in text


def test_without_the_right_to_create_dead_letters_wait_until_it_is_there(
    secured: Broker, topic: str, config: Config
) -> None:
    given = config(ACLOperation.CREATE)
    with closing(KafkaDeadLetters(given, topic)) as letters:
        with pytest.raises(SourceDown) as caught:
            dead(letters)
        assert f"the user 'afresh' the right to create the topic '{topic}.dlq'" in str(caught.value)
        servers.create_topics(secured.plain, {f"{topic}.dlq": 1})
        eventually(lambda: letters.flush() is None, 20)


def test_without_the_right_to_the_group_only_lag_tools_miss_something(
    topic: str, config: Config
) -> None:
    given = config(ACLOperation.READ, of="afresh-")
    with closing(Cluster(given)) as cluster:
        with pytest.raises(SourceError) as caught:
            cluster.commit(f"afresh-{topic}", {(topic, 0): 0})
    asked = f"to read (commit) as the group 'afresh-{topic}'"
    assert f"refuses the user 'afresh' the right {asked}" in str(caught.value)
