"""Kafka as a source: where it starts, what stops it, what it survives."""

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka
import pytest
from kafka.errors import KafkaError

from actors import kafka_watch
from actors.source import KafkaSource, SourceConfig, partitions
from daemon import servers
from daemon.children import free_ports
from schemas.errors import SourceDown, SourceError
from tests.helpers import client_threads, eventually

Topics = Callable[..., str]

# A connection that kafka-python 3.0.12 could not make leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")
    gc.collect()  # here, where that is no error


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_watch, "ENDS_EVERY_S", 0.1)
    monkeypatch.setattr(kafka_watch, "TOPICS_EVERY_S", 0.1)


@pytest.fixture
def opened() -> Iterator[Callable[..., KafkaSource]]:
    sources: list[KafkaSource] = []

    def open_source(*args: Any, groups: int = 1, **settings: Any) -> KafkaSource:
        sources.append(KafkaSource(SourceConfig(*args, **settings), "test", groups))
        return sources[-1]

    yield open_source
    for source in sources:
        source.close()


def produce(address: str, topic: str, values: list[bytes], **options: Any) -> None:
    """Each value at 1,000 ms times its number, from 1; all into partition 0."""
    with closing(kafka.KafkaProducer(bootstrap_servers=address, **options)) as producer:
        for i, value in enumerate(values, 1):
            producer.send(topic, value, partition=0, timestamp_ms=i * 1000)


def kafka_producer(address: str) -> kafka.KafkaProducer:
    return kafka.KafkaProducer(bootstrap_servers=address)


def read(source: KafkaSource, count: int, timeout_s: float = 20.0) -> list[bytes | None]:
    out: list[bytes | None] = []

    def more() -> bool:
        for batch in source.poll(1000, 0.05):
            out.extend(batch.values)
        return len(out) >= count

    eventually(more, timeout_s, f"{count} records")
    return out


def admin(address: str, method: str, *args: Any) -> Any:
    with closing(kafka.KafkaAdminClient(bootstrap_servers=address)) as client:
        return getattr(client, method)(*args)


# -- where it starts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "first"),
    [("earliest", 0), ("latest", 5), (2500, 2), (0, 0), ("1970-01-01T00:00:04Z", 3), (99_000, 5)],
)
def test_it_starts_where_it_is_told(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource], start: str | int, first: int
) -> None:
    topic = topics()
    produce(kafka, topic, [b"1", b"2", b"3", b"4", b"5"])
    source = opened(kafka, (topic,), start=start)
    assert source.start(0, None) == [first]
    produce(kafka, topic, [b"6"])
    assert read(source, 6 - first) == [b"1", b"2", b"3", b"4", b"5", b"6"][first:]


def test_several_topics_make_a_group_of_their_partitions(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource]
) -> None:
    a, b = topics("a", 2), topics("b", 2)
    produce(kafka, a, [b"a"])
    produce(kafka, b, [b"b", b"b"])
    assert partitions(SourceConfig(kafka, (a, b))) == 2
    source = opened(kafka, (a, b), groups=2)
    assert source.start(0, None) == [0, 0]
    found: dict[int, int] = {}

    def both() -> bool:
        for batch in source.poll(100, 0.05):
            assert batch.group == 0
            found[batch.topic] = batch.next_offset
        return found == {0: 1, 1: 2}

    eventually(both)


@pytest.mark.parametrize("wanted", [True, False])
def test_headers_come_where_they_are_wanted(kafka: str, topics: Topics, wanted: bool) -> None:
    topic, headers = topics(), [("label", b"cat"), ("label", b""), ("time", b"1")]
    with closing(kafka_producer(kafka)) as producer:
        producer.send(topic, b"1", headers=headers)
        producer.send(topic, b"2")
    with closing(KafkaSource(SourceConfig(kafka, (topic,)), "test", 1, wanted)) as source:
        source.start(0, None)
        found: list[Any] = []

        def both() -> bool:
            for batch in source.poll(100, 0.05):
                assert batch.headers is None or wanted
                found.extend(batch.headers or [None] * len(batch.values))
            return len(found) == 2

        eventually(both)
    assert [list(h) if h is not None else None for h in found] == (
        [headers, []] if wanted else [None, None]
    )


# -- what stops it --------------------------------------------------------------------------------


def test_unequal_or_missing_topics_are_refused(kafka: str, topics: Topics) -> None:
    one, two = topics("one", 1), topics("two", 2)
    with pytest.raises(SourceError, match=rf"{one} has 1, {two} has 2"):
        partitions(SourceConfig(kafka, (one, two)))
    with pytest.raises(SourceError, match="'nowhere' does not exist"):
        partitions(SourceConfig(kafka, (one, "nowhere")))
    with pytest.raises(SourceError, match="2 partitions; the stream began with 3"):
        KafkaSource(SourceConfig(kafka, (two,)), "test", 3)


def test_no_broker_is_told_with_its_name() -> None:
    (port,) = free_ports(1)
    config = SourceConfig([f"127.0.0.1:{port}"], ("t",), timeout_s=1.0)  # type: ignore[arg-type]
    with pytest.raises(SourceDown, match=str(port)):
        partitions(config)


def test_a_new_partition_stops_it_with_instructions(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource]
) -> None:
    topic = topics(partitions=1)
    source = opened(kafka, (topic,))
    source.start(0, None)
    source.poll(1, 0.01)
    admin(kafka, "create_partitions", {topic: 2})
    with pytest.raises(SourceError, match="Start a stream of another name"):
        eventually(lambda: source.poll(1, 0.05))


def test_a_deleted_topic_stops_it(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource]
) -> None:
    topic = topics()
    source = opened(kafka, (topic,))
    source.start(0, None)
    source.poll(1, 0.01)
    admin(kafka, "delete_topics", [topic])
    with pytest.raises(SourceError, match=topic):
        eventually(lambda: source.poll(1, 0.05))


def test_positions_that_kafka_no_longer_has_are_named(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource]
) -> None:
    topic = topics()
    produce(kafka, topic, [b"x"] * 9)
    source = opened(kafka, (topic,))
    source.start(0, [2])
    admin(kafka, "delete_records", {_part(topic): 6})
    says = f"{topic}, partition 0: the next record to read is 2, Kafka has 6 to 9.*retention"
    with pytest.raises(SourceError, match=says):
        eventually(lambda: source.poll(1, 0.05) and None)
    again = opened(kafka, (topic,))
    with pytest.raises(SourceError, match=says):
        again.start(0, [2])
    with pytest.raises(SourceError, match=r"next record to read is 10.*created anew"):
        again.start(0, [10])


def _part(topic: str) -> Any:
    return kafka.TopicPartition(topic, 0)


# -- what it survives -----------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_every_compression_is_read(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource], codec: str
) -> None:
    topic = topics()
    values = [b"value %d" % i * 20 for i in range(500)]
    produce(kafka, topic, values, compression_type=codec, linger_ms=20)
    source = opened(kafka, (topic,))
    source.start(0, None)
    assert read(source, 500) == values


def test_aborted_records_are_passed_over_and_the_position_reaches_the_end(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource]
) -> None:
    topic = topics()
    _transactions(kafka, topic, [(b"a", True), (b"no", False), (b"b", True), (b"no", False)])
    source = opened(kafka, (topic,))
    source.start(0, None)
    seen: list[bytes | None] = []
    offsets: list[int] = []
    position = 0

    def at_the_end() -> bool:
        nonlocal position
        for batch in source.poll(1, 0.05):
            seen.extend(batch.values)
            offsets.extend(batch.offsets.tolist())
            position = batch.next_offset
        return position == 8

    eventually(at_the_end, what="a batch of nothing that ends behind the last mark")
    assert (seen, offsets) == ([b"a", b"b"], [0, 4])
    eventually(lambda: source.lag(0) == 0)
    _transactions(kafka, topic, [(b"c", True)])
    assert read(source, 1) == [b"c"]


def _transactions(address: str, topic: str, done: list[tuple[bytes, bool]]) -> None:
    options = {"bootstrap_servers": address, "transactional_id": topic}
    with closing(kafka.KafkaProducer(**options)) as producer:
        producer.init_transactions()
        for value, commit in done:
            producer.begin_transaction()
            producer.send(topic, value)
            producer.flush()
            producer.commit_transaction() if commit else producer.abort_transaction()


def test_commits_reach_lag_tools_under_the_streams_name(
    kafka: str, topics: Topics, opened: Callable[..., KafkaSource]
) -> None:
    topic = topics()
    produce(kafka, topic, [b"x"] * 9)
    source = opened(kafka, (topic,), group=f"for-{topic}")
    source.start(0, None)
    source.commit(0, [4])
    source.commit(0, [7])

    def committed() -> bool:
        try:
            found = admin(kafka, "list_group_offsets", {f"for-{topic}": None})[f"for-{topic}"]
        except KafkaError:  # nobody has asked for one before
            return False
        return _part(topic) in found and found[_part(topic)].offset == 7

    eventually(committed)


@pytest.mark.faults
def test_a_broker_that_is_killed_and_started_again_loses_and_repeats_nothing(
    tmp_path: Path, opened: Callable[..., KafkaSource]
) -> None:
    with servers.kafka_server(tmp_path) as broker:
        servers.create_topics(broker.address, {"t": 1})
        produce(broker.address, "t", [b"%d" % i for i in range(100)])
        source = opened(broker.address, ("t",), timeout_s=2.0)
        source.start(0, None)
        assert len(read(source, 100)) == 100
        broker.kill()
        eventually(lambda: source.poll(10, 0.02) == [] and not source.up, 15.0, "down")
        source.commit(0, [100])  # raises nothing
        broker.start()
        produce(broker.address, "t", [b"%d" % i for i in range(100, 200)])
        assert read(source, 100, 30.0) == [b"%d" % i for i in range(100, 200)]
        eventually(lambda: source.poll(10, 0.02) == [] and source.up, 15.0, "up")
