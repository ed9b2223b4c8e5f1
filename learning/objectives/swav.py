"""SwAV: crops of an image are dealt to prototypes, each learnt to be told from the other crops."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.config_images import SwavConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import Bank, Projector, Prototypes, by_look, float32

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
    """`name = "swav"`. Looks are dealt out together with a queue of vectors of earlier batches, once that is full:
    a batch may be smaller than the number of prototypes. One pass over a stream of images: SEER,
    arXiv:2103.01988."""

    def __init__(self, config: SwavConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2, small=config.small)
        self.head = Projector(dim, config.hidden, config.projection)
        self.prototypes = Prototypes(config.projection, config.prototypes)
        self.queue = Bank(config.queue, config.projection)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        y_MP = self.head(student(batch.views["slices"]).z_BD)
        looks = by_look(self.prototypes(y_MP), batch)
        crops = [looks]
        if self.config.small:
            small = self.head(student(batch.views["small"]).z_BD)
            crops.append(by_look(self.prototypes(small), batch))
        loss = swapped_prediction(self._dealt(looks), torch.cat(crops, 1), self.config.temperature)
        return loss, {
            "y_BP": by_look(y_MP, batch)[:, 0].detach(),
            "entity_B": batch.index["entity_B"],
        }

    @torch.no_grad()
    def _dealt(self, scores_BVK: Tensor) -> Tensor:
        """Each look's rows by themselves, beside the queue."""
        b, epsilon = len(scores_BVK), self.config.epsilon
        earlier = scores_BVK.new_zeros(0, scores_BVK.shape[2])
        if int(self.queue.pushed) >= self.config.queue > 0:
            earlier = self.prototypes(self.queue.vectors)
        looks = scores_BVK.unbind(1)
        return torch.stack([sinkhorn(torch.cat([s, earlier]), epsilon)[:b] for s in looks], 1)

    @torch.no_grad()
    def apply_update(self, update: Update) -> None:
        if self.config.queue:
            self.queue.push(update["y_BP"], update["entity_B"])
