"""The learner knows entities by their hashes; shards say who is meant."""

from pathlib import Path

import numpy as np
import pytest

from actors import offers
from actors.shard import Shard
from schemas.records import category_hash
from schemas.stats import Changes, Concept
from tests.actors.test_graph_shards import GROUPS, TOPICS, WIDE, open_owner
from tests.actors.test_graph_shards import settle as settle_all
from tests.actors.test_graph_shards import stream as edges
from tests.actors.test_images import RED, Lab, image
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource
from tests.graphs import Log
from tests.services import deletion, make_shard, record


def hashed(name: str) -> str:
    """As the learner writes it."""
    return f"{np.int64(category_hash(name)).view(np.uint64):016x}"


def all_read(shard: Shard) -> None:
    while shard.turn():
        pass


def test_who_was_offered_lately_is_known_until_it_is_deleted(tmp_path: Path) -> None:
    source = MemorySource([record(f"e{i}", i) for i in range(20)])
    shard = make_shard(tmp_path, source, MemoryServer(), learner=Log())
    shard.asked = [hashed("e3"), hashed("e17"), hashed("nobody")]
    all_read(shard)
    assert shard.offers.named(shard.asked) == {hashed("e3"): "e3", hashed("e17"): "e17"}
    source.put(deletion("e3"))
    all_read(shard)
    shard.drain()
    assert shard.stats().named == {hashed("e17"): "e17"}


def test_no_more_names_are_kept_than_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "KNOWN", 5)
    source = MemorySource([record(f"e{i}", i) for i in range(20)])
    shard = make_shard(tmp_path, source, MemoryServer(), learner=Log())
    all_read(shard)
    assert len(shard.offers.named(hashed(f"e{i}") for i in range(20))) == 5


def test_nodes_of_a_graph_and_whose_images_came_are_known_too(tmp_path: Path) -> None:
    logs, server = MemorySource(edges(60, 6, 1), TOPICS, GROUPS), MemoryServer()
    owners = [
        open_owner(tmp_path / "graph", logs, server, n, window=WIDE, learner=Log())
        for n in range(GROUPS)
    ]
    settle_all(owners, serving=False)
    names = {f"n{i}" for i in range(6)}
    found = [set(o.shard.offers.named(map(hashed, names)).values()) for o in owners]
    assert set.union(*found) == names and not set.intersection(*found), "each by its own group"
    lab = Lab(tmp_path / "images")
    lab.put(image("a", 10, RED))
    assert lab.shard.offers.named([hashed("a")]) == {hashed("a"): "a"}


def test_what_has_changed_is_told_with_names_where_they_are_known() -> None:
    a, b, c = map(hashed, "abc")
    found = Changes(entities=[a, b], concepts=[Concept(0.1, 0.2, [c, a])])
    assert found.who == sorted([a, b, c])
    named = found.named({a: "a", c: "c"})
    assert (named.entities, named.concepts[0].entities) == (["a", b], ["c", "a"])
