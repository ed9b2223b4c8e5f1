"""What is said of nodes: to whom it is told, and whose vectors follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import nodes
from actors.graves import Buried, leads_to
from actors.nodes import News
from actors.state import State
from learning.node_table import NodeTable
from schemas.records import Decoded, Features, Rows, Told, category_hash
from schemas.stream import NEIGHBOUR, Shape

SHAPE = Shape(1, 1, graph=True, node_numbers=1)
WINDOW = 4


def said(state: State, names: list[str], offset: int = 0) -> Decoded:
    """A record of each node; the state takes them too."""
    n = len(names)
    rows = Rows.empty(SHAPE, n)
    rows.time_us[:] = rows.position[:] = 1 + offset + np.arange(n)
    ids = np.array([category_hash(name) for name in names], np.int64)
    features = Features(
        np.ones((n, 1), np.float32), np.zeros((n, 0), np.int64), np.zeros((n, 0), np.bool_)
    )
    told = Told(ids, np.arange(n), rows.time_us, rows.position, np.zeros(n, np.int64), features)
    none = np.zeros(n, np.bool_)
    decoded = Decoded(rows, names, none, np.zeros(n, np.int64), [""] * n, told=told)
    state.apply(decoded)
    return decoded


def heard(news: News, state: State, most: int) -> list[set[int]]:
    out = []
    while len(ids := news.untold(state, most)):
        out.append(set(ids.tolist()))
    return out


def test_the_learner_is_told_of_who_waits_longest_first() -> None:
    state = State(SHAPE, WINDOW, 0, 64)
    state.nodes, news = NodeTable(SHAPE, 64), News(told_upto=64)
    for i, name in enumerate(["c", "a", "b", "c"]):
        news.take([said(state, [name], i)], state, Buried())
    assert heard(news, state, 1) == [{category_hash(name)} for name in "cab"]
    news.take([said(state, ["a"], 4)], state, Buried())
    assert heard(news, state, 9) == [{category_hash("a")}]


def test_what_a_learner_that_is_behind_is_to_be_told_stays_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "UNHEARD", 8)
    names = [f"n{i}" for i in range(50)]
    state = State(SHAPE, WINDOW, 0, 64)
    state.nodes, news = NodeTable(SHAPE, 64), News(told_upto=64)
    for i, name in enumerate(names):
        news.take([said(state, [name], i)], state, Buried())
        assert len(news.unheard) <= 8
    assert set().union(*heard(news, state, 16)) == {category_hash(name) for name in names}


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=8),
    st.sets(st.integers(0, 12), min_size=1),
    st.sampled_from([1, 1 << 40, -(1 << 40)]),
)
@settings(deadline=None)
def test_who_has_an_edge_to_one_of_them_is_found(edges, among, factor) -> None:
    """Also where all hashes end in the same bits."""
    state = State(SHAPE, WINDOW, 0, 16)
    for slot, far in enumerate(edges):
        state.names.append(f"n{slot}")
        state.placed[slot] = len(far)
        for at, node in enumerate(far):
            state.rows.categories[slot, at % WINDOW, NEIGHBOUR] = node * factor
    wanted = [not among.isdisjoint(far[-WINDOW:]) for far in edges]
    ids = np.sort(np.array(list(among), np.int64) * factor)
    assert leads_to(state, 0, len(edges), ids).tolist() == wanted
    assert leads_to(state, 1, len(edges), ids).tolist() == wanted[1:]
