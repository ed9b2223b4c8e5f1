"""The features against a plain count over the edges before the query."""

import math

import numpy as np
import pytest

from benchmarks import college as c
from benchmarks.pair_features import DAY_S, FEATURES, HOUR_S, NO_AGE, ages, features

DATA = c.made_up(edges=2_000, nodes=200, seed=5)


def plain(i: int, node: int, stale: int) -> list[float]:
    """One candidate's features, by reading all that is known."""
    now, u, k = int(DATA.time_s[i]), int(DATA.src[i]), max(0, i - stale)
    rows = list(
        zip(DATA.src[:k].tolist(), DATA.dst[:k].tolist(), DATA.time_s[:k].tolist(), strict=True)
    )

    def age(times: list[int]) -> float:
        return math.log1p(now - max(times)) / 16 if times else NO_AGE

    to = [t for a, b, t in rows if (a, b) == (u, node)]
    back = [t for a, b, t in rows if (a, b) == (node, u)]
    got = [t for _, b, t in rows if b == node]
    sent = [t for a, _, t in rows if a == node]
    own = [t for a, b, t in rows if u in (a, b)]
    late = [
        math.log1p(sum(t >= now - length for t in times))
        for times in (got, sent)
        for length in (3 * HOUR_S, DAY_S, c.WEEK_S)
    ]
    both = to + back
    return [
        age(to), age(back), bool(to), bool(back), math.log1p(len(to)), math.log1p(len(back)),
        age(both), *late, math.log1p(len(got)), math.log1p(len(sent)), age(got), age(sent),
        bool(both) and max(both) == max(own), bool(both),
    ]  # fmt: skip


@pytest.mark.parametrize("stale", [0, 1, 20, 200])
def test_they_are_what_a_plain_count_finds(stale: int) -> None:
    rng = np.random.default_rng(0)
    edge = np.sort(rng.choice(2_000, 60, replace=False))
    nodes = rng.integers(200, size=(60, 6))
    nodes[:, 0] = DATA.dst[edge]
    got = features(DATA, edge, nodes, stale)
    assert got.shape == (60, 6, len(FEATURES)) == (60, 6, 19)
    wanted = [
        [plain(i, x, stale) for x in row] for i, row in zip(edge, nodes.tolist(), strict=True)
    ]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_the_edge_itself_is_not_known() -> None:
    data = c.College(np.array([0, 0]), np.array([1, 2]), np.array([5, 5]))
    got = features(data, np.array([1]), np.array([[2, 1]]))[0]
    met = FEATURES.index("were in contact")
    assert got[:, met].tolist() == [0.0, 1.0]  # 1 was written to in the same second, but before


def test_rows_without_candidates_stay_zero() -> None:
    got = features(DATA, np.array([3, 9]), np.array([[-1, -1], [4, 5]]))
    assert not got[0].any() and got[1].any()


def test_ages_are_subtracted_as_integers() -> None:
    now = 1_100_000_000
    got = ages(np.array([now - 1, now - 64, c.NONE]), now)
    np.testing.assert_allclose(got, [math.log(2) / 16, math.log(65) / 16, NO_AGE], rtol=1e-6)
