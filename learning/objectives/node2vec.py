"""node2vec: nodes that are near each other on a walk attract, nodes drawn by their degree repel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import Node2vecConfig
from learning.contract import Batch, Encode, Needs, Objective, Update


def skip_gram(positive_P: Tensor, negative_PN: Tensor, same_PN: Tensor, negatives: float) -> Tensor:
    """Skip-gram with negative sampling, a mean over pairs: -log σ(s) of the pair, and `negatives` times the mean
    of -log σ(-s) over other nodes, which is what so many random ones cost on average.

    positive_P: scores of P pairs; negative_PN: of each pair's centre with N other nodes, where `same_PN` marks
    the centre itself. Returns a scalar.
    Source: Mikolov et al. 2013, arXiv:1310.4546, equation 4."""
    away = F.softplus(negative_PN).masked_fill(same_PN, 0.0).sum(1)
    others = (~same_PN).sum(1).clamp(min=1)
    return (F.softplus(-positive_P) + negatives * away / others).mean()


class Node2vec(Objective):
    """`name = "node2vec"`: the vectors are an encoder's, so that a node never seen before has one too; no table
    of nodes is learnt. A score is cosine / temperature + a learnt offset.

    Source: Grover & Leskovec 2016, arXiv:1607.00653."""

    def __init__(self, config: Node2vecConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.needs = Needs(
            window=True, walk=c.walk, returns=c.returns, onward=c.onward, others=c.others
        )
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        z_UD = student(batch.views["window"]).z_BD.float()
        walk_WL, other_P = batch.index["walk_WL"], batch.index["other_P"]
        a, b = pairs(walk_WL, self.config.context)
        if not len(a):
            return 0.0 * z_UD.sum(), {}
        near = (z_UD[a] * z_UD[b]).sum(1) / self.config.temperature + self.offset
        far = z_UD[a] @ z_UD[other_P].T / self.config.temperature + self.offset
        same = a[:, None] == other_P
        return skip_gram(near, far, same, self.config.negatives), {}


def pairs(walk_WL: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Places that are up to `context` steps apart on a walk, both ways round; no node with itself. [P] each"""
    ends = []
    for apart in range(1, min(context, walk_WL.shape[1] - 1) + 1):
        early, late = walk_WL[:, :-apart].flatten(), walk_WL[:, apart:].flatten()
        ends += [torch.stack([early, late]), torch.stack([late, early])]
    if not ends:
        return walk_WL.new_zeros(0), walk_WL.new_zeros(0)
    a, b = torch.cat(ends, 1)
    return a[a != b], b[a != b]
