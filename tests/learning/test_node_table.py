"""What nodes have of their own: the newest said wins, in whatever order it comes, and restores whole."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning import encoders, export
from learning.config import TemporalAttentionConfig
from learning.edges import Store
from learning.graph_learner import GraphLearner
from learning.kinds.events import pad
from learning.node_table import NodeTable
from schemas.records import Features, Told, Windows
from tests.learning.edge_streams import CONFIG, ENCODER, SHAPE, START_US, circles, edges

NODED = msgspec.structs.replace(SHAPE, node_numbers=2, node_categories=1)


def told(ids, features: Features, time_us) -> Told:
    ids, n = np.array(ids, np.int64), len(ids)
    return Told(
        ids, np.arange(n), np.full(n, time_us), np.arange(n), np.zeros(n, np.int64), features
    )


def said(values: list[float]) -> Features:
    """Of each node a number that tells it apart, one that is missing, a category."""
    x = np.array(values, np.float32)
    numbers = np.stack([x, np.full(len(x), np.nan, np.float32)], 1)
    return Features(numbers, x.astype(np.int64)[:, None] + 7, np.zeros((len(x), 1), np.bool_))


records = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=40
)


@settings(max_examples=200, deadline=None)
@given(records, st.integers(1, 7))
def test_the_newest_by_time_and_position_wins_however_it_is_batched(found, size):
    table, naive = NodeTable(NODED, 16), {}
    for first in range(0, len(found), size):
        part = found[first : first + size]
        ids, time, value = (np.array(x, np.int64) for x in zip(*part, strict=True))
        position = first + np.arange(len(part))
        table.put(ids, said(value.tolist()), time, position)
        for node, t, p, v in zip(*(x.tolist() for x in (ids, time, position, value)), strict=True):
            if (t, p) > naive.get(node, (-1, -1))[:2]:
                naive[node] = t, p, v
    every = np.arange(7)
    got = table.get(every)
    for node in range(7):
        if node in naive:
            assert (
                got.numbers[node, 0] == naive[node][2]
                and got.categories[node, 0] == naive[node][2] + 7
            )
        else:
            assert np.isnan(got.numbers[node]).all() and got.missing[node].all()
    before = table.get(every, np.full(7, 3))
    late = [node for node in naive if naive[node][0] >= 3]
    assert np.isnan(before.numbers[late, 0]).all(), "nothing of the future"
    again = NodeTable(NODED, 16)
    again.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(again.get(every).numbers, got.numbers)


def test_to_say_again_what_is_known_changes_nothing():
    table = NodeTable(NODED, 4)
    ids, time = np.array([1, 2]), np.array([5, 5])
    assert table.put(ids, said([1, 2]), time, np.array([0, 1])).tolist() == [1, 2]
    assert table.put(ids, said([1, 2]), time, np.array([0, 1])).tolist() == [1, 2], "read again"
    assert table.put(ids, said([3, 4]), time - 1, np.array([5, 6])).tolist() == []
    assert table.get(ids).numbers[:, 0].tolist() == [1.0, 2.0]


def test_a_million_nodes_pass_through_a_small_table():
    table, n = NodeTable(NODED, 1000), 20_000
    for first in range(0, 1_000_000, n):
        ids = first + np.arange(n)
        table.put(ids, said(ids.tolist()), ids, ids)
    assert len(table) <= 1000 and len(table.free) + len(table) == 1000
    assert table.get(np.array([999_999])).numbers[0, 0] == 999_999


def test_what_is_forgotten_is_unknown():
    table = NodeTable(NODED, 4)
    table.put(np.array([1]), said([1]), np.array([1]), np.array([1]))
    table.forget(np.array([1, 2]))
    assert len(table) == 0 and table.get(np.array([1])).missing.all()


def described(n: int) -> tuple[GraphLearner, np.random.Generator]:
    made, rng = GraphLearner(CONFIG, ENCODER, NODED), np.random.default_rng(0)
    ids = 1000 + np.arange(60)
    made.describe(told(ids, said((ids % 6).tolist()), START_US - 1))
    for i in range(n):
        made.receive(circles(rng, 32, 32 * i))
        made.learn()
    return made, rng


def test_features_reach_the_vector_of_the_node_and_of_its_neighbours():
    made, _ = described(6)
    windows = made.windows(20, held=False)
    assert windows.own is not None and windows.far is not None
    assert (windows.own.categories[:, 0] == windows.entity % 6 + 7).all()
    with torch.no_grad():
        z = made.ema(pad(windows, 0)).z_BD
        for side in ("own", "far"):
            other = Windows.of_arrays({k: v.copy() for k, v in windows.arrays().items()})
            getattr(other, side).numbers[:, 0] += 3.0
            assert (made.ema(pad(other, 0)).z_BD - z).abs().max() > 1e-3, side


def test_what_is_said_of_a_node_later_is_not_known_of_an_edge_before():
    made, _ = described(0)
    made.share = 0.0
    late = START_US + 50 * 1_000_000
    made.receive(edges([1, 1], [2, 2], [49, 51]))
    made.describe(told([1, 2], said([4, 5]), late))
    drawn = made.replay.draw(4, 0.0, made.held, made.rng)
    order = np.argsort(drawn.time_us)
    own = drawn.described.features.take(drawn.described.own)
    assert np.isnan(own.numbers[order[0], :2, 0]).all()
    assert own.numbers[order[1], :2, 0].tolist() == [4.0, 5.0]
    far = drawn.described.features.take(drawn.described.far[order[1], 0, 0])
    assert far.numbers[0] == 5.0, "of the edge before, as of this one"


def test_examples_keep_no_features():
    """Of every neighbour of every node of an example they would be most of it."""
    wide = msgspec.structs.replace(SHAPE, node_numbers=1000)
    assert Store(1 << 20, wide, 20, 22).slots == Store(1 << 20, SHAPE, 20, 22).slots > 2


def test_a_learner_with_nodes_continues_bit_by_bit():
    a, rng = described(8)
    b = GraphLearner(CONFIG, ENCODER, NODED)
    b.load_state_dict(*a.state_dict())
    more = circles(rng, 32, 999)
    for made in (a, b):
        made.receive(more)
    assert a.learn().loss == b.learn().loss


@pytest.mark.parametrize(("numbers", "categories"), [(2, 1), (3, 0), (0, 2)])
def test_onnx_computes_what_pytorch_does(numbers, categories):
    shape = msgspec.structs.replace(SHAPE, node_numbers=numbers, node_categories=categories)
    torch.manual_seed(0)
    config = TemporalAttentionConfig(
        dim=8, hidden=8, window=6, category_dim=3, bucket_bits=4, pair_hidden=8
    )
    made, rng = GraphLearner(CONFIG, config, shape), np.random.default_rng(1)
    ids = 1000 + np.arange(40)
    features = Features.empty(shape, 40)
    features.numbers[:] = rng.normal(size=features.numbers.shape)
    features.categories[:] = rng.integers(0, 9, features.categories.shape)
    features.missing[:20] = False
    made.describe(told(ids, features, START_US - 1))
    made.receive(circles(rng, 200))
    made.replay.enter(200)
    windows = made.windows(30, held=False)
    encoder = encoders.build(config, shape).eval()
    encoder.node.renormalise(torch.from_numpy(features.numbers))
    graphs = export.export(encoder, {})
    assert export.parity(encoder, graphs, windows) < 1e-5


def test_another_normaliser_of_nodes_is_the_same_function():
    torch.manual_seed(0)
    encoder = encoders.build(ENCODER, NODED).eval()
    features = said([1.0, 5.0, 9.0])
    args = [torch.from_numpy(a) for a in (features.numbers, features.categories, features.missing)]
    with torch.no_grad():
        before = encoder.node(*args)
        encoder.node.renormalise(torch.tensor([[2.0, 3.0], [10.0, -4.0], [6.0, 0.1]]))
        assert encoder.node.mean.abs().min() > 0
        torch.testing.assert_close(encoder.node(*args), before, atol=1e-5, rtol=1e-5)
