"""The stream of motifs: only the class's motif is whole, and nothing that can be counted tells which."""

import itertools
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import torch

from benchmarks import motifs
from benchmarks.probes import probe


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def there_whole(edges: set[frozenset[int]], motif: motifs.Edges, nodes: list[int]) -> bool:
    return all(frozenset((nodes[a], nodes[b])) in edges for a, b in motif)


@pytest.mark.parametrize("kept", range(len(motifs.MOTIFS)))
def test_the_kept_motif_is_whole_and_degrees_are_those_before_the_swaps(kept: int) -> None:
    for seed in range(20):
        edges = motifs.graph(np.random.default_rng(seed), kept)
        others = [motifs.graph(np.random.default_rng(seed), k) for k in range(len(motifs.MOTIFS))]
        assert all(a != b for a, b in edges)
        assert len({frozenset(e) for e in edges}) == len(edges)
        degrees = np.bincount(np.array(edges).ravel())
        for other in others:
            assert np.bincount(np.array(other).ravel()).tolist() == degrees.tolist()
        base = len(degrees) - sum(1 + max(map(max, m)) for m in motifs.MOTIFS.values())
        there, first = {frozenset(e) for e in edges}, base
        for number, motif in enumerate(motifs.MOTIFS.values()):
            size = 1 + max(map(max, motif))
            whole = there_whole(there, motif, list(range(first, first + size)))
            assert whole == (number == kept), (seed, number)
            first += size


def test_graphs_come_interleaved_and_each_edge_once() -> None:
    data = motifs.stream(0, 300)
    assert np.bincount(data.label).tolist() == [75] * 4
    first, last = (
        np.array([np.flatnonzero(data.case == g)[at] for g in range(300)]) for at in (0, -1)
    )
    growing = ((first[:, None] < first) & (first < last[:, None])).sum(0)
    assert growing[150:].mean() > motifs.CROWD / 2
    batches = data.batches()
    assert sum(b.num_rows for b in batches) == len(data.case)
    pairs = {(g, *sorted(e)) for g, e in zip(data.case.tolist(), data.ends.tolist(), strict=True)}
    assert len(pairs) == len(data.case)


@pytest.mark.usefixtures("one_thread")
def test_a_pass_ends_with_a_vector_of_each_graph_and_counts_know_nothing() -> None:
    data = motifs.stream(1, 240)
    encoder = msgspec.structs.replace(motifs.ENCODER, dim=8, hidden=8, rounds=2)
    done = motifs.one_pass(data, 0, encoder)
    assert done.vectors.shape == (240, 8)
    assert done.updates == int(len(data.case) * motifs.LEARNER.updates_per_record)
    np.testing.assert_allclose(np.linalg.norm(done.vectors, axis=1), 1.0, atol=1e-5)
    lengths = np.bincount(data.case)
    assert np.diff(done.windows.offsets).tolist() == lengths.tolist()
    counted = motifs.counts(data)
    assert counted[:, 1].tolist() == lengths.tolist()
    assert (counted[:, 2:].sum(1) == counted[:, 0]).all()
    _, auc, _ = probe(counted, motifs.task(data))
    assert auc == pytest.approx(0.5, abs=0.12)


def test_the_motifs_differ() -> None:
    for (_, a), (_, b) in itertools.combinations(motifs.MOTIFS.items(), 2):
        assert sorted(np.bincount(np.array(a).ravel())) != sorted(np.bincount(np.array(b).ravel()))
