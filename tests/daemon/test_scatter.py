"""The map of embeddings: its axes stay, its colours mean something, and it names nobody."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from daemon.scatter import FEWEST, FRESH_S, Sample, Scatter, coloured, fitted
from schemas.errors import SinkDown

RNG = np.random.default_rng


def sampled(
    seed: int = 0, n: int = 100, generation: int = 1, names: list[str] | None = None
) -> Sample:
    """Unit vectors in three clusters, in a plane for the most part."""
    rng = RNG(seed)
    middle = np.eye(3, 16)[np.arange(n) % 3]
    vectors = middle + 0.1 * rng.normal(size=(n, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Sample(
        generation, names or [f"e{i}" for i in range(n)], vectors.astype(np.float32), np.arange(n)
    )


class Known:
    def __init__(self) -> None:
        self.now, self.asked, self.found = 0.0, 0, sampled()
        self.scatter = Scatter(self.sample, lambda: self.now)

    def sample(self, n: int) -> Sample:
        self.asked += 1
        return self.found


def looked(known: Known) -> np.ndarray:  # type: ignore[type-arg]
    known.now += FRESH_S
    return np.array(known.scatter.told()["points"])[:, :2]


def test_the_axes_are_the_principal_components() -> None:
    found = sampled()
    wanted = PCA(2).fit(found.vectors)
    axes = fitted(found)
    for mine, theirs in zip(axes.axes.T, wanted.components_, strict=True):
        assert abs(mine @ theirs) == pytest.approx(1, abs=1e-3)
    assert axes.shown(found.vectors) == pytest.approx(
        wanted.explained_variance_ratio_.sum(), abs=1e-3
    )


def test_who_does_not_move_stays_where_it_was() -> None:
    known = Known()
    before = looked(known)
    moved = known.found.vectors.copy()
    moved[0] = moved[1]
    known.found = known.found._replace(vectors=moved)
    after = looked(known)
    assert np.abs(after[1:] - before[1:]).max() <= 2
    np.testing.assert_array_equal(after[0], after[1])


def test_one_that_goes_far_away_moves_nobody_else() -> None:
    known = Known()
    before = looked(known)
    moved = known.found.vectors.copy()
    moved[0] *= 2.0
    known.found = known.found._replace(vectors=moved)
    after = looked(known)
    np.testing.assert_array_equal(after[1:], before[1:])
    assert np.abs(after[0]).max() <= 1000, "at the edge"


def test_axes_that_show_little_are_chosen_anew_as_are_those_of_another_generation() -> None:
    known = Known()
    first = looked(known)
    turned = known.found.vectors[:, ::-1].copy()  # the variance is in other dimensions now
    known.found = known.found._replace(vectors=turned)
    assert np.abs(looked(known) - first).max() <= 2, (
        "seen along its own axes it is the same picture"
    )
    known.found = sampled(seed=3, generation=2)
    looked(known)
    assert known.scatter._axes is not None
    assert known.scatter._axes.generation == 2


def test_redis_is_asked_every_thirty_seconds_however_many_look_on() -> None:
    known = Known()
    for _ in range(5):
        known.scatter.told()
    assert known.asked == 1
    known.now = FRESH_S
    known.scatter.told()
    assert known.asked == 2


def test_what_cannot_be_drawn_is_said() -> None:
    def down(n: int) -> Sample:
        raise SinkDown("Redis is down.")

    assert Scatter(down, lambda: 0.0).told() == {"reason": "Redis is down."}
    few = sampled(n=FEWEST - 1)
    assert "needs 8" in Scatter(lambda _: few, lambda: 0.0).told()["reason"]


def test_vectors_that_are_all_alike_are_one_point() -> None:
    found = sampled()
    alike = found._replace(vectors=np.ones_like(found.vectors))
    told = Scatter(lambda _: alike, lambda: 0.0).told()
    assert {tuple(point[:2]) for point in told["points"]} == {(0, 0)}
    assert told["shown"] == 0


def test_clusters_are_found_where_names_say_nothing() -> None:
    found = sampled()
    colour, legend = coloured(found, fitted(found))
    for cluster in range(3):
        others = np.delete(colour, np.s_[cluster::3])
        assert not set(colour[cluster::3].tolist()) & set(others.tolist())
    assert all(text.startswith("cluster ") for text in legend)


def test_prefixes_that_many_share_are_the_colours() -> None:
    names = [f"{('card-', 'shop_', 'x')[i % 3]}{i}" for i in range(99)] + ["alice"]
    found = sampled(names=names)
    colour, legend = coloured(found, fitted(found))
    assert set(legend) == {"card", "shop", "x", "others"}
    assert [legend[c] for c in colour[:3]] == ["card", "shop", "x"]
    assert legend[colour[-1]] == "others"


@given(st.lists(st.text(min_size=1, max_size=12), min_size=8, max_size=60, unique=True))
def test_no_name_that_one_entity_alone_has_is_told(names: list[str]) -> None:
    found = sampled(n=len(names), names=names)
    colour, legend = coloured(found, fitted(found))
    assert colour.max() < len(legend)
    for told in set(legend) - {"others"}:
        shares = sum(name.startswith(told) for name in names)
        assert told.startswith("cluster ") or shares >= 2
