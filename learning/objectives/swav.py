"""SwAV: crops of an image are dealt to prototypes, each learnt to be told from the other crops."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config_images import SwavConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import Projector, Prototypes, by_look, float32

ROUNDS = 3  # of Sinkhorn-Knopp, as in the paper


@float32
@torch.no_grad()
def sinkhorn(scores_MK: Tensor, epsilon: float) -> Tensor:
    """Shares of K prototypes for each of M rows, each prototype used as much as any other. [M, K]

    Of exp(scores / epsilon), columns and rows are scaled in turn. In logarithms: no score overflows.
    Source: SwAV, Caron et al., arXiv:2006.09882, section 3.1; Cuturi, arXiv:1306.0895."""
    log_MK = scores_MK / epsilon
    for _ in range(ROUNDS):
        log_MK = log_MK - torch.logsumexp(log_MK, 0, keepdim=True)
        log_MK = log_MK - torch.logsumexp(log_MK, 1, keepdim=True)
    return log_MK.exp()


@float32
def swapped_prediction(target_BVK: Tensor, scores_BCK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the shares of each look and what every other crop says; a mean. A scalar.

    target_BVK: shares of the V looks; scores_BCK: of all C ≥ V crops, the V looks first.
    Source: SwAV, arXiv:2006.09882, equation 2 and, of small crops, 6; the same sum is DINO's, arXiv:2104.14294."""
    log_BCK = F.log_softmax(scores_BCK / temperature, 2)
    cross_VC = -torch.einsum("bvk,bck->vc", target_BVK, log_BCK) / len(target_BVK)
    v, c = cross_VC.shape
    return (cross_VC.sum() - cross_VC.diagonal().sum()) / (v * (c - 1))


class Swav(Objective):
    """`name = "swav"`: with one pass over a stream of images it is SEER, Goyal et al., arXiv:2103.01988.

    No queue of earlier vectors is dealt out beside a small batch, as the paper does it late in training: the
    vectors flee it and collapse, rank 1 within 300 updates on CIFAR-10."""

    def __init__(self, config: SwavConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2, small=config.small)
        self.head = nn.Sequential(
            Projector(dim, config.hidden, config.projection),
            Prototypes(config.projection, config.prototypes),
        )

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        c = self.config
        names = ["slices", "small"] if c.small else ["slices"]
        crops = [by_look(self.head(student(batch.views[n]).z_BD), batch) for n in names]
        target = torch.stack([sinkhorn(s, c.epsilon) for s in crops[0].unbind(1)], 1)
        return swapped_prediction(target, torch.cat(crops, 1), c.temperature), {}
