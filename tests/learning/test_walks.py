"""Walks: along edges that live, by node2vec's bias, never to held-out nodes."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.adjacency import Adjacency
from learning.held_out import held_out
from learning.walks import walk
from tests.learning.edge_streams import SHAPE, edges


def graph(pairs: list[tuple[int, int]], removed: list[bool] | None = None) -> Adjacency:
    made = Adjacency(SHAPE, 8, 64)
    source, target = ([pair[i] for pair in pairs] for i in (0, 1))
    windows = edges(source, target, list(range(len(pairs))), removed)
    for i in range(len(pairs)):
        made.add(windows.entity[i : i + 1], windows.rows.take(slice(i, i + 1)))
    return made


def ids(made: Adjacency, starts: list[int], length: int, p=1.0, q=1.0, share=0.0, seed=0):
    slots = np.array([made.index[i] for i in starts])
    return made.id[walk(made, slots, length, (p, q), share, np.random.default_rng(seed))]


pairs = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=8
)


@settings(max_examples=150, deadline=None)
@given(pairs, st.integers(0, 9))
def test_each_step_is_an_edge_that_lives_or_none(found, seed):
    made = graph([(a, b) for a, b, _ in found], [gone for _, _, gone in found])
    live: set[frozenset[int]] = set()
    for a, b, gone in found:
        (live.discard if gone else live.add)(frozenset((a, b)))
    starts = sorted(made.index)
    for path in ids(made, starts, 5, 0.5, 2.0, seed=seed).tolist():
        for a, b in pairwise(path):
            lonely = not any(a in edge for edge in live)
            assert frozenset((a, b)) in live or (lonely and a == b)


def test_a_walk_keeps_off_held_out_nodes():
    share, free = 0.4, [i for i in range(8) if not held_out(np.array([i]), 0.4)[0]]
    middle = free[0]
    assert 1 < len(free) < 8
    made = graph([(middle, other) for other in range(8) if other != middle])
    seen = set(ids(made, [middle] * 200, 4, share=share).ravel().tolist())
    assert seen == set(free)


def test_steps_are_weighted_as_node2vec_says():
    """From t = 0 to v = 1 to x: back to t by 1/p, to 2, a neighbour of t, by 1, to 3 and 4 by 1/q."""
    made, n, p, q = graph([(0, 1), (0, 2), (1, 2), (1, 3), (1, 4)]), 20_000, 0.25, 2.0
    path = ids(made, [0] * n, 3, p, q)
    path = path[path[:, 1] == 1]
    share = np.bincount(path[:, 2], minlength=5) / len(path)
    weight = np.array([1 / p, 0, 1, 1 / q, 1 / q])
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.02)
