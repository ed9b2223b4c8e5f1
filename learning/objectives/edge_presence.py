"""Attention that knows an edge from none: cross-entropy of its logits, a node's own edges against another's.

Source: SuperGAT, Kim & Oh 2021, arXiv:2204.04879, equations 4 and 5 with the mixed attention MX, for which the
chance of an edge is the sigmoid of the dot product. Negatives are the edges of the node beside it in the batch, as
many as that one has. It needs an encoder with `edge_presence = true`."""

import torch
from torch import Tensor

from learning.contract import Batch, Encode, Needs, Objective, Update


class EdgePresence(Objective):
    """`name = "edge_presence"`: the mean of what the encoder says of all nodes of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs(edges=True)

    def forward(self, student: Encode, _: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        total, many = student(batch.views["nodes"]).extra["presence"].sum(0)
        return total / torch.clamp(many, min=1.0), {}
