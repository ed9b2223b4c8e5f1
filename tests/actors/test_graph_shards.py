"""Four groups of a graph tell each other of their edges; each edge counts once on each side, whatever happens."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.edges import Edges
from actors.mirror import Mark, Origin, Reader
from actors.ports import Batch
from actors.served import set_current
from learning.node_table import NodeTable
from schemas.errors import Fenced, SnapshotError
from schemas.records import Bool, category_hash
from schemas.stream import DIRECTION, NEIGHBOUR, Shape
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource, Record
from tests.graphs import (
    ENCODER,
    GROUPS,
    STREAM,
    TOPICS,
    Log,
    Owner,
    assert_known,
    assert_node,
    deletion,
    edge,
    from_scratch,
    node,
    open_owner,
    settle,
    stream,
    whole,
)
from tests.services import assert_same, make_release, published

WIDE = 64  # rows of a ring: none overflows here, so that totals do not depend on the order


def owners_of(folder: Path, logs: MemorySource, server: MemoryServer, **more: int) -> list[Owner]:
    return [open_owner(folder, logs, server, n, **more) for n in range(GROUPS)]


def assert_all(owners: list[Owner], records: list[Record], window: int = WIDE) -> None:
    wanted = whole(records, window)
    homes = {name: o.group.state for o in owners for name in o.group.state.index}
    assert set(homes) == set(wanted.index)
    for owner in owners:
        assert_known(owner.group.state, wanted)
    for name, state in homes.items():
        assert_node(state, wanted, name)


def simulate(folder: Path, seed: int) -> None:
    """Kills at random points, some of whose owners live on for a while; sends that come late or twice."""
    rng = np.random.default_rng(seed)
    records = stream(300, 12, seed, late=30)
    logs, server = MemorySource((), TOPICS, GROUPS), MemoryServer()
    owners, restarts = owners_of(folder, logs, server, window=WIDE), [0] * GROUPS
    zombies: list[tuple[Owner, int]] = []
    left = list(records)
    while left or rng.random() < 0.9:
        n = int(rng.integers(0, 8))
        logs.put(*left[:n])
        left = left[n:]
        at = int(rng.integers(GROUPS))
        owner = owners[at]
        owner.mirror.down = bool(rng.random() < 0.3)
        owner.shard.turn(int(rng.integers(1, 20)))
        if rng.random() < 0.5:
            owner.mirror.deliver(int(rng.integers(1, 6)))
        if (
            rng.random() < 0.2
        ):  # a producer that was not told begins again with what it was not told of
            owner.mirror.at = max(0, owner.mirror.at - int(rng.integers(1, 4)))
        if rng.random() < 0.08:
            zombies.append((owner, int(rng.integers(0, 20))))
            restarts[at] += 1
            owners[at] = open_owner(folder, logs, server, at, restarts[at], WIDE)
        for i, (zombie, life) in enumerate(list(zombies)):
            if life and rng.random() < 0.3:
                zombies[i] = zombie, life - 1
                try:
                    zombie.shard.turn(int(rng.integers(1, 20)))
                except (Fenced, SnapshotError):
                    zombies[i] = zombie, 0
                zombie.mirror.deliver(int(rng.integers(0, 6)))
    for owner in owners:
        owner.mirror.down = False
    settle(owners, serving=False)
    assert_all(owners, records)
    for owner in owners:  # and once more from what is on disk
        for zombie, _ in zombies:
            zombie.mirror.deliver(3)
        owner.shard.drain()
    again = owners_of(folder, logs, server, restarts=999, window=WIDE)
    settle(again, serving=False)
    assert_all(again, records)


@pytest.mark.parametrize("seed", range(12))
def test_every_edge_counts_once_on_each_side(tmp_path: Path, seed: int) -> None:
    simulate(tmp_path, seed)


@pytest.mark.parametrize("bug", ["no marks", "marks too new", "not flushed", "zombies dropped"])
def test_the_simulation_finds_planted_bugs(
    tmp_path: Path, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.group import Group
    from tests.graphs import MemoryMirror

    if bug == "no marks":
        monkeypatch.setattr(Reader, "_beyond", lambda _, o: np.ones(len(o.offset), np.bool_))
    elif bug == "not flushed":
        monkeypatch.setattr(MemoryMirror, "flush", lambda _: None)
    elif bug == "marks too new":
        begin = Group.begin_snapshot

        def later(self: Group, *args: object) -> None:
            begin(self, *args)  # type: ignore[arg-type]
            assert self.snapshot is not None
            self.snapshot._meta["mirrored"] = _Live(self)

        monkeypatch.setattr(Group, "begin_snapshot", later)
    else:
        beyond = Reader._beyond
        newest: dict[tuple[int, int, int], int] = {}

        def dropped(self: Reader, o: Origin) -> Bool:
            key = id(self), o.group, o.topic
            newest[key] = max(o.epoch, newest.get(key, 0))
            if o.epoch < newest[key]:
                return np.zeros(len(o.offset), np.bool_)
            return beyond(self, o)

        monkeypatch.setattr(Reader, "_beyond", dropped)
    with pytest.raises((AssertionError, KeyError)):  # noqa: PT012
        for seed in range(30):
            (tmp_path / str(seed)).mkdir()
            simulate(tmp_path / str(seed), seed)


class _Live(list):  # type: ignore[type-arg]
    """Marks as they are when the manifest is written, not when the snapshot began."""

    def __init__(self, group: object) -> None:
        super().__init__([0])
        self._group = group

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([[*k, *m] for k, m in self._group.mirrored.items()])  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    make_release(folder, 1, ENCODER, STREAM)
    return folder


@pytest.fixture
def folder(tmp_path: Path, release: Path) -> Path:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "1").symlink_to(release / "1")
    set_current(tmp_path / "releases", 1)
    return tmp_path


def test_vectors_are_those_of_all_edges_at_once(folder: Path) -> None:
    """Restarts in the middle, an outage of Redis."""
    records = stream(300, 60, 5)
    assert whole(records, WIDE).count.max() <= ENCODER.window  # rings that overflow: decisions/0005
    logs, server = MemorySource(records[:100], TOPICS, GROUPS), MemoryServer()
    owners = owners_of(folder, logs, server)
    settle(owners)
    logs.put(*records[100:200])
    for owner in owners:
        owner.shard.turn(10)
        owner.mirror.deliver(1)
    owners = owners_of(folder, logs, server, restarts=1)
    with server.outage():
        for owner in owners:
            owner.shard.turn(10)
            owner.shard.turn(10)
    logs.put(*records[200:])
    settle(owners)
    assert_same(published(server), from_scratch(records, folder / "releases" / "1"))


def test_edges_taken_before_redis_went_down_reach_the_other_group(folder: Path) -> None:
    logs, server = MemorySource([], TOPICS, GROUPS), MemoryServer()
    owners = owners_of(folder, logs, server)
    settle(owners)
    a, b = two_homes()
    logs.put(edge(a, b, 5))
    home = next(o for o in owners if o.group.number == logs_home(a))
    with server.outage():
        home.shard.turn()
        home.shard.turn()
        assert len(home.mirror.sent) == 1
    settle(owners)
    assert published(server)[b][0] == 1


def two_homes() -> tuple[str, str]:
    """Nodes of two groups."""
    names = [f"n{i}" for i in range(20)]
    return names[0], next(n for n in names if logs_home(n) != logs_home(names[0]))


def logs_home(name: str) -> int:
    return edge(name, "x", 1).group


def test_what_is_said_of_a_node_reaches_its_neighbours_vectors_in_all_groups(folder: Path) -> None:
    records = stream(150, 12, 3)
    logs, server = MemorySource(records, TOPICS, GROUPS), MemoryServer()
    owners = owners_of(folder, logs, server)
    settle(owners)
    before = published(server)
    more = [node("n3", 10**6, of="o9", score=4.0), node("lonely", 10**6, score=1.0)]
    logs.put(*more)
    settle(owners)
    found = published(server)
    assert_same(found, from_scratch([*records, *more], folder / "releases" / "1"))
    moved = {n for n in before if np.abs(before[n][1] - found[n][1]).max() > 1e-4}
    counted = {n for n in before if before[n][0] != found[n][0]}
    assert counted == {"n3"} and len(moved) > 4 and "lonely" in found


def test_the_learner_is_told_of_nodes_and_a_new_one_of_all_of_them(tmp_path: Path) -> None:
    records = stream(150, 12, 3)
    logs, server = MemorySource(records, TOPICS, GROUPS), MemoryServer()
    heard = [Log() for _ in range(GROUPS)]
    owners = [
        open_owner(tmp_path, logs, server, n, window=WIDE, learner=heard[n]) for n in range(GROUPS)
    ]
    settle(owners, serving=False)
    wanted = whole(records, WIDE).nodes
    assert wanted is not None
    for again in range(2):
        table = NodeTable(STREAM.shape, 64)
        for log in heard:
            for told in log.told:
                table.put(told.node, told.features, told.time_us, told.position)
            log.told.clear()
            log.processes += 1
        assert set(table.index) == set(wanted.index), again
        ids = np.array(sorted(wanted.index))
        np.testing.assert_array_equal(table.get(ids).numbers, wanted.get(ids).numbers)
        logs.put(deletion("n3", 10**6))
        settle(owners, serving=False)
        wanted.forget(np.array([category_hash("n3")]))


def test_where_nobody_learns_what_is_said_of_nodes_is_kept_for_nobody(tmp_path: Path) -> None:
    records = [node(f"n{i}", 1000 + i, of="o", score=1.0) for i in range(50)]
    logs, server = MemorySource(records, TOPICS, GROUPS), MemoryServer()
    owner = open_owner(tmp_path, logs, server, 0)
    settle([owner], serving=False)
    assert owner.group.state.nodes is not None and len(owner.group.state.nodes)
    assert not owner.group.news.unheard


@pytest.mark.parametrize("first", [0, 1])
def test_both_ends_agree_on_what_happened_at_the_same_time(tmp_path: Path, first: int) -> None:
    """An edge, and its removal by the other node, of one event time: the order is that of their records."""
    a, b = two_homes()
    records = [edge(a, b, 1000), edge(b, a, 1000, op="remove")]
    fill = [edge(r.key.decode(), r.key.decode(), 1) for r in records]  # a loop moves one topic on
    logs, server = MemorySource([fill[first], *records], TOPICS, GROUPS), MemoryServer()
    owners = owners_of(tmp_path, logs, server, window=WIDE)
    settle(owners, serving=False)
    seen = {
        name: category_hash(b if name == a else a)
        in o.group.state.windows(np.array([slot])).rows.categories[:, NEIGHBOUR].tolist()
        for o in owners
        for name, slot in o.group.state.index.items()
    }
    assert seen[a] == seen[b] == (first == 0)


def test_a_mirror_without_room_holds_the_source_and_nothing_else(tmp_path: Path) -> None:
    records = stream(200, 12, 1)
    logs, server = MemorySource(records, TOPICS, GROUPS), MemoryServer()
    owner = open_owner(tmp_path, logs, server, 0, window=WIDE)
    owner.mirror.room, owner.mirror.down = 3, True
    for _ in range(50):
        owner.shard.turn(1)
    assert 3 <= len(owner.mirror.sent) < 3 + GROUPS and owner.shard.source.lag(0) > 0
    assert not owner.shard._stats.source_up and owner.group.snapshots == 0
    owner.mirror.down = False
    others = [open_owner(tmp_path, logs, server, n, window=WIDE) for n in range(1, GROUPS)]
    settle([owner, *others], serving=False)
    assert_all([owner, *others], records)


def test_the_learner_is_offered_edges_as_their_sources_see_them(tmp_path: Path) -> None:
    records = stream(120, 12, 2)
    logs, server = MemorySource(records, TOPICS, GROUPS), MemoryServer()
    heard = [Log() for _ in range(GROUPS)]
    owners = [
        open_owner(tmp_path, logs, server, n, window=WIDE, learner=heard[n]) for n in range(GROUPS)
    ]
    for owner in owners:
        owner.shard.offers.budget.allows = lambda: True  # type: ignore[method-assign]
    settle(owners, serving=False)
    said = sum(b'"node"' in (r.value or b"") for r in records)
    assert sum(len(log.rows) for log in heard) == len(records) - said and said > 5
    for log in heard:
        assert (log.rows.numbers[:, DIRECTION] == 1.0).all()
        assert log.rows.missing[:, NEIGHBOUR].any()
        assert (np.diff(log.rows.time_us) > 0).all()
        for w in log.windows:
            assert w.offsets.tolist() == list(range(len(w) + 1)) and not w.totals.any()
            assert (w.first_us == w.rows.time_us).all()
    hashes = {category_hash(f"n{i}") for i in range(12)}
    assert {e for log in heard for w in log.windows for e in w.entity.tolist()} <= hashes


def test_after_a_deletion_edges_come_beside_what_is_said_of_nodes(tmp_path: Path) -> None:
    records = stream(60, 12, 2)
    logs, server = MemorySource([deletion("n3")], TOPICS, GROUPS), MemoryServer()
    heard = [Log() for _ in range(GROUPS)]
    owners = [
        open_owner(tmp_path, logs, server, n, window=WIDE, learner=heard[n]) for n in range(GROUPS)
    ]
    for owner in owners:
        owner.shard.offers.budget.allows = lambda: True  # type: ignore[method-assign]
    settle(owners, serving=False)
    logs.put(*records)
    settle(owners, serving=False)
    said = sum(b'"node"' in (r.value or b"") for r in records)
    assert sum(len(log.rows) for log in heard) == len(records) - said and said > 2


def test_a_deleted_node_is_nobodys_neighbour_in_any_group(folder: Path) -> None:
    records = stream(150, 12, 3)
    logs, server = MemorySource(records, TOPICS, GROUPS), MemoryServer()
    owners = owners_of(folder, logs, server)
    settle(owners)
    logs.put(*[deletion("n3", 10**6 - 1)] * 2)
    settle(owners)
    assert "n3" not in published(server)
    gone = category_hash("n3")
    for owner in owners:
        state = owner.group.state
        slots = np.array(sorted(state.index.values()), np.int64)
        assert gone not in state.windows(slots).rows.categories[:, NEIGHBOUR]
        live = state.held(slots)
        assert (state.totals[slots, 0] >= live).all()
    again = owners_of(folder, logs, server, restarts=1)  # reads topics in another order
    logs.put(edge("n3", "n4", 10**6))
    settle(again)
    assert published(server)["n3"][0] == 1
    before = published(server)
    logs.put(edge("n3", "n3", 10**6 + 1))
    settle(again)
    assert published(server)["n3"][0] == 2, "a loop is one row"
    assert {n: c for n, (c, _) in before.items() if n != "n3"} == {
        n: c for n, (c, _) in published(server).items() if n != "n3"
    }


def test_a_snapshot_of_another_kind_of_stream_is_refused(tmp_path: Path) -> None:
    from actors.group import Group

    logs, server = MemorySource(stream(20, 5, 1), TOPICS, GROUPS), MemoryServer()
    owner = open_owner(tmp_path, logs, server, 0)
    settle([owner], serving=False)
    owner.shard.drain()
    shape = STREAM.shape
    events = Shape(shape.numbers, shape.categories)
    sizes = (owner.group.state.window, owner.group.state.hidden, 64)
    with pytest.raises(SnapshotError, match="another kind"):
        Group.open(0, 1 << 30, TOPICS, tmp_path / "group-0", events, sizes, STREAM.columns)
    with pytest.raises(SnapshotError, match="fields"):
        Group.open(0, 1 << 30, TOPICS, tmp_path / "group-0", shape, sizes, ("direction",))
    # a node's field of the same name, and of another type
    other = msgspec.structs.replace(shape, node_numbers=0, node_categories=2)
    with pytest.raises(
        SnapshotError, match=r"'node\.score' as a number, the settings as a category"
    ):
        Group.open(0, 1 << 30, TOPICS, tmp_path / "group-0", other, sizes, STREAM.columns)


def mirror_batch(*values: bytes | None) -> Batch:
    n = len(values)
    return Batch(1, 1, np.arange(n), np.arange(n), [None] * n, list(values), n)


def test_messages_that_are_none_are_dead_letters_and_the_rest_is_taken() -> None:
    spread = Edges(STREAM.shape, 0, 5, 2, 1, {})
    reader = Edges(STREAM.shape, 1, 5, 2, 1, {}).reader
    name = next(n for n in map(str, range(9)) if edge(n, "", 1, 2).group == 1)
    source = next(n for n in map(str, range(9)) if edge(n, "", 1, 2).group == 0)
    said = node(source, 2, 2, of="x", score=1.5)
    good = message(
        spread, [edge(source, name, 1, 2), said, *(edge(source, name, 1 + i, 2) for i in (2, 3))]
    )
    harmed = [good[: len(good) // 2], good.replace(b"epoch", b"epoxx"), b"", None, b"\xff" * 9]
    decoded, bad = reader.read(mirror_batch(*harmed, good, good))
    assert [b.at for b in bad] == [0, 1, 2, 3, 4] and {b.error for b in bad} == {"bad_mirror"}
    assert decoded.entities == [name] * 3 and decoded.told is not None
    assert decoded.told.features.numbers.tolist() == [[1.5]]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        decoded, _ = reader.read(mirror_batch(bytes(data)))
        assert len(decoded.rows) == len(decoded.entities) == len(decoded.timestamp_ms)
        assert decoded.told is None or len(decoded.told.features.numbers) == len(decoded.told)


def message(edges: Edges, records: list[Record]) -> bytes:
    from actors.decode import DecodeConfig, make_decoder

    n = np.arange(len(records))
    decoded, _ = make_decoder(STREAM, DecodeConfig()).decode(
        0, n, n, [r.key for r in records], [r.value for r in records]
    )
    ((to, value),) = edges.spread(0, decoded).away
    assert to == 1
    return value


def test_a_node_in_the_mirror_of_another_group_is_a_dead_letter(tmp_path: Path) -> None:
    a, b = two_homes()
    logs, server = MemorySource([edge(a, b, 5)], TOPICS, GROUPS), MemoryServer()
    sender = open_owner(tmp_path, logs, server, logs_home(a))
    settle([sender], serving=False)
    wrong = next(n for n in range(GROUPS) if n not in (logs_home(a), logs_home(b)))
    logs.put(Record(sender.mirror.sent[0][1], None, wrong, 1))
    receiver = open_owner(tmp_path, logs, server, wrong)
    settle([receiver], serving=False)
    (letter,) = receiver.shard.dead_letters.letters  # type: ignore[attr-defined]
    assert (letter.batch.topic, letter.error) == (1, "misplaced")
    assert "check_partition" not in letter.reason, "of a graph's nodes it may not be false"
    assert not receiver.group.state.index


def test_rows_of_one_record_are_not_taken_for_repeats_of_each_other() -> None:
    """An arrow message of many rows, cut into several messages of the mirror."""
    import pyarrow as pa

    from actors.decode import DecodeConfig, make_decoder

    name = next(n for n in map(str, range(9)) if edge(n, "", 1, 2).group == 1)
    n = 20_000
    batch = pa.record_batch({"src": ["a"] * n, "dst": [name] * n, "at": np.arange(n) + 1})
    decoded, bad = make_decoder(STREAM, DecodeConfig(format="arrow")).decode(
        0, np.array([7]), np.array([0]), [None], [batch]
    )
    assert not bad
    away = Edges(STREAM.shape, 0, 5, 2, 1, {}).spread(0, decoded).away
    assert len(away) > 2
    told = [value for _, value in away]
    reader = Edges(STREAM.shape, 1, 5, 2, 1, {}).reader
    found = [reader.read(mirror_batch(*part))[0] for part in (told[:2], told[1:], told)]
    assert sum(len(f.rows) for f in found) == n
    assert np.concatenate([f.rows.time_us for f in found]).tolist() == decoded.rows.time_us.tolist()
    assert reader.marks == {(0, 0): Mark(7, n - 1)}
