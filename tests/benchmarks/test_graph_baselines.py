from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks import college as c
from benchmarks.college import College, Queries
from benchmarks.graph_baselines import mlp
from schemas.records import F32

DATA = c.made_up(edges=1_000, nodes=300, seed=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a network is slower on two, far slower where another process has one of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def asked() -> Queries:
    return c.queries(DATA)


@pytest.fixture(scope="module")
def scores(asked: Queries) -> F32:
    return mlp(DATA, asked)


def test_it_learns_something_and_repeats_itself(asked: Queries, scores: F32) -> None:
    assert c.reciprocal_ranks(scores).mean() > 2 * (1 / np.arange(1, 102)).mean()
    np.testing.assert_array_equal(mlp(DATA, asked), scores)
    assert not (mlp(DATA, asked, seed=1) == scores).all()


def test_what_comes_later_changes_no_earlier_score(asked: Queries, scores: F32) -> None:
    cut = int(asked.edge[100])
    dst = DATA.dst.copy()
    dst[cut:] = (DATA.src[cut:] + 1) % 300
    other = mlp(College(DATA.src, dst, DATA.time_s), asked)
    np.testing.assert_array_equal(other[:101], scores[:101])
    assert not (other[101:] == scores[101:]).all()
