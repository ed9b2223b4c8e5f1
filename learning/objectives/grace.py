"""GRACE: two views of a node agree, while all other nodes, in either view, repel."""

import torch
from torch import Tensor, nn

from learning.config import GraceConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.simclr import nt_xent, relations


def grace_loss(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Tensor:
    """InfoNCE of cosines with negatives between and within the views, a mean over nodes and both directions.

    a_BD, b_BD: projected vectors, row by row of one node. Returns a scalar.
    Source: GRACE, Zhu et al. 2020, arXiv:2006.04131, equation 1."""
    node = torch.arange(len(a_BD), device=a_BD.device).repeat(2)
    positive, negative = relations(node, node)
    return nt_xent(torch.cat([a_BD, b_BD]), positive, negative, temperature)


class Grace(Objective):
    """`name = "grace"`: views are slices of a node's edges, without some of the nodes' fields. The head of two
    layers is thrown away at release."""

    def __init__(self, config: GraceConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(config.slices, config.shortest, config.longest, hidden=config.hidden)
        n = config.projection
        self.head = nn.Sequential(nn.Linear(dim, n), nn.ELU(), nn.Linear(n, n))

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        y_MD = self.head(student(batch.views["slices"]).z_BD).float()
        first, second = batch.pairs["positives"]
        return grace_loss(y_MD[first], y_MD[second], self.config.temperature), {}
