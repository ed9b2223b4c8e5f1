"""Whole graphs: structure and fields make the vector, names and order do not; looks, loss, learner, ONNX."""

import json

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from learning import encoders, export
from learning.config import AUGMENTATIONS, GraphClConfig, GraphIsomorphismConfig
from learning.field_learner import FieldLearner
from learning.held_out import held_out
from learning.kinds.events import Pieces, columns, pad
from learning.kinds.whole_graphs import looked, walked
from learning.objectives.graphcl import graphcl_loss
from schemas.errors import SettingsError
from schemas.records import Rows
from schemas.stream import ENDS, Shape
from tests.learning.small_graphs import (
    CONFIG,
    ENCODER,
    SHAPE,
    random_edges,
    random_graphs,
    windows_of,
)

BARE = Shape(0, 2, graph=True, whole=True)  # edges without any field


def encoder(config=ENCODER, shape=SHAPE):
    torch.manual_seed(0)
    made = encoders.build(config, shape)
    if shape.categories > 2:
        made.fields.admitted.fill_(value=True)
    return made.eval()


def undirected(**changes) -> GraphIsomorphismConfig:
    return msgspec.structs.replace(ENCODER, directed=False, **changes)


@torch.no_grad()
def vectors(of, parts: list[Rows], shape=SHAPE) -> torch.Tensor:
    return of(pad(windows_of(parts, shape), 0)).z_BD


# -- the encoder ----------------------------------------------------------------------------------


@torch.no_grad()
def dense(of, rows: Rows) -> torch.Tensor:
    """GIN node by node, by the definition: sums over a matrix of edges."""
    view = pad(windows_of([rows]), 0)
    edge_TH = of.fields.project(of.fields.features(of.own(view)))[0]
    names = sorted(set(rows.categories[:, ENDS].ravel().tolist()))
    at = {name: i for i, name in enumerate(names)}
    incident = torch.zeros(len(names), 2 * len(rows))  # a loop is at its node twice
    far, carried = [], []
    for end, other, sign in ((0, 1, -1.0), (1, 0, 1.0)):
        for t in range(len(rows)):
            incident[at[int(rows.categories[t, end])], end * len(rows) + t] = 1.0
            far.append(at[int(rows.categories[t, other])])
            toward = sign * of.toward if of.config.directed else 0.0
            carried.append(edge_TH[t] + toward)
    h = torch.relu(of.start(torch.log1p(incident.sum(1, keepdim=True))))
    read = [h.sum(0)]
    for epsilon, update in zip(of.own_share, of.rounds, strict=True):
        told = torch.relu(h[far] + torch.stack(carried))
        h = update((1 + epsilon) * h + incident @ told)
        read.append(h.sum(0))
    return F.normalize(of.out(torch.cat(read)), dim=0)


@pytest.mark.parametrize("directed", [True, False])
def test_it_is_gin_by_adjacency_matrices(directed):
    of = encoder(msgspec.structs.replace(ENCODER, directed=directed))
    rng = np.random.default_rng(1)
    of.own_share.data.copy_(torch.tensor([0.3, -0.2]))
    parts = [random_edges(rng, n) for n in (1, 2, 7, 16)]
    got = vectors(of, parts)
    for z_D, rows in zip(got, parts, strict=True):
        torch.testing.assert_close(z_D, dense(of, rows), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 16))
def test_neither_the_order_of_edges_nor_the_names_of_nodes_count(seed, n):
    rng = np.random.default_rng(seed)
    of, rows = encoder(), random_edges(rng, n)
    shuffled = rows.take(rng.permutation(n))
    shuffled.time_us = np.sort(shuffled.time_us)
    renamed = rows.take(np.arange(n))
    renamed.categories[:, ENDS] = renamed.categories[:, ENDS] * 5 + 3  # odd: no two names meet
    later = rows.take(np.arange(n))
    later.time_us = later.time_us * 2
    first, *others = vectors(of, [rows, shuffled, renamed, later])
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=0)


def test_structure_fields_types_and_directions_do_count():
    of, rng = encoder(), np.random.default_rng(2)
    path = random_edges(rng, 3)
    path.missing[:], path.numbers[:] = False, 1.0
    path.categories[:] = [[1, 2, 8, 8], [2, 3, 8, 8], [3, 4, 8, 8]]
    variants = {"star": (2, 0, 2), "a cycle": (2, 1, 1), "turned": (1, slice(0, 2), [3, 2])}
    variants |= {"type": (1, 2, 9), "field": (1, 3, 9)}
    parts = [path]
    for row, column, value in variants.values():
        other = path.take(np.arange(3))
        other.categories[row, column] = value
        parts.append(other)
    number = path.take(np.arange(3))
    number.numbers[1, 0] = 2.0
    z_BD = vectors(of, [*parts, number])
    assert ((z_BD[1:] - z_BD[0]).norm(dim=1) > 1e-3).all()
    z_BD = vectors(encoder(undirected()), parts)
    torch.testing.assert_close(z_BD[3], z_BD[0], atol=1e-6, rtol=0)  # turned


def test_parallel_edges_are_not_edges_to_two_nodes():
    of, rng = encoder(undirected(), BARE), np.random.default_rng(3)
    double, fork = random_edges(rng, 4, BARE), random_edges(rng, 4, BARE)
    # degrees alike: 2-2 twice, against a cycle of four
    double.categories[:] = [[1, 2], [2, 1], [3, 4], [3, 4]]
    fork.categories[:] = [[1, 2], [2, 3], [3, 4], [4, 1]]
    a, b = vectors(of, [double, fork], BARE)
    assert (a - b).norm() > 1e-3


@pytest.mark.parametrize("shape", [SHAPE, BARE], ids=["fields", "bare"])
def test_onnx_runtime_computes_the_same_also_of_no_edges(shape):
    config = msgspec.structs.replace(ENCODER, variance=shape is SHAPE)
    of, rng = encoder(config, shape), np.random.default_rng(4)
    graphs = export.export(of, {"release": "1"})
    assert list(graphs) == ["encode"]
    assert export.parity(of, graphs, random_graphs(rng, 12, shape)) <= 1e-5
    view = pad(random_graphs(rng, 3, shape), 0)
    view["length"][1] = 0
    z_BD = of(view).z_BD.detach()
    got = torch.from_numpy(export.run(export.session(graphs["encode"]), view)[0])
    torch.testing.assert_close(got, z_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(z_BD.norm(dim=1), torch.ones(3))


# -- looks ----------------------------------------------------------------------------------------


def looks(rng, windows, **strengths: float):
    """Each graph looked at twice, with these augmentations alone."""
    config = GraphClConfig(**{**dict.fromkeys(AUGMENTATIONS, 0.0), **strengths})
    owner = np.repeat(np.arange(len(windows)), 2)
    n = np.diff(windows.offsets)[owner]
    view = columns(windows, Pieces(owner, windows.offsets[owner], n, windows.totals[owner]), 0)
    return view, looked(view, config, rng)


def edges_of(view, m: int) -> list[tuple]:
    n = int(view["length"][m])
    return [tuple(e) for e in view["categories"][m, :n, ENDS].tolist()]


@pytest.mark.parametrize("way", ["edge_drop", "node_drop", "subgraph"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0.05, 0.95))
def test_a_look_has_edges_of_its_graph_in_their_order(way, seed, strength):
    rng = np.random.default_rng(seed)
    view, look = looks(rng, random_graphs(rng, 6), **{way: strength})
    assert (look["valid_BT"].sum(1) == look["length"]).all()
    for m in range(12):
        before, n = int(view["length"][m]), int(look["length"][m])
        assert 1 <= n <= before
        at = np.searchsorted(view["time_us"][m, :before], look["time_us"][m, :n])
        assert (np.diff(at) > 0).all()
        for name in ("time_us", "numbers", "categories", "missing"):
            np.testing.assert_array_equal(look[name][m, :n], view[name][m, at])


def test_a_node_that_goes_takes_all_its_edges():
    rng = np.random.default_rng(5)
    ring = random_edges(rng, 12)
    ring.categories[:, 0], ring.categories[:, 1] = np.arange(12), (np.arange(12) + 1) % 12
    view, look = looks(rng, windows_of([ring] * 300), node_drop=0.2)
    gone = 0
    for m in range(600):
        left = set(edges_of(look, m))
        kept = {node for e in left for node in e}
        lost = [e for e in edges_of(view, m) if e not in left]
        assert all(set(e) - kept for e in lost), "one end of a lost edge has no edge any more"
        gone += 12 - len(left)
    assert gone / 600 / 12 == pytest.approx(1 - 0.8**2, abs=0.03)


def test_a_walk_finds_a_connected_share_of_the_nodes():
    rng = np.random.default_rng(6)
    ring = np.stack([np.arange(10), (np.arange(10) + 1) % 10], 1)
    ends = np.repeat(ring[None], 64, 0)
    kept = walked(ends, np.ones((64, 10), np.bool_), 0.5, rng)
    for m in range(64):
        chosen = ring[kept[m]]
        nodes = np.unique(chosen)
        assert len(nodes) == len(chosen) + 1 <= 5  # a path: connected, without a cycle
    assert kept.sum(1).mean() > 3
    whole = walked(ends, np.ones((64, 10), np.bool_), 1.0, rng)
    assert whole.all(1).mean() > 0.05


def test_masked_fields_leave_the_structure():
    rng = np.random.default_rng(7)
    view, look = looks(rng, random_graphs(rng, 200), field_mask=0.5)
    assert (look["length"] == view["length"]).all()
    np.testing.assert_array_equal(look["categories"], view["categories"])
    assert not look["missing"][:, :, ENDS].any()
    valid = view["valid_BT"]
    newly = look["missing"][valid][:, 2:].mean(), np.isnan(look["numbers"][valid]).mean()
    assert newly == pytest.approx((0.6, 0.6), abs=0.05)  # a fifth was missing before
    _, bare = looks(rng, random_graphs(rng, 4, BARE), field_mask=0.5)
    assert (bare["length"] > 0).all()


def test_strengths_leave_something_and_do_something():
    with pytest.raises(SettingsError, match="node_drop is 1; it must be below 1"):
        GraphClConfig(node_drop=1.0)
    with pytest.raises(SettingsError, match="must be above 0"):
        GraphClConfig(**dict.fromkeys(AUGMENTATIONS, 0.0))


# -- loss and learner -----------------------------------------------------------------------------


def test_graphcl_is_the_papers_formula():
    """Equation 3 of arXiv:2010.13902, graph by graph, from either view."""
    torch.manual_seed(0)
    a, b, tau = torch.randn(5, 7), torch.randn(5, 7), 0.3
    total = 0.0
    for x, y in ((a, b), (b, a)):
        for n in range(5):
            like = [float(F.cosine_similarity(x[n], y[m], dim=0)) / tau for m in range(5)]
            others = sum(np.exp(s) for m, s in enumerate(like) if m != n)
            total -= np.log(np.exp(like[n]) / others) / 10
    assert float(graphcl_loss(a, b, tau)) == pytest.approx(total, rel=1e-5)
    assert float(graphcl_loss(3 * a, b, tau)) == pytest.approx(total, rel=1e-5)


def fed(learner: FieldLearner, rng, steps: int) -> list[float]:
    out = []
    for i in range(steps):
        learner.receive(random_graphs(rng, 24, first=1 + 24 * i))
        step = learner.learn()
        assert step is not None and not step.skipped
        out.append(step.loss)
    return out


def test_a_restored_learner_continues_bit_by_bit():
    a, b = (FieldLearner(CONFIG, ENCODER, SHAPE) for _ in range(2))
    fed(a, np.random.default_rng(8), 5)
    flat, meta = a.state_dict()
    data = safetensors.torch.save({k: torch.as_tensor(v).contiguous() for k, v in flat.items()})
    b.load_state_dict(dict(safetensors.torch.load(data)), json.loads(json.dumps(meta)))
    assert fed(a, np.random.default_rng(9), 4) == fed(b, np.random.default_rng(9), 4)
    assert a.evaluate() == b.evaluate()
    for p, q in zip(a.ema.state_dict().values(), b.ema.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_a_snapshot_of_a_shape_with_fewer_words_is_taken():
    a, b = (FieldLearner(CONFIG, ENCODER, SHAPE) for _ in range(2))
    flat, meta = a.state_dict()
    node = Shape(1, 1, graph=True)
    del meta["shape"]["session_gap_us"]  # as if it had come later
    b.load_state_dict(flat, meta)
    with pytest.raises(Exception, match="The learner's snapshot has shape"):
        b.load_state_dict(flat, {**meta, "shape": msgspec.to_builtins(node)})


def test_held_out_graphs_and_empty_ones_are_not_learnt_from():
    learner, rng = FieldLearner(CONFIG, ENCODER, SHAPE), np.random.default_rng(10)
    windows = random_graphs(rng, 300)
    learner.receive(windows)
    apart = held_out(windows.entity, learner.share)
    assert 10 < apart.sum() < 60
    assert set(learner.replay.entities) == set(windows.entity[~apart])
    assert set(learner.held.entities) == set(windows.entity[apart])
    empty = random_edges(rng, 0)
    learner.share = 0.0
    assert learner.receive(windows_of([empty, random_edges(rng, 3), empty], first=5000)) == 3
    assert set(learner.replay.entities) - set(windows.entity) == {5001 * 7919}


def test_a_graph_that_lost_edges_has_no_new_ones():
    learner, rng = FieldLearner(CONFIG, ENCODER, SHAPE), np.random.default_rng(13)
    learner.share = 0.0
    rows = random_edges(rng, 12)
    for live, new in ((8, 8), (10, 2), (7, 0), (9, 2)):
        window = windows_of([rows.take(np.arange(live))])
        assert learner.receive(window) == new


def test_it_learns_to_tell_graphs_apart():
    """Rings, stars and cliques of several sizes, with looks of a fifth of the edges gone."""
    rng, learner = np.random.default_rng(11), FieldLearner(CONFIG, undirected(window=32), SHAPE)
    losses = []
    for i in range(120):
        parts = []
        for kind in rng.integers(0, 3, 24):
            n = int(rng.integers(4, 7))
            a, b = np.triu_indices(n, 1)
            pick = [(b - a == 1) | (b - a == n - 1), a == 0, a >= 0][kind]
            rows = random_edges(rng, int(pick.sum()))
            rows.missing[:, 2:], rows.numbers[:] = True, np.nan
            salt = rng.integers(1 << 40)
            rows.categories[:, 0], rows.categories[:, 1] = a[pick] + salt, b[pick] + salt
            parts.append(rows)
        learner.receive(windows_of(parts, first=1 + 24 * i))
        step = learner.learn()
        assert step is not None
        losses.append(step.loss)
    assert np.mean(losses[-20:]) < np.mean(losses[:10]) - 0.3
    assert learner.evaluate().effective_rank > 1.5
