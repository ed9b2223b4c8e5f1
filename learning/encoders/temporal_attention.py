"""A node from its K most recent edges: attention over them, with an encoding of their age.

Source: TGAT, Xu et al. 2020, arXiv:2002.07962, one layer; the encoding of time is GraphMixer's fixed one,
Cong et al. 2023, arXiv:2302.11636. With `edge_presence` logits are SuperGAT's MX, Kim & Oh 2021, arXiv:2204.04879:
GAT's a · [query, key], scaled by the sigmoid of query · key, which is how likely the edge is; the objective of that
name learns that chance."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import TemporalAttentionConfig
from learning.contract import View
from learning.encoders.graph import GraphEncoder, newest_and_mean
from schemas.stream import Shape


class TemporalAttentionEncoder(GraphEncoder):
    """The newest edge, the mean of all and the node itself ask; all edges answer."""

    def __init__(self, shape: Shape, config: TemporalAttentionConfig) -> None:
        n = config.hidden
        super().__init__(shape, config, n)
        self.heads, self.chance = config.heads, config.edge_presence
        own = n if shape.noded else 0
        self.query = nn.Linear(2 * n + own, n)
        self.key, self.value = nn.Linear(n, n), nn.Linear(n, n)
        if config.edge_presence:
            self.alike = nn.Parameter(torch.randn(config.heads, 2 * n // config.heads) * 0.1)
        self.join = nn.Linear(3 * n + own, n)

    def readout(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> Tensor:
        some = view["length"].unsqueeze(1) > 0
        last_BD, mean_BD = newest_and_mean(view, x_BTD)
        asked_BD = torch.cat([last_BD, mean_BD, own_BD], -1)
        seen_BD = self._attend(*self._asked(asked_BD, x_BTD), x_BTD, valid_BT) * some
        return torch.relu(self.join(torch.cat([seen_BD, last_BD, mean_BD, own_BD], -1)))

    def _asked(self, asked_BD: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, heads, 1, n / heads] and keys [B, heads, T, n / heads]."""
        heads = self.heads
        b, t, n = x_BTD.shape
        q = self.query(asked_BD).reshape(b, heads, 1, n // heads)
        return q, self.key(x_BTD).reshape(b, t, heads, n // heads).transpose(1, 2)

    def _dot(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * k).sum(-1) / math.sqrt(q.shape[3])  # [B, heads, T]

    def beside(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> View:
        """What the objective edge_presence reads, against the edges of the node beside each in the batch."""
        if not self.chance:
            return {}
        q, k = self._asked(torch.cat([*newest_and_mean(view, x_BTD), own_BD], -1), x_BTD)
        other = torch.roll(valid_BT, 1, 0) if len(k) > 1 else torch.zeros_like(valid_BT)
        none = self._dot(q, torch.roll(k, 1, 0))
        return {"presence": presence_losses(self._dot(q, k), valid_BT, none, other)}

    def _attend(self, q: Tensor, k: Tensor, x_BTD: Tensor, valid: Tensor) -> Tensor:
        heads = self.heads
        b, t, n = x_BTD.shape
        v = self.value(x_BTD).reshape(b, t, heads, n // heads).transpose(1, 2)
        logits = self._dot(q, k)
        if self.chance:
            of_query, of_key = torch.chunk(self.alike.unsqueeze(1), 2, -1)
            logits = ((q * of_query).sum(-1) + (k * of_key).sum(-1)) * torch.sigmoid(logits)
        logits = torch.where(valid.unsqueeze(1), logits, -1e9)
        weights = torch.softmax(logits, -1).unsqueeze(-1)
        seen: Tensor = (weights * v).sum(2).reshape(b, n)
        return seen


def presence_losses(
    dot_BHT: Tensor, valid_BT: Tensor, none_BHT: Tensor, other_BT: Tensor
) -> Tensor:
    """Of each node the cross-entropies' sum, and over how many logits. [B, 2]

    dot_BHT: the dot products of H heads with the node's own edges; none_BHT: with those of another node; where
    valid_BT and other_BT say that there is one."""
    own = F.softplus(-dot_BHT) * valid_BT.unsqueeze(1)
    others = F.softplus(none_BHT) * other_BT.unsqueeze(1)
    many = (valid_BT.sum(1) + other_BT.sum(1)) * dot_BHT.shape[1]
    return torch.stack([(own + others).sum((1, 2)), many.to(dot_BHT.dtype)], 1)
