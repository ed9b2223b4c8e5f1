"""TGN from PyG's parts, in an environment of its own: `python pyg.py scores|speed IN OUT`.

Nothing of afresh is imported here. The layers, sizes, loss and single random negative are those of
PyG's example of TGN (Rossi et al. 2020, arXiv:2006.10637); the edges carry no message. IN is an .npz of
the stream: src, dst, time_s [E], and batch, seed, rate. `scores` also reads edge [Q] and candidates [Q, C], and
scores them batch by batch, each before it is learnt from, in one pass."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

DIM, NEIGHBOURS, HEADS, DROPOUT = 100, 10, 2, 0.1
SPEED_EDGES, SPEED_WARM = 20_000, 10_000


class Tgn:
    def __init__(self, rows: Any) -> None:
        import torch
        from torch import nn
        from torch_geometric.nn import TGNMemory, TransformerConv
        from torch_geometric.nn.models.tgn import (
            IdentityMessage,
            LastAggregator,
            LastNeighborLoader,
        )

        torch.manual_seed(int(rows["seed"]))
        self.src, self.dst = torch.from_numpy(rows["src"]), torch.from_numpy(rows["dst"])
        self.time = torch.from_numpy(
            rows["time_s"] - rows["time_s"][0]
        )  # a new memory is of time 0
        self.message = torch.zeros(len(self.src), 1)
        nodes = int(max(self.src.max(), self.dst.max())) + 1
        self.memory = TGNMemory(nodes, 1, DIM, DIM, IdentityMessage(1, DIM, DIM), LastAggregator())
        self.attention = TransformerConv(
            DIM, DIM // HEADS, heads=HEADS, dropout=DROPOUT, edge_dim=1 + DIM
        )
        self.of_sender, self.of_receiver = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.final = nn.Linear(DIM, 1)
        self.neighbours = LastNeighborLoader(nodes, NEIGHBOURS)
        self.place = torch.zeros(nodes, dtype=torch.long)
        parts = (self.memory, self.attention, self.of_sender, self.of_receiver, self.final)
        weights = [w for part in parts for w in part.parameters()]
        self.optimizer = torch.optim.Adam(weights, float(rows["rate"]))

    def score(self, src: Any, dst: Any) -> Any:
        """Logits of src [...] and dst [...], equal shapes, as of the edges that were learnt."""
        import torch

        asked = torch.cat([src.flatten(), dst.flatten()]).unique()  # type: ignore[no-untyped-call]
        near, edges, known = self.neighbours(asked)
        self.place[near] = torch.arange(len(near))
        z, updated = self.memory(near)
        age = self.memory.time_enc((updated[edges[0]] - self.time[known]).to(z.dtype))
        z = self.attention(z, edges, torch.cat([age, self.message[known]], -1))
        sender, receiver = self.of_sender(z), self.of_receiver(z)
        return self.final((sender[self.place[src]] + receiver[self.place[dst]]).relu())[..., 0]

    def ask(self, src: Any, candidates: Any) -> Any:
        """Only dropout is switched off: the memory's evaluation mode would fold its waiting messages in,
        and nothing of them would be learnt."""
        import torch

        self.attention.eval()
        with torch.no_grad():
            scores = self.score(src[:, None].expand_as(candidates), candidates)
        self.attention.train()
        return scores.numpy()

    def learn(self, low: int, high: int) -> None:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

        src, dst = self.src[low:high], self.dst[low:high]
        other = torch.randint(int(self.dst.min()), int(self.dst.max()) + 1, dst.shape)
        self.optimizer.zero_grad()
        yes, no = self.score(src.repeat(2), torch.cat([dst, other])).chunk(2)
        loss = loss_of(yes, torch.ones_like(yes)) + loss_of(no, torch.zeros_like(no))
        self.memory.update_state(src, dst, self.time[low:high], self.message[low:high])
        self.neighbours.insert(src, dst)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.memory.detach()


def scores(rows: Any) -> tuple[Any, float]:
    """Of the queries, and the pass's CPU time with its learning and asking."""
    import torch

    began, tgn, batch = time.process_time(), Tgn(rows), int(rows["batch"])
    edge, candidates = rows["edge"], torch.from_numpy(rows["candidates"])
    out = np.empty(candidates.shape, np.float32)
    for low in range(0, len(tgn.src), batch):
        high = min(low + batch, len(tgn.src))
        a, b = np.searchsorted(edge, [low, high])
        if a < b:
            out[a:b] = tgn.ask(tgn.src[edge[a:b]], candidates[a:b])
        tgn.learn(low, high)
    return out, time.process_time() - began


def speed(rows: Any) -> float:
    """Edges per second of CPU time of its learning alone, after the first ones."""
    tgn, batch = Tgn(rows), int(rows["batch"])
    edges = min(SPEED_EDGES, len(tgn.src)) // batch * batch
    warm = SPEED_WARM // batch * batch
    began = 0.0
    for low in range(0, edges, batch):
        if low == warm:
            began = time.process_time()
        tgn.learn(low, low + batch)
    return (edges - warm) / (time.process_time() - began)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    what, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rows = dict(np.load(source))
    if what == "speed":
        target.write_text(json.dumps({"edges_per_s": speed(rows)}))
    else:
        found, seconds = scores(rows)
        np.savez(target, scores=found, seconds=seconds)


if __name__ == "__main__":
    main()
