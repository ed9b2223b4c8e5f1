"""DINO, with iBOT's patches as in DINOv2: which prototypes the averaged encoder sees is predicted from other crops."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config_images import DinoConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import Averaged, Projector, Prototypes, by_look, float32
from learning.objectives.sscd import koleo
from learning.objectives.swav import sinkhorn, swapped_prediction


@float32
def patch_loss(
    target_NK: Tensor, scores_NK: Tensor, masked_BT: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy at the N hidden patches, a mean over each image's, then over the M images. A scalar.

    target_NK: the teacher's shares there, scores_NK: the student's scores, in the order of masked_BT's.
    Source: iBOT, Zhou et al., arXiv:2111.07832, equation 2; weights as in DINOv2, Oquab et al.,
    arXiv:2304.07193: an image without hidden patches costs nothing."""
    cross_N = -(target_NK * F.log_softmax(scores_NK / temperature, 1)).sum(1)
    share_BT = (1.0 / masked_BT.sum(1, keepdim=True).clamp(min=1)).expand_as(masked_BT)
    return (cross_N * share_BT[masked_BT]).sum() / len(masked_BT)


class Head(nn.Module):
    """A projector and prototypes, and the teacher's average of both."""

    def __init__(self, config: DinoConfig, width: int) -> None:
        super().__init__()
        self.epsilon = config.epsilon
        self.student = nn.Sequential(
            Projector(width, config.hidden, config.projection),
            Prototypes(config.projection, config.prototypes),
        )
        self.teacher = Averaged(self.student, config.momentum)

    def target(self, z_MD: Tensor) -> Tensor:
        """The teacher's shares of the prototypes, [M, K]."""
        return sinkhorn(self.teacher(z_MD), self.epsilon)


class Dino(Objective):
    """`name = "dino"`: DINO, Caron et al., arXiv:2104.14294. With `patches` the student sees the looks with patches
    hidden, as in DINOv2, and the tokens there have a head of their own.

    The teacher's shares are dealt out by Sinkhorn-Knopp, as DINOv2 has it: DINO's centre did not keep vectors
    apart, rank 1 to 5 within 300 updates on CIFAR-10."""

    def __init__(self, config: DinoConfig, dim: int, tokens: int) -> None:
        """tokens: width of the encoder's h_BTD."""
        super().__init__()
        self.config = config
        patches = config.patches
        self.needs = Needs(
            slices=2, small=config.small, patches=patches, teacher=True, rows=patches > 0
        )
        self.image = Head(config, dim)
        if patches:
            self.patch = Head(config, tokens)

    def forward(self, student: Encode, teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        c = self.config
        seen = student(batch.views["masked" if c.patches else "slices"])
        truth = teacher(batch.views["slices"])
        crops = [by_look(self.image.student(seen.z_BD), batch)]
        if c.small:
            z_MD = student(batch.views["small"]).z_BD
            crops.append(by_look(self.image.student(z_MD), batch))
        target = by_look(self.image.target(truth.z_BD), batch)
        loss = swapped_prediction(target, torch.cat(crops, 1), c.temperature)
        if c.koleo:
            entity_B = batch.index["entity_B"]
            other_BB = entity_B[:, None] != entity_B
            each = [koleo(z, other_BB) for z in by_look(seen.z_BD, batch).unbind(1)]
            loss = loss + c.koleo * torch.stack(each).mean()
        if c.patches:
            masked_BT = batch.views["masked"]["masked_BT"]
            scores_NK = self.patch.student(F.normalize(seen.h_BTD[masked_BT], dim=1))
            target_NK = self.patch.target(F.normalize(truth.h_BTD[masked_BT], dim=1))
            loss = loss + patch_loss(target_NK, scores_NK, masked_BT, c.temperature)
        return loss, {}

    @torch.no_grad()
    def apply_update(self, _update: Update) -> None:
        self.image.teacher.follow(self.image.student)
        if self.config.patches:
            self.patch.teacher.follow(self.patch.student)
