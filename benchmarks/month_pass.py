"""Online Retail month by month through a learner, and what its releases are worth; the jobs of `make quality-months`.

A third of the customers is judged and never learnt from. A release is asked about a month by what these bought in that
month alone: it is to find the earlier part of each, among all, by the later part. Parts are cut between two purchases,
as in the gates before a release, or are halves of the rows. Of these 98% meet within one purchase, so that the latter
asks who was in the shop at the same time; the former asks who is who.

Shapes: M months, Q queries of the probe, D dimensions."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.decode import DecodeConfig, make_decoder
from actors.learn import resident_windows
from actors.shard_config import ShardConfig
from actors.state import State
from benchmarks import retail
from benchmarks.one_pass import TOPIC, anchored
from benchmarks.probes import Task, probe
from benchmarks.retail import STREAM, Queries, Retail
from learning.compatibility import procrustes, rotate
from learning.config import GruConfig, LearnerConfig, ObjectiveConfig, ReplayConfig
from learning.config_images import CassleConfig
from learning.encoders.base import Encoder
from learning.field_learner import FieldLearner
from learning.halves import LEAST, halves
from learning.held_out import mixed
from learning.kinds.events import subset
from learning.student import embed
from schemas.records import F32, F64, I64, Bool, Windows, category_hash

FIRST, LAST = (
    np.datetime64("2010-12"),
    np.datetime64("2011-11"),
)  # of December 2011 nine days are there
MONTHS = [str(month) for month in np.arange(FIRST, LAST + 1)]
ASKED = 250  # judged customers of a month, as many in each: recall falls with their number
AGAIN = 60  # ... that bought several times, two rows each at least
RECENT = 256  # windows that are there where nothing is replayed
MICRO_BATCH = 1024
ENCODER = GruConfig(bucket_bits=13, window=64)
SHAPE = STREAM.shape
GAP_US = SHAPE.session_gap_us
Halves = tuple[Windows, Windows]


class Size(NamedTuple):
    """How much is learnt."""

    encoder: GruConfig = ENCODER
    updates_per_record: float = 0.01
    min_entities: int = 64
    warmup: int = 100


class Job(NamedTuple):
    """One learner. `anew`: another one in each month, which sees that month alone."""

    name: str
    seed: int
    replay: bool = True
    distil: bool = False
    anew: bool = False


class Outcome(NamedTuple):
    job: Job
    halves: F64  # [M, M] recall at 1, of the release at the end of month m, on the data of month n
    purchases: F64  # [M, M] ... of parts of different purchases
    across: F64  # [M - 1] at 10: gallery by release m, queries by release m + 1, on the data of month m + 1
    within: F64  # [M - 1] ... both by release m + 1
    next_product: (
        float  # macro AUC of the probe; of each month's vectors, by the release of its end
    )
    frozen: float  # ... all by the release of the first month
    updates: int
    seconds: float  # of CPU


def judged(data: Retail) -> Bool:
    """By customer: a third of them, by hash."""
    hashed = mixed(np.array([category_hash(name) for name in data.names]))
    return np.asarray((hashed >> 1) % 3 == 0)


def bounds(data: Retail) -> list[tuple[int, int]]:
    """First row of each month, and of the next."""
    starts = np.arange(FIRST, LAST + 2).astype("datetime64[us]").astype(np.int64)
    return list(pairwise([data.before(int(t)) for t in starts]))


class Reader:
    """Rows into a state, as a shard takes them."""

    def __init__(self, data: Retail, encoder: GruConfig) -> None:
        self._data = data
        self._decoder = make_decoder(STREAM, DecodeConfig(format="arrow"))
        self.state = State(SHAPE, encoder.window, encoder.state, len(data.names))

    def read(self, low: int, high: int) -> Iterator[tuple[I64, int]]:
        """Slots touched by each micro-batch, and the row after its last."""
        for at in range(low, high, MICRO_BATCH):
            end = min(at + MICRO_BATCH, high)
            batch = self._data.table.slice(at, end - at).to_batches()[0]
            position = np.array([at])
            decoded, bad = self._decoder.decode(TOPIC, position, position, [None], [batch])
            assert not bad
            yield self.state.apply(decoded).slots, end

    def windows(self, names: list[str]) -> Windows:
        return anchored(self.state, np.array([self.state.index[name] for name in names]))


def asked(data: Retail, encoder: GruConfig) -> tuple[list[Halves], list[Halves]]:
    """The earlier and the later part of what judged customers bought in each month: by halves, and by purchases."""
    chosen, by_rows, by_purchases = judged(data), [], []
    for low, high in bounds(data):
        rows = np.bincount(data.customer[low:high], minlength=len(data.names))
        customers = np.flatnonzero(chosen & (rows >= LEAST))
        customers = np.random.default_rng(0).permutation(customers)
        reader = Reader(data, encoder)
        for _ in reader.read(low, high):
            pass
        windows = reader.windows([data.names[c] for c in customers.tolist()])
        some = subset(windows, np.arange(min(ASKED, len(windows))))
        by_rows.append(halves(some, GAP_US, between=False))
        again = halves(windows, GAP_US, between=True)
        n = np.arange(min(AGAIN, len(again[0])))
        by_purchases.append((subset(again[0], n), subset(again[1], n)))
    return by_rows, by_purchases


def config(job: Job, size: Size) -> LearnerConfig:
    objectives: tuple[ObjectiveConfig, ...] = LearnerConfig().objective
    if job.distil:
        objectives += (CassleConfig(),)
    row = size.encoder.window * SHAPE.row_bytes + 8 * SHAPE.totals + 50
    replay = ReplayConfig() if job.replay else ReplayConfig(max_bytes=max(RECENT * row, 1 << 16))
    return LearnerConfig(
        seed=job.seed, objective=objectives, replay=replay, held_out_share=0.0,
        updates_per_record=size.updates_per_record,
        min_entities=size.min_entities, warmup_updates=size.warmup,
    )  # fmt: skip


def begun(data: Retail, job: Job, size: Size) -> tuple[FieldLearner, Reader]:
    """A learner that knows nothing, and a state that has seen nothing."""
    return FieldLearner(config(job, size), size.encoder, SHAPE), Reader(data, size.encoder)


def releases(data: Retail, job: Job, size: Size) -> Iterator[tuple[Encoder, int]]:
    """The encoder at the end of each month, turned onto the one before as it is published; and updates so far."""
    learnt_from, rng = ~judged(data), np.random.default_rng(job.seed)
    may = dict(zip(data.names, learnt_from.tolist(), strict=True))
    counted = np.concatenate([[0], np.cumsum(learnt_from[data.customer])])
    rate, sampled = size.updates_per_record, ShardConfig().sample_windows
    learner, reader = begun(data, job, size)
    before: Encoder | None = None
    updates = first = 0
    for low, high in bounds(data):
        if job.anew and before is not None:
            learner, reader = begun(data, job, size)
            first = low
        updates -= learner.updates
        for slots, end in reader.read(low, high):
            slots = slots[[may[reader.state.names[slot] or ""] for slot in slots.tolist()]]
            some = rng.choice(slots, min(sampled, len(slots)), replace=False)
            learner.receive(reader.state.windows(np.sort(some)))
            while learner.updates < int((counted[end] - counted[first]) * rate):
                if learner.learn() is None:
                    break
        updates += learner.updates
        released = learner.released()
        if before is not None:
            resident = learner.windows(resident_windows(size.encoder.dim, SHAPE), held=False)
            rotate(released, procrustes(embed(released, resident), embed(before, resident)))
        learner.mark_released()
        before = released
        yield released, updates


# -- what a release is worth ------------------------------------------------------------------------


def recall(queries_BD: Tensor, gallery_BD: Tensor, k: int) -> float:
    """Share of queries whose own row of the gallery is among their k nearest by cosine; ties are no hits."""
    near_BB = queries_BD @ gallery_BD.T
    own_B = near_BB.diagonal().clone()
    near_BB.fill_diagonal_(-torch.inf)
    return float(((near_BB >= own_B[:, None]).sum(1) < k).float().mean())


def vectors_of(release: Encoder, pairs: list[Halves]) -> list[Tensor]:
    """Of the earlier part of the first pair, of its later part, and so on."""
    every = [part for pair in pairs for part in pair]
    return list(torch.split(embed(release, Windows.concat(every)), [len(w) for w in every]))


def recalls(parts: list[Tensor]) -> F64:
    """At 1, later parts asking for earlier ones. [M]"""
    return np.array([recall(b, a, 1) for a, b in zip(parts[::2], parts[1::2], strict=True)])


def at_cut_offs(data: Retail, queries: Queries, encoder: GruConfig) -> list[Windows]:
    """What there is of each query's customer at its cut-off, all that was bought before."""
    reader, out, low = Reader(data, encoder), [], 0
    for at, now in enumerate(retail.cut_offs()):
        high = data.before(now)
        for _ in reader.read(low, high):
            pass
        customers = queries.customer[queries.cut == at]
        out.append(reader.windows([data.names[c] for c in customers.tolist()]))
        low = high
    return out


def next_product(vectors: F32, queries: Queries) -> float:
    """Which of the 20 products most bought does a customer who returns buy next? Macro AUC. vectors: [Q, D]"""
    back = queries.returns
    x: npt.NDArray[np.floating] = np.concatenate([vectors, queries.age], 1)[back]
    selection = queries.selection[back]
    task = Task(queries.buys[back], queries.cut[back], queries.customer[back], selection)
    return probe(x, task)[1]


def cut_months(data: Retail) -> list[int]:
    """The month that each cut-off is the end of."""
    ends = [high for _, high in bounds(data)]
    return [ends.index(data.before(now)) for now in retail.cut_offs()]


def work(job: Job, folder: str, size: Size) -> Outcome:
    """In a process of its own."""
    torch.set_num_threads(1)
    began = sum(os.times()[:4])
    data = retail.load(Path(folder))
    (months, again), queries = asked(data, size.encoder), retail.queries(data)
    windows, ends = at_cut_offs(data, queries, size.encoder), cut_months(data)
    by_rows, by_purchases = np.zeros((2, len(months), len(months)))
    across, within = np.zeros((2, len(months) - 1))
    vectors, first = np.zeros((2, len(queries.cut), size.encoder.dim), np.float32)
    galleries, updates = list[Tensor](), 0
    for m, (release, made) in enumerate(releases(data, job, size)):
        updates = made
        parts, by_purchases[m] = vectors_of(release, months), recalls(vectors_of(release, again))
        by_rows[m] = recalls(parts)
        if m:
            across[m - 1] = recall(parts[2 * m + 1], galleries[m], 10)
            within[m - 1] = recall(parts[2 * m + 1], parts[2 * m], 10)
        galleries = parts[::2]
        for at in np.flatnonzero(np.array(ends) == m).tolist():
            vectors[queries.cut == at] = embed(release, windows[at]).numpy()
        if m == 0:
            for at in range(len(ends)):
                first[queries.cut == at] = embed(release, windows[at]).numpy()
    alone, frozen = (next_product(v, queries) for v in (vectors, first))
    seconds = sum(os.times()[:4]) - began
    return Outcome(job, by_rows, by_purchases, across, within, alone, frozen, updates, seconds)
