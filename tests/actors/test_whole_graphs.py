"""Streams of whole graphs through a shard: each graph's vector is of its live edges, after crashes too."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.decode import DecodeConfig, make_decoder
from actors.encode import Release
from actors.shard import Shard
from actors.state import State
from learning.config import GraphIsomorphismConfig
from schemas.records import category_hash
from schemas.stream import Field, FieldType, StreamConfig
from tests.fake_sink import MemoryServer
from tests.fakes import Crash, Crashed, MemorySource, Record
from tests.graphs import Log
from tests.services import assert_same, from_scratch, make_release, make_shard, published, settle

STREAM = StreamConfig(
    kind="graph",
    unit="graph",
    entity="case",
    source="src",
    neighbour="dst",
    time="at",
    op="op",
    edge_type="type",
    field=(Field("amount", FieldType.number),),
    time_unit="s",
)
ENCODER = GraphIsomorphismConfig(
    dim=8, hidden=8, window=8, category_dim=4, bucket_bits=6, directed=True
)


def edge(case: str, src: str, dst: str, at: int, **more: object) -> Record:
    value = {"case": case, "src": src, "dst": dst, "at": at, **more}
    return Record(msgspec.json.encode(value), case.encode(), time_ms=at * 1000)


def deletion(case: str) -> Record:
    return Record(None, case.encode())


def stream(n: int, cases: int, seed: int) -> list[Record]:
    """Edges of distinct times, many of them removed again, few nodes in each graph, some come late."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        case, src, dst = rng.integers(cases), rng.integers(4), rng.integers(4)
        more: dict[str, object] = {"amount": float(rng.normal())}
        if rng.random() < 0.3:
            more["op"] = "remove"
        if rng.random() < 0.5:
            more["type"] = f"t{rng.integers(2)}"
        out.append(edge(f"g{case}", f"n{src}", f"n{dst}", 1000 + i * 7, **more))
    order = np.argsort(np.arange(n) + rng.integers(0, 12, n), kind="stable")
    return [out[i] for i in order.tolist()]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    make_release(folder, 1, ENCODER, STREAM)
    return folder


def opened(folder: Path, source: MemorySource, server: MemoryServer, restarts: int = 0) -> Shard:
    return make_shard(folder, source, server, restarts, stream=STREAM, encoder=ENCODER)


def naive(records: list[Record], case: str) -> list[dict[str, Any]]:
    """The live ones of the newest L edges, by the definition."""
    mine = [msgspec.json.decode(r.value) for r in records if r.value]
    ring = sorted((e for e in mine if e["case"] == case), key=lambda e: e["at"])
    ring = ring[-ENCODER.window :]

    def key(e: dict[str, Any]) -> tuple[frozenset[str], object]:
        return frozenset((e["src"], e["dst"])), e.get("type")

    return [
        e
        for n, e in enumerate(ring)
        if "op" not in e
        and not any("op" in later and key(later) == key(e) for later in ring[n + 1 :])
    ]


def by_hand(release: Release, edges: list[dict[str, Any]]) -> np.ndarray:  # type: ignore[type-arg]
    """The released graph fed as the contract says."""
    n = max(len(edges), 1)
    feed: dict[str, Any] = {
        "time_us": np.zeros((1, n), np.int64),
        "numbers": np.full((1, n, 1), np.nan, np.float32),
        "categories": np.zeros((1, n, 3), np.int64),
        "missing": np.ones((1, n, 3), np.bool_),
        "length": np.array([len(edges)]),
    }
    for t, e in enumerate(edges):
        feed["time_us"][0, t], feed["numbers"][0, t] = e["at"] * 1_000_000, e["amount"]
        for column, name in enumerate(("src", "dst", "type")):
            if name in e:
                feed["categories"][0, t, column] = category_hash(e[name])
                feed["missing"][0, t, column] = False
    found: np.ndarray = release.encode_session.run(None, feed)[0][0]  # type: ignore[type-arg]
    return found


def test_each_graphs_vector_is_that_of_its_live_edges_whatever_crashes(
    tmp_path: Path, releases: Path
) -> None:
    (tmp_path / "releases").symlink_to(releases)
    records, server = stream(600, 12, 0), MemoryServer()
    crashing: list[Any] = list(records)
    for at in (500, 350, 100):
        crashing.insert(at, Crash())
    source = MemorySource(crashing)
    shard = opened(tmp_path, source, server)
    for restarts in range(1, 4):
        with pytest.raises(Crashed):
            settle(shard)
        shard = opened(tmp_path, source, server, restarts)
    settle(shard)
    found = published(server)
    assert_same(found, from_scratch(records, releases / "1", STREAM, ENCODER))
    release = Release.load(releases / "1")
    for case, (count, vector) in found.items():
        live = naive(records, case)
        assert count == sum(msgspec.json.decode(r.value or b"")["case"] == case for r in records)
        np.testing.assert_allclose(vector, by_hand(release, live), atol=1e-5)


def test_a_graph_without_live_edges_has_a_vector_and_a_deleted_one_has_none(
    tmp_path: Path, releases: Path
) -> None:
    (tmp_path / "releases").symlink_to(releases)
    source, server = MemorySource([]), MemoryServer()
    shard = opened(tmp_path, source, server)
    first = [edge("a", "x", "y", 10), edge("b", "x", "y", 11), edge("a", "y", "x", 12, op="remove")]
    for r in [*first, deletion("b")]:
        source.put(r)
    settle(shard)
    found = published(server)
    assert set(found) == {"a"} and found["a"][0] == 2
    release = Release.load(releases / "1")
    np.testing.assert_allclose(found["a"][1], by_hand(release, []), atol=1e-6)
    again = edge("b", "p", "q", 20, amount=2.0)
    source.put(again)
    settle(shard)
    count, vector = published(server)["b"]
    assert count == 1
    np.testing.assert_allclose(
        vector, by_hand(release, [msgspec.json.decode(again.value or b"")]), atol=1e-5
    )


def test_the_learner_is_offered_windows_of_live_edges(tmp_path: Path, releases: Path) -> None:
    (tmp_path / "releases").symlink_to(releases)
    records, log = stream(300, 6, 1), Log()
    shard = opened(tmp_path, MemorySource(records), MemoryServer())
    shard.offers.learner = log
    settle(shard)
    offered = {int(e) for windows in log.windows for e in windows.entity}
    assert offered == {category_hash(f"g{i}") for i in range(6)}
    last = log.windows[-1]
    for g, entity in enumerate(last.entity.tolist()):
        case = next(f"g{i}" for i in range(6) if category_hash(f"g{i}") == entity)
        found = last.rows.time_us[last.offsets[g] : last.offsets[g + 1]] // 1_000_000
        assert found.tolist() == [e["at"] for e in naive(records, case)]


@pytest.mark.parametrize("kind", ["whole graphs", "events"])
def test_a_stream_without_numbers_has_windows_too(kind: str) -> None:
    stream = StreamConfig(entity="case", time="at", field=(Field("src", FieldType.category),))
    if kind == "whole graphs":
        stream = StreamConfig(
            entity="case", time="at", kind="graph", unit="graph", source="src", neighbour="dst"
        )
    decoder = make_decoder(stream, DecodeConfig())
    values = [edge("a", "x", "y", 10**6 + i).value for i in range(3)]
    decoded, bad = decoder.decode(0, np.arange(3), np.arange(3), [None] * 3, values)
    assert not bad
    state = State(stream.shape, 8, 0, 4)
    state.apply(decoded)
    windows = state.windows(np.array([0]))
    assert windows.rows.numbers.shape == (3, 0)
    assert windows.rows.categories[:, 0].tolist() == [category_hash("x")] * 3
    assert windows.totals.tolist() == [[0.0, 1.0]]
