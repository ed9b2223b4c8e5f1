"""Which node does a node's next edge lead to: softmax over the true one and negatives.

Negatives are historical (earlier neighbours, which "have I seen this pair" cannot tell apart), degree-matched,
random, and for vectors the other edges' targets; a negative that is the true node, the source itself or held
out does not count.
Sources: Poursafaei et al. 2022, arXiv:2207.10128 (historical negatives); van den Oord et al. 2018,
arXiv:1807.03748 (the loss)."""

import torch
from torch import Tensor

from learning.config import NextInteractionConfig
from learning.contract import Batch, Encode, Needs, Objective, Update


def next_interaction(logits_BC: Tensor, collides_BC: Tensor) -> Tensor:
    """Mean cross-entropy of the first column among those that do not collide. A scalar."""
    kept = logits_BC.float().masked_fill(collides_BC, -torch.inf)
    return -torch.log_softmax(kept, 1)[:, 0].mean()


def in_batch(nodes_BC: Tensor, time_B: Tensor) -> Tensor:
    """[B, B] True where edge j's target may not be a negative of edge i: it is i's own source or target, or
    is known as of a later time than i's."""
    target, source = nodes_BC[:, 1], nodes_BC[:, 0]
    same = (target == target.unsqueeze(1)) | (target == source.unsqueeze(1))
    return same | (time_B > time_B.unsqueeze(1))


class NextInteraction(Objective):
    """Of the vectors (source · node / temperature) and of the pair scorer's logits, each by its weight."""

    def __init__(self, config: NextInteractionConfig) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(edges=True)

    def forward(self, student: Encode, _: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        nodes_BC, collides = batch.index["nodes_BC"], batch.pairs["collides"]
        b, c = nodes_BC.shape
        loss = torch.zeros((), device=nodes_BC.device)
        if self.config.pairs:
            logits = student.score(batch.views["source"], batch.views["target"], batch.pairs)
            loss = loss + self.config.pairs * next_interaction(logits.reshape(b, c - 1), collides)
        if self.config.vectors:
            z_BCD = student(batch.views["nodes"]).z_BD.reshape(b, c, -1).float()
            source, target = z_BCD[:, 0], z_BCD[:, 1]
            near = torch.cat([(z_BCD[:, 1:] * source.unsqueeze(1)).sum(2), source @ target.T], 1)
            banned = torch.cat([collides, in_batch(nodes_BC, batch.index["time_B"])], 1)
            contrast = next_interaction(near / self.config.temperature, banned)
            loss = loss + self.config.vectors * contrast
        return loss, {}
