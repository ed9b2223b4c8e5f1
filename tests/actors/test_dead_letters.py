"""Dead letters can be read with what they were and why they are dead."""

import gc
import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka
import kafka as kafka_python
import numpy as np
import pyarrow as pa
import pytest

from actors import outbox
from actors.ports import Batch
from actors.source import DlqConfig, KafkaDeadLetters, SourceConfig
from daemon import servers
from schemas.errors import SourceDown
from tests.actors.messages import GOOD, decoder, encode, ipc, run
from tests.helpers import client_threads, eventually

Topics = Callable[..., str]

# A connection that kafka-python 3.0.12 could not make leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")
    gc.collect()  # here, where that is no error


Open = Callable[..., KafkaDeadLetters]


@pytest.fixture
def opened() -> Iterator[Open]:
    all_of_them: list[KafkaDeadLetters] = []

    def open_letters(*args: Any, **settings: Any) -> KafkaDeadLetters:
        all_of_them.append(KafkaDeadLetters(SourceConfig(*args, **settings), "test"))
        return all_of_them[-1]

    yield open_letters
    for letters in all_of_them:
        letters.close()


def batch(*values: Any, key: bytes | None = b"key") -> Batch:
    n = len(values)
    return Batch(2, 0, np.arange(n) + 40, np.arange(n) + 9000, [key] * n, list(values), 40 + n)


def read(address: str, topic: str, count: int) -> list[tuple[bytes | None, bytes, dict[str, str]]]:
    found: list[Any] = []
    with closing(
        kafka.KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False)
    ) as reader:
        reader.assign([kafka.TopicPartition(topic, 0)])
        reader.seek_to_beginning()

        def all_there() -> bool:
            for records in reader.poll(100).values():
                found.extend(records)
            return len(found) >= count

        eventually(all_there)
    return [(r.key, r.value, {k: v.decode() for k, v in r.headers}) for r in found]


def test_a_letter_holds_the_bytes_and_says_what_they_were(
    kafka: str, topics: Topics, opened: Open
) -> None:
    topic = topics()
    letters = opened(kafka, (topic,))
    bad = batch(b"fine", b"{not json", None)
    letters.send(bad, 1, "not_json", "it ends ✗ early", None)
    letters.send(bad, 2, "bad_entity", "the key is empty", None)
    letters.flush()
    one, two = read(kafka, f"{topic}.dlq", 2)
    where = {"topic": topic, "partition": "2", "offset": "41", "time": "9001"}
    assert one == (b"key", b"{not json", {"reason": "it ends ✗ early", "error": "not_json"} | where)
    assert two[1] == b"" and two[2]["value"] == "null"


def test_a_huge_value_is_cut_and_identified(kafka: str, topics: Topics, opened: Open) -> None:
    topic = topics()
    letters = opened(kafka, (topic,), dlq=DlqConfig(".bad", 100_000))
    whole, fits = b"x" * 100_001, b"y" * 100_000
    letters.send(batch(whole, fits), 0, "too_large", "100001 bytes", None)
    letters.send(batch(whole, fits), 1, "not_json", "no", None)
    letters.flush()
    cut, kept = read(kafka, f"{topic}.bad", 2)
    assert cut[1] == whole[: 64 << 10]
    assert cut[2]["sha256"] == hashlib.sha256(whole).hexdigest()
    assert cut[2]["size"] == "100001"
    assert kept[1] == fits and "sha256" not in kept[2]


def test_what_the_broker_finds_too_large_is_cut_as_well(
    kafka: str, topics: Topics, opened: Open
) -> None:
    topic = topics()
    servers.create_topics(kafka, {f"{topic}.dlq": 1}, {"max.message.bytes": "100000"})
    letters = opened(kafka, (topic,))
    letters.send(batch(b"z" * 200_000), 0, "not_json", "no", None)
    letters.flush()
    ((_, value, headers),) = read(kafka, f"{topic}.dlq", 1)
    assert len(value) == 64 << 10 and headers["size"] == "200000"


def test_a_huge_key_and_a_long_reason_are_cut_as_well(
    kafka: str, topics: Topics, opened: Open
) -> None:
    topic = topics()
    letters = opened(kafka, (topic,))
    key = b"k" * (2 << 20)
    letters.send(batch(b"{", b"[", key=key), 0, "not_json", "\ud800" + "no" * 100_000, None)
    letters.flush()
    ((cut, value, headers),) = read(kafka, f"{topic}.dlq", 1)
    assert (cut, value) == (key[: 4 << 10], b"{")
    assert headers["key_size"] == str(len(key))
    assert headers["key_sha256"] == hashlib.sha256(key).hexdigest()
    assert headers["reason"].startswith("?no") and len(headers["reason"]) == 2000


def test_a_topic_that_was_deleted_is_created_again(
    kafka: str, topics: Topics, opened: Open
) -> None:
    topic = topics()
    letters = opened(kafka, (topic,), timeout_s=1.0)
    bad = batch(b"1", b"2")
    letters.send(bad, 0, "not_json", "no", None)
    letters.flush()
    with closing(kafka_python.KafkaAdminClient(bootstrap_servers=kafka)) as admin:
        admin.delete_topics([f"{topic}.dlq"])
    letters.send(bad, 1, "not_json", "no", None)
    eventually(lambda: _flushed(letters), 60.0)
    assert [value for _, value, _ in read(kafka, f"{topic}.dlq", 1)] == [b"2"]


@pytest.mark.parametrize(
    ("form", "value", "error"),
    [
        ("avro", b"\0\0\0\0\x0d\x02", "unknown_schema"),
        ("arrow", ipc(pa.RecordBatch.from_pylist([{"other": 1}])), "wrong_columns"),
        ("arrow", ipc(pa.RecordBatch.from_pylist([{**GOOD, "delay": "12"}])), "wrong_columns"),
    ],
)
def test_what_a_decoder_refuses_is_there_as_it_came(
    kafka: str, topics: Topics, opened: Open, schema_file: str, form: str, value: bytes, error: str
) -> None:
    """Messages of another schema: the decoder's reasons and the letters belong together."""
    topic = topics()
    letters = opened(kafka, (topic,))
    more = {"avro_schema_id": 12} if form == "avro" else {}
    good = encode(form, GOOD)
    decoded, bad = run(decoder(form, schema_file, **more), [good, value, good])
    assert decoded.entities == ["N1", "N1"]
    for b in bad:
        letters.send(batch(good, value, good), b.at, b.error, b.reason, b.row)
    letters.flush()
    ((_, there, headers),) = read(kafka, f"{topic}.dlq", 1)
    assert (there, headers["error"], headers["offset"]) == (value, error, "41")


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_bad_row_of_an_arrow_message_goes_alone(
    kafka: str, topics: Topics, opened: Open, as_bytes: bool
) -> None:
    topic = topics()
    rows = pa.RecordBatch.from_pydict({"e": ["a", "b", "c"], "n": [1, 2, 3]})
    message: Any = rows
    if as_bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows.slice(0, 2))
            writer.write_batch(rows.slice(2))
        message = sink.getvalue().to_pybytes()
    letters = opened(kafka, (topic,))
    letters.send(batch(message), 0, "missing_time", "no time", 2)
    letters.flush()
    ((_, value, headers),) = read(kafka, f"{topic}.dlq", 1)
    assert headers["row"] == "2"
    assert pa.ipc.open_stream(value).read_all().to_pylist() == [{"e": "c", "n": 3}]


def test_many_bad_records_go_on_and_are_all_there(kafka: str, topics: Topics, opened: Open) -> None:
    topic = topics()
    letters = opened(kafka, (topic,))
    bad = batch(*[b"%d" % i for i in range(20_000)], key=None)
    for at in range(20_000):
        letters.send(bad, at, "not_json", "no", None)
    letters.flush()
    found = read(kafka, f"{topic}.dlq", 20_000)
    assert [value for _, value, _ in found] == bad.values


@pytest.mark.faults
def test_nothing_is_lost_or_hidden_while_the_broker_is_down(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_RECORDS", 3)
    with servers.kafka_server(tmp_path) as broker:
        servers.create_topics(broker.address, {"t": 1})
        letters = opened(broker.address, ("t",), timeout_s=1.0)
        bad = batch(*[b"%d" % i for i in range(5)], key=None)
        letters.send(bad, 0, "not_json", "no", None)
        letters.flush()
        broker.kill()
        for at in (1, 2, 3):
            letters.send(bad, at, "not_json", "no", None)  # handed over at once
        with pytest.raises(SourceDown, match="3 dead letters are not durable"):
            letters.flush()
        with pytest.raises(SourceDown, match="3 dead letters wait"):
            letters.send(bad, 4, "not_json", "no", None)
        broker.start()
        eventually(lambda: _flushed(letters), 30.0)
        values = {value for _, value, _ in read(broker.address, "t.dlq", 4)}
        assert values == {b"0", b"1", b"2", b"3"}


def _flushed(letters: KafkaDeadLetters) -> bool:
    try:
        letters.flush()
    except SourceDown:
        return False
    return True
