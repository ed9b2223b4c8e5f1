"""The trained baseline of the graph task: an MLP on 19 pair features, in one pass, asked before it learns."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import college as college_msg
from benchmarks.college import College, Queries
from benchmarks.pair_features import FEATURES, features
from schemas.records import F32, F64, Bool

HIDDEN, LEARNING_RATE, NEGATIVES = 64, 2e-3, 20
STALE = (0, 1, 20, 200)


def mlp(college: College, asked: Queries, seed: int = 0, stale: int = 0) -> F32:
    """Scores of all queries, [Q, C]: one update of AdamW for each edge, softmax cross-entropy of its true
    receiver against 20 negatives; each query is scored before its edge is learnt.

    With `stale` the features are older, in learning and in asking; the weights are not."""
    others = college_msg.negatives(college, NEGATIVES, seed)
    true = np.where(others[:, :1] < 0, -1, college.dst[:, None])
    edges = np.arange(len(college.src))
    x_learn = features(college, edges, np.concatenate([true, others], 1), stale)
    x_ask = features(college, asked.edge, asked.candidates, stale)
    return learn(torch.from_numpy(x_learn), torch.from_numpy(x_ask), true[:, 0] >= 0, asked, seed)


def learn(
    x_learn: torch.Tensor, x_ask: torch.Tensor, usable: Bool, asked: Queries, seed: int
) -> F32:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(len(FEATURES), HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE)
    first = torch.zeros(1, dtype=torch.long)  # the true receiver's place
    out = np.empty(asked.candidates.shape, np.float32)
    query = {edge: q for q, edge in enumerate(asked.edge.tolist())}
    for i, use in enumerate(usable.tolist()):
        if (q := query.get(i)) is not None:
            with torch.no_grad():
                out[q] = net(x_ask[q]).squeeze(-1).numpy()
        if use:
            loss = F.cross_entropy(net(x_learn[i]).T, first)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return out


def edgebank_lately(college: College, asked: Queries, stale: int = 0) -> F64:
    return college_msg.edgebank(college, asked, college_msg.window_of(college), stale)


BASELINES: dict[str, Callable[[College, Queries, int], F32 | F64]] = {
    "EdgeBank": lambda c, q, stale: college_msg.edgebank(c, q, None, stale),
    "EdgeBank, window": edgebank_lately,
    "last contact, then popularity": college_msg.last_contact,
    "MLP on pair features": lambda c, q, stale: mlp(c, q, 0, stale),
}
