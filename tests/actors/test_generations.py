"""Another generation is filled beside the one that is served, and taken up when every entity is in it."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from actors.cut import columns, wide
from actors.encode import Release
from actors.refill import Refill
from actors.served import Served, numbers, served, set_served, usable_release
from actors.shard import Shard
from learning.config import GruConfig
from schemas.errors import ReleaseError, SettingsError
from schemas.stream import Field, FieldType
from tests.actors.test_shard import stream
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource, Record
from tests.services import (
    ENCODER,
    STREAM,
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

WIDE = GruConfig(dim=12, hidden=6, window=16, category_dim=4, bucket_bits=6)
OLD, NEW, NEWER = 1, 2, 3
PHASES = (Phase.explicit, Phase.generate)  # to make a failure small takes minutes


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the generation 1, two of the generation 2, wider and with a longer window."""
    folder = tmp_path_factory.mktemp("releases")
    for number in (NEWER, NEW):
        make_release(folder, number, WIDE, generation=2)
    make_release(folder, OLD)
    return folder


@pytest.fixture
def folder(tmp_path: Path, releases: Path) -> Path:
    return serving(tmp_path, releases)


def serving(folder: Path, releases: Path) -> Path:
    (folder / "releases").mkdir()
    for number in (OLD, NEW, NEWER):
        (folder / "releases" / str(number)).symlink_to(releases / str(number))
    name(folder, release=OLD, swap=1)
    return folder


def name(folder: Path, **changes: object) -> None:
    now = served(folder / "releases")
    set_served(folder / "releases", replace(now, **changes))  # type: ignore[arg-type]


def opened(folder: Path, source: MemorySource, server: MemoryServer, restarts: int = 0) -> Shard:
    """As `open_shard` does: with rings for both, and of what is served the rest."""
    now = WIDE if served(folder / "releases").release != OLD else ENCODER
    sizes = WIDE.window, now.kept, 256, 0, now.window
    return make_shard(folder, source, server, restarts, sizes=sizes)  # type: ignore[arg-type]


def fill(folder: Path, shard: Shard, release: int = NEW) -> None:
    name(folder, next=release, generation=2)
    shard.turn()
    while shard.releases.next is None:
        assert shard.releases._loading is not None
        shard.releases._loading.join()
        shard.turn()


def filled(shard: Shard, turns: int = 200) -> int:
    """The release of which every entity has a vector, as the groups say."""
    for _ in range(turns):
        shard.turn()
        shard._report(force=True)
        found = {g.filled for g in shard.stats().groups}
        if found != {0}:
            assert len(found) == 1
            return found.pop()
    raise AssertionError("it is never filled")


def switch(folder: Path, shard: Shard, release: int = NEW) -> None:
    """As the publisher does, once Redis names it."""
    now = served(folder / "releases")
    name(folder, release=release, swap=now.swap + 1, next=0, left_us={1: 5})
    for _ in range(50):
        shard.turn()
        if shard.releases.waits:  # for a snapshot under way
            shard.snapshots.finish()
        if shard.releases.current is not None and shard.releases.current.number == release:
            return
    raise AssertionError("it is never taken up")


def test_a_generation_is_filled_while_the_other_is_served(folder: Path) -> None:
    records = stream(60, 6, 0)
    source, server = MemorySource(records), MemoryServer()
    shard = opened(folder, source, server)
    adopt(shard)
    settle(shard)
    assert not published(server, 2)
    fill(folder, shard)
    assert filled(shard) == NEW
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))
    assert_same(
        published(server, 2), from_scratch(records, folder / "releases" / "2", encoder=WIDE)
    )
    more = stream(30, 8, 1)
    source.put(*more)  # fresh in both, whoever reads which
    settle(shard)
    assert filled(shard) == NEW, "newcomers are in it at once"
    records += more
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))
    assert_same(
        published(server, 2), from_scratch(records, folder / "releases" / "2", encoder=WIDE)
    )
    switch(folder, shard)
    last = stream(20, 8, 2)
    source.put(*last)
    before = published(server)
    settle(shard)
    assert_same(published(server), before), "the old one is kept as it was"
    assert_same(
        published(server, 2),
        from_scratch(records + last, folder / "releases" / "2", encoder=WIDE),
    )
    name(folder, release=NEWER, swap=3)
    adopt(shard)
    settle(shard)
    assert_same(
        published(server, 2),
        from_scratch(records + last, folder / "releases" / "3", encoder=WIDE),
    )


def test_what_stands_in_for_a_damaged_release_of_another_generation_is_not_removed(
    folder: Path,
) -> None:
    releases = folder / "releases"
    name(folder, release=NEW, swap=2, left_us={1: 5})
    (releases / str(NEW)).unlink()
    assert usable_release(releases) == OLD
    assert served(releases) == Served(OLD, 3), "generation 1 is left no more"


def test_rather_one_of_its_own_generation_stands_in(folder: Path) -> None:
    releases = folder / "releases"
    shutil.copytree(releases / str(OLD), releases / "4")
    (releases / "4" / "encode.onnx").write_bytes(b"")
    name(folder, release=4, swap=5)
    assert usable_release(releases) == OLD, "2 and 3 are newer, and of another one"


def test_copies_beside_releases_are_none(folder: Path) -> None:
    for copy in ("5.bak", "2 (copy)", "²", "refused"):
        (folder / "releases" / copy).mkdir()
    assert numbers(folder / "releases") == [NEWER, NEW, OLD]


def test_a_deletion_reaches_what_readers_follow_while_a_snapshot_holds_the_swap_up(
    folder: Path,
) -> None:
    source, server = MemorySource(stream(60, 6, 0)), MemoryServer()
    shard = opened(folder, source, server)
    adopt(shard)
    settle(shard)
    fill(folder, shard)
    assert filled(shard) == NEW and "e1" in published(server, 2)
    shard.snapshots.finish()
    shard.groups[0].begin_snapshot(lambda: None, [])
    name(folder, release=NEW, swap=2, next=0, left_us={1: 5})
    source.put(deletion("e1"))
    shard.turn()
    assert shard.releases.waits
    shard.snapshots.finish()
    settle(shard)
    assert not {"e1"} & (published(server, 1).keys() | published(server, 2).keys())


PRICED = msgspec.structs.replace(
    STREAM,
    field=(
        Field("price", FieldType.number),
        Field("what", FieldType.category),
        Field("place", FieldType.category),
        Field("amount", FieldType.number),
    ),
)
"""Other fields: `weight` is named no more, two are new."""


def priced(n: int, seed: int) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [
        record(f"e{rng.integers(6)}", 2_000_000 + 600 * i, float(rng.normal()), weight=1.5,
               price=float(rng.normal()), place=f"p{rng.integers(3)}")
        for i in range(n)
    ]  # fmt: skip


def test_other_fields_are_another_generation_of_the_same_state(
    tmp_path: Path, releases: Path
) -> None:
    """What came before lacks what is new, in the ring as in a record that does not name it."""
    folder = serving(tmp_path, releases)
    make_release(folder / "releases", 9, WIDE, PRICED, generation=2)
    set_served(folder / "releases", Served(OLD, 1))
    before, after = stream(40, 6, 0), priced(30, 1)
    source, server = MemorySource(list(before)), MemoryServer()
    shard = opened(folder, source, server)
    adopt(shard)
    settle(shard)
    shard.drain()
    both = wide(PRICED, folder / "releases")
    assert both.columns == ("price", "amount", "weight", "what", "place")
    sizes = WIDE.window, ENCODER.kept, 256, 0, ENCODER.window
    source.put(*after)
    shard = make_shard(folder, source, server, 1, sizes=sizes, stream=both)  # type: ignore[arg-type]
    assert set(shard.groups[0].lacking) == {"price", "place"}
    adopt(shard)
    settle(shard)
    fill(folder, shard, 9)
    with pytest.raises(AssertionError, match="never filled"):
        filled(shard, 20)
    shard.groups[0].lacking.clear()  # as if Kafka had nothing of it any more
    assert filled(shard) == 9
    records = before + after
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))
    anew = from_scratch(records, folder / "releases" / "9", PRICED, WIDE)
    assert_same(published(server, 2), anew)
    switch(folder, shard, 9)
    shard.drain()
    shard = make_shard(
        folder,
        source,
        server,
        2,
        sizes=(16, WIDE.kept, 256),
        stream=wide(PRICED, folder / "releases"),
    )
    assert shard.groups[0].fields == PRICED.columns, "nobody reads what was dropped any more"
    source.put(*(more := priced(10, 2)))
    adopt(shard)
    settle(shard)
    anew = from_scratch(records + more, folder / "releases" / "9", PRICED, WIDE)
    assert_same(published(server, 2), anew)
    with pytest.raises(ReleaseError, match="reads the field 'weight', which rows have no more"):
        Release.load(folder / "releases" / "1", there=columns(PRICED))


@pytest.mark.parametrize("killed_after", [None, 0, 1, 3])
def test_what_kafka_still_has_of_a_new_field_is_read_again(
    tmp_path: Path,
    releases: Path,
    killed_after: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the field had been named from the first record on: also of rows that have left the ring, of entities that
    were deleted and came back, of late ones, and where the process is killed in the middle of it."""
    monkeypatch.setattr("actors.refill.RECORDS", 7)
    folder = serving(tmp_path, releases)
    make_release(folder / "releases", 9, WIDE, PRICED, generation=2)
    set_served(folder / "releases", Served(OLD, 1))
    before = [*priced(30, 1), deletion("e3"), *priced(80, 2)[40:], *priced(90, 3)[60:]]
    source, server = MemorySource(list(before)), MemoryServer()
    shard = opened(folder, source, server)
    adopt(shard)
    settle(shard)
    shard.drain()
    both = wide(PRICED, folder / "releases")
    sizes = WIDE.window, ENCODER.kept, 256, 0, ENCODER.window
    after = priced(120, 4)[90:]
    source.put(*after)

    def again(restarts: int) -> Shard:
        shard = make_shard(folder, source, server, restarts, sizes=sizes, stream=both)  # type: ignore[arg-type]
        groups = list(shard.groups.values())
        if any(group.lacking for group in groups):
            shard.refill = Refill(MemorySource(before + after), shard.decoder, groups)
        return shard

    shard = again(1)
    if killed_after is not None:
        for _ in range(killed_after):
            shard.turn(5)
        shard.snapshots.finish()
        shard = again(2)
    adopt(shard)
    for _ in range(500):
        shard.turn()
        shard.snapshots.finish()
        if shard.refill is None:
            break
    assert not shard.groups[0].lacking
    settle(shard)
    fill(folder, shard, 9)
    assert filled(shard) == 9
    anew = from_scratch(before + after, folder / "releases" / "9", PRICED, WIDE)
    assert_same(published(server, 2), anew)
    shard.drain()
    assert not again(3).groups[0].lacking, "once is enough"


def test_a_field_of_another_kind_needs_another_name(folder: Path) -> None:
    other = (Field("what", FieldType.number), *STREAM.field[1:])
    with pytest.raises(SettingsError, match="'what' is a number, and of release 1 a category"):
        wide(msgspec.structs.replace(STREAM, field=other), folder / "releases")


def test_a_deleted_entity_is_gone_from_all_that_readers_may_look_into(folder: Path) -> None:
    source = MemorySource([record("a", 1), record("b", 2), record("c", 3)])
    server = MemoryServer()
    shard = opened(folder, source, server)
    adopt(shard)
    settle(shard)
    fill(folder, shard)
    filled(shard)
    source.put(deletion("a"))
    settle(shard)
    assert set(published(server)) == set(published(server, 2)) == {"b", "c"}
    switch(folder, shard)
    source.put(deletion("b"))
    settle(shard)
    assert set(published(server)) == set(published(server, 2)) == {"c"}, (
        "readers may not have looked at `current` yet"
    )


def test_what_is_given_up_costs_nothing_more(folder: Path) -> None:
    records = stream(30, 5, 0)
    source, server = MemorySource(records), MemoryServer()
    shard = opened(folder, source, server)
    adopt(shard)
    settle(shard)
    fill(folder, shard)
    name(folder, next=0)
    shard.turn()
    assert shard.groups[0].next is None and shard.groups[0].state.twin is None
    there = len(published(server, 2))
    source.put(record("new", 9_000_000))
    settle(shard)
    assert len(published(server, 2)) == there
    fill(folder, shard, NEWER)
    assert filled(shard) == NEWER, "and may be begun again, by another release"


@given(
    st.integers(0, 10_000),
    st.lists(st.sampled_from("......rfxd"), min_size=40, max_size=40),
)
@settings(
    max_examples=8,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_readers_find_every_entity_as_fresh_in_the_new_one(
    tmp_path_factory: pytest.TempPathFactory, releases: Path, seed: int, acts: list[str]
) -> None:
    """Whatever restarts (r), outages (x) and deletions (d) there are while it is filled (f)."""
    folder = serving(tmp_path_factory.mktemp("service"), releases)
    rng, records = np.random.default_rng(seed), stream(20, 6, seed)
    source, server = MemorySource(list(records)), MemoryServer()
    shard, restarts = opened(folder, source, server), 0
    adopt(shard)
    settle(shard)
    for at, act in enumerate(acts):
        new = stream(int(rng.integers(0, 6)), 6, seed + at)
        new += [deletion(f"e{rng.integers(6)}")] if act == "d" else []
        source.put(*new)
        records += new
        if act == "f" and not served(folder / "releases").next:
            fill(folder, shard)
        if act == "r":
            restarts += 1
            shard = opened(folder, source, server, restarts)
        server.down = act == "x"
        shard.turn(int(rng.integers(1, 20)))
        server.down = False
    if shard.releases.current is None:
        adopt(shard)
    settle(shard)
    fill(folder, shard)
    assert filled(shard) == NEW
    settle(shard)
    switch(folder, shard)
    settle(shard)
    wide = published(server, 2)
    assert set(wide) == set(published(server))
    state = shard.groups[0].state
    assert {n: c for n, (c, _) in wide.items()} == {
        n: int(state.count[slot]) for n, slot in state.index.items()
    }
