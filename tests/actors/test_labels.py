"""Labels on a topic of their own: foretold from what Redis has, kept over restarts, and nobody else's trouble."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer

from actors.candidate import ReleaseConfig
from actors.capacity import StateConfig
from actors.decode import DecodeConfig
from actors.labels import AGAIN_S, RENEW_S, LabelPorts, Labels, LabelsConfig, known
from actors.processes import LabelProcess, Spec, open_labels
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.shard_config import ShardConfig
from actors.sink import Current, Vectors
from actors.source import SourceConfig
from learning.config import LearnerConfig
from schemas.errors import SettingsError
from schemas.records import category_hash
from tests.fake_sink import MemoryServer, MemorySink
from tests.fakes import MemoryDeadLetters, MemorySource, Record
from tests.helpers import eventually
from tests.services import ENCODER, STREAM

CONFIG = LabelsConfig("labels", "who", "fraud", "at")
PEOPLE, DIM = 200, 8


def label(who: str, what: object, at: int = 5, group: int = 0) -> Record:
    return Record(msgspec.json.encode({"who": who, "fraud": what, "at": at}), who.encode(), group)


class Service:
    """A Redis in memory in which everybody has a vector, whose first number says what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, MemorySource(groups=2)
        self.server, self.dead_letters, self.now = MemoryServer(), MemoryDeadLetters(), 0.0
        z = np.random.default_rng(0).normal(size=(PEOPLE, DIM)).astype(np.float32)
        self.vectors = z / np.linalg.norm(z, axis=1, keepdims=True)
        self.restart()

    def restart(self, config: LabelsConfig = CONFIG) -> None:
        ports = LabelPorts(self.source, self.dead_letters, MemorySink(self.server))
        self.labels = Labels(config, self.folder, 1, ports, 2, lambda: self.now)

    def serve(self, release: int = 1, generation: int = 1, sign: float = 1.0) -> None:
        sink = MemorySink(self.server)
        sink.raise_fence(0, release)
        n = np.ones(PEOPLE, np.int64)
        names = [f"p{i}" for i in range(PEOPLE)]
        given = Vectors(names, sign * self.vectors, release * n, n, n, n)
        sink.write(0, release, 1, generation, {}, given, [])
        sink.set_current(Current(release, generation, DIM), release)

    def say(self, which: range) -> None:
        for i in which:
            self.source.put(label(f"p{i}", "bad" if self.vectors[i, 0] > 0 else "good", group=i % 2))  # fmt: skip
        self.turn()

    def turn(self) -> None:
        for _ in range(3):
            self.labels.turn()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "labels")


def test_labels_are_foretold_then_learnt_from(service: Service) -> None:
    service.serve()
    service.say(range(100))
    assert service.labels.stats().labels["taken"] == 100
    service.say(range(100, 200))
    stats = service.labels.stats()
    assert stats.known == 200
    assert stats.accuracy["linear"] > 0.85
    assert stats.accuracy["majority"] < 0.65
    assert stats.average_precision > 0.9


def test_labels_before_the_first_release_wait_for_it(service: Service) -> None:
    service.say(range(10))
    assert service.labels.stats().labels == {}
    service.serve()
    service.turn()
    assert service.labels.stats().labels["taken"] == 10


def test_a_bad_label_is_a_dead_letter_and_stops_nothing(service: Service) -> None:
    service.serve()
    service.source.put(Record(b"{"), label("p1", [1]), Record(b'{"who": "p1", "at": 5}'))
    service.source.put(label("nobody", "bad"))
    service.say(range(2, 5))
    assert service.labels.stats().labels == {"taken": 3, "no_vector": 1, "bad": 3}
    assert len(service.dead_letters.letters) == 2, "one that says nothing is only counted"


def test_while_redis_is_down_labels_wait(service: Service) -> None:
    service.serve()
    service.turn()
    with service.server.outage():
        service.say(range(5))
        assert not service.labels.stats().up
    service.turn()
    assert service.labels.stats().up
    assert service.labels.stats().labels["taken"] == 5


def test_a_restart_reads_on_and_knows_what_was_known(service: Service) -> None:
    service.serve()
    service.say(range(60))
    service.labels.save()
    service.say(range(60, 70))  # after the snapshot: read again
    service.restart()
    service.turn()
    stats = service.labels.stats()
    assert (stats.known, stats.labels["taken"]) == (70, 10)
    assert len(stats.accuracy) == 3


def test_labels_that_kafka_no_longer_has_stop_nothing(service: Service) -> None:
    service.serve()
    service.say(range(60))
    service.labels.save()
    service.source = MemorySource(groups=2)  # the topic was made anew
    service.restart()
    service.say(range(60, 64))
    assert service.labels.stats().known == 64


def test_other_settings_begin_anew(service: Service) -> None:
    service.serve()
    service.say(range(60))
    service.labels.save()
    service.restart(LabelsConfig("labels", "who", "who", "at"))
    service.turn()
    assert service.labels.stats().labels["taken"] == 60, "from the start"


def test_what_is_known_follows_the_release_that_is_served(service: Service) -> None:
    """In another generation all vectors are others; those of before would foretell the opposite."""
    service.serve()
    service.say(range(100))
    service.serve(release=2, generation=2, sign=-1.0)
    service.say(range(100, 200))
    assert service.labels.stats().accuracy["linear"] > 0.8


def test_who_is_deleted_is_known_no_more(service: Service) -> None:
    service.serve()
    service.say(range(50))
    service.source.put(Record(None, b"p7"))
    service.turn()
    assert service.labels.stats().known == 49
    del service.server.entities[1, "p8"]  # from the stream itself
    service.now += 1000.0
    service.turn()
    service.labels.save()
    left = known(service.folder)
    assert len(left) == 48
    assert not {category_hash("p7"), category_hash("p8")} & set(left)


def test_a_redis_that_is_being_filled_again_makes_nobody_forgotten(service: Service) -> None:
    service.serve()
    service.say(range(60))
    service.now += 1000.0
    emptied = dict(service.server.entities)
    service.server.entities.clear()
    service.server.entities |= {key: emptied[key] for key in list(emptied)[:20]}
    service.say(range(60, 64))
    assert service.labels.stats().known == 60
    assert service.labels.stats().labels == {"taken": 60, "no_vector": 0, "bad": 0}, "they wait"
    service.server.entities |= emptied
    service.now += AGAIN_S
    service.turn()
    assert service.labels.stats().known == 64


def test_whoever_stays_away_is_gone(service: Service) -> None:
    service.serve()
    service.say(range(60))
    for name in range(50):
        del service.server.entities[1, f"p{name}"]
    for _ in range(3):
        service.now += RENEW_S
        service.turn()
    assert service.labels.stats().known == 10


def test_the_gate_reads_what_was_saved_last(service: Service) -> None:
    assert known(service.folder) == {}
    service.serve()
    service.say(range(3))
    service.labels.save()
    service.source.put(label("p1", "unclear", at=9), label("p2", "stale", at=1, group=0))
    service.turn()
    service.labels.save()
    found = known(service.folder)
    assert found[category_hash("p1")] == category_hash("unclear")
    assert found[category_hash("p2")] != category_hash("stale"), "an older one says nothing new"
    newest = max(service.folder.glob("1-*"))
    (newest / "known.safetensors").write_bytes(b"")
    assert len(known(service.folder)) == 3, "the one before"


def spec_of(folder: Path, kafka: str, redis: str, stream: str, topic: str) -> Spec:
    return Spec(
        stream, str(folder), 1, STREAM, SourceConfig(kafka, ("orders",)), DecodeConfig(), StateConfig(),
        ShardConfig(), ENCODER, LearnerConfig(), ReleaseConfig(), RedisConfig(url=redis),
        LabelsConfig(topic, "who", "fraud", "at"),
    )  # fmt: skip


def test_from_kafka_to_redis_and_back(
    tmp_path: Path, kafka: str, redis_server: str, stream: str, topics: Callable[..., str]
) -> None:
    topic = topics("labels", partitions=2)
    spec = spec_of(tmp_path, kafka, redis_server, stream, topic)
    sink = RedisSink(spec.redis, stream)
    sink.raise_fence(0, 1)
    n = np.ones(100, np.int64)
    z = np.eye(DIM, dtype=np.float32)[np.arange(100) % 2]
    sink.write(0, 1, 1, 1, {}, Vectors([f"p{i}" for i in range(100)], z, n, n, n, n), [])
    sink.set_current(Current(1, 1, DIM), 1)
    with closing(KafkaProducer(bootstrap_servers=kafka)) as producer:
        for i in range(100):
            value = msgspec.json.encode({"who": f"p{i}", "fraud": i % 2, "at": 5})
            producer.send(topic, value, f"p{i}".encode())
        producer.send(topic, b"{")
    labels = open_labels(spec, 1)

    def taken() -> bool:
        labels.turn()
        return labels.stats().labels == {"taken": 100, "no_vector": 0, "bad": 1}

    eventually(taken)
    turns = iter([False, True])
    labels.run(lambda: next(turns))
    sink.close()
    assert len(known(tmp_path / "labels")) == 100
    letters = KafkaConsumer(f"{topic}.dlq", bootstrap_servers=kafka, auto_offset_reset="earliest")
    with closing(letters):
        assert next(letters).value == b"{"


def test_a_topic_that_is_not_there_is_waited_for(
    tmp_path: Path,
    kafka: str,
    redis_server: str,
    stream: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process lives: /healthz would say that the service is unwell as long as it did not."""
    monkeypatch.setattr("os.nice", lambda _: 0)
    monkeypatch.setattr("actors.processes.LABELS_S", 0.2)
    (tmp_path / "epoch-1").touch()
    process = LabelProcess(spec_of(tmp_path, kafka, redis_server, stream, f"{stream}.no"), 1 << 20)
    eventually(lambda: process.status().progress > 1)
    assert process.status().error is None and not process.status().stats.up
    process.stop()
    eventually(lambda: process.status().finished)


def test_labels_have_a_topic_of_their_own() -> None:
    source = SourceConfig("localhost:9092", ("orders",))
    assert CONFIG.source(source, "s").topics == ("labels",)
    with pytest.raises(SettingsError, match=r"labels.topic is 'orders'"):
        LabelsConfig("orders").source(source, "s")
