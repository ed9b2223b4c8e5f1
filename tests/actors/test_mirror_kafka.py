"""The mirror on a broker that is killed: everything arrives, in order and without gaps; some of it twice."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import kafka as kafka_python
import pytest

from actors import outbox
from actors.mirror_kafka import KafkaMirror
from actors.source import SourceConfig
from daemon import servers
from schemas.errors import SourceDown
from tests.helpers import client_threads, eventually

# A connection that kafka-python 3.0.12 could not make leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")


@pytest.mark.faults
def test_what_was_sent_arrives_in_order_though_the_broker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_RECORDS", 400)
    monkeypatch.setattr(outbox, "AT_ONCE", 50)
    with servers.kafka_server(tmp_path) as broker:
        servers.create_topics(broker.address, {"t.mirror": 2})
        mirror = KafkaMirror(
            SourceConfig(broker.address, ("t",), timeout_s=1.0).with_mirror("t"), "t"
        )
        for i in range(300):
            mirror.send(1, b"%d" % i)
        broker.kill()  # some are on their way
        for i in range(300, 1000):
            mirror.send(1, b"%d" % i)  # never waits, and who asks is told that there is no room
        assert not mirror.wait_for_room(0.05)
        with pytest.raises(SourceDown, match="mirrored edges are not durable"):
            mirror.flush()
        broker.start()
        eventually(lambda: mirror.wait_for_room(0.1) and _flushed(mirror), 60.0)
        mirror.close()
        found = _read(broker.address, "t.mirror", 999)
    assert found[0] == 0 and set(found) == set(range(1000))
    firsts = list(dict.fromkeys(found))
    assert firsts == sorted(firsts), "the first of each comes behind the firsts of all before it"


def _flushed(mirror: KafkaMirror) -> bool:
    try:
        mirror.flush()
    except SourceDown:
        return False
    return True


def _read(address: str, topic: str, last: int) -> list[int]:
    part = kafka_python.TopicPartition(topic, 1)
    with closing(kafka_python.KafkaConsumer(bootstrap_servers=address)) as consumer:
        consumer.assign([part])
        consumer.seek_to_beginning(part)
        found: list[int] = []
        while last not in found:
            for records in consumer.poll(500).values():
                found += [int(r.value) for r in records]
    return found
