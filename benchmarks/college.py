"""CollegeMsg as a stream and as a task: whom does each message go to?

Each of the last 30% of messages is asked before it is learnt from: its true receiver is ranked among
100 others. What was "earlier" or "known" lies strictly before it in the order of the stream.

Shapes: E edges in time order, N nodes 0.., Q queries, C = 101 candidates of each, the true one first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.records import F32, F64, I64

EDGES, NODES = 59_835, 1_899
FIRST = EDGES * 7 // 10  # the first query of the real stream
OTHERS, EARLIER = (
    100,
    50,
)  # candidates beside the true one; of them at most so many earlier receivers
KINDS = ("repeated pair", "new pair, in contact the other way", "never in contact")
REPEATED, ANSWERED, NEVER = range(3)
FEWEST = 30  # nodes seen before there are negatives
WEEK_S = 7 * 86_400
NONE = np.iinfo(np.int64).min  # the time of what has not been


@dataclass(frozen=True)
class College:
    src: I64  # [E]
    dst: I64  # [E]
    time_s: I64  # [E] never falls

    @property
    def nodes(self) -> int:
        return int(max(self.src.max(), self.dst.max())) + 1

    @property
    def first(self) -> int:
        """The first query."""
        return len(self.src) * 7 // 10


@dataclass(frozen=True)
class Queries:
    edge: I64  # [Q] which edges are asked, rising
    candidates: I64  # [Q, C] nodes, the true receiver in column 0
    kind: I64  # [Q] a place in KINDS


def load(folder: Path) -> College:
    rows = np.loadtxt(folder / "college_msg.txt", dtype=np.int64)
    _, ends = np.unique(rows[:, :2], return_inverse=True)
    ends = ends.reshape(-1, 2)
    return College(ends[:, 0].copy(), ends[:, 1].copy(), rows[:, 2].copy())


def made_up(edges: int = EDGES, nodes: int = NODES, seed: int = 0) -> College:
    """A stream somewhat like it, where the data are not at hand: most messages go on where one of
    the last sixty was, half of those the other way; few nodes write much."""
    rng = np.random.default_rng(seed)
    time_s = 1_082_040_961 + np.cumsum(rng.exponential(16.7e6 / edges, edges)).astype(np.int64)
    src = (nodes * rng.random(edges) ** 2).astype(np.int64)
    dst = (src + rng.integers(1, nodes, edges)) % nodes
    back, turn = rng.integers(1, 61, edges), rng.random(edges) < 0.5
    for i in np.flatnonzero((rng.random(edges) < 0.8) & (back <= np.arange(edges))):
        pair = (src[i - back[i]], dst[i - back[i]])
        src[i], dst[i] = pair[::-1] if turn[i] else pair
    return College(src, dst, time_s)


class Past:
    """Who was seen, and whom each sender wrote to, as the stream goes by."""

    def __init__(self, nodes: int) -> None:
        self.receivers: list[dict[int, None]] = [{} for _ in range(nodes)]
        self._seen, self._is_seen, self._n = np.zeros(nodes, np.int64), np.zeros(nodes, np.bool_), 0

    @property
    def seen(self) -> I64:
        """Nodes in the order in which they came up."""
        return self._seen[: self._n]

    def kind(self, src: int, dst: int) -> int:
        if dst in self.receivers[src]:
            return REPEATED
        return ANSWERED if src in self.receivers[dst] else NEVER

    def add(self, src: int, dst: int) -> None:
        self.receivers[src][dst] = None
        for node in (src, dst):
            if not self._is_seen[node]:
                self._is_seen[node] = True
                self._seen[self._n] = node
                self._n += 1


def along(college: College) -> Iterator[tuple[int, int, int, Past]]:
    """Each edge with what lies strictly before it."""
    past = Past(college.nodes)
    for i, (u, v) in enumerate(zip(college.src.tolist(), college.dst.tolist(), strict=True)):
        yield i, u, v, past
        past.add(u, v)


def queries(college: College, seed: int = 0) -> Queries:
    """Up to 50 of the sender's earlier receivers, filled to 100 with nodes seen before; none twice."""
    rng = np.random.default_rng(seed)
    edge = np.arange(college.first, len(college.src))
    candidates = np.empty((len(edge), 1 + OTHERS), np.int64)
    kind = np.empty(len(edge), np.int64)
    for i, u, v, past in along(college):
        if i < college.first:
            continue
        earlier = np.array([x for x in past.receivers[u] if x != v], np.int64)
        if len(earlier) > EARLIER:
            earlier = rng.choice(earlier, EARLIER, replace=False)
        anyone = rng.permutation(past.seen)
        anyone = anyone[~np.isin(anyone, [u, v, *earlier])][: OTHERS - len(earlier)]
        if len(earlier) + len(anyone) < OTHERS:
            raise ValueError(
                f"Before edge {i} {len(past.seen)} nodes were seen; {OTHERS} candidates beside the "
                f"sender and the receiver need {OTHERS + 2}."
            )
        candidates[i - college.first] = [v, *earlier, *anyone]
        kind[i - college.first] = past.kind(u, v)
    return Queries(edge, candidates, kind)


def negatives(college: College, k: int = 20, seed: int = 0) -> I64:
    """For each edge k nodes that it did not go to: up to half are earlier receivers of its sender, the
    rest any that were seen; some twice. Rows of -1 where fewer than 30 nodes were seen. [E, k]"""
    rng = np.random.default_rng(seed)
    out = np.full((len(college.src), k), -1, np.int64)
    for i, u, v, past in along(college):
        if len(past.seen) < FEWEST:
            continue
        earlier = np.array(list(past.receivers[u]), np.int64)
        if len(earlier):
            earlier = earlier[rng.integers(len(earlier), size=k // 2)]
            earlier = earlier[earlier != v]
        row = earlier
        while len(row) < k:
            anyone = past.seen[rng.integers(len(past.seen), size=2 * k)]
            row = np.concatenate([row, anyone[(anyone != u) & (anyone != v)]])
        out[i] = row[:k]
    return out


def reciprocal_ranks(scores: F32 | F64) -> F64:
    """1 / the rank of column 0, ties at their mean rank. [Q, C] -> [Q]

    A score that is no number is refused: it would compare as "not above" and win."""
    if np.isnan(scores).any():
        raise ValueError("A score is not a number; no rank can be given.")
    above = (scores[:, 1:] > scores[:, :1]).sum(1)
    level = (scores[:, 1:] == scores[:, :1]).sum(1)
    return np.asarray(1.0 / (1.0 + above + level / 2), np.float64)


def summary(ranks: F64, asked: Queries) -> tuple[float, float, float, float]:
    """Mean reciprocal rank of all queries, then of each of the KINDS."""
    repeated, answered, never = (float(ranks[asked.kind == k].mean()) for k in range(len(KINDS)))
    return float(ranks.mean()), repeated, answered, never


def paired(a: F64, b: F64, seed: int = 0, n: int = 2000) -> tuple[float, float]:
    """95% interval of mean(a - b), queries drawn with replacement."""
    rng = np.random.default_rng(seed)
    gap = a - b
    means = [gap[rng.integers(len(gap), size=len(gap))].mean() for _ in range(n)]
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


class Contacts:
    """When each pair was last in contact, and how much each node received lately."""

    windows_s: tuple[int, ...] = (WEEK_S,)

    def __init__(self, college: College, stale: int = 0) -> None:
        n, w = college.nodes, len(self.windows_s)
        self._college, self._stale = college, stale
        self.known = 0  # edges
        self._old = [0] * w  # of them, those that left each window
        self.last_to = np.full((n, n), NONE)  # [sender, receiver] in seconds
        self.received = np.zeros((w, n), np.int64)  # messages within each window

    def move(self, edge: int) -> None:
        """To what is known just before `edge`, less the `stale` newest; never back."""
        src, dst, time_s = self._college.src, self._college.dst, self._college.time_s
        while self.known < edge - self._stale:
            self._comes(src[self.known], dst[self.known], time_s[self.known])
            self.known += 1
        for w, length in enumerate(self.windows_s):
            at, since = self._old[w], time_s[edge] - length
            while at < self.known and time_s[at] < since:
                self._leaves(w, src[at], dst[at])
                at += 1
            self._old[w] = at

    def _comes(self, src: np.int64, dst: np.int64, time_s: np.int64) -> None:
        self.last_to[src, dst] = time_s
        self.received[:, dst] += 1

    def _leaves(self, window: int, _: np.int64, dst: np.int64) -> None:
        self.received[window, dst] -= 1


Rule = Callable[[Contacts, int, I64, int], F64]  # what is known, sender, candidates, now -> scores


def by_rule(college: College, asked: Queries, rule: Rule, stale: int) -> F64:
    """Scores of all queries, [Q, C]."""
    contacts = Contacts(college, stale)
    out = np.empty(asked.candidates.shape)
    for q, (i, nodes) in enumerate(zip(asked.edge.tolist(), asked.candidates, strict=True)):
        contacts.move(i)
        out[q] = rule(contacts, int(college.src[i]), nodes, int(college.time_s[i]))
    return out


def edgebank(college: College, asked: Queries, window_s: int | None = None, stale: int = 0) -> F64:
    """1 where the sender wrote to the candidate before (within the window), else 0.

    Source: EdgeBank, Poursafaei et al. 2022, arXiv:2207.10128."""

    def rule(contacts: Contacts, sender: int, nodes: I64, now: int) -> F64:
        since = NONE + 1 if window_s is None else now - window_s
        return np.asarray(contacts.last_to[sender, nodes] >= since, np.float64)

    return by_rule(college, asked, rule, stale)


def window_of(college: College) -> int:
    """EdgeBank's window in seconds: 15% of the time before the first query.

    The paper's window is as long as its test split, the last 15%; here that would be longer than
    all that comes before the first query, since the stream grows slower and slower."""
    return int(college.time_s[college.first] - college.time_s[0]) * 15 // 100


def last_contact(college: College, asked: Queries, stale: int = 0) -> F64:
    """Whoever was last in contact with the sender, in either direction; after them, those never in
    contact, by how many messages they received in the last week."""

    start = int(college.time_s[0])

    def rule(contacts: Contacts, sender: int, nodes: I64, _: int) -> F64:
        last = np.maximum(contacts.last_to[sender, nodes], contacts.last_to[nodes, sender])
        popular = contacts.received[0, nodes] / (1 + contacts.known)  # below 1
        met = np.maximum(last, start) - start
        return np.asarray(np.where(last == NONE, popular - 1.0, met), np.float64)

    return by_rule(college, asked, rule, stale)
