"""What only a real server shows: lifetimes, lost scripts, outages, replacements, refusals."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.sink import Current, Vectors, WriteResult
from daemon import servers
from schemas.errors import Fenced, SettingsError, SinkDown
from schemas.published import encoder_key, entity_key, releases_key


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def vectors(*names: str) -> Vectors:
    n, ones = len(names), np.ones(len(names), np.int64)
    return Vectors(list(names), np.ones((n, 3), np.float32), ones, ones, ones, ones)


@pytest.fixture
def sink(any_database: redis.Redis, any_redis: str, stream: str) -> Iterator[RedisSink]:
    with closing(RedisSink(RedisConfig(url=any_redis, ttl_s=100.0), stream)) as made:
        made.raise_fence(0, 7)
        yield made


def put(sink: RedisSink, write: int, *names: str, gone: list[str] | None = None) -> WriteResult:
    return sink.write(0, 7, write, 1, {"t": write}, vectors(*names), gone or [])


def test_every_write_renews_the_lifetime(
    sink: RedisSink, any_database: redis.Redis, any_redis: str, stream: str
) -> None:
    key = entity_key(stream, 1, "a")
    put(sink, 1, "a")
    any_database.expire(key, 5)
    put(sink, 2, "a", gone=["b"])
    assert 90 < any_database.ttl(key) <= 100
    assert 86000 < any_database.ttl(entity_key(stream, 1, "b")) <= 86400
    assert set(any_database.hgetall(entity_key(stream, 1, "b"))) == {b"deleted", b"epoch", b"write"}
    with closing(RedisSink(RedisConfig(url=any_redis, ttl_s=0), stream)) as for_ever:
        put(for_ever, 3, "a", "b")
    assert any_database.ttl(key) == any_database.ttl(entity_key(stream, 1, "b")) == -1
    assert set(any_database.hgetall(key)) == {
        b"vector", b"release", b"time_us", b"count", b"since", b"epoch", b"write", b"group",
    }  # fmt: skip


def test_lost_scripts_are_loaded_again(sink: RedisSink, any_database: redis.Redis) -> None:
    for write in (1, 2):
        any_database.script_flush()
        assert put(sink, write, "a", "b", gone=["c"]) == WriteResult(3, 0)


def test_what_a_release_leaves(sink: RedisSink, any_database: redis.Redis, stream: str) -> None:
    sink.publish_release(3, 1, {"onnx": b"\0\xff\r\n", "sha256": "ab"}, '{"a": 1}', epoch=4)
    sink.publish_release(3, 1, {"onnx": b"\0\xff\r\n"}, '{"a": 1}', epoch=4)  # a retry
    found: Any = any_database.hgetall(encoder_key(stream, 3))
    assert found == {b"onnx": b"\0\xff\r\n", b"generation": b"1", b"manifest": b'{"a": 1}'}
    sink.set_current(Current(3, 1, 64), epoch=4)
    sink.set_current(Current(3, 1, 64), epoch=4)
    sink.set_current(Current(2, 1, 64), epoch=4, kind="rollback")
    entries: Any = any_database.xrange(releases_key(stream))
    told = [(e[b"release"], e[b"kind"], e[b"generation"]) for _, e in entries]
    assert told == [(b"3", b"release", b"1"), (b"2", b"rollback", b"1")]
    sink.drop_release(3, epoch=4)
    assert not any_database.exists(encoder_key(stream, 3))


def test_an_emptied_server_is_noticed(any_redis: str, stream: str) -> None:
    """FLUSHALL breaks no connection; the missing fence tells."""
    with closing(RedisSink(RedisConfig(url=any_redis), stream)) as sink:
        sink.raise_fence(0, 7)
        put(sink, 1, "a")
        with closing(redis.Redis.from_url(any_redis)) as client:
            client.delete(*client.keys(f"afresh:{stream}:*"))
        with pytest.raises(SinkDown, match="lost"):
            put(sink, 2, "b")
        with pytest.raises(SinkDown, match="replaced"):
            put(sink, 3, "b")
        sink.ping()
        assert sink.server_changed()
        assert sink.raise_fence(0, 7) == {}
        assert put(sink, 4, "a") == WriteResult(1, 0)


@pytest.mark.parametrize("idle", [True, False])
def test_a_restarted_server_is_noticed(tmp_path: Path, stream: str, idle: bool) -> None:
    """Also by a write that the client would have sent over a new connection unasked.

    The old data are back (append-only file), so that the fence alone would not tell."""
    with servers.redis_server(tmp_path, appendonly=True) as server:
        config = RedisConfig(url=f"redis://{server.address}", retry_first_s=1e-6)
        with closing(RedisSink(config, stream)) as sink:
            sink.raise_fence(0, 7)
            put(sink, 1, "a")
            server.stop()
            if not idle:
                with pytest.raises(SinkDown, match="no answer"):
                    put(sink, 2, "b")
            server.start()
            with pytest.raises(SinkDown, match="replaced"):
                put(sink, 2, "b")
            sink.ping()
            assert sink.server_changed()
            assert not sink.server_changed()
            assert sink.raise_fence(0, 7) == {"t": 1}
            assert sink.read(1, ["b"]) == [None]
            assert put(sink, 3, "b") == WriteResult(1, 0)


def test_the_breaker_waits_longer_each_time(tmp_path: Path, stream: str) -> None:
    clock = FakeClock()
    with servers.redis_server(tmp_path) as server:
        url = f"redis://{server.address}"
        config = RedisConfig(url=url, retry_first_s=1.0, retry_most_s=3.0)
        sink = RedisSink(config, stream, clock)
        sink.ping()
        server.stop()
        for pause in (1.0, 2.0, 3.0, 3.0):
            with pytest.raises(SinkDown, match="no answer"):
                sink.ping()
            clock.now += pause - 0.1
            with pytest.raises(SinkDown, match=r"tried again in 0\.1 s"):
                sink.ping()
            clock.now += 0.11
        server.start()
        sink.ping()
        sink.raise_fence(0, 1)  # it takes writes again
        server.stop()
        with pytest.raises(SinkDown, match="no answer"):
            sink.ping()
        server.start()
        clock.now += 1.01  # so it began with the first pause again
        sink.ping()
        sink.close()


def test_a_redis_that_answers_and_takes_no_write_is_left_alone_for_longer_each_time(
    tmp_path: Path, stream: str
) -> None:
    """Out of memory, or a replica: pings succeed, and must not start it all anew ten times a second."""
    clock = FakeClock()
    with servers.redis_server(tmp_path) as server:
        config = RedisConfig(url=f"redis://{server.address}", retry_first_s=1.0, retry_most_s=3.0)
        with (
            closing(redis.Redis.from_url(config.url)) as client,
            closing(RedisSink(config, stream, clock)) as sink,
        ):
            sink.raise_fence(0, 7)
            client.config_set("maxmemory", 1)
            for pause in (1.0, 2.0, 3.0):
                with pytest.raises(SinkDown, match="it answered"):
                    put(sink, 1, "a")
                with pytest.raises(SinkDown, match="tried again"):
                    sink.ping()
                clock.now += pause + 0.01
                sink.ping()
            client.config_set("maxmemory", 0)
            assert put(sink, 1, "a").written == 1


def test_a_stalled_server_times_out(tmp_path: Path, stream: str) -> None:
    """What it does when it wakes up is refused as old or was ours: nothing is applied twice."""
    with servers.redis_server(tmp_path) as server:
        clock = FakeClock()
        config = RedisConfig(url=f"redis://{server.address}", timeout_s=0.2)
        with closing(RedisSink(config, stream, clock)) as sink:
            sink.raise_fence(0, 7)
            put(sink, 1, "a")
            server.pause()
            try:
                with pytest.raises(SinkDown, match="no answer"):
                    put(sink, 2, "a")
            finally:
                server.resume()
            clock.now += 10
            assert put(sink, 2, "a") in (WriteResult(1, 0), WriteResult(0, 1))
            (found,) = sink.read(1, ["a"])
            assert found is not None
            assert found.write == 2


def test_a_full_server_is_down_until_there_is_room(tmp_path: Path, stream: str) -> None:
    settings = {"maxmemory": "1mb"}
    with servers.redis_server(tmp_path, settings=settings) as server:
        config = RedisConfig(url=f"redis://{server.address}", retry_first_s=1e-6)
        with closing(RedisSink(config, stream)) as sink:
            with pytest.raises(SinkDown, match="used memory"):
                sink.raise_fence(0, 7)
            with closing(redis.Redis.from_url(config.url)) as client:
                client.config_set("maxmemory", "100mb")
                sink.raise_fence(0, 7)
                assert put(sink, 1, "a") == WriteResult(1, 0)
                client.config_set("maxmemory-policy", "allkeys-lru")
            (warning,) = sink.check()
            assert "noeviction" in warning


def test_cluster_is_refused(tmp_path: Path, stream: str) -> None:
    with servers.redis_server(tmp_path, settings={"cluster-enabled": "yes"}) as server:
        with closing(RedisSink(RedisConfig(url=f"redis://{server.address}"), stream)) as sink:
            with pytest.raises(SettingsError, match="Cluster"):
                sink.check()


def test_passwords_come_from_outside_and_go_nowhere(
    tmp_path: Path, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2hunter2"
    file = tmp_path / "password"
    with servers.redis_server(tmp_path / "data") as server:
        url = f"redis://{server.address}"
        with closing(redis.Redis.from_url(url)) as client:
            client.acl_setuser(
                "writer", True, passwords=["+" + secret], keys=["*"], categories=["+@all"]
            )
            client.acl_setuser("default", enabled=False)
        file.write_text(secret + "\n")
        config = RedisConfig(url=url, username="writer", password_file=str(file))
        with closing(RedisSink(config, stream)) as sink:
            sink.raise_fence(0, 7)
            assert put(sink, 1, "a") == WriteResult(1, 0)
            assert secret not in repr(sink) + repr(config)
        monkeypatch.setenv("REDIS_SECRET", "wrong" + secret)
        config = RedisConfig(url=url, username="writer", password_env="REDIS_SECRET")
        with closing(RedisSink(config, stream)) as sink:
            with pytest.raises(SinkDown, match="password") as caught:
                sink.ping()
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "redis://user:hunter2@host/0"},
        {"url": "http://host"},
        {"url": "redis://"},
        {"url": "redis://host:port"},
        {"url": "redis://host/zero"},
        {"url": "redis://host/0?ssl_cert_reqs=none"},
        {"password_env": "A", "password_file": "b"},
        {"tls_cert_file": "a"},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"redis\.") as caught:
        RedisConfig(**wrong)  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


def test_a_password_that_is_not_there(tmp_path: Path) -> None:
    for config in (
        RedisConfig(password_env="AFRESH_NO_SUCH_NAME"),
        RedisConfig(password_file=str(tmp_path / "none")),
    ):
        with pytest.raises(SettingsError, match="password_"):
            RedisSink(config, "s")


def test_an_older_lease_is_told_who_fenced_it(sink: RedisSink, stream: str) -> None:
    with pytest.raises(Fenced, match=rf"{stream}:group:0 .* epoch 7, ours is 6"):
        sink.raise_fence(0, 6)
