"""Rings of another length hold the newest rows; no removed edge comes back, and each generation has its own window."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.folders import Folder
from actors.served import Served, set_served
from actors.shard import Shard
from actors.snapshot import GroupSnapshot, restore
from actors.state import State
from schemas.records import I64
from schemas.stream import Shape, StreamConfig
from tests import graphs, images, summed
from tests.actors import test_whole_graphs as whole
from tests.actors.test_generations import fill, filled, switch
from tests.actors.test_graves import TYPED, TYPED_WHOLE, UNTYPED, Edge, decoded
from tests.actors.test_images import Lab
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource, Record
from tests.images import image, mean, vector
from tests.services import SLOTS, adopt, assert_same, make_shard, published, settle

WINDOWS = st.sampled_from((2, 4, 8, 16))


def random_edges(n: int, seed: int) -> list[Edge]:
    """Of one node or graph; half of them removals, many late."""
    rng = np.random.default_rng(seed)
    times = np.arange(n) + rng.integers(0, 40, n)
    return [
        Edge("a", int(t), p, int(rng.integers(5)), int(rng.integers(2)), bool(rng.random() < 0.3))
        for p, t in enumerate(times)
    ]


def live(edges: list[Edge], newest: int, shape: Shape) -> list[int]:
    """Positions of those of the newest so many that no later one of all removes."""
    order = sorted(edges, key=lambda e: (e.time, e.position))
    last = {e.key(shape): n for n, e in enumerate(order) if e.removed}
    return [
        e.position
        for n, e in enumerate(order)
        if n >= len(order) - newest and n > last.get(e.key(shape), -1)
    ]


def anchored(state: State) -> list[int]:
    """Positions of the rows that the vector is made of."""
    slots: I64 = np.array([state.index["a"]])
    lengths = state.anchored(slots)
    rows, _ = state.padded(slots, lengths)
    return list(rows.position[0, : lengths[0]].tolist())


def again(folder: Path, state: State, position: int, window: int, anchor: int) -> State:
    """Restored from a snapshot, with rings of another length."""
    taken = GroupSnapshot(folder, "1-1", state, [position], {}, lambda: None)
    while not taken.done():
        if not taken.turn([position]):
            taken.wait(0.001)
    found = State(state.shape, window, 3, 16, anchor=anchor)
    restore(Folder.open(folder / "1-1"), found)
    return found


@given(
    st.integers(0, 10_000),
    WINDOWS,
    WINDOWS,
    st.sampled_from((UNTYPED, TYPED, TYPED_WHOLE)),
    st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_no_removed_edge_comes_back_in_a_ring_of_another_length(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    before: int,
    after: int,
    shape: Shape,
    at: int,
) -> None:
    """The shorter of the two is served: its window is that of a ring that always was as long."""
    edges, shorter = random_edges(50, seed), min(before, after)
    state = State(shape, before, 3, 16, anchor=shorter)
    state.apply(decoded(edges[:at], shape))
    state = again(tmp_path_factory.mktemp("group"), state, at, after, shorter)
    for lo in range(at, 50, 13):
        come = edges[: lo + 13]
        state.apply(decoded(come[lo:], shape))
        assert anchored(state) == live(come, shorter, shape)
        held = state.windows(np.array([state.index["a"]])).rows.position.tolist()
        assert set(held) <= set(live(come, len(come), shape)), "that was removed"
        assert state.count[state.index["a"]] == len(come)


def test_sessions_go_on_being_counted_in_a_longer_ring(tmp_path: Path) -> None:
    """Also where a row comes late: what has left the shorter ring is not counted anew."""
    shape = Shape(3, 2, 5)
    edges = [Edge("a", 20 * t, t, 1) for t in range(20)]
    whole, state = (State(shape, window, 3, 16) for window in (64, 4))
    for each in (whole, state):
        each.apply(decoded(edges, shape))
    state = again(tmp_path, state, 20, 8, 8)
    for each in (whole, state):
        each.apply(decoded([Edge("a", 370, 20, 1), Edge("a", 3, 21, 1)], shape))
    slot = state.index["a"]
    assert state.counts.too_old == 1 and state.placed[slot] == 5
    assert state.totals[slot, 1] == whole.totals[whole.index["a"], 1] == 21


OLD, NEW = 1, 2
STREAMS = {"whole graphs": whole.STREAM, "nodes": graphs.STREAM}


def some(kind: str, n: int, seed: int, first: int) -> list[Record]:
    """Records from `first` on, of six entities."""
    made = whole.stream(n + first, 6, seed) if kind == "whole graphs" else None
    return (made or graphs.stream(n + first, 6, seed, late=9, groups=1))[first:]


def opened(
    folder: Path, source: MemorySource, server: MemoryServer, stream: StreamConfig, *sizes: int
) -> Shard:
    """As a daemon does after a change. sizes: rows of a ring, and L of what is served."""
    window, anchor = sizes
    restarts = len(list(folder.glob("start-*")))
    (folder / f"start-{restarts}").touch()
    of = (window, 0, SLOTS, 0, anchor)
    shard = make_shard(folder, source, server, restarts, stream=stream, sizes=of)  # type: ignore[arg-type]
    for group in shard.groups.values() if stream.nodes else ():
        group.join(1)
    adopt(shard)
    settle(shard)
    return shard


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(("before", "after"), [(4, 16), (16, 4)])
def test_a_graphs_window_may_change_while_the_other_is_served(
    tmp_path: Path, kind: str, before: int, after: int
) -> None:
    stream, releases = STREAMS[kind], tmp_path / "releases"
    summed.make_release(releases, NEW, stream, after, generation=2)
    summed.make_release(releases, OLD, stream, before)
    set_served(releases, Served(OLD, 1))
    records, more = some(kind, 120, 0, 0), some(kind, 200, 1, 120)
    source, server = MemorySource(list(records)), MemoryServer()
    opened(tmp_path, source, server, stream, before, before).drain()
    assert_same(published(server), summed.from_scratch(records, releases / "1", stream, before))
    shard = opened(tmp_path, source, server, stream, max(before, after), before)
    fill(tmp_path, shard)
    assert filled(shard) == NEW
    for part in (more[:70], more[70:]):
        source.put(*part)
        records += part
        settle(shard)
        wanted = summed.from_scratch(records, releases / "1", stream, before)
        assert_same(published(server), wanted)
    assert filled(shard) == NEW
    # rings are full of what came since
    wanted = summed.from_scratch(records, releases / "2", stream, after)
    assert_same(published(server, 2), wanted)
    switch(tmp_path, shard)
    shard.drain()
    source.put(*(last := some(kind, 60, 2, 320)))
    opened(tmp_path, source, server, stream, after, after)
    wanted = summed.from_scratch(records + last, releases / "2", stream, after)
    assert_same(published(server, 2), wanted)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_so_may_how_many_images_an_entitys_vector_is_of(
    tmp_path: Path, before: int, after: int
) -> None:
    lab = Lab(tmp_path, before)
    images.make_release(tmp_path / "releases", NEW, after, generation=2)
    images.make_release(tmp_path / "releases", OLD, before)
    set_served(tmp_path / "releases", Served(OLD, 1))
    adopt(lab.shard)
    rng, colours = np.random.default_rng(0), dict[str, list[tuple[int, int, int]]]()

    def put(at: int) -> None:
        who, colour = f"e{rng.integers(4)}", tuple(rng.integers(0, 256, 3).tolist())
        colours.setdefault(who, []).append(colour)
        lab.put(image(who, 10 + at, colour))

    def check(generation: int, release: int, window: int) -> None:
        for who, mine in colours.items():
            found = lab.server.entities[generation, who]
            wanted = mean([vector(release, c) for c in mine[-window:]])
            np.testing.assert_allclose(found.vector, wanted, atol=1e-6)  # type: ignore[union-attr]

    for at in range(20):
        put(at)
    lab.shard.drain()
    lab.window, lab.anchor = max(before, after), before
    lab.shard = lab.open()
    adopt(lab.shard)
    settle(lab.shard)
    fill(tmp_path, lab.shard)
    filled(lab.shard)
    for at in range(20, 50):
        put(at)
        check(1, OLD, before)
    filled(lab.shard)
    check(2, NEW, after)
