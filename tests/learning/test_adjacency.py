"""The learner's replica of a graph: at any moment just what was known before it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.adjacency import PAST, Adjacency
from schemas.records import Windows
from schemas.stream import DIRECTION, NEIGHBOUR
from tests.learning.edge_streams import SHAPE, START_US, edges

EDGE = st.tuples(
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 30), st.booleans(), st.integers(0, 1)
)


def add(graph: Adjacency, windows: Windows) -> None:
    graph.add(windows.entity, windows.rows)


def asked(graph: Adjacency, node: int, time_s: int) -> list[tuple[int, int, float]]:
    """(time in s, neighbour, direction) of a node's edges as of a time, oldest first."""
    slots = np.array([graph.index.get(node, -1)])
    rows, length = graph.as_of(slots, np.array([START_US + time_s * 1_000_000]))
    return [
        (
            (int(rows.time_us[0, k]) - START_US) // 1_000_000,
            int(rows.categories[0, k, NEIGHBOUR]),
            float(rows.numbers[0, k, DIRECTION]),
        )
        for k in range(int(length[0]))
    ]


def naive(
    found: list[tuple[int, int, int, bool, int]], node: int, time_s: int, window: int
) -> list[tuple[int, int, float]]:
    """The same, edge by edge."""
    mine = [
        (at, order, other, direction, gone, kind)
        for order, (a, b, at, gone, kind) in enumerate(found)
        for end, other, direction in ((a, b, 1.0), (b, a, 0.0))
        if end == node and at < time_s and not (a == b and direction == 0.0)
    ]
    mine.sort()
    live = [
        (at, other, direction)
        for i, (at, _, other, direction, gone, kind) in enumerate(mine)
        if not gone
        and not any(g and o == other and k == kind for _, _, o, _, g, k in mine[i + 1 :])
    ]
    return live[-window:]


@settings(deadline=None, max_examples=200)
@given(st.lists(EDGE, max_size=24), st.lists(st.integers(1, 9), max_size=4), st.integers(0, 32))
def test_as_of_a_time_there_is_what_came_before_it(found, cuts, time_s):
    """Whatever the batches, and however late an edge or a removal came."""
    graph = Adjacency(SHAPE, 24, 64)  # a ring that holds all
    bounds = sorted({0, len(found), *(c for c in np.cumsum(cuts).tolist() if c < len(found))})
    for lo, hi in itertools.pairwise(bounds):
        a, b, at, gone, kind = (list(x) for x in zip(*found[lo:hi], strict=True))
        add(graph, edges(a, b, at, gone, kind, first=lo))
    for node in range(6):
        assert asked(graph, node, time_s) == naive(found, node, time_s, 24)


def test_only_the_newest_k_are_kept_and_what_came_since_does_not_push_them_out():
    graph = Adjacency(SHAPE, 4, 64)
    add(graph, edges([1] * 4, [2, 3, 4, 5], [1, 2, 3, 4]))
    add(graph, edges([1] * 4, [6, 7, 8, 9], [5, 6, 7, 8]))
    assert [n for _, n, _ in asked(graph, 1, 5)] == [2, 3, 4, 5]
    assert [n for _, n, _ in asked(graph, 1, 99)] == [6, 7, 8, 9]


def test_the_least_recently_touched_node_makes_room():
    graph = Adjacency(SHAPE, 4, 64)
    for i in range(0, 200, 2):
        add(graph, edges([i], [i + 1], [i]))
    assert len(graph) <= 64
    assert {196, 197, 198, 199} <= set(graph.index)
    assert asked(graph, 0, 999) == []


def test_a_million_nodes_pass_through_bounded_memory():
    graph = Adjacency(SHAPE, 4, 4096)
    for first in range(0, 1_000_000, 2000):
        nodes = np.arange(first, first + 2000)
        add(graph, edges(nodes[::2].tolist(), nodes[1::2].tolist(), [first] * 1000))
    assert len(graph) <= 4096
    assert len(graph.index) + len(graph.free) == 4096


def test_forgotten_nodes_are_gone_from_their_neighbours_too():
    graph = Adjacency(SHAPE, 4, 64)
    add(graph, edges([1, 1, 2, 3], [2, 3, 3, 1], [1, 2, 3, 4]))
    graph.forget(np.array([3]))
    assert asked(graph, 1, 99) == [(1, 2, 1.0)]
    assert asked(graph, 2, 99) == [(1, 1, 0.0)]
    assert asked(graph, 3, 99) == []
    targets = graph.past_targets(np.array([graph.index[1]]), 50, np.random.default_rng(0))
    assert set(targets.ravel().tolist()) <= {1, 2}, "itself stands for none"


def test_a_node_forgotten_twice_is_forgotten_once():
    graph = Adjacency(SHAPE, 4, 64)
    add(graph, edges([1, 2], [2, 3], [1, 2]))
    graph.forget(np.array([1, 1, 9, 9]))
    graph.forget(np.array([1]))
    assert sorted(graph.index) == [2, 3] and len(graph.free) == 62


def test_late_edges_do_not_push_out_newer_ones():
    graph = Adjacency(SHAPE, 4, 64)
    for first in (100, 0):
        for at in range(first, first + 20, 4):
            nodes = list(range(1000 + at, 1004 + at))
            add(graph, edges([1] * 4, nodes, list(range(at, at + 4))))
    assert [at for at, _, _ in asked(graph, 1, 999)] == [116, 117, 118, 119]


def test_what_is_removed_has_its_place_among_the_newest_as_in_the_ring_of_a_shard():
    graph = Adjacency(SHAPE, 6, 64)
    add(graph, edges([0] * 8, [1, 2, 3, 4, 5, 6, 7, 8], list(range(8))))
    add(graph, edges([0, 0], [7, 8], [8, 9], [True, True]))
    assert [n for _, n, _ in asked(graph, 0, 99)] == [5, 6]


@pytest.mark.parametrize("slots", [40, 200])
def test_it_is_restored_into_another_size(slots):
    graph, again = Adjacency(SHAPE, 4, 100), Adjacency(SHAPE, 4, slots)
    for i in range(0, 80, 2):
        add(graph, edges([i], [i + 1], [i]))
    again.load_state_dict({k: v.copy() for k, v in graph.state_dict().items()})
    assert set(again.index) == set(range(max(0, 80 - slots), 80))
    assert len(again.index) + len(again.free) == slots
    for node in again.index:
        assert asked(again, node, 99) == asked(graph, node, 99)
    add(again, edges([900], [901], [99]))
    assert asked(again, 900, 999) == [(99, 901, 1.0)]


def test_past_targets_are_drawn_from_all_there_ever_were():
    graph = Adjacency(SHAPE, 4, 4096)
    for first in range(0, 2000, 4):
        add(graph, edges([7] * 4, list(range(10_000 + first, 10_004 + first)), [first] * 4))
    slot = np.array([graph.index[7]])
    found = np.unique(graph.past_targets(slot, 2000, np.random.default_rng(0)))
    assert len(found) == PAST
    assert found.min() < 10_500 and found.mean() == pytest.approx(11_000, abs=500)


def test_a_restored_one_answers_alike():
    graph, again = Adjacency(SHAPE, 4, 64), Adjacency(SHAPE, 4, 64)
    rng = np.random.default_rng(0)
    for i in range(30):
        a, b = rng.integers(0, 100, (2, 5)).tolist()
        add(graph, edges(a, b, [i] * 5, rng.random(5) < 0.2))
    again.load_state_dict({k: v.copy() for k, v in graph.state_dict().items()})
    more = edges([1, 2], [3, 4], [50, 50])
    for each in (graph, again):
        add(each, more)
    assert again.index == graph.index
    for node in graph.index:
        assert asked(again, node, 99) == asked(graph, node, 99)
