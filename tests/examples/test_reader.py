"""The reader of examples/ against what the sink writes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import redis

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.sink import Current, Vectors
from examples import reader as example
from examples.reader import Reader

FILE = Path(example.__file__)


@pytest.fixture
def sink(any_database: redis.Redis, any_redis: str, stream: str) -> Iterator[RedisSink]:
    with closing(RedisSink(RedisConfig(url=any_redis), stream)) as made:
        made.raise_fence(0, 1)
        yield made


def put(sink: RedisSink, generation: int, write: int, **values: float) -> None:
    n = len(values)
    vector = np.repeat(np.array(list(values.values()), np.float32)[:, None], 3, axis=1)
    column = np.arange(n) + 10
    given = Vectors(list(values), vector, np.full(n, 4), column, column + 1, column + 2)
    sink.write(0, 1, write, generation, {}, given, [])


def test_it_reads_one_generation_at_a_time(
    sink: RedisSink, any_database: redis.Redis, stream: str
) -> None:
    now = 0.0
    reader = Reader(any_database, stream, poll_s=1.0, clock=lambda: now)
    put(sink, 1, 1, a=0.5, b=0.25)
    assert reader.read(["a"]) == [None]  # nothing is served yet
    sink.set_current(Current(4, 1, 3), epoch=1)
    assert reader.read(["a"]) == [None]
    now = 1.0
    a, nobody, b = reader.read(["a", "nobody", "b"])
    assert nobody is None
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.vector, [0.5] * 3)
    assert (a.generation, a.release, a.time_us, a.count, a.since_us) == (1, 4, 10, 11, 12)
    assert a.staleness_s(now_us=2_500_010) == 2.5
    put(sink, 2, 2, a=0.75)
    sink.set_current(Current(5, 2, 3), epoch=1)
    assert reader.read(["a"])[0] is not None
    now = 2.0
    (a,) = reader.read(["a"])
    assert a is not None
    assert (a.generation, a.vector[0]) == (2, 0.75)


def test_it_follows_releases(sink: RedisSink, any_database: redis.Redis, stream: str) -> None:
    sink.set_current(Current(4, 1, 3), epoch=1)
    changes = Reader(any_database, stream).follow(block_ms=10)
    assert next(changes).release == 4
    sink.set_current(Current(5, 1, 3), epoch=1)
    sink.set_current(Current(6, 1, 3), epoch=1)
    assert next(changes).release == 6
    sink.set_current(Current(4, 1, 3), epoch=1, kind="rollback")
    assert next(changes).release == 4


def test_it_says_what_does_not_fit(
    sink: RedisSink, any_database: redis.Redis, any_redis: str, stream: str
) -> None:
    put(sink, 1, 1, a=0.5)
    sink.set_current(Current(4, 1, 64), epoch=1)
    with pytest.raises(ValueError, match="dim is 64"):
        Reader(any_database, stream).read(["a"])
    with closing(redis.Redis.from_url(any_redis, decode_responses=True)) as client:
        with pytest.raises(ValueError, match="decode_responses"):
            Reader(client, stream)


def test_it_runs_as_printed(
    sink: RedisSink, any_database: redis.Redis, any_redis: str, stream: str
) -> None:
    put(sink, 1, 1, a=0.5)
    sink.set_current(Current(4, 1, 3), epoch=1)
    command = [sys.executable, str(FILE), "--redis", any_redis, "--stream", stream, "a", "nobody"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    first, second = done.stdout.splitlines()
    assert first.startswith("a: [+0.500, +0.500, +0.500, …] release 4, 11 records, ")
    assert second == "nobody: not there"


def test_it_needs_redis_and_numpy_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"redis", "numpy"}
