"""Cora as a stream: each paper and citation once, seen from both ends; the probe sees what it is given."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import cora as c
from benchmarks.cora import Cora
from learning.config import GraceConfig
from schemas.stream import DIRECTION


def made_up(papers: int = 60) -> Cora:
    """Three fields with words of their own, on a ring within each field."""
    rng, label = np.random.default_rng(0), np.arange(papers) % 3
    words = rng.random((papers, 12)) < np.where(np.arange(12) % 3 == label[:, None], 0.7, 0.1)
    edge = np.stack([np.arange(papers), (np.arange(papers) + 3) % papers], 1)
    some = np.arange(papers)
    return Cora(words.astype(np.float32), edge, label, some[:15], some[15:30], some[30:])


def test_a_file_is_read_as_features_edges_and_the_public_split(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "cora.npz", feature_row=np.array([0, 2]), feature_col=np.array([1, 0]), num_features=2,
        edge=np.array([[0, 2]]), label=np.array([0, 1, 0]), train=np.array([0]), val=np.array([1]),
        test=np.array([2]),
    )  # fmt: skip
    read = c.load(tmp_path)
    assert read.x.tolist() == [[0, 1], [0, 0], [1, 0]] and read.edge.tolist() == [[0, 2]]
    assert (read.train.tolist(), read.val.tolist(), read.test.tolist()) == ([0], [1], [2])


def test_every_paper_and_citation_is_streamed_once() -> None:
    data = made_up()
    learner, ids = c.streamed(data, GraceConfig(), seed=0)
    assert learner.records == len(data.x) + len(data.edge) and learner.updates == 0
    adjacency = learner.replay.adjacency
    windows = learner.replay.known(
        adjacency.windows(np.array([adjacency.index[i] for i in ids.tolist()]))
    )
    assert (np.diff(windows.offsets) == 2).all(), "both ends of each edge see it"
    assert windows.rows.numbers[:, DIRECTION].sum() == len(data.edge)
    assert windows.own is not None and (windows.own.numbers == data.x).all()
    assert c.vectors(learner, ids).shape == (60, c.ENCODER.dim)


def test_the_average_over_neighbours_is_the_normalised_adjacencys() -> None:
    """A line of three papers: degrees with themselves 2, 3, 2."""
    data = Cora(
        np.eye(3, dtype=np.float32), np.array([[0, 1], [1, 2]]), *(np.zeros(0, np.int64),) * 4
    )
    r = 6**-0.5
    expected = [[1 / 2, r, 0], [r, 1 / 3, r], [0, r, 1 / 2]]
    np.testing.assert_allclose(c.averaged(data, 1), expected, atol=1e-6)
    np.testing.assert_allclose(c.averaged(data, 0), np.eye(3))


@pytest.mark.parametrize(("known", "least", "most"), [(1.0, 0.99, 1.0), (0.0, 0.0, 0.6)])
def test_the_probe_finds_what_is_there_and_nothing_else(known, least, most) -> None:
    data = made_up()
    z = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32) * 0.1
    z[np.arange(60), data.label] += known
    assert least <= c.accuracy(z, data)[1] <= most
