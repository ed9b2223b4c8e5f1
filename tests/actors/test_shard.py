"""The path record -> Redis keeps its promises, whatever the micro-batches, swaps, restarts and outages."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.partitioner import partition_of
from actors.served import set_current
from actors.shard import Shard
from actors.shard_config import ShardConfig
from schemas.errors import Fenced
from schemas.stats import LETTERS
from tests.fake_sink import MemoryServer
from tests.fakes import Crash, Crashed, Gap, MemorySource, Record
from tests.services import (
    adopt,
    assert_same,
    deletion,
    from_scratch,
    make_release,
    make_shard,
    published,
    record,
    settle,
)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1 and 2, written once."""
    folder = tmp_path_factory.mktemp("releases")
    for number in (2, 1):
        make_release(folder, number)
    return folder


@pytest.fixture
def folder(tmp_path: Path, releases: Path) -> Path:
    return copied(tmp_path, releases)


def copied(tmp_path: Path, releases: Path) -> Path:
    (tmp_path / "releases").mkdir()
    for number in ("1", "2"):
        (tmp_path / "releases" / number).symlink_to(releases / number)
    name(tmp_path, 1)
    return tmp_path


def name(folder: Path, release: int) -> None:
    set_current(folder / "releases", release)


def stream(n: int, entities: int, seed: int, late: float = 0.1) -> list[Record]:
    """Records in time order but for a few, some with values missing."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        at = 1_000_000 + i * 500 - (rng.integers(1, 3_000) if rng.random() < late else 0)
        amount = float("nan") if rng.random() < 0.1 else float(rng.normal() * 100)
        value = {"who": f"e{rng.integers(entities)}", "at": int(at), "what": f"c{rng.integers(5)}"}
        if amount == amount:
            value["amount"] = amount
        out.append(Record(msgspec.json.encode(value), str(value["who"]).encode(), time_ms=int(at)))
    return out


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
    st.lists(st.sampled_from("......sr"), min_size=60, max_size=60),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_served_vector_is_the_anchor_rules(
    tmp_path_factory: pytest.TempPathFactory,
    releases: Path,
    seed: int,
    sizes: list[int],
    acts: list[str],
) -> None:
    """Whatever the micro-batches, releases swapped and restarts in between."""
    folder = copied(tmp_path_factory.mktemp("service"), releases)
    records = stream(90, 6, seed)
    source, server = MemorySource(records), MemoryServer()
    shard, restarts, current = make_shard(folder, source, server), 0, 1
    adopt(shard)
    for i, act in enumerate(acts):
        shard.turn(sizes[i % len(sizes)])
        if act == "s":
            current = 3 - current
            name(folder, current)
            if shard.releases.current:
                adopt(shard)
        if act == "r":
            restarts += 1
            shard = make_shard(folder, source, server, restarts)
    settle(shard)
    assert_same(published(server), from_scratch(records, folder / "releases" / str(serving(shard))))


def serving(shard: Shard) -> int:
    assert shard.releases.current is not None
    return shard.releases.current.number


@pytest.mark.parametrize("seed", range(5))
def test_crashes_lose_and_repeat_nothing(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = stream(400, 20, seed)
    items: list[Record | Crash] = list(records)
    for at in sorted(rng.choice(len(items), 10, replace=False), reverse=True):
        items.insert(int(at), Crash())
    source, server = MemorySource(items), MemoryServer()
    seen: dict[str, int] = {}
    crashes = 0
    shard = make_shard(folder, source, server)
    while True:
        try:
            for _ in range(1000):
                read = shard.turn(int(rng.integers(1, 30)))
                never_back(server, seen)
                if not read and not source.lag(0):
                    break
            break
        except Crashed:
            crashes += 1
            shard = make_shard(folder, source, server, restarts=crashes)
    settle(shard)
    assert crashes == 10
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))


def never_back(server: MemoryServer, seen: dict[str, int]) -> None:
    for name, (count, _) in published(server).items():
        assert count >= seen.get(name, 0), f"{name} fell from {seen[name]} to {count}"
        seen[name] = count


def test_a_crash_between_positions_and_vectors_is_made_good(folder: Path) -> None:
    """Redis has the positions, and only some of the vectors that reflect them."""
    records = stream(60, 20, 0)
    source, server = MemorySource(records), MemoryServer()
    shard = make_shard(folder, source, server, config=ShardConfig(snapshot_every_s=3600))
    adopt(shard)
    for _ in range(3):
        shard.turn(10)
    server.fail_after = 2
    shard.turn(20)
    server.down = False
    again = make_shard(folder, source, server, restarts=1)
    settle(again)
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))


def test_a_replaying_group_writes_nothing_until_it_has_passed_what_readers_saw(
    folder: Path,
) -> None:
    records = stream(100, 5, 1)
    source, server = MemorySource(records), MemoryServer()
    settle(make_shard(folder, source, server, config=ShardConfig(snapshot_every_s=3600)))
    before = dict(server.entities)
    again = make_shard(folder, source, server, restarts=1)
    adopt(again)
    while again.groups[0].positions[0] < 90:
        again.turn(10)
        assert server.entities == before
    settle(again)
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))


def test_the_zombie_is_fenced(folder: Path) -> None:
    source, server = MemorySource(stream(50, 5, 1)), MemoryServer()
    old = make_shard(folder, source, server)
    adopt(old)
    old.turn(10)
    old.turn(10)
    successor = make_shard(folder, MemorySource(stream(50, 5, 1)), server, restarts=1)
    successor.turn(10)
    with pytest.raises(Fenced):
        settle(old)  # Redis answers a write while the next one is made ready


def test_before_the_first_release_state_fills_and_nothing_is_written(
    tmp_path: Path, releases: Path
) -> None:
    records = stream(80, 8, 2)
    source, server = MemorySource(records), MemoryServer()
    shard = make_shard(tmp_path, source, server)
    while shard.turn():
        pass
    assert not server.entities and shard.groups[0].phase == "waiting"
    copied(tmp_path, releases)
    settle(shard)
    assert_same(published(server), from_scratch(records, tmp_path / "releases" / "1"))


def test_an_outage_pauses_the_source_and_is_made_good(folder: Path) -> None:
    records = stream(300, 8, 3)
    source, server = MemorySource(records), MemoryServer()
    shard = make_shard(folder, source, server)
    adopt(shard)
    shard.turn(30)
    shard.turn(30)
    with server.outage():
        for _ in range(20):
            shard.turn(30)
        assert source.lag(0) > 0, "the source is read on although nothing can be written"
    settle(shard)
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))


def test_a_redis_that_lost_its_data_is_filled_again(folder: Path) -> None:
    records = stream(90, 8, 4)
    source, server = MemorySource(records), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    server.lose()
    more = [record(f"e{i}", 2_000_000 + i) for i in range(3)]
    source.put(*more)
    settle(shard)
    assert_same(published(server), from_scratch([*records, *more], folder / "releases" / "1"))


def test_a_deleted_entity_is_gone_everywhere_and_may_come_back(folder: Path) -> None:
    source, server = MemorySource([record("a", 1), record("b", 2), deletion("a")]), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    assert set(published(server)) == {"b"}
    source.put(record("a", 9))
    settle(shard)
    assert published(server)["a"][0] == 1


def test_a_deletion_during_an_outage_and_a_restart_is_carried_out(folder: Path) -> None:
    source, server = MemorySource([record("a", 1), record("b", 2)]), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    source.put(deletion("a"))
    with server.outage():
        for _ in range(3):
            shard.turn()
        shard.drain()
        source.start(0, shard.groups[0].positions)
    again = make_shard(folder, source, server, restarts=1)
    settle(again)
    assert set(published(server)) == {"b"}


def test_an_outage_while_a_partition_waits_for_another_changes_nothing(folder: Path) -> None:
    """`source.max_skew_s`: who waits stays paused when Redis is back, and nobody is given up for the outage."""
    slow = [record("a", 10_000 + 60 * i) for i in range(600)]
    fast = [record("b", 10_000 + 3600 * i)._replace(group=1) for i in range(60)]
    source, server, now = MemorySource([*slow, *fast], groups=2), MemoryServer(), [0.0]
    shard = make_shard(folder, source, server, max_skew_us=3_600_000_000, clock=lambda: now[0])
    adopt(shard)
    while not shard.skew.waits((1, 0)):
        shard.turn(20)

    def newest() -> list[int]:
        return [int(g.state.last_us.max()) for g in shard.groups.values()]

    with server.outage():
        for _ in range(5):
            shard.turn(20)
            now[0] += 10.0
        assert source._paused == {(0, 0), (1, 0)}
        before = newest()
        shard.turn(20)
        assert newest() == before
    shard.turn(20)
    assert source._paused == {(1, 0)}
    assert newest()[1] - newest()[0] <= 3_600_000_000
    settle(shard)
    assert {name: count for name, (count, _) in published(server).items()} == {"a": 600, "b": 60}


def test_bad_records_are_dead_letters_and_stop_nothing(folder: Path) -> None:
    bad = [Record(b"{", b"k"), Record(b'{"at": 1}', b"k"), Record(b"\xff\xfe", None)]
    source, server = MemorySource([*bad, record("a", 5), Gap(3), *bad]), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    letters = shard.dead_letters.letters  # type: ignore[attr-defined]
    assert [letter.batch.offsets[letter.at] for letter in letters] == [0, 1, 2, 7, 8, 9]
    assert published(server)["a"][0] == 1
    assert sum(shard._stats.dead_letters.values()) == 6
    assert [letter.offset for letter in shard._stats.letters] == [0, 1, 2, 7, 8, 9]
    assert (shard._stats.letters[0].error, shard._stats.letters[0].topic) == ("not_json", "memory")


def test_of_many_bad_records_the_newest_are_shown(folder: Path) -> None:
    source = MemorySource([Record(b"{", b"k")] * 40)
    shard = make_shard(folder, source, MemoryServer())
    settle(shard)
    assert [letter.offset for letter in shard._stats.letters] == list(range(40 - LETTERS, 40))


def test_dead_letters_are_durable_before_a_snapshot_passes_them(folder: Path) -> None:
    source, server = MemorySource([Record(b"{", b"k"), record("a", 5)]), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    shard.drain()
    assert shard.dead_letters.durable == 1  # type: ignore[attr-defined]
    assert source.committed[0] == [2]


def test_the_same_records_delivered_again_change_nothing(folder: Path) -> None:
    records = stream(60, 5, 6)
    source, server = MemorySource(records), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    before = published(server)
    source.start(0, [10])
    settle(shard)
    assert_same(published(server), before)


def test_an_evicted_entity_keeps_its_vector_and_starts_anew(folder: Path) -> None:
    first = [record(f"e{i}", i + 1) for i in range(70)]
    source, server = MemorySource(first), MemoryServer()
    shard = make_shard(folder, source, server, slots=64)
    adopt(shard)
    for _ in range(8):
        shard.turn(10)
    settle(shard)
    assert len(published(server)) == 70, "what was evicted is still readable"
    gone = next(n for n in published(server) if n not in shard.groups[0].state.index)
    source.put(record(gone, 1000))
    settle(shard)
    stored = server.entities[1, gone]
    assert not isinstance(stored, tuple) and (stored.count, stored.since) == (1, 1_000_000_000)


def test_a_harmed_release_is_not_adopted(folder: Path) -> None:
    source, server = MemorySource(stream(30, 5, 7)), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    copy = folder / "releases" / "9"
    copy.mkdir()
    for file in (folder / "releases" / "2").iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".onnx":
            data[100] ^= 1
        (copy / file.name).write_bytes(data)
    name(folder, 9)
    adopt(shard)
    settle(shard)
    assert serving(shard) == 1


def test_several_groups_and_topics_keep_positions_of_their_own(folder: Path) -> None:
    records = stream(200, 12, 8, late=0.0)
    # an entity's records in one topic: else, one topic being ahead, some are too old for the ring, and
    # whether such a record opened a session depends on what came before it (docs/decisions/0005)
    who = [int(r.key[1:]) for r in records if r.key]
    items = [r._replace(group=w % 3, topic=w // 3 % 2) for w, r in zip(who, records, strict=True)]
    source, server = MemorySource(items, ("one", "two"), 3), MemoryServer()
    shard = make_shard(folder, source, server)
    for _ in range(5):
        shard.turn(20)
    again = make_shard(folder, source, server, restarts=1)
    settle(again)
    found, wanted = published(server), from_scratch(records, folder / "releases" / "1")
    assert {n: c for n, (c, _) in found.items()} == {n: c for n, (c, _) in wanted.items()}
    assert_same(found, wanted)


def test_a_record_in_another_entitys_partition_is_a_dead_letter_and_says_why(folder: Path) -> None:
    home = partition_of(b"a", 3)
    wrong = (home + 1) % 3
    items = [record("a", 1)._replace(group=home), record("a", 2)._replace(group=wrong)]
    source, server = MemorySource(items, groups=3), MemoryServer()
    shard = make_shard(folder, source, server)
    for group in shard.groups.values():
        group.partitions = 3
    settle(shard)
    (letter,) = shard.dead_letters.letters  # type: ignore[attr-defined]
    assert (letter.batch.group, letter.error) == (wrong, "misplaced")
    assert f"belongs to partition {home}" in letter.reason and "check_partition" in letter.reason
    (shown,) = shard._stats.letters
    assert shown.reason.startswith(f"the entity … belongs to partition {home}"), "names nobody"
    assert published(server)["a"][0] == 1


def test_a_redis_emptied_while_nobody_ran_is_filled_again(folder: Path) -> None:
    records = stream(60, 6, 9)
    source, server = MemorySource(records), MemoryServer()
    shard = make_shard(folder, source, server)
    settle(shard)
    shard.drain()
    server.lose()
    again = make_shard(folder, source, server, restarts=1)
    settle(again)
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))
