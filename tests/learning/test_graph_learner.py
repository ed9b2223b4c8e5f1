"""Learning on graphs: nothing of the future, each edge once, held-out nodes apart, bit by bit after a restart."""

import json
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch

from learning import encoders, export
from learning.adjacency import SLACK
from learning.config import NextInteractionConfig, ReplayConfig
from learning.edges import SOURCE, TARGET, EdgeReplay, Store
from learning.graph_learner import GraphLearner
from learning.held_out import held_out
from learning.kinds.events import pad
from learning.objectives.next_interaction import in_batch, next_interaction
from schemas.errors import SettingsError
from schemas.stream import NEIGHBOUR, Shape
from tests.learning.edge_streams import CONFIG, ENCODER, SHAPE, circles, edges


def learner(**changes) -> GraphLearner:
    config = CONFIG if not changes else type(CONFIG)(**{**_fields(CONFIG), **changes})
    return GraphLearner(config, ENCODER, SHAPE)


def _fields(config) -> dict:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def replay() -> tuple[EdgeReplay, Store]:
    contrast = NextInteractionConfig(historical=2, matched=2, random=2)
    made = EdgeReplay(CONFIG.replay, SHAPE, ENCODER.window, contrast)
    return made, Store(1 << 18, SHAPE, ENCODER.window, 8)


def test_an_edge_is_learnt_from_as_of_the_moment_before_it():
    """A label planted in the future, its own edge included, is not among the neighbours."""
    made, held = replay()
    rng = np.random.default_rng(0)
    made.add(circles(rng, 200))
    for _ in range(12):
        drawn = made.draw(32, 0.0, held, rng)
        there = np.arange(ENCODER.window) < drawn.length[..., None]
        before = drawn.rows.time_us < drawn.time_us[:, None, None]
        assert (before | ~there).all()


def test_the_next_edge_of_a_node_sees_the_one_before_it_in_the_same_batch():
    made, held = replay()
    made.add(edges([1, 1, 1, 1], [2, 3, 2, 3], [1, 2, 3, 4]))
    drawn = made.draw(8, 0.0, held, np.random.default_rng(0))
    assert drawn.length[:, SOURCE].tolist() == [0, 1, 2, 3]
    assert drawn.length[:, TARGET].tolist() == [0, 0, 1, 1]


def test_a_busy_node_has_its_whole_window_whatever_the_batch():
    made, held = replay()
    made.add(edges(list(range(100, 400)), [1] * 300, list(range(300))))
    lengths = [made.draw(2 * 64, 0.0, held, np.random.default_rng(0)) for _ in range(4)]
    fresh = made.store.newest(200)
    assert lengths and (fresh.length[:, TARGET] == ENCODER.window).all()


def test_the_far_ends_neighbours_are_admitted_too():
    """Of a bipartite graph: sources are neighbours of targets alone."""
    ids = type(ENCODER)(**{**_fields(ENCODER), "neighbour_ids": True, "bucket_bits": 16})
    made = GraphLearner(CONFIG, ids, SHAPE)
    source = [1000 + i % 7 for i in range(70)]
    made.receive(edges(source, [2000 + i % 3 for i in range(70)], list(range(70))))
    made.share = 0.0
    made.receive(edges(source, [2000 + i % 3 for i in range(70)], list(range(70, 140))))
    buckets = np.array([*range(1000, 1007), *range(2000, 2003)]) & (2**16 - 1)
    assert (made.admission.seen[0, buckets] >= 10).all()


@pytest.mark.parametrize("max_bytes", [1 << 20, 1 << 21])
def test_a_replay_is_restored_also_into_more_room(max_bytes):
    a, rng = learner(held_out_share=0.0), np.random.default_rng(0)
    for i in range(12):
        a.receive(circles(rng, 32, 32 * i))
        a.learn()
    flat, meta = a.state_dict()
    b = learner(held_out_share=0.0, replay=ReplayConfig(max_bytes=max_bytes))
    b.load_state_dict(flat, meta)
    assert len(b.replay.store) == len(a.replay.store)
    b.receive(circles(rng, 32, 999))
    assert np.isfinite(b.learn().loss)


def test_other_negatives_begin_a_new_replay():
    a, rng = learner(held_out_share=0.0), np.random.default_rng(0)
    for i in range(12):
        a.receive(circles(rng, 32, 32 * i))
        a.learn()
    flat, meta = a.state_dict()
    more = NextInteractionConfig(historical=4, matched=2, random=2)
    b = learner(held_out_share=0.0, objective=(more,))
    b.load_state_dict(flat, meta)
    assert len(b.replay.store) == 0 and len(b.replay.adjacency) == len(a.replay.adjacency)
    b.receive(circles(rng, 32, 999))
    assert np.isfinite(b.learn().loss)


def test_each_edge_is_fresh_once():
    made, held = replay()
    made.add(circles(np.random.default_rng(0), 300))
    seen = Counter()
    for _ in range(40):
        before = made.store.placed
        made.draw(16, 0.0, held, np.random.default_rng(1))
        fresh = made.store.newest(made.store.placed - before)
        if fresh is not None:
            seen.update(fresh.time_us.tolist())
    assert len(seen) == 300 and set(seen.values()) == {1}


def test_held_out_nodes_are_scored_and_are_neither_examples_nor_negatives():
    made, held = replay()
    share = 0.3
    made.add(circles(np.random.default_rng(0), 400))
    for _ in range(60):
        drawn = made.draw(16, share, held, np.random.default_rng(2))
        if drawn is None:
            continue
        ends = held_out(drawn.nodes[:, : TARGET + 1].ravel(), share)
        assert not ends.any()
        others = held_out(drawn.nodes.ravel(), share).reshape(drawn.nodes.shape)
        assert (drawn.collides | ~others).all()
    assert len(held) > 0
    apart = held.newest(len(held)).nodes[:, : TARGET + 1]
    assert held_out(apart.ravel(), share).reshape(apart.shape).any(1).all()
    assert len(made.adjacency) == 60, "their edges are in the graph"


def test_negatives_that_are_true_do_not_count():
    made, held = replay()
    made.add(edges([1, 2] * 20, [2, 1] * 20, list(range(40))))
    drawn = made.draw(64, 0.0, held, np.random.default_rng(0))
    same = (drawn.nodes[:, 2:] == drawn.nodes[:, [TARGET]]) | (
        drawn.nodes[:, 2:] == drawn.nodes[:, [SOURCE]]
    )
    assert same.all() and drawn.collides[:, 2:].all() and not drawn.collides[:, TARGET].any()


def test_the_loss_is_a_softmax_over_those_that_do_not_collide():
    logits = torch.tensor([[2.0, 1.0, 5.0], [0.0, 0.0, 0.0]])
    collides = torch.tensor([[False, False, True], [False, False, False]])
    by_hand = -(np.log(np.e**2 / (np.e**2 + np.e)) + np.log(1 / 3)) / 2
    assert float(next_interaction(logits, collides)) == pytest.approx(by_hand, abs=1e-6)


def test_in_a_batch_only_targets_known_by_then_are_negatives():
    nodes = torch.tensor([[1, 2], [3, 4], [2, 5], [6, 2]])
    banned = in_batch(nodes, torch.tensor([10, 20, 30, 40]))
    assert banned.tolist() == [
        [True, True, True, True],  # of edge 0: itself; the others come later
        [False, True, True, True],
        [True, False, True, True],  # its source is node 2
        [True, False, False, True],  # its target is node 2
    ]


def test_a_restored_learner_continues_bit_by_bit():
    a, b, rng = learner(), learner(), np.random.default_rng(0)
    for i in range(12):
        a.receive(circles(rng, 32, 32 * i))
        a.learn()
    flat, meta = a.state_dict()
    b.load_state_dict(flat, json.loads(json.dumps(meta)))
    for i in range(12, 20):
        more = circles(rng, 32, 32 * i)
        for each in (a, b):
            each.receive(more)
        assert a.learn() == b.learn()
    assert a.evaluate() == b.evaluate()


@pytest.mark.parametrize("window", [4, 10])
def test_with_another_window_it_goes_on_from_the_edges_that_it_has(window):
    a, rng = learner(), np.random.default_rng(0)
    for i in range(12):
        a.receive(circles(rng, 32, 32 * i))
        a.learn()
    flat, meta = a.state_dict()
    b = GraphLearner(CONFIG, msgspec.structs.replace(ENCODER, window=window), SHAPE)
    b.inherit(flat, json.loads(json.dumps(meta)))
    before, now = a.replay.adjacency, b.replay.adjacency
    assert set(now.index) == set(before.index)
    for node, slot in before.index.items():
        mine, rows = now.index[node], before.rows.time_us[slot, : before.placed[slot]]
        found = now.rows.time_us[mine, : now.placed[mine]]
        np.testing.assert_array_equal(found, rows[-SLACK * window :])
    was, kept = a.replay.store.newest(50), b.replay.store.newest(50)
    assert was is not None and kept is not None
    np.testing.assert_array_equal(kept.length, np.minimum(was.length, window))
    newest = [
        np.take_along_axis(e.rows.position, np.maximum(e.length - 1, 0)[..., None], 2)
        for e in (was, kept)
    ]
    np.testing.assert_array_equal(*newest)
    assert kept.rows.numbers.shape[2] == window
    b.receive(circles(rng, 32, 32 * 12))
    assert b.learn() is not None


def test_it_learns_who_writes_to_whom():
    pairs = NextInteractionConfig(historical=2, matched=2, random=2, vectors=0.0)
    made = learner(held_out_share=0.0, objective=(pairs,))
    rng, losses = np.random.default_rng(0), []
    for i in range(200):
        made.receive(circles(rng, 8, 8 * i))
        step = made.learn()
        losses += [step.loss] if step else []
    assert np.mean(losses[-30:]) < 0.7 * np.mean(losses[:30])


def test_what_is_forgotten_is_in_no_later_batch():
    made, rng = learner(held_out_share=0.0), np.random.default_rng(0)
    for i in range(8):
        made.receive(circles(rng, 32, 32 * i))
        made.learn()
    gone = np.arange(1000, 1003)
    made.forget(gone)
    for _ in range(10):
        drawn = made.replay.draw(16, 0.0, made.held, rng)
        assert not np.isin(drawn.nodes[~drawn.collides], gone).any()
        there = np.arange(ENCODER.window) < drawn.length[..., None]
        assert not np.isin(drawn.rows.categories[..., NEIGHBOUR][there], gone).any()


def test_an_encoder_of_graphs_refuses_a_stream_of_events():
    with pytest.raises(SettingsError, match=r"stream\.kind"):
        GraphLearner(CONFIG, ENCODER, Shape(2, 3))


def test_both_graphs_of_a_release_compute_what_pytorch_does():
    made, rng = learner(), np.random.default_rng(0)
    for i in range(12):
        made.receive(circles(rng, 32, 32 * i))
        made.learn()
    encoder = made.released()
    graphs = export.export(encoder, {"stream": "test"})
    assert list(graphs) == ["encode", "score"]
    windows = made.windows(40, held=False)
    assert export.parity(encoder, graphs, windows) <= 1e-5
    other = encoders.build(ENCODER, SHAPE).eval()
    assert export.parity(other, graphs, windows) > 1e-3


def test_padding_company_and_the_neighbours_names_change_no_vector():
    encoder = encoders.build(ENCODER, SHAPE).eval()
    made = learner()
    made.receive(circles(np.random.default_rng(0), 200))
    made.replay.enter(200)
    view = pad(made.windows(20, held=False), 0)
    with torch.no_grad():
        together = encoder(view).z_BD
        for b in range(5):
            n = int(view["length"][b])
            alone = {name: t[b : b + 1] for name, t in view.items()}
            for name in ("time_us", "numbers", "categories", "missing"):
                alone[name] = alone[name][:, :n]
            assert torch.allclose(encoder(alone).z_BD, together[b : b + 1], atol=1e-6)
        renamed = {**view, "categories": view["categories"].clone()}
        renamed["categories"][:, :, NEIGHBOUR] += 77
        assert torch.equal(encoder(renamed).z_BD, together)


def test_a_node_without_edges_has_a_vector_of_unit_length():
    encoder = encoders.build(ENCODER, SHAPE).eval()
    made = learner()
    made.receive(circles(np.random.default_rng(0), 200))
    made.replay.enter(200)
    view = pad(made.windows(4, held=False), 0)
    view["length"] = torch.zeros_like(view["length"])
    with torch.no_grad():
        z_BD = encoder(view).z_BD
    assert torch.allclose(z_BD.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.allclose(z_BD, z_BD[:1].expand(4, -1)), "whatever the padding holds"


def test_nodes_that_edges_came_to_since_are_cut_as_they_are_now():
    made, _ = replay()
    rng = np.random.default_rng(0)
    made.add(circles(rng, 100))
    made.enter(100)
    clock = made.adjacency.clock
    assert len(made.touched(1000, clock, rng)) == 0
    made.add(edges([1000, 2000], [2001, 2001], [200, 201], first=100))
    made.enter(2)
    found = made.touched(1000, clock, rng)
    assert sorted(found.entity.tolist()) == [1000, 2000, 2001]
    at = found.entity.tolist().index(2001)
    last = found.rows.categories[found.offsets[at] : found.offsets[at + 1], NEIGHBOUR]
    assert last.tolist() == [1000, 2000]
    assert len(made.touched(2, clock, rng)) == 2
