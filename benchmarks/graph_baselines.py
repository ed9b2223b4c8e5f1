"""The trained baseline of the graph task: an MLP on 19 pair features, in one pass, asked before it learns.

`python -m benchmarks.graph_baselines` measures all baselines; AFRESH_DATA names the data folder."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from benchmarks import college as college_msg
from benchmarks import tgn
from benchmarks.college import College, Queries
from benchmarks.pair_features import FEATURES, features
from benchmarks.reference import Missing
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


def main() -> None:
    folder = os.environ.get("AFRESH_DATA")
    if not folder or not (Path(folder) / "college_msg.txt").exists():
        sys.exit(f"AFRESH_DATA is {folder!r}; it must name the folder with college_msg.txt.")
    torch.set_num_threads(1)
    console = Console()
    data = college_msg.load(Path(folder))
    asked = college_msg.queries(data)
    table = Table("baseline", "edges stale", "all", *college_msg.KINDS, "CPU s")
    table.title = f"CollegeMsg, MRR of {len(asked.edge)} queries"

    def add(name: str, stale: str, scores: F32 | F64, seconds: float) -> None:
        means = college_msg.summary(college_msg.reciprocal_ranks(scores), asked)
        table.add_row(name, stale, *(f"{mean:.3f}" for mean in means), f"{seconds:.0f}")
        console.print(f"[dim]{name}, {stale} stale: {means[0]:.3f}[/dim]")

    for name, baseline in BASELINES.items():
        for stale in STALE:
            began = time.process_time()
            scores = baseline(data, asked, stale)
            add(name, str(stale), scores, time.process_time() - began)
    for batch in tgn.BATCHES:
        try:
            add(f"TGN, batches of {batch}", f"0 to {batch - 1}", *tgn.scores(data, asked, batch))
        except Missing as why:
            console.print(f"Without TGN: {why}")
    console.print(table)


if __name__ == "__main__":
    main()
