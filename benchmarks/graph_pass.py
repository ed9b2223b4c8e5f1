"""afresh's own model on the graph task: one pass over CollegeMsg, each message ranked before it is learnt from."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.college import College, Queries
from learning.adjacency import COLUMNS, Adjacency
from learning.config import (
    GraphMemoryConfig,
    GraphMixerConfig,
    LearnerConfig,
    NextInteractionConfig,
    ReplayConfig,
    TemporalAttentionConfig,
)
from learning.contract import Batch
from learning.edges import Examples
from learning.graph_learner import GraphLearner
from learning.memory_learner import MemoryLearner
from learning.nodes import Drawn
from schemas.records import F32, I64, Rows, Windows, category_hash
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

SHAPE = Shape(1, 1, graph=True)  # the direction; the neighbour
GraphEncoderConfig = TemporalAttentionConfig | GraphMixerConfig | GraphMemoryConfig
ENCODER = TemporalAttentionConfig()
OTHERS: dict[str, GraphEncoderConfig] = {
    "graph_mixer": GraphMixerConfig(neighbour_ids=True),
    "graph_memory": GraphMemoryConfig(neighbour_ids=True),
}
PAIRS = NextInteractionConfig(historical=10, matched=0, random=10, vectors=0.0)
VECTORS = NextInteractionConfig(historical=10, matched=0, random=10, pairs=0.0)
STEP = 32  # edges between two updates, and between two rounds of ranking


@dataclass
class Pass:
    """What one pass came to. scores [Q, C] by how many edges stale the state was."""

    scores: dict[int, F32]
    updates: int
    learn_s: float  # CPU time
    ask_s: float


def learner_config(objective: NextInteractionConfig, seed: int) -> LearnerConfig:
    return LearnerConfig(
        objective=(objective,), seed=seed, batch_entities=4 * STEP, updates_per_record=1 / STEP,
        learning_rate=3e-3, held_out_share=0.0, replay=ReplayConfig(fresh=0.25),
    )  # fmt: skip


def one_pass(
    college: College,
    asked: Queries,
    objective: NextInteractionConfig,
    encoder: GraphEncoderConfig = ENCODER,
    seed: int = 0,
    stale: tuple[int, ...] = (0,),
) -> Pass:
    """Ranks by the pair scorer, or by the vectors' cosine where `objective.pairs` is zero.

    The weights that rank are the averaged ones, up to STEP edges old; the state is `stale` edges old."""
    torch.set_num_threads(1)
    make = MemoryLearner if isinstance(encoder, GraphMemoryConfig) else GraphLearner
    learner = make(learner_config(objective, seed), encoder, SHAPE)
    ids = np.array([category_hash(node) for node in range(college.nodes)])
    time_us = distinct(college.time_s)
    known = Adjacency(SHAPE, encoder.window, 2 * college.nodes)
    out = Pass({s: np.empty(asked.candidates.shape, np.float32) for s in stale}, 0, 0.0, 0.0)
    for first in range(0, len(time_us), STEP):
        edges = edges_of(college, ids, time_us, np.arange(first, min(first + STEP, len(time_us))))
        known.add(edges.entity, edges.rows)
        began = time.process_time()
        which = np.flatnonzero((asked.edge >= first) & (asked.edge < first + STEP))
        for s in stale if len(which) else ():
            edge = asked.edge[which]
            nodes = np.concatenate([college.src[edge][:, None], asked.candidates[which]], 1)
            batch = views(learner, known, ids[nodes], time_us[edge], time_us[edge - s])
            out.scores[s][which] = rank(learner, batch, nodes.shape, by_pair=objective.pairs > 0)
        out.ask_s += time.process_time() - began
        began = time.process_time()
        learner.receive(edges)
        while learner.updates < int(learner.records / STEP) and learner.learn() is not None:
            pass
        out.learn_s += time.process_time() - began
    out.updates = learner.updates
    return out


def distinct(time_s: I64) -> I64:
    """Microseconds, edges of one second one after the other."""
    rank = np.arange(len(time_s)) - np.searchsorted(time_s, time_s)
    return np.asarray(time_s * 1_000_000 + rank)


def edges_of(college: College, ids: I64, time_us: I64, at: I64) -> Windows:
    rows = Rows.empty(SHAPE, len(at))
    rows.time_us[:], rows.position[:] = time_us[at], at
    rows.numbers[:, DIRECTION] = 1.0
    rows.categories[:, NEIGHBOUR] = ids[college.dst[at]]
    rows.missing[:] = False
    none = np.zeros((len(at), SHAPE.totals))
    return Windows(rows, np.arange(len(at) + 1), none, rows.time_us.copy(), ids[college.src[at]])


def views(learner: GraphLearner, known: Adjacency, nodes: I64, now_us: I64, as_of_us: I64) -> Batch:
    """The nodes [q, 1 + C], the source first, as of a time for each query."""
    slots = np.array([known.index.get(node, -1) for node in nodes.ravel().tolist()], np.int64)
    rows, length = known.as_of(slots, np.repeat(as_of_us, nodes.shape[1]))
    columns = (getattr(rows, name) for name in COLUMNS)
    rows = Rows(*(c.reshape(*nodes.shape, *c.shape[1:]) for c in columns))
    examples = Examples(
        nodes, now_us, rows, length.reshape(nodes.shape), np.zeros(nodes.shape, np.bool_)
    )
    batch: Batch = learner.kind.views(Drawn(examples), learner.needs, learner.rng, augment=False)
    return batch


@torch.no_grad()
def rank(learner: GraphLearner, batch: Batch, shape: tuple[int, ...], *, by_pair: bool) -> F32:
    if by_pair:
        logits = learner.ema.score(batch.views["source"], batch.views["target"], batch.pairs)
        return logits.reshape(shape[0], -1).numpy()
    z = learner.ema(batch.views["nodes"]).z_BD.reshape(*shape, -1)
    scores: F32 = (z[:, 1:] * z[:, :1]).sum(2).numpy()
    return scores
