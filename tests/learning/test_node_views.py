"""Views of nodes: what is dropped, hidden and weighted is what was asked for, and nothing else changes."""

import msgspec
import numpy as np
import pytest
import torch

from learning import encoders, nodes
from learning.config import NextInteractionConfig
from learning.contract import Needs
from learning.edges import EdgeReplay
from learning.kinds.events import pad
from learning.kinds.graph import Graph
from learning.nodes import Drawn, Nodes
from learning.student import Student
from schemas.records import Features
from schemas.stream import NEIGHBOUR
from tests.learning.edge_streams import CONFIG, ENCODER, SHAPE, START_US, circles
from tests.learning.test_node_table import NODED, said


def drawn(needs: Needs, shape=NODED, described=60) -> tuple[EdgeReplay, Nodes]:
    made = EdgeReplay(CONFIG.replay, shape, ENCODER.window, NextInteractionConfig())
    ids = 1000 + np.arange(described)
    made.table.put(ids, said((ids % 6).tolist()), np.full(described, START_US - 1), ids)
    made.add(circles(np.random.default_rng(0), 300))
    made.enter(300)
    found = nodes.draw(made, 24, needs, 0.0, 0, np.random.default_rng(1))
    assert found is not None
    return made, found


def views(found: Nodes, needs: Needs, *, augment=False, seed=0):
    return Graph(ENCODER).views(
        Drawn(nodes=found), needs, np.random.default_rng(seed), augment=augment
    )


def test_a_node_as_it_is_has_the_vector_that_is_published():
    """Through the table of distinct nodes and through the columns of a release; some nodes are not described."""
    needs = Needs(window=True)
    made, found = drawn(needs, described=30)
    torch.manual_seed(0)
    encoder = encoders.build(ENCODER, NODED).eval()
    at = made.adjacency
    windows = made.known(at.windows(np.array([at.index[i] for i in found.ids.tolist()])))
    with torch.no_grad():
        expected = encoder(pad(windows, 0)).z_BD
        view = views(found, needs).views["window"]
        torch.testing.assert_close(encoder(view).z_BD, expected)
        torch.testing.assert_close(Student(encoder, 4)(view).z_BD, expected)


@pytest.mark.parametrize("missing", [False, True])
def test_a_table_is_read_as_its_rows_would_be(missing):
    """The short way, where no number is missing, and the long one."""
    shape = msgspec.structs.replace(SHAPE, node_numbers=5)
    torch.manual_seed(0)
    node = encoders.build(ENCODER, shape).node
    numbers = torch.randn(7, 5)
    numbers[-1] = torch.nan
    if missing:
        numbers[2, 3] = torch.nan
    none = torch.zeros(7, 0, dtype=torch.int64)
    hidden = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    got = node.of_table(numbers, none, none.bool(), hidden)
    expected = [
        node(numbers[:-1].masked_fill(h, torch.nan), none[:-1], none[:-1].bool()) for h in hidden
    ]
    expected.append(node(numbers[-1:], none[-1:], none[-1:].bool()))
    torch.testing.assert_close(got, torch.cat(expected))


def test_a_slice_has_some_of_the_nodes_edges_in_their_order():
    needs = Needs(slices=2, shortest=0.3, longest=0.7)
    _, found = drawn(needs)
    batch = views(found, needs)
    view, owner = batch.views["slices"], np.unique(found.walks)[batch.index["owner_M"]]
    kept = 0
    for m, node in enumerate(owner.tolist()):
        n, every = int(view["length"][m]), found.rows.time_us[node, : found.length[node]]
        slice_us = view["time_us"][m, :n].numpy()
        assert 1 <= n <= len(every) and np.isin(slice_us, every).all()
        assert (np.diff(slice_us) > 0).all() and view["valid_BT"][m].sum() == n
        kept += n
        far = view["far_at"][m, :n].numpy() % (len(found.described.features.numbers) - 1)
        expected = found.described.far[node, : len(every)][np.searchsorted(every, slice_us)]
        assert (far == expected).all(), "features go with their edges"
    assert 0.4 < kept / found.length[owner].sum() < 0.65
    first, second = batch.pairs["positives"]
    assert (batch.index["owner_M"][first] == batch.index["owner_M"][second]).all()


def test_slices_do_without_fields_alike_in_all_nodes():
    needs = Needs(slices=2, hidden=0.3)
    _, found = drawn(needs)
    n = len(found.described.features.numbers)
    none = np.zeros((n, 0), np.int64)
    found.described.features = Features(np.ones((n, 400), np.float32), none, none > 0)
    hidden = views(found, needs).views["slices"]["table_hidden"].float()
    assert hidden.shape == (2, 400) and ((hidden.mean(1) - 0.3).abs() < 0.1).all()
    assert 0.2 < (hidden[0] != hidden[1]).float().mean() < 0.65, "each view others"


def test_a_hidden_node_is_hidden_wherever_it_is_seen():
    needs = Needs(masked=0.5, walk=4)
    _, found = drawn(needs)
    batch = views(found, needs)
    view, hidden, near = batch.views["masked"], batch.index["masked_U"], batch.index["near_UT"]
    blank = len(found.described.features.numbers) - 1
    assert 0.2 < hidden.float().mean() < 0.8
    assert torch.equal(view["node_at"] == blank, hidden)
    there = view["valid_BT"]
    seen = hidden[near.clamp(min=0)] & (near >= 0)
    assert torch.equal((view["far_at"] == blank) & there, seen & there)
    assert (found.ids[near[near >= 0]] == view["categories"][near >= 0][:, NEIGHBOUR].numpy()).all()


def test_bandwidths_are_shares_of_a_nodes_edges_and_weigh_its_messages():
    needs = Needs(bandwidth=1.0, walk=4)
    _, found = drawn(needs)
    view = views(found, needs).views["bandwidth"]
    weight, valid = view["bandwidth_BT"], view["valid_BT"]
    assert (weight[~valid] == 0).all() and (weight[valid] > 0).all()
    torch.testing.assert_close(weight.sum(1), view["length"].float())
    torch.manual_seed(0)
    encoder = encoders.build(ENCODER, NODED).eval()
    with torch.no_grad():
        plain, narrow = (encoder({**view, "bandwidth_BT": w}) for w in (valid.float(), weight))
        torch.testing.assert_close(narrow.h_BTD, plain.h_BTD * weight.unsqueeze(2))
        assert (narrow.z_BD - plain.z_BD).abs().max() > 1e-3
        without = {name: t for name, t in view.items() if name != "bandwidth_BT"}
        torch.testing.assert_close(plain.z_BD, encoder(without).z_BD)
