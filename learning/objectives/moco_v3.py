"""MoCo v3: a look finds, among the averaged encoder's vectors of a batch, that of its own image's other look."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.config_images import MocoV3Config
from learning.contract import Batch, Encode, Update
from learning.objectives.byol import Taught
from learning.objectives.heads import NEVER, by_look, cosines, float32


@float32
def info_nce(query_BD: Tensor, key_BD: Tensor, entity_B: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each row's own key among those of other entities, by cosine / temperature; a mean.

    query_BD, key_BD: row by row of one image, of any lengths; entity_B: whose it is. Returns a scalar.
    Source: InfoNCE, van den Oord et al., arXiv:1807.03748."""
    itself = torch.eye(len(entity_B), dtype=torch.bool, device=entity_B.device)
    kin = (entity_B[:, None] == entity_B) & ~itself
    logits = (cosines(query_BD, key_BD) / temperature).masked_fill(kin, NEVER)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def moco_loss(query_BVD: Tensor, key_BVD: Tensor, entity_B: Tensor, temperature: float) -> Tensor:
    """2τ · InfoNCE of one look's queries and another look's keys, the mean of all such pairs of V looks. A scalar.

    Source: MoCo v3, Chen et al., arXiv:2104.02057, algorithm 1, which has the sum of both ways."""
    looks = range(query_BVD.shape[1])
    each = [
        info_nce(query_BVD[:, a], key_BVD[:, b], entity_B, temperature)
        for a in looks
        for b in looks
        if a != b
    ]
    return 2.0 * temperature * torch.stack(each).mean()


class MocoV3(Taught):
    """`name = "moco_v3"`"""

    def __init__(self, config: MocoV3Config, dim: int) -> None:
        super().__init__(config, dim)
        self.config = config

    def forward(self, student: Encode, teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        query, key = (by_look(y, batch) for y in self.sides(student, teacher, batch))
        return moco_loss(query, key, batch.index["entity_B"], self.config.temperature), {}
