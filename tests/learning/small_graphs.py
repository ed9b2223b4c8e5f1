"""Small random graphs for the tests of whole graphs, and what a naive reader makes of them."""

import numpy as np

from learning.config import GraphClConfig, GraphIsomorphismConfig, LearnerConfig, ReplayConfig
from schemas.records import Rows, Windows
from schemas.stream import Shape

SHAPE = Shape(2, 4, graph=True, typed=True, whole=True)  # source, neighbour, edge type, what
ENCODER = GraphIsomorphismConfig(
    dim=8, hidden=12, window=16, category_dim=3, bucket_bits=4, rounds=2, directed=True
)
CONFIG = LearnerConfig(
    objective=(GraphClConfig(),),
    batch_entities=16,
    min_entities=8,
    warmup_updates=2,
    replay=ReplayConfig(max_bytes=1 << 20),
)


def random_edges(rng: np.random.Generator, n: int, shape: Shape = SHAPE, nodes: int = 6) -> Rows:
    """Edges among a few nodes, loops and parallel edges included, in order of time."""
    rows = Rows.empty(shape, n)
    rows.time_us[:] = 10**15 + np.cumsum(rng.integers(1, 10**9, n))
    rows.position[:] = np.arange(n)
    rows.numbers[:] = rng.standard_normal((n, shape.numbers))
    rows.numbers[rng.random(rows.numbers.shape) < 0.2] = np.nan
    names = rng.integers(-(2**63), 2**63 - 1, nodes)
    rows.categories[:] = rng.choice(rng.integers(-(2**63), 2**63 - 1, 5), rows.categories.shape)
    rows.categories[:, :2] = rng.choice(names, (n, 2))
    rows.missing[:] = rng.random(rows.missing.shape) < 0.2
    rows.missing[:, :2] = False
    return rows


def windows_of(parts: list[Rows], shape: Shape = SHAPE, first: int = 1000) -> Windows:
    """A window each, of new graphs."""
    n = len(parts)
    return Windows(
        Rows.concat(parts),
        np.concatenate([[0], np.cumsum([len(p) for p in parts])]),
        np.zeros((n, shape.totals)),
        np.array([p.time_us[0] if len(p) else 0 for p in parts]),
        np.arange(first, first + n) * 7919,
    )


def random_graphs(
    rng: np.random.Generator, n: int, shape: Shape = SHAPE, longest: int = 16, first: int = 1000
) -> Windows:
    sizes = rng.integers(1, longest + 1, n).tolist()
    return windows_of([random_edges(rng, size, shape) for size in sizes], shape, first)
