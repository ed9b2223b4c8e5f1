"""Graphs in `make bench`: training against PyG's TGN, state, the shard's path, freshness.

Edges of a made-up stream are keyed by their source; both ends are written. Training is on CollegeMsg where
AFRESH_DATA names its folder, else on a stream made up like it; the pairs alternate, for the machine has other work."""

import os
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from actors.capacity import entity_bytes
from actors.state import State
from benchmarks import college, flow, freshness, shard_path, tgn
from benchmarks.apart import apart
from benchmarks.college import College
from benchmarks.graph_pass import ENCODER, PAIRS, SHAPE, STEP, distinct, edges_of, learner_config
from benchmarks.growing import STREAM
from benchmarks.items import Item, at_least, shown
from benchmarks.reference import Missing
from benchmarks.sizes import batch as rows_of
from learning.config import (
    GraphMemoryConfig,
    LearnerConfig,
    NextInteractionConfig,
    TemporalAttentionConfig,
)
from learning.graph_learner import GraphLearner
from learning.memory_learner import MemoryLearner
from schemas.records import I64, category_hash

BATCH, PAIRS_OF_RUNS, BAR = 200, 3, 5.0
MEMORY = GraphMemoryConfig(dim=100, hidden=100)  # sizes of PyG's example
ONE_NEGATIVE = NextInteractionConfig(historical=0, matched=0, random=1, pairs=0.0)
WARM, EDGES = (
    10_000,
    20_000,
)  # as in pyg.py; of the quality model, which is slower, a fifth is measured
NODES, RECORDS, HISTORY = 10_000, 60_000, 30_000
SERVED = TemporalAttentionConfig(dim=128, hidden=64)


def data() -> College:
    folder = os.environ.get("AFRESH_DATA")
    if folder and (Path(folder) / "college_msg.txt").exists():
        return college.load(Path(folder))
    print("graph-learner: AFRESH_DATA does not name a folder with college_msg.txt: made-up edges")
    return college.made_up()


def memory_rate() -> float:
    """Edges per second of CPU time that a graph_memory learner takes in and learns from, each once."""
    config = LearnerConfig(
        objective=(ONE_NEGATIVE,), batch_entities=BATCH, min_entities=BATCH, held_out_share=0.0
    )
    return _rate(MemoryLearner(config, MEMORY, SHAPE), BATCH, WARM, EDGES, 1 / BATCH)


def quality_rate() -> float:
    """... that the model of `make quality-graph` does: pairs by their windows, 20 negatives, replay."""
    made = GraphLearner(learner_config(PAIRS, 0), ENCODER, SHAPE)
    return _rate(made, STEP, EDGES // 5 // 2 // STEP * STEP, EDGES // 5 // STEP * STEP, 1 / STEP)


def _rate(made: GraphLearner, size: int, warm: int, edges: int, updates_per_edge: float) -> float:
    torch.set_num_threads(1)
    stream = data()
    ids = np.array([category_hash(node) for node in range(stream.nodes)])
    time_us, began, before = distinct(stream.time_s), 0.0, 0
    for first in range(0, edges, size):
        if first == warm:
            began, before = time.process_time(), made.updates
        made.receive(edges_of(stream, ids, time_us, np.arange(first, first + size)))
        while made.updates < int(made.records * updates_per_edge) and made.learn() is not None:
            pass
    assert made.updates - before >= 0.9 * (edges - warm) / size, "it has not learnt from all"
    return (edges - warm) / (time.process_time() - began)


def learner() -> list[Item]:
    stream = data()
    rates: list[tuple[float, float]] = []
    try:
        for _ in range(PAIRS_OF_RUNS):
            theirs = tgn.edges_per_second(BATCH, stream)
            rates.append((theirs, apart(memory_rate)))
    except Missing as why:
        print(f"graph-learner: without PyG's TGN: {why}")
        rates = [(float("nan"), apart(memory_rate))]
    quality = apart(quality_rate)
    found = np.array(rates)
    theirs, ours = np.median(found, axis=0).tolist()
    what = f"graph training, dim 100, batch {BATCH}, 1 random negative"
    out = [shown(f"{what}: graph_memory", ours, "edges/s of CPU")]
    if np.isfinite(theirs):
        ratio = float(np.median(found[:, 1] / found[:, 0]))
        out.append(shown(f"{what}: PyG's TGN example", theirs, "edges/s of CPU"))
        out.append(at_least(f"{what}: against PyG's TGN example", ratio, "ratio", BAR))
    name = "graph training, temporal_attention with pair scorer, 20 negatives, replay"
    return [*out, shown(name, quality, "edges/s of CPU")]


def memory(nodes: int = 50_000) -> list[Item]:
    """Bytes of a node in a shard's state, its ring full: of the columns as they are."""
    state = State(STREAM.shape, SERVED.window, SERVED.state, nodes)
    names = [flow.name_of(node) for node in range(nodes)]
    for at in range(SERVED.window):
        state.apply(rows_of(STREAM.shape, names, at))
    assert (state.placed == SERVED.window).all()
    what = f"state of a node (K = {SERVED.window}, no fields)"
    columns = entity_bytes(STREAM.shape, SERVED.window, SERVED.state)
    return [
        shown(f"{what}: columns", columns, "bytes"),
        shown(f"{what}: arrays with spare", state.nbytes / nodes, "bytes"),
    ]


def messages(n: int, nodes: int = NODES) -> list[bytes]:
    """Edges whose sources and targets are all nodes in turn, so that few micro-batches hold one often."""
    ends = flow.even(n, nodes), np.random.default_rng(1).permutation(flow.even(n, nodes))
    return [_message(s, d, flow.START_MS + at) for at, (s, d) in enumerate(_pairs(*ends))]


def _pairs(source: I64, target: I64) -> list[tuple[int, int]]:
    return list(zip(source.tolist(), target.tolist(), strict=True))


def _message(source: int, target: int, at: int) -> bytes:
    return b'{"src":"node-%06d","dst":"node-%06d","at":%d}' % (source, target, at)


def path(brokers: str, url: str) -> list[Item]:
    """As shard_path does it: poll, decode and two HSET a record, against the real shard."""
    topic = "bench-graph"
    shard_path.produce(brokers, topic, messages(HISTORY + RECORDS))
    with tempfile.TemporaryDirectory() as folder:
        flow.release(Path(folder) / "releases", 1, SERVED, STREAM)
        bare = shard_path.Bare(brokers, url, topic, "json", STREAM)
        served = shard_path.Served(brokers, url, topic, "json", Path(folder), STREAM, SERVED)
        with closing(bare), closing(served):
            for loop in (bare, served):
                taken = 0
                while taken < HISTORY:
                    taken += loop.turn(shard_path.MESSAGES["json"])
            stats = served.shard._stats
            written, accepted = stats.written, stats.accepted
            rates = np.array(list(shard_path.race(bare, served, "json", RECORDS)))
            written = served.shard._stats.written - written
            accepted = served.shard._stats.accepted - accepted
    ratio = float(np.median(rates[:, 1] / rates[:, 0]))
    bare_rate, rate = np.median(rates, axis=0).tolist()
    what = "graph's shard path, json, both ends written"
    return [
        shown(f"{what}, against the bare loop", ratio, "ratio"),
        shown(what, rate, "records/s"),
        shown(f"{what}: vectors to a record", written / accepted, ""),
        shown("bare loop, json, two HSET a record", bare_rate, "records/s"),
    ]


def freshness_of(brokers: str, url: str) -> list[Item]:
    return freshness.measure(brokers, url, EDGES_FLOW)


def _history() -> list[bytes]:
    return messages(HISTORY)


def _steady() -> list[bytes]:
    return messages(20_000)


def _probe(at: int) -> tuple[dict[str, object], list[str]]:
    """An edge between two new nodes; both must be readable."""
    ends = [f"probe-{at:06d}", f"probe-{at:06d}-far"]
    return {"src": ends[0], "dst": ends[1], "at": flow.START_MS + 10**9 + at}, ends


EDGES_FLOW = freshness.Flow(
    name="bench-freshness-graph",
    stream='{ kind = "graph", entity = "src", neighbour = "dst", time = "at", time_unit = "ms" }',
    encoder='{ name = "temporal_attention", dim = 128, hidden = 64 }',
    objective='{ name = "next_interaction" }',
    history=_history,
    steady=_steady,
    probe=_probe,
    what="freshness of a graph, produced to both ends readable",
    bars=False,
    rows=2,
)
