"""SimCLR: two looks at an image agree, against all looks at others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.config_images import SimclrConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import NEVER, Projector, float32


@float32
def nt_xent(y_MD: Tensor, positive_MM: Tensor, negative_MM: Tensor, temperature: float) -> Tensor:
    """Of each row i and each positive j, -log(exp(s_ij/τ) / (exp(s_ij/τ) + Σ_k exp(s_ik/τ))) over i's negatives k,
    with cosine s; the mean over a row's positives, then over the rows that have some.

    y_MD: M rows of any lengths. positive_MM, negative_MM: bool. Returns a scalar.
    Source: NT-Xent of SimCLR, Chen et al., arXiv:2002.05709, equation 1, where each row has one positive."""
    y_MD = F.normalize(y_MD, dim=1)
    near_MM = y_MD @ y_MD.T / temperature
    against_M1 = torch.logsumexp(near_MM.masked_fill(~negative_MM, NEVER), 1, keepdim=True)
    many_M = positive_MM.sum(1)
    each_M = (F.softplus(against_M1 - near_MM) * positive_MM).sum(1) / many_M.clamp(min=1)
    return each_M.sum() / (many_M > 0).sum().clamp(min=1)


def relations(owner_M: Tensor, entity_M: Tensor) -> tuple[Tensor, Tensor]:
    """Positives, other looks at the same image, and negatives, looks at other entities. [M, M] bool each.

    Two images of one entity are neither."""
    itself = torch.eye(len(owner_M), dtype=torch.bool, device=owner_M.device)
    return (owner_M[:, None] == owner_M) & ~itself, entity_M[:, None] != entity_M


class Simclr(Objective):
    """`name = "simclr"`"""

    def __init__(self, config: SimclrConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2)
        self.head = Projector(dim, config.hidden, config.projection)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        y_MD = self.head(student(batch.views["slices"]).z_BD)
        owner_M = batch.index["owner_M"]
        positive, negative = relations(owner_M, batch.index["entity_B"][owner_M])
        return nt_xent(y_MD, positive, negative, self.config.temperature), {}
