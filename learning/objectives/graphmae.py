"""GraphMAE: what hidden nodes have of their own is foretold from the vectors of their neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import GraphmaeConfig
from learning.config_base import refuse
from learning.contract import Batch, Encode, Needs, Objective, Update, View
from learning.encoders.fields import symlog
from schemas.stream import Shape


def scaled_cosine_error(guess_BF: Tensor, truth_BF: Tensor, gamma: float) -> Tensor:
    """Mean of (1 - cosine)^gamma over B nodes: the harder ones weigh more. A scalar.

    Source: GraphMAE, Hou et al. 2022, arXiv:2205.10803, equation 2."""
    return (1.0 - F.cosine_similarity(guess_BF, truth_BF, dim=1)).clamp(min=0.0).pow(gamma).mean()


class Graphmae(Objective):
    """`name = "graphmae"`. Of the nodes of a batch, drawn by walks, some are shown without features wherever they
    are seen; what the encoder makes of a node without any is the paper's learnt token. Their codes are hidden
    again (a token of the decoder's), and the decoder, a layer over the edges within the batch that is thrown away
    at release, foretells their numbers and, as hashed buckets, their categories."""

    centre: Tensor
    size: Tensor
    batches: Tensor

    def __init__(self, config: GraphmaeConfig, shape: Shape, dim: int) -> None:
        super().__init__()
        if not shape.noded:
            needs = "graphmae foretells what nodes have of their own; name it in [[stream.node]]"
            raise refuse("learner.objective.name", '"graphmae"', needs)
        self.config, self.shape = config, shape
        self.needs = Needs(masked=config.masked, walk=config.walk)
        self.classes = 1 << config.bucket_bits
        self.length = dim**0.5  # of the vectors that the decoder sees
        n = config.hidden
        self.code = nn.Linear(dim, n, bias=False)
        self.hidden = nn.Parameter(torch.zeros(n))
        width = shape.node_numbers + shape.node_categories * self.classes
        self.own, self.far = nn.Linear(n, n), nn.Linear(n, n, bias=False)
        self.guess = nn.Linear(n, width)
        # Running centre and size of the numbers, after symlog.
        self.register_buffer("centre", torch.zeros(shape.node_numbers))
        self.register_buffer("size", torch.ones(shape.node_numbers))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        view, near_UT = batch.views["masked"], batch.index["near_UT"]
        masked_U = batch.index["masked_U"]
        code_UN = self.code(student(view).z_BD * self.length)
        code_UN = torch.where(masked_U.unsqueeze(1), self.hidden.to(code_UN.dtype), code_UN)
        rows = torch.nonzero(masked_U & (near_UT >= 0).any(1)).squeeze(1)
        truth_UF, update = self._truth(view, batch.index["table_U"])
        rows = rows[truth_UF[rows].abs().sum(1) > 0]  # of which something is known
        if not len(rows):
            return 0.0 * code_UN.float().sum(), update
        near = near_UT[rows]
        there = (near >= 0).unsqueeze(2).to(code_UN.dtype)
        mean_BN = (code_UN[near.clamp(min=0)] * there).sum(1) / there.sum(1)
        guess = self.guess(torch.relu(self.own(code_UN[rows]) + self.far(mean_BN))).float()
        return scaled_cosine_error(guess, truth_UF[rows], self.config.gamma), update

    def _truth(self, view: View, at_U: Tensor) -> tuple[Tensor, Update]:
        """Centred numbers and buckets that are there, 0 where something is missing. [U, F]"""
        numbers = view["table_numbers"][at_U]
        there = ~torch.isnan(numbers)
        y = symlog(torch.where(there, numbers, 0.0))
        n = there.sum(0).clamp(min=1)
        centre = torch.where(there, y, 0.0).sum(0) / n
        size = torch.sqrt(torch.where(there, y - centre, 0.0).square().sum(0) / n)
        seen = there.any(0)  # what no node of the batch has stays where it is
        update = {
            "centre": torch.where(seen, centre, self.centre),
            "size": torch.where(seen, size, self.size),
        }
        parts = [torch.where(there, (y - self.centre) / self.size, 0.0)]
        if self.shape.node_categories:
            bucket = torch.bitwise_and(view["table_categories"][at_U], self.classes - 1)
            known = ~view["table_missing"][at_U].unsqueeze(2)
            parts.append((F.one_hot(bucket, self.classes) * known).flatten(1).to(y.dtype))
        return torch.cat(parts, 1), update

    @torch.no_grad()
    def apply_update(self, update: Update) -> None:
        self.batches += 1
        share = max(0.01, 1.0 / float(self.batches))
        self.centre.lerp_(update["centre"], share)
        self.size.lerp_(update["size"].clamp(min=0.05), share)
