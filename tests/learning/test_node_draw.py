"""Nodes drawn as they are now: held-out ones never, fresh ones first, walks along live edges, the same again."""

import json

import msgspec
import numpy as np
import pytest

from learning import nodes
from learning.config import (
    BandanaConfig,
    GraceConfig,
    GraphmaeConfig,
    NextInteractionConfig,
    Node2vecConfig,
    VicregConfig,
)
from learning.contract import Needs
from learning.edges import EdgeReplay
from learning.graph_learner import GraphLearner
from learning.held_out import held_out
from tests.learning.edge_streams import CONFIG, ENCODER, SHAPE, START_US, circles, edges
from tests.learning.test_node_table import NODED, said, told

NEEDS = Needs(window=True, walk=4, others=10)


def replay(n: int = 300) -> EdgeReplay:
    made = EdgeReplay(CONFIG.replay, SHAPE, ENCODER.window, NextInteractionConfig())
    made.add(circles(np.random.default_rng(0), n))
    made.enter(n)
    return made


def test_held_out_nodes_are_never_drawn_not_even_as_others():
    made, share = replay(), 0.3
    apart = held_out(1000 + np.arange(60), share).sum()
    assert 0 < apart < 60
    seen = set()
    for i in range(30):
        drawn = nodes.draw(made, 16, NEEDS, share, 0, np.random.default_rng(i))
        assert not held_out(drawn.ids, share).any()
        seen |= set(drawn.ids.tolist())
    assert len(seen) == 60 - apart, "and all others are"


def test_held_out_nodes_are_what_is_scored():
    made, share = replay(), 0.3
    drawn = nodes.held(made, 16, NEEDS, share, np.random.default_rng(0))
    assert held_out(drawn.ids[drawn.walks[:, 0]], share).all()


def test_half_are_nodes_touched_since_the_draw_before():
    made = replay()
    before = made.adjacency.clock
    made.add(edges([7001, 7002], [7003, 7004], [9000, 9001]))
    made.enter(2)
    drawn = nodes.draw(made, 16, Needs(window=True), 0.0, before, np.random.default_rng(0))
    assert set(range(7001, 7005)) <= set(drawn.ids.tolist())
    some = [
        nodes.draw(
            made, 16, Needs(window=True), 0.0, made.adjacency.clock, np.random.default_rng(i)
        )
        for i in range(8)
    ]
    assert not all(set(range(7001, 7005)) <= set(d.ids.tolist()) for d in some), "then they are not"


def test_a_learner_draws_what_is_fresh_once():
    made = GraphLearner(_config(GraceConfig()), ENCODER, SHAPE)
    made.receive(circles(np.random.default_rng(0), 100))
    made.learn()
    assert made.looked == made.replay.adjacency.clock


def test_what_nobody_needs_is_not_drawn():
    only_edges = GraphLearner(CONFIG, ENCODER, SHAPE)
    only_nodes = GraphLearner(_config(GraceConfig()), ENCODER, SHAPE)
    both = GraphLearner(_config(GraceConfig(), *CONFIG.objective), ENCODER, SHAPE)
    for made, wanted in ((only_edges, (1, 0)), (only_nodes, (0, 1)), (both, (1, 1))):
        made.receive(circles(np.random.default_rng(0), 100))
        drawn = made._draw()
        assert (drawn.edges is not None, drawn.nodes is not None) == wanted
        views = made.kind.views(drawn, made.needs, made.rng, augment=True).views
        of_edges = {"nodes", "source", "target"} if wanted[0] else set()
        assert set(views) == of_edges | ({"slices"} if wanted[1] else set())


def test_records_of_nodes_count_as_records():
    made = GraphLearner(CONFIG, ENCODER, NODED)
    made.receive(circles(np.random.default_rng(0), 10))
    made.describe(told([1, 2], said([1, 2]), START_US))
    assert made.records == 12
    made.describe(told([1, 2], said([1, 2]), START_US))
    assert made.records == 12, "told again, by a shard that began anew"
    made.describe(told([2, 3], said([5, 5]), START_US + 1))
    assert made.records == 14


def test_others_are_drawn_by_degree_to_the_three_quarters():
    """A star of 7: its middle has 6 edges, each end 1."""
    made = EdgeReplay(CONFIG.replay, SHAPE, ENCODER.window, NextInteractionConfig())
    made.add(edges([0] * 6, [1, 2, 3, 4, 5, 6], list(range(6))))
    made.enter(6)
    needs = Needs(window=True, others=20_000)
    drawn = nodes.draw(made, 2, needs, 0.0, 0, np.random.default_rng(0))
    share = np.bincount(drawn.ids[drawn.others], minlength=7) / 20_000
    weight = np.array([6, 1, 1, 1, 1, 1, 1]) ** 0.75
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.015)


OBJECTIVES = {
    "grace": (GraceConfig(),),
    "vicreg": (VicregConfig(),),
    "graphmae": (GraphmaeConfig(),),
    "bandana": (BandanaConfig(),),
    "node2vec": (Node2vecConfig(returns=0.5, onward=2.0),),
    "all": (GraceConfig(), GraphmaeConfig(), BandanaConfig(), Node2vecConfig(), *CONFIG.objective),
}


def _config(*objectives):
    return msgspec.structs.replace(CONFIG, objective=objectives)


def _learner(objectives) -> GraphLearner:
    made = GraphLearner(_config(*objectives), ENCODER, NODED)
    ids = 1000 + np.arange(60)
    made.describe(told(ids, said((ids % 6).tolist()), START_US - 1))
    return made


@pytest.mark.parametrize("objectives", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_it_learns_and_continues_bit_by_bit(objectives):
    a, b, rng = _learner(objectives), _learner(objectives), np.random.default_rng(0)
    losses = []
    for i in range(40):
        a.receive(circles(rng, 32, 32 * i))
        step = a.learn()
        losses += [step.loss] if step else []
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    flat, meta = a.state_dict()
    b.load_state_dict(flat, json.loads(json.dumps(meta)))
    for i in range(40, 44):
        more = circles(rng, 32, 32 * i)
        for each in (a, b):
            each.receive(more)
        assert a.learn() == b.learn()
    assert a.evaluate() == b.evaluate()
    assert np.isfinite(a.evaluate().loss)


@pytest.mark.parametrize("objectives", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_to_score_what_is_held_out_changes_nothing(objectives):
    a, b = _learner(objectives), _learner(objectives)
    for i in range(6):
        for made in (a, b):
            made.receive(circles(np.random.default_rng(i), 32, 32 * i))
        b.evaluate()
        assert a.learn() == b.learn()
