"""VICReg: two slices of an entity, or looks at an image, agree; each dimension varies and none repeats another."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.config import VicregConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import float32, mlp


@float32
def vicreg_loss(a_BD: Tensor, b_BD: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Weighted invariance, variance and covariance of two views of B ≥ 2 entities.

    a_BD, b_BD: expanded vectors, row by row of one entity, not normalised. Returns a scalar.
    Source: VICReg, Bardes et al., arXiv:2105.04906."""
    invariance, variance, covariance = weights
    terms = [invariance * F.mse_loss(a_BD, b_BD)]
    for x_BD in (a_BD, b_BD):
        n, d = x_BD.shape
        centred = x_BD - x_BD.mean(0)
        deviation = torch.sqrt(centred.square().sum(0) / (n - 1) + 1e-4)
        terms.append(variance * F.relu(1.0 - deviation).mean() / 2)
        spread_DD = centred.T @ centred / (n - 1)
        off = spread_DD.square().sum() - spread_DD.diagonal().square().sum()
        terms.append(covariance * off / d)
    return torch.stack(terms).sum()


class Vicreg(Objective):
    """`name = "vicreg"`: an expander of two layers, thrown away at release. Slices are of events, of a
    node's edges, or looks at an image."""

    def __init__(self, config: VicregConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(config.slices, config.shortest, config.longest)
        self.expander = mlp(dim, config.expander, config.expander)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        y_MD = self.expander(student(batch.views["slices"]).z_BD).float()
        first, second = batch.pairs["positives"]
        c = self.config
        weights = (c.invariance, c.variance, c.covariance)
        return vicreg_loss(y_MD[first], y_MD[second], weights), {}
