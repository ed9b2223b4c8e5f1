"""Probes of labels: what they foretell, before they are told, and what they must not know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score

from learning import probe
from learning.probe import Linear, Prequential, average_precision, nearest

RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


@pytest.mark.parametrize("n", [20, 200])
def test_the_linear_probe_is_ridge_regression(n: int) -> None:
    """With fewer entities than dimensions, and with more. Source of the reference: scikit-learn's Ridge."""
    z, label = vectors(n, d=50), RNG.integers(0, 3, n)
    found = Linear.fit(z, label)
    x = np.column_stack([z, np.ones(n)])
    ridge = Ridge(probe.RIDGE, fit_intercept=False).fit(x, np.eye(3)[label])
    np.testing.assert_allclose(found.weights, ridge.coef_.T, atol=1e-6)
    assert (found.predict(z) == ridge.predict(x).argmax(1)).all()


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=30)
def test_average_precision_is_the_usual_one(pairs: list[tuple[int, bool]]) -> None:
    score = np.array([s for s, _ in pairs]) + np.arange(len(pairs)) * 1e-6  # without ties
    positive = np.array([p for _, p in pairs])
    found = average_precision(score, positive)
    if positive.all() or not positive.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(positive, score))


def test_the_nearest_vote_and_nobody_is_their_own_neighbour() -> None:
    known = unit(np.eye(30, 8) + 0.01)
    label = np.where(np.arange(30) < 8, 5, 3)
    known[:15] = known[0]
    label[:15] = 5
    own = np.arange(30)
    found = nearest(known[:1], np.array([99]), known, own, label)
    assert found.tolist() == [5]
    label[0] = 7  # of itself alone
    assert nearest(known[:1], own[:1], known, own, label).tolist() == [5]


def filled(label: np.ndarray, z: np.ndarray, entity: np.ndarray | None = None) -> Prequential:
    found = Prequential()
    n = len(label)
    who = np.arange(n) if entity is None else entity
    for at in range(0, n, 50):
        part = slice(at, at + 50)
        found.add(who[part], label[part], np.arange(n)[part], z[part])
    return found


def test_what_vectors_tell_is_foretold() -> None:
    z = vectors(1200)
    found = filled((z[:, 0] > 0.3).astype(np.int64), z)
    assert found.accuracy["linear"] > 0.9
    assert found.accuracy["knn"] > 0.85
    assert found.accuracy["majority"] == pytest.approx(0.8, abs=0.05)
    assert found.precision > 0.9


@pytest.mark.parametrize("rarer", [0, 1])
def test_precision_is_of_whichever_label_is_rarer_now(rarer: int) -> None:
    """Labels come by turns, so that now the one is rarer among what is known and now the other."""
    z = vectors(900)
    label = (z[:, 0] > 0).astype(np.int64)
    order = np.argsort(label[:450], kind="stable") if rarer else np.argsort(-label[:450])
    at = np.concatenate([order, np.arange(450, 900)])
    found = filled(label[at], z[at])
    assert found.accuracy["linear"] > 0.85
    assert found.precision > 0.9


def test_what_vectors_do_not_tell_is_not() -> None:
    """Also where each entity's label comes again and again: it is no neighbour of its own."""
    entity = np.tile(np.arange(300), 4)
    label = np.tile(np.random.default_rng(1).integers(0, 2, 300), 4)
    found = filled(label, vectors(300)[entity], entity)
    assert found.accuracy["knn"] == pytest.approx(0.5, abs=0.1)
    assert len(found.entity) == 300


def test_before_enough_is_known_nothing_is_foretold() -> None:
    found = filled(np.zeros(probe.LEAST - 1, np.int64), vectors(probe.LEAST - 1))
    assert found.accuracy == {}
    assert np.isnan(found.precision)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 5)), max_size=8),
        max_size=12,
    )
)
@settings(max_examples=30)
def test_of_each_entity_the_newest_label_is_known(
    batches: list[list[tuple[int, int, int]]],
) -> None:
    found, wanted = Prequential(), dict[int, tuple[int, int]]()
    for batch in batches:
        entity, label, time_us = (np.array([row[i] for row in batch], np.int64) for i in range(3))
        found.add(entity, label, time_us, vectors(10)[entity])
        for who, what, when in batch:
            if who not in wanted or when >= wanted[who][0]:
                wanted[who] = when, what
    known = zip(found.entity.tolist(), found.time_us.tolist(), found.label.tolist(), strict=True)
    assert {who: (when, what) for who, when, what in known} == wanted
    assert (found.vector == vectors(10)[found.entity]).all() if wanted else True


def test_no_more_than_so_many_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "KEPT", 60)
    found = filled(np.zeros(200, np.int64), vectors(200))
    assert found.entity.tolist() == list(range(140, 200))


def test_vectors_of_another_size_begin_anew() -> None:
    found = filled(np.zeros(100, np.int64), vectors(100))
    found.add(np.arange(5), np.zeros(5, np.int64), np.arange(5), vectors(5, d=4))
    assert found.vector.shape == (5, 4)
    assert found.entity.tolist() == list(range(5))
