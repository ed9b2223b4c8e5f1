"""What the simulation of shards under faults has found, each as a test of its own."""

import json
from pathlib import Path

import pytest

from actors.folders import Folder, folders, write_folder
from actors.group import Group
from actors.shard_config import ShardConfig
from schemas.errors import SnapshotError
from tests import services
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource
from tests.services import adopt, deletion, make_shard, published, record, settle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    services.make_release(tmp_path / "releases", 1)
    return tmp_path


def test_a_changed_digit_in_a_manifest_is_noticed(tmp_path: Path) -> None:
    path = write_folder(tmp_path, "1-1", [], lambda: {"positions": [18]})
    assert Folder.open(path).meta == {"positions": [18]}
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["meta"]["positions"] = [58]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SnapshotError, match="SHA-256"):
        Folder.open(path)


def test_a_slab_whose_entities_are_all_deleted_is_restored(folder: Path) -> None:
    source, server = MemorySource([record("a", 1), deletion("a")]), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    shard.drain()
    again = make_shard(folder, source, server, restarts=1)
    assert not again.groups[0].state.index and again.groups[0].positions == [2]


def test_a_redis_filled_in_part_after_a_loss_is_filled_by_the_next_owner(folder: Path) -> None:
    """The one that noticed the loss died before it had written all: positions alone look as before."""
    names = [f"e{i}" for i in range(40)]
    source = MemorySource([record(name, i + 1) for i, name in enumerate(names)])
    server, once = MemoryServer(), ShardConfig(snapshot_every_s=3600)
    shard = make_shard(folder, source, server)
    settle(shard)
    shard.drain()
    server.lose()
    shard = make_shard(folder, source, server, restarts=1, config=once)
    adopt(shard)
    shard._chunk = 3
    while not server.entities:
        shard.turn()
    assert len(published(server)) < len(names)
    again = make_shard(folder, source, server, restarts=2)
    settle(again)
    assert sorted(published(server)) == sorted(names)


def test_a_snapshot_begun_before_the_first_answer_knows_what_redis_took(folder: Path) -> None:
    """Its slabs are copied later, and say paid; were its `acked` older, a loss would pass unnoticed."""
    source, server = MemorySource([record("a", 1)]), MemoryServer()
    shard = make_shard(folder, source, server, config=ShardConfig(snapshot_every_s=3600))
    group: Group = shard.groups[0]
    shard.turn()  # the first snapshot begins; nothing is written yet
    assert group.snapshot is not None and group.acked == []
    adopt(shard)
    snapshot, group.snapshot = group.snapshot, None
    settle(shard)
    group.snapshot = snapshot
    shard.snapshots._finish(group)
    assert Folder.open(folders(folder / "group-0")[0]).meta["acked"] == [1]


def test_a_quiet_group_that_has_caught_up_snapshots_again(folder: Path) -> None:
    source, server = MemorySource([record("a", 1)]), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    shard.drain()
    source.put(record("b", 2))
    again = make_shard(folder, source, server, restarts=1)
    settle(again)
    assert again.groups[0].state.marks is None


def test_a_loss_noticed_while_a_snapshot_is_under_way_does_not_hide_the_next_one(
    folder: Path,
) -> None:
    """What a snapshot says of Redis never falls: its later slabs say paid, under whatever filling."""
    source, server = MemorySource([record("a", 1)]), MemoryServer()
    shard = make_shard(folder, source, server, config=ShardConfig(snapshot_every_s=3600))
    group: Group = shard.groups[0]
    shard.turn()  # a snapshot begins; nothing is written yet
    snapshot, group.snapshot = group.snapshot, None
    adopt(shard)
    group.check_fence(shard.sink)  # nothing was acknowledged: no loss
    server.groups.clear()
    group.loss = group.held_loss = 7  # as after an earlier loss
    group.check_fence(shard.sink)
    settle(shard)
    assert sorted(published(server)) == ["a"]
    group.snapshot = snapshot
    shard.snapshots._finish(group)
    server.lose()
    again = make_shard(folder, source, server, restarts=1)
    settle(again)
    assert sorted(published(server)) == ["a"]
