"""Edges that were removed are, for readers of the state, as if they had never been; whatever the order."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.folders import Folder
from actors.graves import among, forget_neighbours
from actors.group import Group
from actors.snapshot import GroupSnapshot, restore
from actors.state import Marks, State
from schemas.records import OFFSET_BITS, Decoded, Features, Rows, Told, Windows, contributions
from schemas.stream import EDGE_TYPE, NEIGHBOUR, Shape

GAP = 5
UNTYPED, TYPED = Shape(3, 2, GAP, graph=True), Shape(3, 3, GAP, graph=True, typed=True)
WHOLE = Shape(3, 3, GAP, graph=True, whole=True)
TYPED_WHOLE = Shape(3, 4, GAP, graph=True, typed=True, whole=True)
SHAPES = pytest.mark.parametrize(
    "shape",
    [UNTYPED, TYPED, WHOLE, TYPED_WHOLE],
    ids=["untyped", "typed", "whole", "typed whole"],
)


class Edge(NamedTuple):
    """One row of a node, or of a whole graph. kind 2: the edge's type is missing."""

    node: str
    time: int
    position: int
    neighbour: int
    kind: int = 0
    removed: bool = False
    source: int = 0  # of a whole graph's edge

    def key(self, shape: Shape) -> tuple[str, frozenset[int], int]:
        ends = {self.neighbour, self.source} if shape.whole else {self.neighbour}
        return self.node, frozenset(ends), self.kind if shape.typed else 0


def rows_of(edges: list[Edge], shape: Shape) -> Rows:
    """Numbers and the last category follow from the position."""
    n = len(edges)
    rows = Rows.empty(shape, n)
    rows.time_us[:] = [e.time for e in edges]
    rows.position[:] = p = np.array([e.position for e in edges], np.int64)
    rows.numbers[:] = np.stack([p % 2, p * 0.5, np.where(p % 3 == 0, np.nan, -p)], 1).reshape(n, 3)
    rows.categories[:, -1], rows.missing[:, -1] = p * 7, p % 5 == 0
    rows.categories[:, NEIGHBOUR + shape.whole] = [e.neighbour for e in edges]
    rows.missing[:, NEIGHBOUR + shape.whole] = [e.removed for e in edges]
    if shape.whole:
        rows.categories[:, 0] = [e.source for e in edges]
        rows.missing[:, 0] = [e.removed for e in edges]
    if shape.typed:
        at = EDGE_TYPE + shape.whole
        rows.categories[:, at] = [e.kind if e.kind < 2 else e.position for e in edges]
        rows.missing[:, at] = [e.kind == 2 for e in edges]
    return rows


def decoded(edges: list[Edge], shape: Shape) -> Decoded:
    n = len(edges)
    nodes = [e.node for e in edges]
    return Decoded(
        rows_of(edges, shape), nodes, np.zeros(n, np.bool_), np.zeros(n, np.int64), [""] * n
    )


def test_edges_of_deleted_nodes_are_not_offered_to_the_learner(tmp_path: Path) -> None:
    """Another partition, read later, still holds what was produced before the deletion."""
    group = Group(0, 1, ("t",), State(UNTYPED, 8, 3, 64), [0], tmp_path)
    rows = rows_of([Edge("a", 1, 0, 7), Edge("b", 2, 1, 8), Edge("a", 3, 2, 7)], UNTYPED)
    late = Decoded(rows, ["a", "b", "a"], np.zeros(3, np.bool_), np.array([10, 10, 30]))
    none = np.zeros((3, UNTYPED.totals))
    offered = Windows(rows, np.arange(4), none, rows.time_us, np.array([1, 2, 1]))
    assert group.without_buried(offered, late) is offered
    group.buried.add(7, 20)
    assert group.without_buried(offered, late).rows.position.tolist() == [1, 2]
    group.buried.add(2, 20)
    assert group.without_buried(offered, late).rows.position.tolist() == [2]


def test_after_a_deletion_edges_come_among_what_is_said_of_nodes(tmp_path: Path) -> None:
    """Which is no edge: a micro-batch of both, or of such records alone, is taken as any other."""
    shape = Shape(3, 2, GAP, graph=True, node_numbers=1)
    group = Group(0, 1, ("t",), State(shape, 8, 3, 64), [0], tmp_path)
    group.join(1)
    assert group.edges is not None
    group.buried.add(8, 20)
    rows = rows_of([Edge("a", i, i, n) for i, n in enumerate((7, 8, 9, 8), 1)], shape)
    none = np.zeros(4, np.bool_)
    batch = Decoded(rows, ["a"] * 4, none, np.array([10, 10, 10, 30]), ["x"] * 4)
    said = np.array([0, 2])
    of = Features(
        np.ones((2, 1), np.float32), np.zeros((2, 0), np.int64), np.ones((2, 0), np.bool_)
    )
    batch.told = Told(said, said, rows.time_us[said], rows.position[said], said, of)
    for part, left in ((batch, [4]), (batch.take(batch.upsert), [])):
        windows = group.edges.spread(0, part).windows
        assert group.without_buried(windows, part).rows.position.tolist() == left


def fed(edges: list[Edge], cuts: list[int], shape: Shape, window: int) -> State:
    state = State(shape, window, 3, 16)
    for part in batches(edges, cuts):
        touched = state.apply(decoded(part, shape))
        assert touched.late.all()
    return state


def batches(edges: list[Edge], cuts: list[int]) -> list[list[Edge]]:
    ends = [0, *sorted(c % (len(edges) + 1) for c in cuts), len(edges)]
    return [edges[a:b] for a, b in itertools.pairwise(ends) if a < b]


def ordered(edges: list[Edge], node: str) -> list[Edge]:
    return sorted((e for e in edges if e.node == node), key=lambda e: (e.time, e.position))


def live(ring: list[Edge], shape: Shape) -> list[Edge]:
    """By the definition: no tombstone, and none behind it of the same edge."""
    return [
        e
        for i, e in enumerate(ring)
        if not e.removed
        and not any(o.removed and o.key(shape) == e.key(shape) for o in ring[i + 1 :])
    ]


def assert_window(state: State, node: str, wanted: list[Edge], shape: Shape) -> None:
    slots = np.array([state.index[node]])
    found = state.windows(slots)
    again = rows_of(wanted, shape)
    for name in ("time_us", "position", "numbers", "categories", "missing"):
        np.testing.assert_array_equal(getattr(found.rows, name), getattr(again, name), name)
    assert state.anchored(slots).tolist() == [len(wanted)]


edge = st.tuples(
    st.sampled_from("ab"),
    st.integers(1, 40),
    st.integers(0, 4),
    st.integers(0, 2),
    st.integers(0, 2).map(lambda x: x == 0),
    st.integers(0, 2),
)
streams = st.lists(edge, min_size=1, max_size=40).map(
    lambda found: [Edge(n, t, i, *rest) for i, (n, t, *rest) in enumerate(found)]
)
cuts_of = st.lists(st.integers(0, 60), max_size=8)


@SHAPES
@given(streams, st.randoms(use_true_random=False), cuts_of)
def test_removed_edges_are_as_if_they_had_never_been(
    shape: Shape, edges: list[Edge], random: object, cuts: list[int]
) -> None:
    random.shuffle(edges)  # type: ignore[attr-defined]
    state = fed(edges, cuts, shape, 64)
    wanted = {node: live(ordered(edges, node), shape) for node in {e.node for e in edges}}
    never = State(shape, 64, 3, 16)
    left = [e for found in wanted.values() for e in found]
    if left:
        never.apply(decoded(left, shape))
    for node, alive in wanted.items():
        slot = np.array([state.index[node]])
        assert state.count[slot[0]] == sum(e.node == node for e in edges)
        assert_window(state, node, alive, shape)
        found = state.windows(slot)
        if not alive:
            assert not state.totals[slot].any()
            rows, totals = state.padded(slot, state.anchored(slot))
            assert rows.missing.all() and np.isnan(rows.numbers).all() and not totals.any()
            continue
        other = never.windows(np.array([never.index[node]]))
        np.testing.assert_allclose(state.totals[slot], never.totals[[never.index[node]]], atol=1e-9)
        np.testing.assert_allclose(found.totals, other.totals, atol=1e-9)
        assert found.first_us == other.first_us


@SHAPES
@given(streams, cuts_of)
def test_rings_that_overflow_hold_the_newest_rows_and_show_the_live_ones(
    shape: Shape, edges: list[Edge], cuts: list[int]
) -> None:
    """In any order of coming."""
    state = fed(edges, cuts, shape, 8)
    for node in {e.node for e in edges}:
        assert_window(state, node, live(ordered(edges, node)[-8:], shape), shape)


@SHAPES
@given(streams, cuts_of)
def test_totals_are_of_live_edges_and_of_those_that_left_alive(
    shape: Shape, edges: list[Edge], cuts: list[int]
) -> None:
    """One by one in a plain list: whatever the micro-batches, in order of time."""
    edges = [e._replace(time=1 + 3 * i) for i, e in enumerate(edges)]
    state = fed(edges, cuts, shape, 8)
    for node in {e.node for e in edges}:
        mine, gone = ordered(edges, node), list[Edge]()
        for n in range(1, len(mine) + 1):
            if n > 8 and mine[n - 9] in live(mine[max(0, n - 9) : n - 1], shape):
                gone.append(mine[n - 9])
        counted = rows_of([*gone, *live(mine[-8:], shape)], shape)
        wanted = contributions(counted.numbers).sum(0)
        slot = state.index[node]
        np.testing.assert_allclose(
            np.delete(state.totals[slot], 1), np.delete(wanted, 1), atol=1e-9
        )
        assert (state.totals[slot, 1] >= 1) == bool(len(counted))


@SHAPES
@given(streams, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=25)
def test_a_restored_group_knows_its_dead(
    tmp_path_factory: pytest.TempPathFactory,
    shape: Shape,
    edges: list[Edge],
    a: int,
    b: int,
    c: int,
) -> None:
    folder = tmp_path_factory.mktemp("group")
    start, copied, crash = sorted(x % (len(edges) + 1) for x in (a, b, c))
    state = State(shape, 64, 3, 16)
    state.apply(decoded(edges[:start], shape))
    snapshot = GroupSnapshot(folder, "1-1", state, [start], {}, lambda: None)
    state.apply(decoded(edges[start:copied], shape))
    while not snapshot.done():
        if not snapshot.turn([copied]):
            snapshot.wait(0.01)
    snapshot.result()
    state.apply(decoded(edges[copied:crash], shape))

    again = State(shape, 64, 3, 16)
    assert restore(Folder.open(folder / "1-1"), again) == [start]
    for e in edges[start:]:
        again.apply(decoded([e], shape))
    for node in {e.node for e in edges}:
        mine = ordered(edges, node)
        assert again.count[again.index[node]] == len(mine)
        assert_window(again, node, live(mine, shape), shape)


@given(streams, st.integers(0, 4))
def test_a_node_that_is_gone_is_nobodys_neighbour(edges: list[Edge], gone: int) -> None:
    state = fed(edges, [], UNTYPED, 64)
    before = state.count.copy()
    slots = forget_neighbours(state, np.array([gone]), np.array([99]))
    assert (state.count == before).all()
    names = set()
    for node in {e.node for e in edges}:
        mine = ordered(edges, node)
        alive = [e for e in live(mine, UNTYPED) if e.neighbour != gone]
        names |= {node} if len(alive) < len(live(mine, UNTYPED)) else set()
        assert_window(state, node, alive, UNTYPED)
        wanted = contributions(rows_of(alive, UNTYPED).numbers).sum(0)
        found = state.totals[state.index[node]]
        np.testing.assert_allclose(np.delete(found, 1), np.delete(wanted, 1), atol=1e-9)
    assert names <= {state.names[slot] for slot in slots.tolist()}


deletions = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 9)), min_size=1, max_size=6
)


@given(streams, deletions, st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_many_nodes_that_are_gone_at_once_are_so_as_one_by_one(
    edges: list[Edge], gone: list[tuple[int, int, int]], copied: tuple[int, int] | None
) -> None:
    """Also where a slab holds some of their deletions; some nodes are deleted twice, in two topics."""
    one, many = fed(edges, [], UNTYPED, 64), fed(edges, [], UNTYPED, 64)
    for state in (one, many):
        if copied is not None:  # every other slot was restored from the slab
            state.marks = Marks(np.array([copied]), np.arange(state.slots) % 2 - 1)
    nodes = np.array([node for node, _, _ in gone])
    positions = np.array([topic << OFFSET_BITS | offset for _, topic, offset in gone])
    slots = forget_neighbours(many, nodes, positions)
    each = [forget_neighbours(one, nodes[[i]], positions[[i]]) for i in range(len(gone))]
    assert slots.tolist() == sorted(set(np.concatenate(each).tolist()))
    np.testing.assert_array_equal(many.rows.missing, one.rows.missing)
    np.testing.assert_array_equal(many.dead, one.dead)
    np.testing.assert_allclose(many.totals, one.totals, atol=1e-9)


@given(st.lists(st.integers(-9, 9)), st.lists(st.integers(-9, 9), min_size=1), st.integers(0, 62))
def test_among_is_membership(values: list[int], ids: list[int], shift: int) -> None:
    """Hashes of the same lowest bits, too."""
    a, b = np.array(values, np.int64) << shift, np.array(ids, np.int64) << shift
    np.testing.assert_array_equal(among(a, b), np.isin(a, b))


def test_a_deleted_node_leaves_no_dead_rows_to_the_next_one_in_its_slot() -> None:
    state = State(UNTYPED, 8, 3, 1)
    state.apply(decoded([Edge("a", 1, 1, 5), Edge("a", 2, 2, 5, removed=True)], UNTYPED))
    assert state.anchored(np.array([0])).tolist() == [0]
    part = decoded([Edge("a", 3, 3, 5), Edge("a", 4, 4, 6)], UNTYPED)
    part.deleted[0] = True
    state.apply(part)
    assert_window(state, "a", [Edge("a", 4, 4, 6)], UNTYPED)
