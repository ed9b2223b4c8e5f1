"""How near a node's vector, after edges of it were removed, is to that of the stream in which they never were.

While no ring overflows they are equal (`tests/actors/test_removed_edges.py`). Behind an overflow they are not: what
a removed edge or its tombstone pushed out of the ring does not come back, so that the window is shorter than it
would be. Measured on CollegeMsg with an encoder learnt from it, through state and ONNX Runtime:
`AFRESH_DATA=folder python -m benchmarks.removal`."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actors.embed import encode_anew
from actors.encode import Release
from actors.state import State
from benchmarks import flow
from benchmarks.college import College, load
from benchmarks.graph_pass import ENCODER, SHAPE, VECTORS, distinct, edges_of, learner_config
from learning.graph_learner import GraphLearner
from schemas.records import F32, I64, Bool, Decoded, Rows, category_hash
from schemas.stream import DIRECTION, NEIGHBOUR, StreamConfig

STREAM = StreamConfig("src", "at", kind="graph", neighbour="dst", time_unit="s")
OVERFLOWS = (0, 1, 2, 5)
SHARE = 0.1
LEARNT = 20_000  # edges that the encoder is learnt from
Among = Literal["newest", "all"]


def learnt(college: College, folder: Path) -> Release:
    """A release of an encoder that has learnt from the first edges."""
    learner = GraphLearner(learner_config(VECTORS, 0), ENCODER, SHAPE)
    ids, time_us = ids_of(college), distinct(college.time_s)
    for first in range(0, LEARNT, 32):
        learner.receive(edges_of(college, ids, time_us, np.arange(first, first + 32)))
        while learner.updates < learner.records // 32 and learner.learn() is not None:
            pass
    flow.release(folder, 1, ENCODER, STREAM, learner.ema)
    return Release.load(folder / "1")


def ids_of(college: College) -> I64:
    return np.array([category_hash(node) for node in range(college.nodes)])


def of_node(college: College, node: int, n: int) -> Rows:
    """The node's first n edges, as it sees them."""
    at = np.flatnonzero((college.src == node) | (college.dst == node))[:n]
    out = college.src[at] == node
    rows = Rows.empty(SHAPE, len(at))
    rows.time_us[:], rows.position[:] = distinct(college.time_s)[at], at
    rows.numbers[:, DIRECTION] = out
    far = np.where(out, college.dst[at], college.src[at])
    rows.categories[:, NEIGHBOUR] = ids_of(college)[far]
    rows.missing[:] = False
    return rows


def state_of(streams: list[Rows]) -> State:
    """A state in which stream i is what node i has seen."""
    state = State(SHAPE, ENCODER.window, 0, max(64, len(streams)))
    rows = Rows.concat(streams)
    names = [str(i) for i, stream in enumerate(streams) for _ in range(len(stream))]
    none = np.zeros(len(names), np.bool_)
    state.apply(Decoded(rows, names, none, np.zeros(len(names), np.int64)))
    return state


def removed(rows: Rows, among: Among, rng: np.random.Generator) -> Bool:
    """Which edges go: SHARE of the newest window's, or of all; and all others between the same two nodes."""
    n, first = len(rows), max(0, len(rows) - ENCODER.window) if among == "newest" else 0
    chosen = first + rng.choice(n - first, max(1, round(SHARE * (n - first))), replace=False)
    return np.isin(rows.categories[:, NEIGHBOUR], rows.categories[chosen, NEIGHBOUR])


def tombstones(rows: Rows, which: Bool) -> Rows:
    """One for each pair, behind all edges."""
    far = np.unique(rows.categories[which, NEIGHBOUR])
    out = Rows.empty(SHAPE, len(far))
    out.time_us[:] = rows.time_us[-1] + 1 + np.arange(len(far))
    out.position[:], out.numbers[:] = rows.position[-1] + 1, 1.0
    out.categories[:, NEIGHBOUR] = far
    return out


def cosines(
    release: Release, streams: list[Rows], among: Among, seed: int = 0
) -> tuple[F32, F32, F32]:
    """Of each node: with removal against never, without removal against never; live edges with and never."""
    rng = np.random.default_rng(seed)
    gone = [removed(rows, among, rng) for rows in streams]
    some = [i for i, which in enumerate(gone) if (~which).sum() >= 1]
    streams, gone = [streams[i] for i in some], [gone[i] for i in some]
    came = [Rows.concat([r, tombstones(r, g)]) for r, g in zip(streams, gone, strict=True)]
    never = [r.take(~g) for r, g in zip(streams, gone, strict=True)]
    slots = np.arange(len(streams))
    states = [state_of(each) for each in (came, never, streams)]
    alive = states[0].held(slots) > 0
    after, wanted, before = (encode_anew(state, slots, release)[alive] for state in states)
    held = np.stack([state.held(slots)[alive] for state in states[:2]])
    return (after * wanted).sum(1), (before * wanted).sum(1), held.mean(1)


def measure(college: College, out: Console) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        release = learnt(college, Path(folder))
    table = Table("ring overflowed", "removed", "nodes", "cosine: mean", "lowest 5%", "removal ignored",
                  "edges in the window", "had they never been")  # fmt: skip
    degree = np.bincount(np.concatenate([college.src, college.dst]))
    k = ENCODER.window
    for overflow in OVERFLOWS:
        n = k * (1 + overflow)
        if not overflow:
            n = k // 2  # room for the tombstones
        streams = [of_node(college, i, n) for i in np.flatnonzero(degree >= k * 6).tolist()]
        for among in ("newest", "all") if overflow else ("all",):
            found, ignored, held = cosines(release, streams, among)
            table.add_row(
                f"{overflow}x", f"{SHARE:.0%} of {'its newest edges' if among == 'newest' else 'all edges'}",
                str(len(found)), f"{found.mean():.4f}", f"{np.quantile(found, 0.05):.4f}",
                f"{ignored.mean():.4f}", f"{held[0]:.1f}", f"{held[1]:.1f}",
            )  # fmt: skip
    out.print(table)


if __name__ == "__main__":
    data = os.environ.get("AFRESH_DATA")
    if not data or not (Path(data) / "college_msg.txt").exists():
        sys.exit("AFRESH_DATA must name the folder with college_msg.txt.")
    measure(load(Path(data)), Console(width=130))
