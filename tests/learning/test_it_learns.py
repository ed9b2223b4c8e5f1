"""On a small stream with types of entities, what is learnt beats a random encoder."""

import numpy as np
import torch

from learning.config import ColesConfig, GruConfig, LearnerConfig
from learning.field_learner import FieldLearner
from learning.kinds.events import pad, subset
from schemas.records import Rows, Windows, contributions
from schemas.stream import Shape

TYPES, N, T = 6, 240, 24


def typed_stream(rng: np.random.Generator) -> tuple[Windows, np.ndarray]:
    """Entities of a type share how often each category follows another; noise hides the rest."""
    kind = np.arange(N) % TYPES
    habit = rng.dirichlet(np.full(12, 0.4), TYPES)
    category = np.stack([rng.choice(12, T, p=habit[k]) for k in kind])
    noise = rng.integers(0, 10, (N, T))
    numbers = rng.standard_normal((N, T, 2)) * 3
    gaps = rng.exponential(3_600e6, (N, T))
    rows = Rows(
        (1_600_000_000_000_000 + gaps.cumsum(1)).astype(np.int64).ravel(),
        np.arange(N * T),
        numbers.reshape(-1, 2).astype(np.float32),
        np.stack([category.ravel(), noise.ravel()], 1) * 7919,
        np.zeros((N * T, 2), np.bool_),
    )
    totals = np.zeros((N, contributions(rows.numbers).shape[1]))
    totals[:, 1] = 1
    entity = rng.integers(-(2**63), 2**63 - 1, N)
    offsets = np.arange(N + 1) * T
    return Windows(rows, offsets, totals, rows.time_us[offsets[:-1]], entity), kind


def purity(learner: FieldLearner, windows: Windows, kind: np.ndarray) -> float:
    """Share of the 10 nearest neighbours that are of the entity's own type."""
    with torch.no_grad():
        z = learner.released()(pad(windows, learner.encoder_config.state)).z_BD
    cosine = z @ z.T
    cosine.fill_diagonal_(-1)
    near = cosine.topk(10, dim=1).indices.numpy()
    return float((kind[near] == kind[:, None]).mean())


def test_coles_finds_the_types_of_entities():
    rng = np.random.default_rng(0)
    windows, kind = typed_stream(rng)
    config = LearnerConfig(
        objective=(ColesConfig(),), warmup_updates=20, ema_decay=0.98, learning_rate=5e-3
    )
    learner = FieldLearner(config, GruConfig(dim=16, hidden=24, category_dim=6), Shape(2, 2))
    learner.receive(windows)
    learner._admit()
    before = purity(learner, windows, kind)
    assert learner.learn() is not None
    first = learner.evaluate().loss
    for _ in range(150):
        learner.learn()
    after = purity(learner, subset(windows, np.arange(N)), kind)
    assert after > before + 0.15, f"{before:.2f} -> {after:.2f}"
    assert learner.evaluate().loss < first
