"""Instance discrimination: every image is a class of its own, told from the batch's and a bank of earlier ones."""

import torch
from torch import Tensor, nn

from learning.config_images import InstanceConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import NEVER, by_look, float32


@float32
def instance_loss(
    z_PD: Tensor, own_PD: Tensor, other_ND: Tensor, banned_PN: Tensor, temperature: float
) -> Tensor:
    """The non-parametric softmax: cross-entropy of each row's own vector among it and others; a mean.

    z_PD, own_PD, other_ND: of unit length; banned_PN: bool, which of the others are no negative of a row.
    Returns a scalar. Source: Wu et al., arXiv:1805.01978, equation 2. The bank is bounded: the whole softmax is
    taken, where the paper samples a million (NCE)."""
    own_P1 = (z_PD * own_PD).sum(1, keepdim=True) / temperature
    others_PN = (z_PD @ other_ND.T / temperature).masked_fill(banned_PN, NEVER)
    return (torch.logsumexp(torch.cat([own_P1, others_PN], 1), 1) - own_P1.squeeze(1)).mean()


class Bank(nn.Module):
    """The newest `size` vectors and whose they are: a ring, which `push` moves, in `apply_update` alone."""

    vectors: Tensor
    entities: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("entities", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def there(self) -> Tensor:
        """[size] bool: which places hold a vector yet."""
        return torch.arange(len(self.vectors), device=self.vectors.device) < self.pushed

    @torch.no_grad()
    def push(self, vectors_BD: Tensor, entity_B: Tensor) -> None:
        """Of more than fit, the last."""
        size = len(self.vectors)
        vectors_BD, entity_B = vectors_BD[-size:], entity_B[-size:]
        place = (self.pushed + torch.arange(len(entity_B), device=entity_B.device)) % size
        self.vectors[place] = vectors_BD.to(self.vectors.dtype)
        self.entities[place] = entity_B
        self.pushed += len(entity_B)


class Instance(Objective):
    """`name = "instance"`: no head. An image of a stream need not have an earlier vector in the bank, so that the
    averaged encoder's of its other look stands for it, and the bank holds such vectors.

    Other entities' looks in the batch are negatives too. Without them, or with the student's own vectors for keys,
    all looks flee the bank together and collapse: rank 1 within 300 updates on CIFAR-10."""

    def __init__(self, config: InstanceConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2, teacher=True)
        self.bank = Bank(config.bank, dim)

    def forward(self, student: Encode, teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        view, entity_B = batch.views["slices"], batch.index["entity_B"]
        z_MD, key_MD = student(view).z_BD.float(), teacher(view).z_BD.float()
        first, second = batch.pairs["positives"]
        rows, others = torch.cat([first, second]), torch.cat([second, first])
        entity_M = entity_B[batch.index["owner_M"]]
        there = torch.cat([torch.ones_like(entity_M, dtype=torch.bool), self.bank.there])
        whose = torch.cat([entity_M, self.bank.entities])
        banned = (entity_M[rows][:, None] == whose) | ~there
        against = torch.cat([z_MD, self.bank.vectors])
        loss = instance_loss(z_MD[rows], key_MD[others], against, banned, self.config.temperature)
        return loss, {"key_BD": by_look(key_MD, batch)[:, 0], "entity_B": entity_B}

    @torch.no_grad()
    def apply_update(self, update: Update) -> None:
        self.bank.push(update["key_BD"], update["entity_B"])
