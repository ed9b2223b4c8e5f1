"""Random walks over the live adjacency, all of a batch one step at a time.

Shapes: W walks, L nodes of each, K edges of a node."""

import numpy as np

from learning.adjacency import Adjacency
from learning.held_out import held_out
from schemas.records import F64, I64, Bool
from schemas.stream import NEIGHBOUR

NOW = np.iinfo(np.int64).max


def neighbours(adjacency: Adjacency, slots: I64) -> tuple[I64, Bool]:
    """Ids [W, K] of the nodes that each one's newest live edges lead to, and which of them are there."""
    rows, length = adjacency.as_of(slots, np.full(len(slots), NOW))
    there = np.arange(adjacency.window) < length[:, None]
    return rows.categories[..., NEIGHBOUR], there


def bias(
    before: I64, around: I64, around_there: Bool, to: I64, returns: float, onward: float
) -> F64:
    """node2vec's weight of each step [W, K]: 1/p back to `before` [W], 1 to a neighbour of that (`around`
    [W, K]), 1/q further away."""
    near = (to[:, :, None] == around[:, None, :]) & around_there[:, None, :]
    weight = np.where(near.any(2), 1.0, 1.0 / onward)
    return np.where(to == before[:, None], 1.0 / returns, weight)


def walk(
    adjacency: Adjacency,
    starts: I64,
    length: int,
    bias_pq: tuple[float, float],
    share: float,
    rng: np.random.Generator,
) -> I64:
    """Slots [W, length] from the slots `starts` on, never to a node held out at `share`; a walk that cannot go
    on stays. An edge that is there twice is taken twice as often.

    Source: Grover & Leskovec 2016, node2vec, arXiv:1607.00653; p and q are `bias_pq`."""
    path = [starts]
    around = around_there = None
    for _ in range(length - 1):
        here = path[-1]
        to, there = neighbours(adjacency, here)
        weight = (there & ~held_out(to.ravel(), share).reshape(to.shape)).astype(np.float64)
        if around is not None and around_there is not None and bias_pq != (1.0, 1.0):
            before = adjacency.id[path[-2]]
            weight *= bias(before, around, around_there, to, *bias_pq)
        sums = weight.cumsum(1)
        aim = rng.random(len(here)) * sums[:, -1]
        at = np.minimum((sums <= aim[:, None]).sum(1), to.shape[1] - 1)
        aimed = to[np.arange(len(here)), at].tolist()
        found = np.fromiter((adjacency.index.get(i, -1) for i in aimed), np.int64, len(here))
        stays = (sums[:, -1] == 0) | (found < 0)
        path.append(np.where(stays, here, found))
        around, around_there = to, there
    return np.stack(path, 1)
