"""Random edges for the tests of learning on graphs."""

import numpy as np

from learning.config import (
    LearnerConfig,
    NextInteractionConfig,
    ReplayConfig,
    TemporalAttentionConfig,
)
from schemas.records import Rows, Windows
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

SHAPE = Shape(2, 3, graph=True, typed=True)  # direction, a number; neighbour, type, a category
ENCODER = TemporalAttentionConfig(
    dim=8, hidden=8, window=6, heads=2, category_dim=3, bucket_bits=4, pair_hidden=8
)
CONFIG = LearnerConfig(
    objective=(NextInteractionConfig(historical=2, matched=2, random=2),),
    batch_entities=16,
    min_entities=8,
    warmup_updates=2,
    replay=ReplayConfig(max_bytes=1 << 20),
)
START_US = 1_600_000_000_000_000


def edges(
    source: list[int],
    target: list[int],
    time_s: list[int],
    removed: list[bool] | None = None,
    kind: list[int] | None = None,
    first: int = 0,
) -> Windows:
    """Edges by their source, one row per window; nodes are their own hashes."""
    n = len(source)
    rows = Rows.empty(SHAPE, n)
    rows.time_us[:] = START_US + np.array(time_s, np.int64) * 1_000_000
    rows.position[:] = first + np.arange(n)
    rows.numbers[:] = 0.5
    rows.numbers[:, DIRECTION] = 1.0
    rows.categories[:, NEIGHBOUR] = target
    rows.categories[:, 1] = kind or 0
    rows.missing[:] = False
    rows.missing[:, NEIGHBOUR] = False if removed is None else removed
    return Windows(
        rows,
        np.arange(n + 1),
        np.zeros((n, SHAPE.totals)),
        rows.time_us.copy(),
        np.array(source, np.int64),
    )


def circles(rng: np.random.Generator, n: int, first: int = 0, nodes: int = 60) -> Windows:
    """Nodes that keep to a circle of six, each writing most often to the one it wrote to last but one."""
    source = rng.integers(0, nodes, n)
    target = source // 6 * 6 + (source + 1 + rng.integers(0, 2, n)) % 6
    return edges(
        (source + 1000).tolist(),
        (target + 1000).tolist(),
        list(range(first, first + n)),
        first=first,
    )
