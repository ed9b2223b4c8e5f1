"""Bandana: how much of each edge's message a node was let through is foretold from the ends' vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import BandanaConfig
from learning.contract import Batch, Encode, Needs, Objective, Update


def bandana_loss(edge_E: Tensor, bandwidth_E: Tensor, none_N: Tensor) -> Tensor:
    """Cross-entropy of edges, each weighted by its bandwidth, beside that of pairs that are no edges; means.

    edge_E: logits of edges, bandwidth_E: what the encoder weighted them by, none_N: logits of other pairs.
    Returns a scalar. Source: Bandana, Zhao et al. WWW 2024, arXiv:2402.03814, for one layer."""
    apart = F.softplus(none_N).sum() / max(len(none_N), 1)  # of few nodes each may know all others
    return (bandwidth_E * F.softplus(-edge_E)).mean() + apart


class Bandana(Objective):
    """`name = "bandana"`: bandwidths are Boltzmann-Gibbs over a node's edges, and the head, thrown away at
    release, reads the product of the ends' vectors, each under its own node's bandwidths. The ends of an edge
    must both be in the batch: nodes are drawn by walks."""

    def __init__(self, config: BandanaConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(bandwidth=config.temperature, walk=config.walk)
        n = config.hidden
        self.length = dim**0.5  # of the vectors that the head sees
        self.head = nn.Sequential(nn.Linear(dim, n), nn.ReLU(), nn.Linear(n, 1))

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        view, near_UT = batch.views["bandwidth"], batch.index["near_UT"]
        z_UD = student(view).z_BD * self.length
        row, step = torch.nonzero(near_UT >= 0, as_tuple=True)
        if not len(row):
            return 0.0 * z_UD.float().sum(), {}
        other = torch.randint(len(z_UD), (len(row),)).to(row.device)
        linked = (near_UT[row] == other.unsqueeze(1)).any(1) | (other == row)
        edge = self._score(z_UD, row, near_UT[row, step])
        none = self._score(z_UD, row[~linked], other[~linked])
        share = view["bandwidth_BT"][row, step] / view["length"][row]
        return bandana_loss(edge, share, none), {}

    def _score(self, z_UD: Tensor, a: Tensor, b: Tensor) -> Tensor:
        logits: Tensor = self.head(z_UD[a] * z_UD[b]).squeeze(1).float()
        return logits
