"""Instance discrimination: every image is a class of its own, told from a bank of earlier images' vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.config_images import InstanceConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import NEVER, Bank, by_look, float32


@float32
def instance_loss(
    z_PD: Tensor, own_PD: Tensor, bank_ND: Tensor, banned_PN: Tensor, temperature: float
) -> Tensor:
    """The non-parametric softmax: cross-entropy of each row's own vector among it and the bank's; a mean.

    z_PD, own_PD, bank_ND: of unit length; banned_PN: bool, places of the bank that are no negative of a row.
    Returns a scalar. Source: Wu et al., arXiv:1805.01978, equation 2. The bank is bounded: the whole softmax is
    taken, where the paper samples a million (NCE)."""
    own_P1 = (z_PD * own_PD).sum(1, keepdim=True) / temperature
    others_PN = (z_PD @ bank_ND.T / temperature).masked_fill(banned_PN, NEVER)
    return (torch.logsumexp(torch.cat([own_P1, others_PN], 1), 1) - own_P1.squeeze(1)).mean()


class Instance(Objective):
    """`name = "instance"`: no head. In a stream an image has no earlier vector in the bank: its other look stands
    for it. Vectors of the same entity in the bank are no negatives."""

    def __init__(self, config: InstanceConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2)
        self.bank = Bank(config.bank, dim)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        z_MD = student(batch.views["slices"]).z_BD.float()
        first, second = batch.pairs["positives"]
        rows, others = torch.cat([first, second]), torch.cat([second, first])
        entity_B = batch.index["entity_B"]
        entity_P = entity_B[batch.index["owner_M"][rows]]
        banned = (entity_P[:, None] == self.bank.entities) | ~self.bank.there
        loss = instance_loss(
            z_MD[rows], z_MD[others], self.bank.vectors, banned, self.config.temperature
        )
        mean_BD = F.normalize(by_look(z_MD.detach(), batch).mean(1), dim=1)
        return loss, {"z_BD": mean_BD, "entity_B": entity_B}

    @torch.no_grad()
    def apply_update(self, update: Update) -> None:
        self.bank.push(update["z_BD"], update["entity_B"])
