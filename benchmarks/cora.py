"""Cora as a stream of nodes and edges: what do vectors know of a paper's field?

Its 2,708 node records and 5,278 edges, in random order, go once through the learner; then each method makes the same
number of updates. A linear probe on the public split (140 papers to learn from, 500 to choose C, 1,000 to report)."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.items import Item, at_least, shown
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
from schemas.records import F32, F64, I64, Features, Rows, Told, Windows, category_hash
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

SEEDS = (0, 1, 2)
STRENGTHS = 10.0 ** np.arange(-1, 5)  # C of the regression, chosen on the validation papers
UPDATES, BATCH = 500, 512  # nodes that are encoded in an update, about
LEARNING_RATE = 1e-3
START_US, STEP_US = 1_600_000_000_000_000, 1_000  # when things happened means nothing here
ENCODER = TemporalAttentionConfig(dim=128, hidden=128, window=32)
PUBLISHED = {  # two layers, all nodes in each of 200 and 1,500 epochs
    "GRACE": 0.819,
    "GraphMAE": 0.842,
}
METHODS: dict[str, ObjectiveConfig] = {
    "graphmae": GraphmaeConfig(),
    "grace": GraceConfig(),
    "bandana": BandanaConfig(),
    "node2vec": Node2vecConfig(),
    "next_interaction": NextInteractionConfig(historical=0, matched=1, random=0, pairs=0.0),
}
HONEST = "features averaged over the neighbours, 1 hop"  # as much as one layer sees


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
    nodes = objective.nodes if isinstance(objective, NextInteractionConfig) else 1
    config = LearnerConfig(
        objective=(objective,), seed=seed, learning_rate=LEARNING_RATE, held_out_share=0.0,
        batch_entities=BATCH // nodes, replay=ReplayConfig(max_bytes=1 << 30),
    )  # fmt: skip
    learner = GraphLearner(config, ENCODER, cora.shape)
    ids = np.array([category_hash(paper) for paper in range(len(cora.x))])
    none = np.zeros((len(ids), 0), np.int64)
    at = np.arange(len(ids))
    features = Features(cora.x, none, none > 0)
    learner.describe(Told(ids, at, START_US + at, at, 0 * at, features))
    edge = np.random.default_rng(seed).permutation(cora.edge)
    for first in range(0, len(edge), 64):
        learner.receive(_edges(cora, ids, edge[first : first + 64], first))
    return learner, ids


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
    windows = learner.replay.known(adjacency.windows(slots))
    out: F32 = embed(learner.released(), windows, 256).numpy()
    return out


def measure(cora: Cora, console: Console, updates: int = UPDATES) -> list[Item]:
    """Accuracies on the test papers, all methods; prints a table."""
    found: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for hops in range(3):
        name = HONEST.replace("1 hop", f"{hops} hops") if hops > 1 else HONEST
        found["features" if hops == 0 else name] = [accuracy(averaged(cora, hops), cora)[1]]
    for seed in SEEDS:
        learner, ids = streamed(cora, METHODS["grace"], seed)
        learner.prepare()
        found.setdefault("untrained encoder", []).append(accuracy(vectors(learner, ids), cora)[1])
    for name, objective in METHODS.items():
        for seed in SEEDS:
            began = time.process_time()
            learner, ids = streamed(cora, objective, seed)
            while learner.updates < updates and learner.learn() is not None:
                pass
            seconds[name] = time.process_time() - began
            found.setdefault(name, []).append(accuracy(vectors(learner, ids), cora)[1])
            console.print(f"[dim]Cora, {name}, seed {seed}: {found[name][-1]:.3f}[/dim]")
    table = Table("representation", "test accuracy", "CPU s")
    table.title = f"Cora, public split, after one pass and {updates} updates"
    for name, each in found.items():
        spread = f" ± {np.ptp(each) / 2:.3f}" if len(each) > 1 else ""
        took = f"{seconds[name]:.0f}" if name in seconds else ""
        table.add_row(name, f"{np.mean(each):.3f}{spread}", took)
    for name, accurate in PUBLISHED.items():
        table.add_row(f"published: {name}", f"{accurate:.3f}")
    console.print(table)
    return [*_items(found)]


def _items(found: dict[str, list[float]]) -> Iterator[Item]:
    honest = found[HONEST][0]
    for name, each in found.items():
        mean = float(np.mean(each))
        yield shown(f"Cora, test accuracy, {name}", mean, "share")
        if name in METHODS:
            yield at_least(f"Cora, {name} over {HONEST}", mean - honest, "share", 0.0)
