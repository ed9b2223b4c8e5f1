"""A node from its K most recent edges: attention over them, with an encoding of their age.

Source: TGAT, Xu et al. 2020, arXiv:2002.07962, one layer; the encoding of time is GraphMixer's fixed one,
Cong et al. 2023, arXiv:2302.11636."""

import math

import torch
from torch import Tensor, nn

from learning.config import TemporalAttentionConfig
from learning.contract import View
from learning.encoders.graph import GraphEncoder, newest_and_mean
from schemas.records import Shape


class TemporalAttentionEncoder(GraphEncoder):
    """The newest edge, the mean of all and the node itself ask; all edges answer."""

    def __init__(self, shape: Shape, config: TemporalAttentionConfig) -> None:
        n = config.hidden
        super().__init__(shape, config, n)
        self.heads = config.heads
        own = n if shape.noded else 0
        self.query = nn.Linear(2 * n + own, n)
        self.key, self.value = nn.Linear(n, n), nn.Linear(n, n)
        self.join = nn.Linear(3 * n + own, n)

    def readout(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> Tensor:
        some = view["length"].unsqueeze(1) > 0
        last_BD, mean_BD = newest_and_mean(view, x_BTD)
        asked_BD = torch.cat([last_BD, mean_BD, own_BD], -1)
        seen_BD = self._attend(asked_BD, x_BTD, valid_BT) * some
        return torch.relu(self.join(torch.cat([seen_BD, last_BD, mean_BD, own_BD], -1)))

    def _attend(self, asked_BD: Tensor, x_BTD: Tensor, valid: Tensor) -> Tensor:
        heads = self.heads
        b, t, n = x_BTD.shape
        q = self.query(asked_BD).reshape(b, heads, 1, n // heads)
        k = self.key(x_BTD).reshape(b, t, heads, n // heads).transpose(1, 2)
        v = self.value(x_BTD).reshape(b, t, heads, n // heads).transpose(1, 2)
        logits = (q * k).sum(-1) / math.sqrt(n // heads)  # [B, heads, T]
        logits = torch.where(valid.unsqueeze(1), logits, -1e9)
        weights = torch.softmax(logits, -1).unsqueeze(-1)
        seen: Tensor = (weights * v).sum(2).reshape(b, n)
        return seen
