"""A node from its K most recent edges: attention over them, with an encoding of their age.

Source: TGAT, Xu et al. 2020, arXiv:2002.07962, one layer; the encoding of time is GraphMixer's fixed one,
Cong et al. 2023, arXiv:2302.11636. Padded neighbours and a mask, no scatter: exact in ONNX Runtime."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import TemporalAttentionConfig
from learning.contract import Output, View
from learning.encoders.base import Encoder
from learning.encoders.fields import Fields
from learning.encoders.pair_scorer import PairScorer, repeats, seconds, there
from schemas.records import NEIGHBOUR, Shape

FREQUENCIES = 16  # of the encoding of time, from 1 rad/s down to one in about a year
SLOWEST = 4e7  # seconds per radian
STRUCTURE = 4


class TemporalAttentionEncoder(Encoder):
    """Fields of the edges, their structure and age -> attention -> a vector of unit length.

    A node without edges has a vector too, the same for all. `pairs` scores two nodes: see PairScorer."""

    graphs = ("encode", "score")
    frequencies: Tensor

    def __init__(self, shape: Shape, config: TemporalAttentionConfig) -> None:
        super().__init__(shape, config)
        self.heads = config.heads
        n = config.hidden
        hidden_ids = 0 if config.neighbour_ids else 1
        self.own_categories = slice(hidden_ids, None)
        own = Shape(shape.numbers, shape.categories - hidden_ids, shape.session_gap_us)
        self.fields = Fields(own, config)
        self.structure = nn.Linear(STRUCTURE + FREQUENCIES, n)
        self.query, self.key, self.value = nn.Linear(2 * n, n), nn.Linear(n, n), nn.Linear(n, n)
        self.join = nn.Linear(3 * n, n)
        self.out = nn.Linear(n, config.dim)
        if config.variance:
            self.log_variance = nn.Linear(n, config.dim)
        self.pairs = PairScorer(config.pair_hidden, config.window)
        slow = torch.linspace(0.0, math.log(SLOWEST), FREQUENCIES, dtype=torch.float64)
        self.register_buffer("frequencies", torch.exp(-slow), persistent=False)

    def forward(self, view: View) -> Output:
        """Of the edges only those before `length` count. [B, T] -> z_BD; h_BTD: the edges, before attention."""
        valid = there(view)
        some = view["length"].unsqueeze(1) > 0
        x_BTD = self.fields.project(self._features(view)) + self.structure(self._structure(view))
        x_BTD = torch.relu(x_BTD) * valid.unsqueeze(-1)
        count = torch.clamp(view["length"], min=1).unsqueeze(1)
        mean_BD = x_BTD.sum(1) / count
        at = (count - 1).unsqueeze(-1).expand(-1, 1, x_BTD.shape[2])
        last_BD = torch.gather(x_BTD, 1, at).squeeze(1)
        seen_BD = self._attend(torch.cat([last_BD, mean_BD], -1), x_BTD, valid) * some
        joined = torch.relu(self.join(torch.cat([seen_BD, last_BD, mean_BD], -1)))
        extra = {}
        if self.config.variance:
            extra["log_variance"] = torch.clamp(self.log_variance(joined), -10.0, 10.0)
        return Output(F.normalize(self.out(joined), dim=-1), x_BTD, extra)

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

    def own(self, view: View) -> View:
        """The view as `fields` reads it: a window that begins with its first edge."""
        b, first = view["length"].shape[0], view["time_us"][:, 0]  # not len: it would be frozen
        totals = torch.zeros(b, self.shape.totals, dtype=torch.float64, device=first.device)
        some: View = {
            name: view[name][:, :, self.own_categories]
            for name in ("categories", "missing", "unknown")
            if name in view
        }
        return {**view, "previous_us": first, "first_us": first, "totals": totals, **some}

    def _features(self, view: View) -> Tensor:
        f_BTF: Tensor = self.fields.features(self.own(view))
        return f_BTF

    def _structure(self, view: View) -> Tensor:
        """Repeats of the neighbour, whether it comes again later, rank and age before the newest edge."""
        valid = there(view)
        same, later = repeats(view["categories"][:, :, NEIGHBOUR], valid)
        at = torch.clamp(view["length"] - 1, min=0).unsqueeze(1)
        age = seconds(torch.gather(view["time_us"], 1, at) - view["time_us"])
        rank = torch.clamp(at + 1 - valid.to(torch.int64).cumsum(1), min=0).to(torch.float32)
        parts = [torch.log1p(same), (later > 0).to(torch.float32), torch.log1p(rank)]
        scalars = torch.stack([*parts, torch.log1p(age) / 8 - 1], -1)
        angle = age.to(torch.float64).unsqueeze(-1) * self.frequencies
        return torch.cat([scalars, torch.cos(angle).to(torch.float32)], -1)

    def score(self, source: View, target: View, pair: View) -> Tensor:
        """Logits [P] of the next edge of `source` leading to `target`: see PairScorer."""
        logits: Tensor = self.pairs(source, target, pair)
        return logits
