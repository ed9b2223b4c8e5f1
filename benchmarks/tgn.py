"""PyG's example of TGN on the graph task and for the clock; it runs in an environment of its own, see pyg.py."""

import numpy as np

from benchmarks.college import College, Queries, made_up
from benchmarks.reference import TGN, Columns
from schemas.records import F32

BATCHES = (20, 200)  # the example's is 200; a smaller one knows more of the newest edges
RATE = 1e-4  # the example's, for 50 passes
RATES = {20: 1e-3}  # where ten times that ranks better in one pass: .245 against .225


def columns(college: College, batch: int, seed: int) -> Columns:
    return {
        "src": college.src, "dst": college.dst, "time_s": college.time_s,
        "batch": np.array(batch), "seed": np.array(seed), "rate": np.array(RATES.get(batch, RATE)),
    }  # fmt: skip


def scores(college: College, asked: Queries, batch: int, seed: int = 0) -> tuple[F32, float]:
    """Of all queries, [Q, C], in one pass, and its CPU time; raises reference.Missing.

    A batch is asked before it is learnt from, so that an edge is 0 to batch - 1 edges stale."""
    rows = columns(college, batch, seed)
    rows |= {"edge": asked.edge, "candidates": asked.candidates}
    answer = np.load(TGN.ask(f"scores-{batch}", rows, ".npz"))
    return answer["scores"], float(answer["seconds"])


def edges_per_second(batch: int, college: College | None = None) -> float:
    """Of CPU time on one thread, learning alone; measured anew each time; raises reference.Missing.

    Without the data a made-up stream of the same size and rate stands in."""
    return TGN.measure(columns(college or made_up(), batch, 0), "edges_per_s")
