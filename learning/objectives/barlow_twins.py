"""Barlow Twins: over a batch, each dimension agrees with itself in the other look, and with no other one."""

import torch
from torch import Tensor

from learning.config_images import BarlowTwinsConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import Projector, float32


@float32
def barlow_twins_loss(a_BD: Tensor, b_BD: Tensor, redundancy: float) -> Tensor:
    """(Σ_i (1 - C_ii)² + redundancy · Σ_{i≠j} C_ij²) / D of the cross-correlation C of two views of B ≥ 2 images.

    a_BD, b_BD: projected vectors, row by row of one image. Returns a scalar.
    Source: Barlow Twins, Zbontar et al., arXiv:2103.03230, algorithm 1; divided by D, so that its size does not
    hang on the head's width."""
    n, d = a_BD.shape
    a, b = ((x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5) for x in (a_BD, b_BD))
    cross_DD = a.T @ b / n
    own_D = cross_DD.diagonal()
    off = cross_DD.square().sum() - own_D.square().sum()
    return ((1.0 - own_D).square().sum() + redundancy * off) / d


class BarlowTwins(Objective):
    """`name = "barlow_twins"`"""

    def __init__(self, config: BarlowTwinsConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2)
        self.head = Projector(dim, config.hidden, config.projection)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        y_MD = self.head(student(batch.views["slices"]).z_BD)
        first, second = batch.pairs["positives"]
        return barlow_twins_loss(y_MD[first], y_MD[second], self.config.redundancy), {}
