"""CaSSLe: what the encoder of the last release made of a view is predicted from what the encoder makes of it now."""

import torch
from torch import Tensor

from learning.config_images import CassleConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.byol import byol_loss
from learning.objectives.heads import Projector
from learning.objectives.moco_v3 import info_nce


def contrast(guess_MD: Tensor, truth_MD: Tensor, entity_M: Tensor, temperature: float) -> Tensor:
    """InfoNCE of guesses among truths and of truths among guesses, whose views of one entity repel nowhere; the
    mean. A scalar. Source: CaSSLe, Fini et al., arXiv:2112.04215, table 1, for SimCLR."""
    there = info_nce(guess_MD, truth_MD, entity_M, temperature)
    return (there + info_nce(truth_MD, guess_MD, entity_M, temperature)) / 2


class Cassle(Objective):
    """`name = "cassle"`, of any kind and beside another objective: a predictor stands between, so that the encoder
    may learn more than the last release knew. Before there is one it costs nothing."""

    def __init__(self, config: CassleConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(config.slices, config.shortest, config.longest, previous=True)
        self.predictor = Projector(dim, config.hidden, dim)

    def forward(
        self, student: Encode, previous: Encode | None, batch: Batch, /
    ) -> tuple[Tensor, Update]:
        """previous: the encoder of the last release, without gradients; None before there is one."""
        owner_M = batch.index["owner_M"]
        if previous is None:
            return torch.zeros((), device=owner_M.device), {}
        view = batch.views["slices"]
        guess_MD, truth_MD = self.predictor(student(view).z_BD), previous(view).z_BD
        if self.config.loss == "cosine":
            return byol_loss(guess_MD, truth_MD), {}
        entity_M = batch.index["entity_B"][owner_M]
        return contrast(guess_MD, truth_MD, entity_M, self.config.temperature), {}
