"""Local servers: they start, answer, keep their data over kill -9, and never outlive us."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from daemon import children, servers
from tests.helpers import eventually


def runs(pid: int) -> bool:
    """Whether a process has this id and is no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def produce(address: str, topic: str, values: list[bytes]) -> None:
    with contextlib.closing(KafkaProducer(bootstrap_servers=address, acks="all")) as producer:
        for future in [producer.send(topic, value) for value in values]:
            future.get(timeout=20)


def consume(address: str, topic: str, count: int) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    with contextlib.closing(KafkaConsumer(bootstrap_servers=address)) as consumer:
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        found: list[bytes] = []

        def enough() -> bool:
            for records in consumer.poll(timeout_ms=200).values():
                found.extend(record.value for record in records)
            return len(found) >= count

        eventually(enough, 20)
        return found


def test_kafka_keeps_records_and_port_over_kill_and_stop(tmp_path: Path) -> None:
    with servers.kafka_server(tmp_path) as kafka:
        servers.create_topics(kafka.address, {"events": 1})
        produce(kafka.address, "events", [b"1", b"2"])
        address, first = kafka.address, kafka.pid
        kafka.kill()
        assert not runs(first)
        kafka.start()
        assert kafka.address == address
        assert kafka.pid != first
        assert consume(address, "events", 2) == [b"1", b"2"]
        last = kafka.pid
    assert not runs(last)


def test_kafka_holds_messages_of_16_mb(kafka: str, topics: Callable[..., str]) -> None:
    topic = topics()
    with contextlib.closing(
        KafkaProducer(bootstrap_servers=kafka, max_request_size=20 << 20)
    ) as producer:
        producer.send(topic, bytes(16 << 20)).get(timeout=30)
    assert len(consume(kafka, topic, 1)[0]) == 16 << 20


def test_a_topic_with_other_partitions_is_refused(kafka: str, topics: Callable[..., str]) -> None:
    topic = topics(partitions=2)
    servers.create_topics(kafka, {topic: 2})
    with pytest.raises(children.ServerError, match="exists with 2 partitions, 3 are wanted"):
        servers.create_topics(kafka, {topic: 3})


def test_topics_are_not_created_by_a_typing_error(kafka: str) -> None:
    with contextlib.closing(KafkaProducer(bootstrap_servers=kafka, max_block_ms=500)) as producer:
        with pytest.raises(Exception, match="metadata"):
            producer.send("no-such-topic", b"")


@pytest.mark.parametrize("appendonly", [True, False])
def test_redis_keeps_data_over_kill_with_appendonly_alone(tmp_path: Path, appendonly: bool) -> None:
    settings = {"appendfsync": "always"} if appendonly else {}
    with servers.redis_server(tmp_path, appendonly=appendonly, settings=settings) as server:
        url = f"redis://{server.address}"
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            client.set("a", 1)
            run_id = client.info("server")["run_id"]
        server.kill()
        server.start()
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            assert client.get("a") == (b"1" if appendonly else None)
            assert client.info("server")["run_id"] != run_id


def test_redis_62_is_redis_62(redis62: str) -> None:
    with contextlib.closing(redis.Redis.from_url(redis62)) as client:
        assert client.info("server")["redis_version"].startswith("6.2.")


@pytest.mark.skipif("AFRESH_REDIS" in os.environ, reason="a server that is not ours is not flushed")
def test_a_database_is_empty(any_database: redis.Redis) -> None:
    assert any_database.dbsize() == 0
    any_database.set("left", "behind")


def test_a_paused_server_answers_nothing_until_resumed(tmp_path: Path) -> None:
    with servers.redis_server(tmp_path) as server:
        server.pause()
        assert not server.answers()
        server.resume()
        eventually(server.answers)
        server.pause()  # and a paused one can be stopped
        pid = server.pid
    assert not runs(pid)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(children.ServerError, match=r"(?i)has ended at once(.|\n)*no-such-setting"):
        with servers.redis_server(tmp_path, settings={"no-such-setting": "1"}):
            pass


def test_free_ports_are_free_and_distinct() -> None:
    ports = children.free_ports(5)
    assert len(set(ports)) == 5
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.create_server((children.HOST, port)))


STARTER = """
import signal, sys
from pathlib import Path
from daemon import children, servers
children.GUARDED = servers.GUARDED = sys.argv[2]
with servers.redis_server(Path(sys.argv[1]), keep=sys.argv[2] == "none") as server:
    print(server.pid, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("guard", ["signal", "pipe", "none"])
def test_a_server_dies_with_its_parent_unless_kept(tmp_path: Path, guard: str) -> None:
    if guard == "signal" and sys.platform != "linux":
        pytest.skip("Linux alone can signal a parent's death")
    command = [sys.executable, "-c", STARTER, str(tmp_path), guard]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
        parent.wait()
        if guard != "none":
            eventually(lambda: not runs(pid), what="the server's death")
            return
        assert runs(pid)
        os.kill(pid, signal.SIGKILL)  # ours: started above, and its parent has gone


def test_ctrl_c_leaves_the_servers_to_us(tmp_path: Path) -> None:
    with servers.redis_server(tmp_path) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)
        assert os.getsid(server.pid) != os.getsid(0)
