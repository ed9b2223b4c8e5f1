"""What is named as changed has changed, and nothing is named where nothing has."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression

from learning import two_sample
from learning.ageing import LEAST, Ageing
from learning.changes import changes
from learning.concepts import Concepts
from learning.drift import INTERVAL
from learning.kinds.events import subset
from learning.summaries import ROWS, known, summaries
from learning.two_sample import alone, chance, told_apart
from learning.watch import Sample
from schemas.records import F32, Rows, Windows
from schemas.stream import Shape
from tests.learning.images import noise, windows_of
from tests.learning.streams import random_windows
from tests.learning.test_watch import encoder

NAMES = ("amount", "price", "shop")
SHAPE = Shape(2, 1)


def unit(rng: np.random.Generator, n: int, shift: float = 0.0) -> F32:
    z = rng.normal(size=(n, 6)) + shift
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def sample(
    rng: np.random.Generator,
    n: int,
    amount: float = 0.0,
    shops: tuple[int, int] = (0, 9),
    entities: int = 10**6,
) -> Sample:
    """Windows of four records, whose vectors say nothing."""
    m = 4 * n
    rows = Rows(
        np.sort(rng.integers(0, 10**12, (n, 4)), 1).ravel(),
        np.arange(m),
        np.stack([rng.normal(amount, 1, m), rng.lognormal(0, 1, m)], 1).astype(np.float32),
        rng.integers(*shops, (m, 1)) * 10**12,
        rng.random((m, 1)) < 0.1,
    )
    who = rng.integers(0, entities, n) * 7919
    windows = Windows(
        rows, np.arange(0, m + 1, 4), np.zeros((n, SHAPE.totals)), rows.time_us[::4], who
    )
    return Sample(windows, unit(rng, n))


@pytest.mark.parametrize("seed", range(3))
def test_of_a_stream_that_stays_the_same_nothing_is_named(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = changes(sample(rng, 2048), sample(rng, 512), NAMES, rng)
    assert found.entities_compared > 450
    assert found.accuracy == pytest.approx(0.5, abs=0.06)
    assert found.p > 1e-3
    assert found.fields == {}
    assert found.share_change < 0.08


def test_a_few_busy_entities_are_no_change() -> None:
    """Whose windows are known again: each counts once, and is judged by who has not seen it."""
    rng = np.random.default_rng(4)
    busy = sample(rng, 2048, entities=300), sample(rng, 512, entities=300)
    own = np.random.default_rng(9).normal(size=(300, 6))
    for each in busy:
        z = own[each.windows.entity // 7919] + 0.1 * rng.normal(size=each.vectors.shape)
        each.vectors[:] = z / np.linalg.norm(z, axis=1, keepdims=True)
    found = changes(*busy, NAMES, rng)
    assert found.entities_compared <= 300
    assert found.p > 1e-3


@pytest.mark.parametrize(
    ("changed", "field"), [({"amount": 1.0}, "amount"), ({"shops": (5, 14)}, "shop")]
)
def test_the_field_that_moved_is_named_alone(changed: dict[str, object], field: str) -> None:
    rng = np.random.default_rng(5)
    lately = sample(rng, 512, **changed)  # type: ignore[arg-type]
    found = changes(sample(rng, 2048), lately, NAMES, rng)
    assert found.accuracy > 0.7 and found.p < 1e-9
    assert list(found.fields) == [field]
    assert found.fields[field] > 0.7


def test_the_entities_that_are_new_are_the_examples() -> None:
    rng = np.random.default_rng(6)
    reference, same, new = sample(rng, 2048), sample(rng, 384), sample(rng, 128, amount=3.0)
    lately = Sample(
        Windows.concat([same.windows, new.windows]), np.concatenate([same.vectors, new.vectors])
    )
    found = changes(reference, lately, NAMES, rng)
    named = {int(text, 16) for text in found.entities}
    assert len(named & set(new.windows.entity.tolist())) >= 4


def test_a_kind_of_embedding_that_gains_is_told_with_who_is_of_it() -> None:
    rng = np.random.default_rng(7)
    reference, lately = sample(rng, 2048), sample(rng, 512)
    lately.vectors[:200] = unit(rng, 200, shift=8.0)
    found = changes(reference, lately, NAMES, rng)
    first = found.concepts[0]
    assert first.now - first.then == pytest.approx(200 / 512, abs=0.1)
    assert found.share_change == pytest.approx(first.now - first.then)
    named = {int(text, 16) for text in first.entities}
    assert len(named & set(lately.windows.entity[:200].tolist())) >= 2, "a few were there before"


def test_too_few_entities_are_not_compared() -> None:
    rng = np.random.default_rng(8)
    found = changes(sample(rng, 2048), sample(rng, 512, entities=20), NAMES, rng)
    assert np.isnan(found.accuracy)
    assert found.concepts


def test_the_classifier_is_a_logistic_regression_with_a_ridge() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(300, 5)), (rng.random(300) < 0.4).astype(float)
    x[y == 1] += 0.3
    w = two_sample._fitted(x, y)
    theirs = LogisticRegression(C=1 / two_sample.RIDGE, tol=1e-8, class_weight="balanced").fit(x, y)
    np.testing.assert_allclose(w[:-1], theirs.coef_[0], atol=1e-4)
    assert w[-1] == pytest.approx(float(theirs.intercept_[0]), abs=1e-3)


def test_its_chance_is_the_binomial_test() -> None:
    for right, n in ((50, 100), (70, 100), (290, 512), (0, 8)):
        wanted = scipy.stats.binomtest(right, n, alternative="greater").pvalue
        assert chance(right, n) == pytest.approx(wanted)


def test_under_the_null_its_chance_is_what_it_says() -> None:
    rng = np.random.default_rng(10)
    p = [
        told_apart(unit(rng, 150), unit(rng, 150), tuple(rng.integers(0, 2**62, (2, 150)))).p  # type: ignore[arg-type]
        for _ in range(60)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert np.mean(p) > 0.4


def test_of_each_entity_the_newest_is_taken() -> None:
    assert alone(np.array([5, 3, 5, 9, 3])).tolist() == [2, 3, 4]


def test_figures_of_a_window_are_plain() -> None:
    windows = random_windows(np.random.default_rng(11), 40, SHAPE)
    shares = known(windows)
    found = summaries(windows, NAMES, shares)
    assert set(found) == {*NAMES, INTERVAL, ROWS}
    for at in range(40):
        lo, hi = windows.offsets[at : at + 2]
        x = windows.rows.numbers[lo:hi, 1].astype(float)
        x = (np.sign(x) * np.log1p(np.abs(x)))[~np.isnan(x)]
        wanted = (x.mean(), x.std(), 1 - len(x) / (hi - lo)) if len(x) else (0, 0, 1)
        assert found["price"][at] == pytest.approx(wanted, abs=1e-6)
        there = ~windows.rows.missing[lo:hi, 0]
        every = windows.rows.categories[~windows.rows.missing[:, 0], 0]
        usual = [np.log((every == v).mean()) for v in windows.rows.categories[lo:hi, 0][there]]
        assert found["shop"][at, 0] == pytest.approx(np.mean(usual) if usual else 0.0)
        assert found[ROWS][at] == pytest.approx(np.log(hi - lo))
        gaps = np.log1p(np.diff(windows.rows.time_us[lo:hi]) / 1e6)
        assert found[INTERVAL][at, 0] == pytest.approx(gaps.mean() if len(gaps) else 0.0)
    pictures = noise(np.random.default_rng(0), 3)
    of_images = summaries(windows_of(pictures), (), [])
    np.testing.assert_allclose(of_images["green"][:, 0], pictures[..., 1].mean((1, 2)))


def test_concepts_are_where_vectors_are() -> None:
    rng = np.random.default_rng(12)
    centres = np.eye(6, dtype=np.float32)
    of = rng.integers(0, 6, 900)
    z = centres[of] + 0.05 * rng.normal(size=(900, 6)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    concepts = Concepts(z)
    assert concepts.then.sum() == pytest.approx(1.0)
    for at in np.unique(concepts.of(z)):
        assert len(np.unique(of[concepts.of(z) == at])) == 1, "none holds two kinds"


# -- ageing -----------------------------------------------------------------------------------------


def own(rng: np.random.Generator, n: int, later_us: int = 0) -> Windows:
    """Of entities each of which always does the same, a second apart."""
    windows = random_windows(rng, n, SHAPE)
    rows, lengths = windows.rows, np.diff(windows.offsets)
    rows.numbers[:] = np.repeat(rng.normal(0, 3, (n, 2)), lengths, 0)
    rows.missing[:] = True
    rows.time_us[:] = 10**15 + later_us + np.arange(len(rows)) * 10**6
    windows.first_us[:] = rows.time_us[windows.offsets[:-1]]
    windows.totals[:] = 0.0
    return dataclasses.replace(windows, entity=np.arange(n))


def test_an_encoder_ages_where_entities_are_told_apart_no_more() -> None:
    rng = np.random.default_rng(13)
    windows = own(rng, 150)
    ageing = Ageing(encoder(1), windows, SHAPE.session_gap_us)
    assert ageing.look(windows) is None, "nothing went on since"
    later = own(rng, 150, 10**12)
    then, now = ageing.look(later) or (np.nan, np.nan)
    assert then > 0.05 and now == pytest.approx(then, abs=0.06), "by chance one in a hundred"
    later.rows.numbers[:] = rng.normal(0, 3, later.rows.numbers.shape)
    then, now = ageing.look(later) or (np.nan, np.nan)
    assert now < then / 2
    assert ageing.look(own(rng, LEAST - 1, 10**12)) is None


def test_how_it_aged_is_asked_of_those_alone_who_were_there_then() -> None:
    rng = np.random.default_rng(14)
    windows, later = own(rng, 300), own(rng, 300, 10**12)
    of_those = subset(windows, np.arange(100))
    alone = Ageing(encoder(1), of_those, SHAPE.session_gap_us)
    beside = Ageing(encoder(1), windows, SHAPE.session_gap_us)
    went_on = subset(later, np.arange(100))
    assert alone.look(later) == pytest.approx(beside.look(went_on))
    strangers = dataclasses.replace(later, entity=later.entity + (1 << 40))
    assert alone.look(strangers) is None
