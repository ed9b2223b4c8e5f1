"""Does the next edge of one node lead to another? From both nodes' recent edges alone.

Each edge of either node is a token: how old it is, whether it is with the other node, how often its neighbour
occurs among the edges of both (Yu et al. 2023, DyGFormer, arXiv:2303.13047). Beside them the pair's own past and
how busy the nodes are. Shapes: P pairs, K edges of a node."""

import torch
from torch import Tensor, nn

from learning.contract import View
from schemas.stream import DIRECTION, NEIGHBOUR

TOKEN = 9
PAST_S = (10_800.0, 86_400.0, 604_800.0)  # within which a node's edges are counted: 3 h, 1 d, 7 d
NEVER = 1.3  # where an age is missing: beyond any


def seconds(us: Tensor) -> Tensor:
    """Non-negative seconds in float32, of int64 differences that float32 could not hold."""
    return torch.clamp(us.to(torch.float64) * 1e-6, min=0.0).to(torch.float32)


def there(view: View) -> Tensor:
    """[P, K] bool: edges, not padding."""
    steps = torch.ones_like(view["time_us"]).cumsum(1)
    return steps <= view["length"].unsqueeze(1)


def repeats(ids_PK: Tensor, valid_PK: Tensor) -> tuple[Tensor, Tensor]:
    """How often each edge's neighbour occurs among the node's edges, and how often after it."""
    same = ids_PK.unsqueeze(2) == ids_PK.unsqueeze(1)
    same = torch.logical_and(same, valid_PK.unsqueeze(1)).to(torch.float32)
    after = torch.triu(torch.ones_like(same[0]), 1)
    return same.sum(2), (same * after).sum(2)


class PairScorer(nn.Module):
    def __init__(self, hidden: int, window: int) -> None:
        super().__init__()
        self.share = window**-0.5
        self.source, self.target = _token_net(hidden), _token_net(hidden)
        width = 2 * hidden + 7 + 2 * (2 * len(PAST_S) + 3)
        self.out = nn.Sequential(
            nn.Linear(width, 2 * hidden), nn.ReLU(),
            nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 1),
        )  # fmt: skip

    def forward(self, source: View, target: View, pair: View) -> Tensor:
        """Logits [P]. pair: `source_id`, `target_id` (category_hash), `now_us`, each [P]."""
        a = _Side(source, pair["target_id"], pair["now_us"])
        b = _Side(target, pair["source_id"], pair["now_us"])
        met = a.ids.unsqueeze(2) == b.ids.unsqueeze(1)
        met = met & a.valid.unsqueeze(2) & b.valid.unsqueeze(1)
        common = met.to(torch.float32)
        parts = [
            _pooled(self.source, a, common.sum(2)) * self.share,
            _pooled(self.target, b, common.sum(1)) * self.share,
            _past(a, b, (common.sum(2) > 0).to(torch.float32).sum(1)),
            a.busy(),
            b.busy(),
        ]
        logits: Tensor = self.out(torch.cat(parts, -1)).squeeze(-1)
        return logits


class _Side:
    """One node's edges as a pair sees them."""

    def __init__(self, view: View, other_id: Tensor, now_us: Tensor) -> None:
        self.ids = view["categories"][:, :, NEIGHBOUR]
        self.valid = there(view)
        self.mask = self.valid.to(torch.float32)
        self.age = seconds(now_us.unsqueeze(1) - view["time_us"])
        self.out = torch.nan_to_num(view["numbers"][:, :, DIRECTION])
        self.hit = torch.logical_and(self.ids == other_id.unsqueeze(1), self.valid).to(
            torch.float32
        )
        self.length = view["length"]

    def newest(self, which: Tensor) -> Tensor:
        """Log age of the newest of the edges chosen [P, K]; NEVER where there is none. [P]"""
        age = torch.where(which > 0, torch.log1p(self.age) / 16, NEVER)
        return torch.amin(age, 1)

    def busy(self) -> Tensor:
        """Edges in and out within PAST_S, all, and the newest of each. [P, 2·3 + 3]"""
        counts = []
        for within in PAST_S:
            lately = self.mask * (self.age < within)
            counts += [(lately * self.out).sum(1), (lately * (1.0 - self.out)).sum(1)]
        logs = [torch.log1p(c) for c in (*counts, self.mask.sum(1))]
        newest = [self.newest(self.mask * self.out), self.newest(self.mask * (1.0 - self.out))]
        return torch.stack([*logs, *newest], 1)


def _token_net(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(TOKEN, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())


def _pooled(net: nn.Sequential, side: _Side, common: Tensor) -> Tensor:
    """Sum over the tokens: many say more than few. [P, hidden]"""
    own, later = repeats(side.ids, side.valid)
    rank = side.mask.sum(1, keepdim=True) - side.mask.cumsum(1)
    tokens = torch.stack(
        [
            torch.log1p(side.age) / 8 - 1, side.out, side.hit, side.hit * side.out, torch.log1p(rank) / 3,
            torch.log1p(own), (later > 0).to(torch.float32), torch.log1p(common), (common > 0).to(torch.float32),
        ],
        -1,
    )  # fmt: skip
    pooled: Tensor = (net(tokens) * side.mask.unsqueeze(-1)).sum(1)
    return pooled


def _past(a: _Side, b: _Side, common: Tensor) -> Tensor:
    """What the pair had to do with each other: newest and how often each way, and common neighbours. [P, 7]"""
    there_age = torch.minimum(a.newest(a.hit * a.out), b.newest(b.hit * (1.0 - b.out)))
    back_age = torch.minimum(a.newest(a.hit * (1.0 - a.out)), b.newest(b.hit * b.out))
    to = torch.maximum((a.hit * a.out).sum(1), (b.hit * (1.0 - b.out)).sum(1))
    back = torch.maximum((a.hit * (1.0 - a.out)).sum(1), (b.hit * b.out).sum(1))
    met = (torch.minimum(there_age, back_age) < NEVER).to(torch.float32)
    return torch.stack(
        [
            there_age, back_age, torch.minimum(there_age, back_age), torch.log1p(to),
            torch.log1p(back), met, torch.log1p(common),
        ],
        1,
    )  # fmt: skip
