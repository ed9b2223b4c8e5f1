"""A third party's vectors, from raw records and what is in Redis, are the daemon's."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.served import read_release
from actors.sink import Current, Value
from examples import encode_alone
from examples.encode_alone import TOLERANCE, compare
from schemas.published import encoder_key
from schemas.stream import Field, FieldType, StreamConfig
from tests.fakes import MemorySource, Record
from tests.services import ENCODER, adopt, make_release, make_shard, settle

FILE = Path(encode_alone.__file__)
STREAM = StreamConfig(
    entity="who",
    time="at",
    field=(
        Field("amount", FieldType.number),
        Field("shop", FieldType.category, path="place.shop"),
        Field("weight", FieldType.number, default=2.5),
        Field("paid", FieldType.flag),
        Field("due", FieldType.time),
        Field("kind", FieldType.category, default="none"),
    ),
)
START = 1_700_000_000


def value(rng: np.random.Generator, who: str | int, at: int) -> dict[str, Any]:
    """A record of every type, each field missing now and then, in one way or another."""
    record: dict[str, Any] = {"who": who, "at": at}
    optional = {
        "amount": float(rng.normal() * 10 ** rng.integers(0, 6)),
        "place": {
            "shop": [f"s{rng.integers(4)} é", int(rng.integers(9)), True, None][rng.integers(4)]
        },
        "weight": int(rng.integers(-5, 5)),
        "paid": bool(rng.integers(2)),
        "due": [at + 3600, f"2023-11-{rng.integers(1, 30):02d}T10:00:00.5+01:00"][rng.integers(2)],
        "kind": f"k{rng.integers(3)}",
    }
    for name, given in optional.items():
        how = rng.random()
        if how < 0.75:
            record[name] = given
        elif how < 0.9:
            record[name] = None
    return record


def times(rng: np.random.Generator, n: int) -> list[int]:
    """With ties, sessions, and a few records late, but never older than the ring."""
    gaps = rng.choice([0, 60, 5000, 90_000], n)
    at = START + np.cumsum(gaps)
    late = np.flatnonzero(rng.random(n) < 0.1)
    late = late[late > 2]
    at[late] = at[late - 2]
    return [int(t) for t in at]


@dataclass
class Served:
    stream: str
    client: redis.Redis
    url: str
    lines: list[str]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    make_release(folder, 1, stream=STREAM)
    return folder


@pytest.fixture
def served(
    tmp_path: Path, release: Path, database: redis.Redis, redis_server: str, stream: str
) -> Iterator[Served]:
    """Entities of 3, L/2, 17 and 10·L records, one of them deleted in between, in real Redis."""
    rng = np.random.default_rng(0)
    records: list[tuple[int, int, dict[str, Any]]] = []
    counts = {"few": 3, "anchored": ENCODER.window // 2, "7": 17, "many": 10 * ENCODER.window}
    for who, n in counts.items():
        name: str | int = int(who) if who.isdigit() else who
        records += [(t, i, value(rng, name, t)) for i, t in enumerate(times(rng, n))]
    order = sorted(range(len(records)), key=lambda i: records[i][1])
    texts = [msgspec.json.encode(records[i][2]).decode() for i in order]
    texts.insert(5, '{"who": "few", "at": 1e99}')  # a dead letter
    gone = [msgspec.json.encode(value(rng, "7", START - 10)).decode(), None]
    log = [*gone, *texts]
    source = MemorySource([Record(t.encode() if t else None, b"7") for t in log])
    (tmp_path / "releases").symlink_to(release)
    with closing(RedisSink(RedisConfig(url=redis_server), stream)) as sink:
        manifest, found = read_release(release / "1")
        text = msgspec.json.encode(manifest).decode()
        graphs: dict[str, Value] = {
            "onnx": found["encode"],
            "step_onnx": found["step"],
            "sha256": manifest.encode_sha256,
        }
        sink.publish_release(1, 1, graphs, text, epoch=1)
        sink.set_current(Current(1, 1, manifest.dim), epoch=1)
        shard = make_shard(tmp_path, source, sink, stream=STREAM)
        adopt(shard)
        settle(shard)
        yield Served(stream, database, redis_server, [t for t in log if t])


@pytest.mark.parametrize("entity", ["few", "anchored", "7", "many"])
def test_it_gets_the_daemons_vector(
    served: Served, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(served.client, served.stream, entity, served.lines) <= TOLERANCE
    printed = capsys.readouterr().out
    assert "encode: release 1" in printed
    assert "step: release 1" in printed


def test_another_record_gives_another_vector(served: Served) -> None:
    """The comparison can fail: a value that differs is seen."""
    lines = [line.replace('"paid":true', '"paid":false') for line in served.lines]
    assert compare(served.client, served.stream, "many", lines) > TOLERANCE


def test_a_stream_of_edges_is_refused_as_such(served: Served) -> None:
    served.client.hdel(encoder_key(served.stream, 1), "step_onnx")  # as of a graph's nodes
    with pytest.raises(SystemExit, match="is a graph"):
        compare(served.client, served.stream, "few", served.lines)


def test_a_harmed_graph_is_not_parsed(served: Served) -> None:
    key = encoder_key(served.stream, 1)
    graph = bytearray(served.client.hget(key, "onnx") or b"")  # type: ignore[arg-type]
    graph[100] ^= 1
    served.client.hset(key, "onnx", bytes(graph))
    with pytest.raises(SystemExit, match="encode_sha256"):
        compare(served.client, served.stream, "few", served.lines)


@pytest.mark.parametrize(
    ("entity", "keep", "why"),
    [
        ("nobody", None, "no vector in"),
        ("many", 20, "the vector knows 80"),
        ("few", -3, "no release yet"),
    ],
)
def test_it_says_what_is_missing(served: Served, entity: str, keep: int | None, why: str) -> None:
    stream = served.stream if keep != -3 else "elsewhere"
    with pytest.raises(SystemExit, match=why):
        compare(served.client, stream, entity, served.lines[:keep])


def test_it_runs_as_printed(served: Served, tmp_path: Path) -> None:
    """From a file and from stdin; the entity that was deleted began anew."""
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(served.lines))
    command = [sys.executable, str(FILE), "--redis", served.url, "--stream", served.stream]
    for more, text in (([str(file)], None), ([], file.read_text())):
        done = subprocess.run(
            [*command, "--entity", "7", *more],
            input=text, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        first, *rest = done.stdout.splitlines()
        assert first == "18 records were given; the vector knows the last 17."
        assert [line.split(":")[0] for line in rest] == ["encode", "step"]


def test_it_needs_four_packages_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"redis", "onnxruntime", "numpy", "xxhash"}
