"""CoLES: slices of one entity's events attract, slices of others repel."""

import torch
from torch import Tensor

from learning.config import ColesConfig
from learning.contract import Batch, Encode, Needs, Objective, Update


def coles_loss(z_MD: Tensor, entity_M: Tensor, margin: float, negatives: int) -> Tensor:
    """Contrastive loss with the hardest negatives of each slice, a mean per pair.

    z_MD: M slices' vectors of unit length; entity_M: whose they are; slices of one entity are
    never negatives of each other. Positives cost ½·d², negatives ½·max(0, margin - d)², d being
    Euclidean. Returns a scalar.
    Source: CoLES, Babaev et al., arXiv:2002.08232; hard negatives as in Wu et al.,
    arXiv:1706.07567. Distances by one matrix product: d² = 2 - 2·z·z'."""
    squared_MM = torch.clamp(2.0 - 2.0 * (z_MD @ z_MD.T), min=0.0)
    same_MM = entity_M[:, None] == entity_M[None, :]
    itself_MM = torch.eye(len(z_MD), dtype=torch.bool, device=z_MD.device)
    pull_MM = (same_MM & ~itself_MM).to(squared_MM.dtype)
    pull = (squared_MM * pull_MM).sum() / 2
    pairs = pull_MM.sum() / 2
    k = min(negatives, len(z_MD) - 1)
    near_Mk = squared_MM.masked_fill(same_MM, torch.inf).topk(k, dim=1, largest=False).values
    there_Mk = torch.isfinite(near_Mk)
    # The root has no slope at 0: two equal vectors of different entities must not give NaN.
    distance_Mk = torch.sqrt(torch.where(there_Mk, near_Mk, 1.0) + 1e-8)
    push_Mk = torch.where(there_Mk, torch.clamp(margin - distance_Mk, min=0.0) ** 2, 0.0)
    return 0.5 * (pull + push_Mk.sum()) / torch.clamp(pairs + there_Mk.sum(), min=1.0)


class Coles(Objective):
    """`name = "coles"`"""

    def __init__(self, config: ColesConfig) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(config.slices, config.shortest, config.longest)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        z_MD = student(batch.views["slices"]).z_BD.float()
        entity_M = batch.index["entity_B"][batch.index["owner_M"]]
        return coles_loss(z_MD, entity_M, self.config.margin, self.config.negatives), {}
