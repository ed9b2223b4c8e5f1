"""GraphCL: two augmented looks at one graph agree, against the looks at the batch's other graphs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import GraphClConfig
from learning.contract import Batch, Encode, Needs, Objective, Update


def graphcl_loss(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Tensor:
    """NT-Xent between two views of B ≥ 2 graphs, row by row of one graph; any lengths. A scalar.

    Of each row of a: -log(exp(s(a_i, b_i)/τ) / Σ_{j≠i} exp(s(a_i, b_j)/τ)) with cosine s, and likewise of each
    row of b; the mean. Source: GraphCL, You et al. 2020, arXiv:2010.13902, equation 3, made symmetric."""
    near_BB = F.normalize(a_BD, dim=1) @ F.normalize(b_BD, dim=1).T / temperature
    itself = torch.eye(len(near_BB), dtype=torch.bool, device=near_BB.device)
    others_BB = near_BB.masked_fill(itself, -torch.inf)
    against = torch.logsumexp(others_BB, 1) + torch.logsumexp(others_BB, 0)
    return (against / 2 - near_BB.diagonal()).mean()


class GraphCl(Objective):
    """`name = "graphcl"`: a projection head of two layers, thrown away at release."""

    def __init__(self, config: GraphClConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2)  # cut as the settings say by learning.kinds.whole_graphs
        self.length = dim**0.5  # of the vectors that the head sees
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.projection))

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        z_MD = student(batch.views["slices"]).z_BD.float()
        y_MD = self.head(z_MD * self.length).float()
        first, second = batch.pairs["positives"]
        return graphcl_loss(y_MD[first], y_MD[second], self.config.temperature), {}
