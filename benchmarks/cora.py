"""Cora as a stream of nodes and edges: what do vectors know of a paper's field?

Its 2,708 node records and 5,278 edges, in random order, go once through the learner; then each method makes the same
number of updates. A linear probe on the public split (140 papers to learn from, 500 to choose C, 1,000 to report)."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from learning.config import (
    BandanaConfig,
    GraceConfig,
    GraphmaeConfig,
    LearnerConfig,
    NextInteractionConfig,
    Node2vecConfig,
    ObjectiveConfig,
    ReplayConfig,
    TemporalAttentionConfig,
)
from learning.graph_learner import GraphLearner
from learning.student import embed
from schemas.records import (
    DIRECTION,
    F32,
    F64,
    I64,
    NEIGHBOUR,
    Features,
    Rows,
    Shape,
    Windows,
    category_hash,
)

SEEDS = (0, 1, 2)
STRENGTHS = 10.0 ** np.arange(-1, 5)  # C of the regression, chosen on the validation papers
BATCH = 512  # nodes of an update
UPDATES = 500
START_US, STEP_US = 1_600_000_000_000_000, 1_000  # when things happened means nothing here
ENCODER = TemporalAttentionConfig(dim=128, hidden=128, window=32)
PUBLISHED = {"GRACE": 0.819, "GraphMAE": 0.842}  # two layers, 200 and 1,500 epochs of all nodes
METHODS: dict[str, ObjectiveConfig] = {
    "grace": GraceConfig(),
    "graphmae": GraphmaeConfig(),
    "bandana": BandanaConfig(),
    "node2vec": Node2vecConfig(),
    "next_interaction": NextInteractionConfig(historical=0, matched=1, random=0, pairs=0.0),
}


@dataclass(frozen=True)
class Cora:
    """N papers, E citations. x [N, 1433] holds which words are there."""

    x: F32
    edge: I64  # [E, 2]
    label: I64  # [N]
    train: I64
    val: I64
    test: I64

    @property
    def shape(self) -> Shape:
        return Shape(1, 1, graph=True, node_numbers=self.x.shape[1])


def load(folder: Path) -> Cora:
    with np.load(folder / "cora.npz") as a:
        x = np.zeros((len(a["label"]), int(a["num_features"])), np.float32)
        x[a["feature_row"], a["feature_col"]] = 1.0
        own = (a[name].astype(np.int64) for name in ("edge", "label", "train", "val", "test"))
        return Cora(x, *own)


def accuracy(z: F32 | F64, cora: Cora) -> tuple[float, float]:
    """Of a logistic regression on rows of length 1: on the validation and on the test papers."""
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    best = (-1.0, 0.0)
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=strength, max_iter=300)
            model.fit(z[cora.train], cora.label[cora.train])
        val, test = (model.score(z[at], cora.label[at]) for at in (cora.val, cora.test))
        best = max(best, (float(val), float(test)), key=lambda found: found[0])
    return best


def averaged(cora: Cora, hops: int) -> F32:
    """Features averaged over a paper and its neighbours, `hops` times: SGC, Wu et al. 2019, arXiv:1902.07153."""
    n = len(cora.x)
    link = np.eye(n, dtype=np.float32)
    link[cora.edge[:, 0], cora.edge[:, 1]] = link[cora.edge[:, 1], cora.edge[:, 0]] = 1.0
    scale = 1.0 / np.sqrt(link.sum(1))
    link *= scale[:, None] * scale
    x = cora.x
    for _ in range(hops):
        x = link @ x
    return x


def streamed(cora: Cora, objective: ObjectiveConfig, seed: int) -> tuple[GraphLearner, I64]:
    """A learner that has all of the stream and has made no update; the ids of the papers."""
    config = LearnerConfig(
        objective=(objective,), seed=seed, batch_entities=BATCH, held_out_share=0.0,
        learning_rate=LEARNING_RATE, replay=ReplayConfig(max_bytes=1 << 30),
    )  # fmt: skip
    learner = GraphLearner(config, ENCODER, cora.shape)
    ids = np.array([category_hash(paper) for paper in range(len(cora.x))])
    none = np.zeros((len(ids), 0), np.int64)
    at = np.arange(len(ids))
    learner.describe(ids, Features(cora.x, none, none > 0), START_US + at, at)
    edge = np.random.default_rng(seed).permutation(cora.edge)
    for first in range(0, len(edge), 64):
        learner.receive(_edges(cora, ids, edge[first : first + 64], first))
    return learner, ids


LEARNING_RATE = 1e-3


def _edges(cora: Cora, ids: I64, edge: I64, first: int) -> Windows:
    n = len(edge)
    rows = Rows.empty(cora.shape, n)
    rows.position[:] = len(ids) + first + np.arange(n)
    rows.time_us[:] = START_US + STEP_US * rows.position
    rows.numbers[:, DIRECTION] = 1.0
    rows.categories[:, NEIGHBOUR] = ids[edge[:, 1]]
    rows.missing[:] = False
    none = np.zeros((n, cora.shape.totals))
    return Windows(rows, np.arange(n + 1), none, rows.time_us.copy(), ids[edge[:, 0]])


def vectors(learner: GraphLearner, ids: I64) -> F32:
    """Of all papers, by the averaged encoder, as they are now."""
    learner.replay.enter(learner.replay.waiting)
    adjacency = learner.replay.adjacency
    slots = np.array([adjacency.index[paper] for paper in ids.tolist()])
    windows = learner.replay.described(adjacency.windows(slots))
    out: F32 = embed(learner.released(), windows, 256).numpy()
    return out
