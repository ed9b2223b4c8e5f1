"""Fenced compare-and-set writes against plain pipelined HSET of the same eight fields, d = 128.

In round trips of the same size, in turns, best of five. The plain side has neither fence nor
version nor lifetime: once by redis-py's pipeline, once without its cost per command (`bare`)."""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import hiredis
import numpy as np
import redis

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.sink import Value, Vectors
from daemon import servers

DIM, ENTITIES, BATCH = 128, 20_000, 1000
BAR = 0.8
FIELDS = (b"vector", b"release", b"time_us", b"count", b"since", b"epoch", b"write", b"group")


def measure(url: str | None = None, rounds: int = 5, batch: int = BATCH) -> dict[str, float]:
    """Writes per second of either, and their ratio. Without a URL on a server of its own."""
    if url is None:
        with tempfile.TemporaryDirectory() as folder:
            with servers.redis_server(Path(folder)) as server:
                return measure(f"redis://{server.address}", rounds, batch)
    rng = np.random.default_rng(0)
    everything = Vectors(
        [f"entity-{i}" for i in range(ENTITIES)],
        rng.standard_normal((ENTITIES, DIM), np.float32),
        *rng.integers(1, 1 << 50, (4, ENTITIES)),
    )
    parts = [_part(everything, i, i + batch) for i in range(0, ENTITIES, batch)]
    with closing(redis.Redis.from_url(url)) as client:
        with closing(RedisSink(RedisConfig(url=url), "bench-cas")) as sink:
            sink.raise_fence(0, 1)
            writes = iter(range(1, 1 << 30))

            def fenced(part: Vectors) -> None:
                result = sink.write(0, 1, next(writes), 1, {"topic": 1}, part, [])
                assert result.written == len(part)

            def plain(part: Vectors) -> None:
                _plain(client, part)

            def bare(part: Vectors) -> None:
                _bare(connection, part)

            connection = client.connection_pool.get_connection()
            ways = (fenced, plain, bare)
            turns = [[_time(way, parts) for way in ways] for _ in range(rounds + 1)]
            client.connection_pool.release(connection)
            cas_s, plain_s, bare_s = np.min(turns[1:], axis=0).tolist()  # the first one warms up
            for name in ("bench-cas", "bench-plain"):
                for keys in _keys(client, f"afresh:{name}:*"):
                    client.delete(*keys)
    return {
        "cas_per_s": ENTITIES / cas_s,
        "hset_per_s": ENTITIES / plain_s,
        "bare_hset_per_s": ENTITIES / bare_s,
        "ratio": plain_s / cas_s,
        "bare_ratio": bare_s / cas_s,
    }


def _part(v: Vectors, lo: int, hi: int) -> Vectors:
    release, time_us, count, since = (
        column[lo:hi] for column in (v.release, v.time_us, v.count, v.since)
    )
    return Vectors(v.entities[lo:hi], v.vector[lo:hi], release, time_us, count, since)


def _time(way: Callable[[Vectors], None], parts: list[Vectors]) -> float:
    began = time.perf_counter()
    for part in parts:
        way(part)
    return time.perf_counter() - began


def _commands(v: Vectors) -> list[tuple[Value, ...]]:
    """One HSET per entity."""
    blob, size = v.vector.tobytes(), 4 * v.vector.shape[1]
    vectors = [blob[i : i + size] for i in range(0, len(blob), size)]
    integers = (c.tolist() for c in (v.release, v.time_us, v.count, v.since))
    return [
        (
            "HSET", f"afresh:bench-plain:g1:{name}", FIELDS[0], vector, FIELDS[1], release,
            FIELDS[2], time_us, FIELDS[3], count, FIELDS[4], since,
            FIELDS[5], 1, FIELDS[6], 2, FIELDS[7], 0,
        )
        for name, vector, release, time_us, count, since in zip(
            v.entities, vectors, *integers, strict=True
        )
    ]  # fmt: skip


def _plain(client: redis.Redis, v: Vectors) -> None:
    pipe = client.pipeline(transaction=False)
    send: Any = pipe.execute_command
    for command in _commands(v):
        send(*command)
    pipe.execute()


def _bare(connection: Any, v: Vectors) -> None:
    """The same without redis-py's cost per command: what the server can take."""
    connection.send_packed_command([hiredis.pack_command(cast(Any, c)) for c in _commands(v)])
    for _ in range(len(v)):
        connection.read_response()


def _keys(client: redis.Redis, pattern: str) -> list[list[bytes]]:
    found = list(client.scan_iter(pattern, count=1000))
    return [found[i : i + 1000] for i in range(0, len(found), 1000)]


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:16} {value:12.2f}")
