"""SSCD: SimCLR on the vector itself, which is spread out so that a copy stands out from what is merely alike."""

import torch
from torch import Tensor

from learning.config_images import SscdConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import cosines, float32
from learning.objectives.simclr import nt_xent


@float32
def koleo(y_MD: Tensor, other_MM: Tensor) -> Tensor:
    """Mean of -log of each row's distance to the nearest that is another's, all scaled to unit length. A scalar.

    other_MM: bool, which rows are another's; a row without any does not count.
    Source: the Kozachenko-Leonenko estimator of entropy in Sablayrolles et al., arXiv:1806.03198, as SSCD and
    DINOv2 have it."""
    there_M = other_MM.any(1)
    nearest_M = cosines(y_MD, y_MD).masked_fill(~other_MM, -1.0).amax(1)
    # Near 0 the slope of the root has no bound.
    distance_M = torch.sqrt((2.0 - 2.0 * nearest_M).clamp(min=1e-6))
    return -(distance_M.log() * there_M).sum() / there_M.sum().clamp(min=1)


class Sscd(Objective):
    """`name = "sscd"`: SSCD, Pizzi et al., arXiv:2202.10261. A mixed look is a positive of whatever shares one of
    its two images; how much of each it has does not matter."""

    def __init__(self, config: SscdConfig) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2, mixed=config.mixed)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        c, index = self.config, batch.index
        z_MD, owner_M2 = student(batch.views["slices"]).z_BD, index["owner_M"][:, None]
        owner_M2 = owner_M2.expand(-1, 2)
        if c.mixed:
            z_MD = torch.cat([z_MD, student(batch.views["mixed"]).z_BD])
            pair_B2 = torch.stack([index["mixed_first_B"], index["mixed_second_B"]], 1)
            owner_M2 = torch.cat([owner_M2, pair_B2])
        itself = torch.eye(len(z_MD), dtype=torch.bool, device=z_MD.device)
        positive = shared(owner_M2) & ~itself
        other = ~shared(index["entity_B"][owner_M2])
        loss = nt_xent(z_MD, positive, other, c.temperature)
        return loss + c.entropy * koleo(z_MD, other), {}


def shared(owner_M2: Tensor) -> Tensor:
    """[M, M] bool: rows that have one of their two owners in common."""
    return (owner_M2[:, None, :, None] == owner_M2[None, :, None, :]).any(3).any(2)
