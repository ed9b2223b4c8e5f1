"""Writes are answered while the next records are taken; one that fails on the way is made good."""

from pathlib import Path

import pytest

from actors.shard import Shard
from actors.shard_config import ShardConfig
from schemas.errors import Fenced
from tests import services
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource
from tests.services import adopt, deletion, make_shard, published, record, settle


def serving(folder: Path, source: MemorySource, server: MemoryServer) -> Shard:
    services.make_release(folder / "releases", 1)
    shard = make_shard(folder, source, server, config=ShardConfig(snapshot_every_s=3600))
    adopt(shard)
    settle(shard)
    while shard.groups[0].snapshot is not None:  # the first one; it waits for what is under way
        shard.turn()
    return shard


def counts(server: MemoryServer) -> dict[str, int]:
    return {name: count for name, (count, _) in published(server).items()}


def test_a_full_batch_leaves_its_write_under_way_and_a_last_one_does_not(tmp_path: Path) -> None:
    source, server = MemorySource([record("a", 1)]), MemoryServer()
    shard = serving(tmp_path, source, server)
    before = shard._stats.written
    source.put(record("a", 2), record("b", 3))
    shard.turn(1)
    assert shard._posted is not None and shard._stats.written == before
    shard.turn(2)
    assert shard._posted is None and shard._stats.written == before + 2
    assert counts(server) == {"a": 2, "b": 1}


def test_what_fails_under_way_is_written_later(tmp_path: Path) -> None:
    source, server = MemorySource([record("a", 1), record("b", 2)]), MemoryServer()
    shard = serving(tmp_path, source, server)
    source.put(record("a", 3), deletion("b"), record("c", 4))
    server.fail_after = 0
    for _ in range(4):
        shard.turn(1)
    assert not shard._sink_up
    state = shard.groups[0].state
    assert state.owed[state.index["a"]]
    server.down = False
    settle(shard)
    assert counts(server) == {"a": 2, "c": 1}


def test_a_snapshot_never_says_paid_of_what_is_under_way(tmp_path: Path) -> None:
    source, server = MemorySource([record("a", 1)]), MemoryServer()
    shard = serving(tmp_path, source, server)
    source.put(record("a", 2))
    server.fail_after = 0
    shard.turn(1)
    assert shard._posted is not None
    shard.drain()
    server.down = False
    again = make_shard(tmp_path, source, server, restarts=1)
    assert again.groups[0].state.owed[again.groups[0].state.index["a"]]
    adopt(again)
    settle(again)
    assert counts(server) == {"a": 2}


def test_a_successor_is_noticed_with_the_answer(tmp_path: Path) -> None:
    source, server = MemorySource([record("a", 1)]), MemoryServer()
    shard = serving(tmp_path, source, server)
    server.groups[0].epoch += 1
    source.put(record("a", 2))
    shard.turn(1)
    with pytest.raises(Fenced):
        shard.turn(1)
