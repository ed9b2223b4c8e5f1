"""Bag: a slice's vector foretells which categories other slices of the same entity hold."""

import torch
from torch import Tensor, nn

from learning.config import BagConfig
from learning.contract import Batch, Encode, Needs, Objective, Update, View
from schemas.stream import Shape


def bag_loss(logits_MFC: Tensor, counts_MFC: Tensor) -> Tensor:
    """Mean cross-entropy between what is foretold and the shares of what is there.

    logits_MFC, counts_MFC: M slices, F category fields, C classes; an empty bag costs nothing.
    Returns a scalar. Source: the distributed bag of words of paragraph vectors, Le & Mikolov,
    arXiv:1405.4053, with the whole softmax and, for the paragraph's vector, an encoder's."""
    n_MF = counts_MFC.sum(-1)
    hit_MF = (counts_MFC * logits_MFC).sum(-1) / n_MF.clamp(min=1.0)
    cost_MF = torch.logsumexp(logits_MFC, -1) - hit_MF
    there_MF = n_MF > 0
    return torch.where(there_MF, cost_MF, 0.0).sum() / there_MF.sum().clamp(min=1)


class Bag(Objective):
    """`name = "bag"`: one linear head, thrown away at release. CoLES tells entities apart by what
    is easiest; this keeps what they consist of, in directions that a linear probe can read. A
    stream without categories has no bags: there it costs nothing."""

    def __init__(self, config: BagConfig, shape: Shape, dim: int) -> None:
        super().__init__()
        self.needs = Needs(config.slices, config.shortest, config.longest)
        self.fields, self.classes = shape.categories, 1 << config.bucket_bits
        self.length = dim**0.5  # of the vectors that the head sees
        if self.fields:
            self.head = nn.Linear(dim, self.fields * self.classes)
            nn.init.normal_(self.head.weight, std=0.1)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        view = batch.views["slices"]
        z_MD = student(view).z_BD.float()
        if not self.fields:
            return 0.0 * z_MD.sum(), {}
        counts = self.counts(view)
        owner_M = batch.index["owner_M"]
        every = counts.new_zeros(len(batch.index["entity_B"]), counts.shape[1])
        others = every.index_add_(0, owner_M, counts)[owner_M] - counts
        logits = self.head(z_MD * self.length).float()
        return bag_loss(*(t.unflatten(1, (self.fields, -1)) for t in (logits, others))), {}

    def counts(self, view: View) -> Tensor:
        """How often each class of each field is in each slice, [M, F·C]."""
        there = view["valid_BT"].unsqueeze(-1) & ~view["missing"]
        m, width = len(there), self.fields * self.classes
        device = there.device
        bucket = torch.bitwise_and(view["categories"], self.classes - 1)
        at = bucket + torch.arange(self.fields, device=device) * self.classes
        at = at + torch.arange(m, device=device)[:, None, None] * width
        out = torch.zeros(m * width, device=device)
        return out.index_add_(0, at.flatten(), there.flatten().float()).view(m, width)
