"""Nodes as they are now, for objectives that learn from nodes and not from edges.

Half of a draw are nodes that edges came to since the draw before, half are any. Held-out ones are never drawn: they
are seen as neighbours alone. Shapes: U nodes, K edges of a node, W walks of L nodes."""

from dataclasses import dataclass

import numpy as np

from learning.contract import Needs
from learning.edges import EdgeReplay, Examples
from learning.held_out import held_out
from learning.node_table import Described
from learning.walks import NOW, walk
from schemas.records import I64, Rows
from schemas.stream import NEIGHBOUR

BY_DEGREE = 0.75  # of a node's edges: how often it is drawn as another one (word2vec, node2vec)


@dataclass(slots=True)
class Nodes:
    """U distinct nodes. `walks` and `others` are places in `ids`."""

    ids: I64  # [U] rising
    rows: Rows  # columns [U, K], padded behind `length`
    length: I64  # [U] live edges
    walks: I64  # [W, L]; L is 1 where nobody walks
    others: I64  # [P]
    described: Described | None = None  # where the stream has features of nodes

    def __len__(self) -> int:
        """Nodes that are learnt from, those beside them not counted."""
        return len(np.unique(self.walks))


@dataclass(slots=True)
class Drawn:
    """What one update learns from: of each what an objective needs."""

    edges: Examples | None = None
    nodes: Nodes | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in (self.edges, self.nodes) if part is not None)


def draw(
    replay: EdgeReplay, n: int, needs: Needs, share: float, since: int, rng: np.random.Generator
) -> Nodes | None:
    """Up to n nodes to learn from, those touched after the clock `since` first; None where there are too few."""
    a = replay.adjacency
    slots = a.known()
    slots = slots[~held_out(a.id[slots], share)]
    if len(slots) < 2:
        return None
    many = max(2, n // needs.walk)
    fresh = rng.permutation(slots[a.touched[slots] > since])[: many // 2]
    starts = np.concatenate([fresh, slots[rng.integers(0, len(slots), many - len(fresh))]])
    walks = walk(a, starts, needs.walk, (needs.returns, needs.onward), share, rng)
    return _cut(replay, walks, _by_degree(replay, slots, needs.others, rng))


def held(
    replay: EdgeReplay, n: int, needs: Needs, share: float, rng: np.random.Generator
) -> Nodes | None:
    """Up to n held-out nodes, to be scored: walks from them go anywhere."""
    every = replay.adjacency.known()
    slots = every[held_out(replay.adjacency.id[every], share)]
    if len(slots) < 2:
        return None
    starts = slots[rng.integers(0, len(slots), max(2, n // needs.walk))]
    walks = walk(replay.adjacency, starts, needs.walk, (needs.returns, needs.onward), 0.0, rng)
    return _cut(replay, walks, _by_degree(replay, every, needs.others, rng))


def _by_degree(replay: EdgeReplay, slots: I64, n: int, rng: np.random.Generator) -> I64:
    """n of these slots, by the power BY_DEGREE of the edges that each one's ring holds."""
    sums = (replay.adjacency.placed[slots].astype(np.float64) ** BY_DEGREE).cumsum()
    aim = rng.random(n) * sums[-1]
    at = np.searchsorted(sums, aim, side="right")
    return np.asarray(slots[np.minimum(at, len(slots) - 1)])


def _cut(replay: EdgeReplay, walks: I64, others: I64) -> Nodes:
    a = replay.adjacency
    slots = np.concatenate([walks.ravel(), others])
    ids, first, back = np.unique(a.id[slots], return_index=True, return_inverse=True)
    rows, length = a.as_of(slots[first], np.full(len(ids), NOW))
    walked, beside = back[: walks.size].reshape(walks.shape), back[walks.size :]
    cut = Nodes(ids, rows, length, walked, beside)
    if replay.shape.noded:
        cut.described = replay.table.describe(ids, rows.categories[..., NEIGHBOUR])
    return cut
