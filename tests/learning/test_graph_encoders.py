"""Encoders of nodes: ONNX Runtime computes what PyTorch does, padding and company change nothing, losses are theirs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning import encoders, export
from learning.config import (
    EdgePresenceConfig,
    GraphMemoryConfig,
    GraphMixerConfig,
    NextInteractionConfig,
    TemporalAttentionConfig,
)
from learning.encoders.temporal_attention import presence_losses
from learning.graph_learner import GraphLearner
from learning.kinds.events import pad
from learning.memory_learner import MemoryLearner
from learning.objectives import build
from schemas.errors import SettingsError
from schemas.records import Features, Windows
from schemas.stream import Shape
from tests.learning.edge_streams import CONFIG, ENCODER, SHAPE, circles
from tests.learning.test_graph_learner import _fields

SMALL = {"dim": 8, "hidden": 8, "window": 6, "category_dim": 3, "bucket_bits": 4, "pair_hidden": 8}
CONFIGS = {
    "mixer": GraphMixerConfig(**SMALL),
    "memory": GraphMemoryConfig(**SMALL),
    "supergat": TemporalAttentionConfig(**SMALL, edge_presence=True),
}
NODED = Shape(2, 3, graph=True, typed=True, node_numbers=2, node_categories=1)


def windows_of(shape: Shape) -> Windows:
    made = GraphLearner(CONFIG, ENCODER, SHAPE)
    rng = np.random.default_rng(0)
    made.receive(circles(rng, 200))
    made.replay.enter(200)
    found = made.windows(30, held=False)
    if shape.noded:
        found.own, found.far = (
            Features(
                rng.standard_normal((n, 2)).astype(np.float32),
                rng.integers(0, 99, (n, 1)),
                rng.random((n, 1)) < 0.3,
            )
            for n in (len(found), len(found.rows))
        )
    return found


@pytest.mark.parametrize("shape", [SHAPE, NODED], ids=["plain", "noded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_release_computes_what_pytorch_does(name, shape):
    torch.manual_seed(3)
    encoder = encoders.build(CONFIGS[name], shape).eval()
    graphs = export.export(encoder, {"stream": "test"})
    assert export.parity(encoder, graphs, windows_of(shape)) <= 1e-5
    other = encoders.build(CONFIGS[name], shape).eval()
    again = export.export(other, {"stream": "test"})  # new weights into the same graph
    assert export.parity(other, again, windows_of(shape)) <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_company_change_no_vector(name):
    torch.manual_seed(3)
    encoder = encoders.build(CONFIGS[name], SHAPE).eval()
    view = pad(windows_of(SHAPE), 0)
    with torch.no_grad():
        together = encoder(view).z_BD
        for b in range(0, 30, 6):
            n = int(view["length"][b])
            alone = {key: t[b : b + 1] for key, t in view.items()}
            for key in ("time_us", "numbers", "categories", "missing"):
                alone[key] = alone[key][:, :n]
            assert torch.allclose(encoder(alone).z_BD, together[b : b + 1], atol=1e-6)
        nothing = {**view, "length": torch.zeros_like(view["length"])}
        z_BD = encoder(nothing).z_BD
    assert torch.allclose(z_BD, z_BD[:1].expand(30, -1), atol=1e-6), "whatever the padding holds"
    assert torch.allclose(z_BD.norm(dim=1), torch.ones(30), atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_learns_from_a_batch(name):
    pairs = NextInteractionConfig(historical=2, matched=2, random=2, pairs=0.0)
    more = (EdgePresenceConfig(weight=0.1),) if name == "supergat" else ()
    fields = {**_fields(CONFIG), "objective": (pairs, *more), "held_out_share": 0.0}
    make = MemoryLearner if name == "memory" else GraphLearner
    made = make(type(CONFIG)(**fields), CONFIGS[name], SHAPE)
    rng = np.random.default_rng(0)
    for i in range(10):
        made.receive(circles(rng, 16, 16 * i))
        made.learn()
    made.receive(circles(rng, 16, 160))
    made.encoder.train()
    batch = made.kind.views(made._draw(), made.needs, made.rng, augment=False)
    losses, _ = made._losses(made.encoder, batch)
    sum(losses).backward()
    still = [
        key
        for key, weight in made.encoder.named_parameters()
        if not key.startswith("pairs.") and (weight.grad is None or not weight.grad.any())
    ]
    assert not still


def test_edge_presence_is_the_papers_cross_entropy():
    """SuperGAT, equation 5: over edges and pairs that are none, of sigmoid(dot)."""
    rng = torch.Generator().manual_seed(0)
    dot, none = torch.randn(4, 2, 5, generator=rng), torch.randn(4, 2, 5, generator=rng)
    valid = torch.arange(5) < torch.tensor([[0], [2], [5], [1]])
    other = torch.roll(valid, 1, 0)
    total, many = presence_losses(dot, valid, none, other).sum(0)
    edges = torch.stack(
        [dot[b, h, t] for b in range(4) for h in range(2) for t in range(5) if valid[b, t]]
    )
    pairs = torch.stack(
        [none[b, h, t] for b in range(4) for h in range(2) for t in range(5) if other[b, t]]
    )
    labels = torch.cat([torch.ones_like(edges), torch.zeros_like(pairs)])
    wanted = F.binary_cross_entropy(torch.sigmoid(torch.cat([edges, pairs])), labels)
    assert float(total / many) == pytest.approx(float(wanted), abs=1e-6)


def test_attention_is_scaled_by_the_chance_of_an_edge():
    """SuperGAT's MX: a · [query, key] times sigmoid(query · key), by hand."""
    torch.manual_seed(0)
    encoder = encoders.build(CONFIGS["supergat"], SHAPE)
    q, k, x = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 3, 8)
    found = encoder._attend(q, k, x, torch.ones(1, 3, dtype=torch.bool))
    v = encoder.value(x).reshape(1, 3, 2, 4).transpose(1, 2)
    for h in range(2):
        e = []
        for t in range(3):
            pair = torch.cat([q[0, h, 0], k[0, h, t]])
            e.append((encoder.alike[h] @ pair) * torch.sigmoid(q[0, h, 0] @ k[0, h, t] / 2.0))
        wanted = torch.softmax(torch.stack(e), 0) @ v[0, h]
        assert torch.allclose(found[0, 4 * h : 4 * h + 4], wanted, atol=1e-5)


def test_the_objective_needs_the_option():
    with pytest.raises(SettingsError, match=r"encoder\.edge_presence"):
        build(EdgePresenceConfig(), ENCODER, SHAPE)
