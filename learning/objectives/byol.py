"""BYOL: from one look at an image, what the averaged encoder makes of the other is predicted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.config_images import ByolConfig, MocoV3Config
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import Averaged, Projector, float32, mlp


@float32
def byol_loss(guess_PD: Tensor, truth_PD: Tensor) -> Tensor:
    """Mean of 2 - 2·cosine over P pairs, guess and truth of any lengths. A scalar.

    Source: BYOL, Grill et al., arXiv:2006.07733, equation 2."""
    return 2.0 - 2.0 * F.cosine_similarity(guess_PD, truth_PD, dim=1).mean()


class Taught(Objective):
    """Student: a projector, then a predictor; teacher: the averaged encoder, then the averaged projector."""

    def __init__(self, config: ByolConfig | MocoV3Config, dim: int) -> None:
        super().__init__()
        self.needs = Needs(slices=2, teacher=True)
        self.projector = Projector(dim, config.hidden, config.projection)
        self.averaged = Averaged(self.projector, config.momentum)
        self.predictor = mlp(config.projection, config.hidden, config.projection)

    def sides(self, student: Encode, teacher: Encode, batch: Batch) -> tuple[Tensor, Tensor]:
        """Guess and truth of all looks, [M, P] each."""
        view = batch.views["slices"]
        guess_MP: Tensor = self.predictor(self.projector(student(view).z_BD))
        return guess_MP.float(), self.averaged(teacher(view).z_BD)

    @torch.no_grad()
    def apply_update(self, _update: Update) -> None:
        self.averaged.follow(self.projector)


class Byol(Taught):
    """`name = "byol"`: each look is predicted from the other, and the mean taken where the paper has the sum.

    The truth is centred over the batch, as the paper's BatchNorm does it in passing: what all images share is no
    part of it. Otherwise that alone is learnt: loss 0 and rank 2 within 300 updates on CIFAR-10."""

    def forward(self, student: Encode, teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        guess, truth = self.sides(student, teacher, batch)
        first, second = batch.pairs["positives"]
        given, wanted = torch.cat([first, second]), torch.cat([second, first])
        return byol_loss(guess[given], (truth - truth.mean(0))[wanted]), {}
