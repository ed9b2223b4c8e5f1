"""A stream of small graphs with planted motifs: does a graph's vector tell which motif it holds?

As in the BA-motif sets of GNNExplainer (Ying et al. 2019, arXiv:1903.03894): to a Barabási-Albert base of random
size a house, a cycle, a grid and a clique are tied, one each. One of them, the graph's class, stays whole; the edges
of the other three are swapped with the rest so that all degrees stay. So nodes, edges and the distribution of
degrees are the same in all classes: counts know nothing. Edges of some hundred graphs come interleaved, each graph
once; the learner sees them in one pass, through decoder and state."""

import time
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from actors.decode import DecodeConfig, make_decoder
from actors.state import State
from benchmarks.items import Item
from benchmarks.probes import Task, probe
from learning.compatibility import untrained_vectors
from learning.config import GraphClConfig, GraphIsomorphismConfig, LearnerConfig
from learning.field_learner import FieldLearner
from learning.student import embed
from schemas.records import F32, F64, I64, Windows
from schemas.stream import StreamConfig

STREAM = StreamConfig(
    kind="graph", unit="graph", entity="case", source="a", neighbour="b", time="at", time_unit="us"
)
ENCODER = GraphIsomorphismConfig(dim=64, hidden=64, window=64, rounds=4)
LEARNER = LearnerConfig(objective=(GraphClConfig(),), learning_rate=5e-4, updates_per_record=0.006)
GRAPHS, CROWD = 2000, 200  # graphs in all, and about how many grow at once
SEEDS = (0, 1, 2)
BATCH, SAMPLED = 2048, 64
T0 = 1_700_000_000_000_000
Edges = list[tuple[int, int]]

HOUSE: Edges = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4)]
CYCLE: Edges = [(i, (i + 1) % 6) for i in range(6)]
GRID: Edges = [(3 * r + c, 3 * r + c + 1) for r in range(3) for c in range(2)]
GRID += [(3 * r + c, 3 * r + c + 3) for r in range(2) for c in range(3)]
CLIQUE: Edges = [(i, j) for i in range(4) for j in range(i)]
MOTIFS = {"house": HOUSE, "cycle": CYCLE, "grid": GRID, "clique": CLIQUE}


def graph(rng: np.random.Generator, kept: int) -> Edges:
    """One graph; of its four motifs the one of number `kept` is whole. No loops, no parallel edges."""
    nodes = int(rng.integers(10, 21))
    edges: Edges = [(1, 0)]
    for new in range(2, nodes):  # preferential: an end of a random edge
        edges.append((new, edges[int(rng.integers(len(edges)))][int(rng.integers(2))]))
    loose = len(edges)
    whole: set[int] = set()
    for number, motif in enumerate(MOTIFS.values()):
        size = 1 + max(max(e) for e in motif)
        edges.append((nodes + int(rng.integers(size)), int(rng.integers(nodes))))
        first = len(edges)
        edges += [(nodes + a, nodes + b) for a, b in motif]
        nodes += size
        if number == kept:
            whole = set(range(first, len(edges)))
    _swap(rng, edges, [i for i in range(loose, len(edges)) if i not in whole], whole)
    return edges


def _swap(rng: np.random.Generator, edges: Edges, each: list[int], whole: set[int]) -> None:
    """Swaps ends of each of these edges with another one's, none of them of the motif that stays whole: all
    degrees stay (double edge swaps, Maslov & Sneppen 2002, doi:10.1126/science.1065103)."""
    there = {frozenset(e) for e in edges}
    others = [i for i in range(len(edges)) if i not in whole]
    for i in each:
        for _ in range(20):
            j = others[int(rng.integers(len(others)))]
            (a, b), (c, d) = edges[i], edges[j]
            if rng.random() < 0.5:
                c, d = d, c
            one, other = frozenset((a, d)), frozenset((c, b))
            if len({a, b, c, d}) == 4 and one not in there and other not in there:
                there -= {frozenset(edges[i]), frozenset(edges[j])}
                there |= {one, other}
                edges[i], edges[j] = (a, d), (c, b)
                break


@dataclass(frozen=True)
class Stream:
    """E edges in order of time, and the class of each of G graphs."""

    case: I64  # [E] 0 to G - 1
    ends: I64  # [E, 2]
    label: I64  # [G]

    def batches(self) -> list[pa.RecordBatch]:
        """As messages of arrow. Nodes are named anew in each graph."""
        columns = {"case": _texts(self.case), "a": _texts(self.ends[:, 0])}
        columns |= {
            "b": _texts(self.ends[:, 1]),
            "at": pa.array(T0 + 1000 * np.arange(len(self.case))),
        }
        whole = pa.record_batch(columns)
        return [whole.slice(at, BATCH) for at in range(0, len(whole), BATCH)]


def _texts(numbers: I64) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def stream(seed: int, graphs: int = GRAPHS) -> Stream:
    """Graphs begin one after another, and CROWD of them or so grow at once."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(graphs) % len(MOTIFS))
    made = [np.array(graph(rng, int(kept)), np.int64) for kept in label]
    case = np.repeat(np.arange(graphs), [len(e) for e in made])
    ends = np.concatenate([rng.permutation(rng.permutation(e), axis=1) for e in made])
    order = np.argsort(case + rng.uniform(0, CROWD, len(case)), kind="stable")
    return Stream(case[order], ends[order], label)


@dataclass(frozen=True)
class Pass:
    """What one pass gives, of G graphs in the order of their numbers."""

    vectors: F32  # [G, D]
    windows: Windows
    updates: int
    seconds: float


def one_pass(
    data: Stream,
    seed: int,
    encoder: GraphIsomorphismConfig = ENCODER,
    config: LearnerConfig = LEARNER,
) -> Pass:
    """Through decoder, state and learner; the vectors are those of the last weights, as a release's."""
    began = time.process_time()
    decoder = make_decoder(STREAM, DecodeConfig(format="arrow"))
    state = State(STREAM.shape, encoder.window, encoder.state, len(data.label))
    learner = FieldLearner(msgspec.structs.replace(config, seed=seed), encoder, STREAM.shape)
    rng, seen = np.random.default_rng(seed), 0
    for batch in data.batches():
        position = np.array([seen])
        decoded, bad = decoder.decode(0, position, position, [None], [batch])
        assert not bad
        touched = state.apply(decoded)
        n = min(SAMPLED, len(touched.slots))
        learner.receive(state.windows(np.sort(rng.choice(touched.slots, n, replace=False))))
        seen += batch.num_rows
        while learner.updates < int(seen * config.updates_per_record):
            if learner.learn() is None:
                break
    slots = np.array([state.index[str(g)] for g in range(len(data.label))])
    windows = state.windows(slots)
    vectors = embed(learner.released(), windows).numpy()
    return Pass(vectors, windows, learner.updates, time.process_time() - began)


def counts(data: Stream) -> F64:
    """What can be counted without looking at how edges lie: nodes, edges, and a histogram of degrees. [G, 14]"""
    out = np.zeros((len(data.label), 14))
    for g in range(len(data.label)):
        degree = np.bincount(data.ends[data.case == g].ravel())
        degree = degree[degree > 0]
        out[g, :2] = len(degree), degree.sum() / 2
        out[g, 2:] = np.bincount(np.minimum(degree, 12), minlength=13)[1:]
    return out


def task(data: Stream) -> Task:
    """Which motif, one against the rest."""
    g = np.arange(len(data.label))
    one_hot = data.label[:, None] == np.arange(len(MOTIFS))
    return Task(one_hot, np.zeros_like(g), g, g % 2 == 0)


def accuracy(score: F64, asked: Task) -> float:
    """Share of graphs whose motif has the highest score."""
    return float((score.argmax(1) == asked.label[~asked.selection].argmax(1)).mean())


COUNTS, RANDOM, OURS = "counts of nodes, edges, degrees", "untrained encoder", "afresh, GraphCL"


def run(console: Console) -> list[Item]:
    """Prints the table: macro AUC and accuracy of a linear probe, out of fold, for each seed's stream and weights."""
    found: dict[str, list[tuple[float, float]]] = {COUNTS: [], RANDOM: [], OURS: []}
    seconds = 0.0
    for seed in SEEDS:
        data = stream(seed)
        asked, done = task(data), one_pass(data, seed)
        seconds += done.seconds / len(SEEDS)
        untrained = untrained_vectors(ENCODER, STREAM.shape, done.windows, seed)
        for name, x in ((COUNTS, counts(data)), (RANDOM, untrained), (OURS, done.vectors)):
            _, auc, score = probe(x, asked)
            found[name].append((auc, accuracy(score, asked)))
            console.print(f"[dim]motifs, seed {seed}, {name}: AUC {auc:.3f}[/dim]")
    table = Table("vectors", "AUC", "accuracy")
    title = (
        f"{GRAPHS} graphs, which of {len(MOTIFS)} motifs is whole? Linear probe, {len(SEEDS)} seeds"
    )
    table.title = f"{title}; the pass takes {seconds:.0f} CPU s"
    for name, seeds in found.items():
        mean, spread = np.mean(seeds, 0), np.ptp(seeds, 0) / 2
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        table.add_row(name, *cells)
    console.print(table)
    auc_of = {name: np.array(seeds)[:, 0] for name, seeds in found.items()}
    items = []
    for other in (COUNTS, RANDOM):
        gaps = auc_of[OURS] - auc_of[other]
        items.append(
            Item(
                name=f"AUC, motifs, {OURS} over {other}, worst of {len(SEEDS)} seeds {gaps.min():+.3f}",
                value=float(gaps.mean()),
                unit="AUC",
                bar=0.0,
                ok=bool(gaps.min() > 0.0),
            )
        )
    return items


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Console())
