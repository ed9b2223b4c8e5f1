"""What is said of embeddings as the stream goes on, releases come and learners are restarted."""

import numpy as np
import pytest
import torch

from learning import encoders
from learning.config import GruConfig
from learning.encoders.base import Encoder
from learning.mmd import BATCH, FILLED
from learning.student import embed
from learning.watch import ENOUGH, LEAST, RECENT, REFERENCE, EmbeddingWatch
from schemas.records import Rows, Windows
from schemas.stream import Shape
from tests.learning.edge_streams import edges
from tests.learning.streams import random_windows

SHAPE = Shape(2, 1)
CONFIG = GruConfig(dim=8, hidden=8, window=8, category_dim=4, bucket_bits=4)


def encoder(seed: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return encoders.build(CONFIG, SHAPE).eval()


def windows(rng: np.random.Generator, n: int, shift: float = 0.0) -> Windows:
    """Of one row each."""
    made = random_windows(rng, n, SHAPE, 1)
    made.rows.numbers[:] = rng.normal(shift, 1.0, made.rows.numbers.shape)
    return made


def looked(watch: EmbeddingWatch, rng: np.random.Generator, batches: int, shift: float) -> int:
    """Alarms."""
    found = 0
    for _ in range(batches):
        watch.add(windows(rng, BATCH, shift))
        found += watch.look()
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def watch(rng: np.random.Generator) -> EmbeddingWatch:
    made = EmbeddingWatch(0)
    made.add(windows(rng, REFERENCE + 10))
    made.serve(encoder(1))
    return made


def test_before_reference_and_release_it_says_nothing(rng: np.random.Generator) -> None:
    made = EmbeddingWatch(0)
    made.add(windows(rng, REFERENCE - 1))
    made.serve(encoder(1))
    assert looked(made, rng, 1, 3.0) == 0
    assert np.isnan(made.ratio)


def test_a_change_is_an_alarm_and_a_new_release_is_none(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    assert looked(watch, rng, 30, 0.0) == 0
    assert watch.ratio < 1.0
    watch.serve(encoder(2))
    assert looked(watch, rng, 30, 0.0) == 0
    assert looked(watch, rng, 3 * FILLED, 3.0) > 0
    assert watch.alarms > 0


def longer(rng: np.random.Generator, n: int, least: int, most: int) -> Windows:
    """Of `least` to `most` rows, at any time of a month, of entities that have had three times as many before."""
    length = rng.integers(least, most + 1, n)
    m, ends = int(length.sum()), np.cumsum(length)
    begins = 10**15 + rng.integers(0, 28 * 86_400 * 10**6, n)
    rows = Rows(
        np.repeat(begins, length) + 10**8 * (np.arange(m) - np.repeat(ends - length, length)),
        np.arange(m), rng.normal(size=(m, SHAPE.numbers)).astype(np.float32),
        rng.integers(0, 5, (m, SHAPE.categories)), np.zeros((m, SHAPE.categories), np.bool_),
    )  # fmt: skip
    totals = np.zeros((n, SHAPE.totals))
    totals[:, 0] = 3 * least
    return Windows(rows, np.concatenate([[0], ends]), totals, begins - 10**12, np.arange(n))


def test_longer_histories_are_no_change_of_the_world(rng: np.random.Generator) -> None:
    made = EmbeddingWatch(0)
    made.add(longer(rng, REFERENCE, 1, 4))
    made.serve(encoder(1))
    for turn in range(3 * FILLED):
        made.add(longer(rng, 2 * BATCH, 1 + turn // 5, 8))
        assert not made.look()
    assert made.ratio < 1.0
    for _ in range(3 * FILLED):
        found = longer(rng, 2 * BATCH, 8, 8)
        found.rows.numbers[:] += 3.0
        made.add(found)
        made.look()
    assert made.alarms > 0


def test_a_slow_stream_is_judged_though_releases_come_before_a_window_is_full(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    for release in range(2):
        assert looked(watch, rng, FILLED // 2, 0.0) == 0
        watch.serve(encoder(2 + release))
    assert watch.ratio < 1.0
    while not looked(watch, rng, 1, 3.0):
        pass
    alarms = watch.alarms
    watch.serve(encoder(1))
    assert looked(watch, rng, 1, 3.0) == 0 and watch.alarms == alarms, "once said, it begins anew"


def test_a_collapse_to_one_vector_is_survived(rng: np.random.Generator) -> None:
    made, flat = EmbeddingWatch(0), encoder(1)
    torch.nn.init.zeros_(flat.out.weight)
    made.add(windows(rng, REFERENCE))
    made.serve(flat)
    assert looked(made, rng, FILLED + 1, 3.0) == 0
    assert abs(made.ratio) < 1.0


def test_a_renewed_reference_takes_now_for_normal(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    looked(watch, rng, FILLED, 3.0)
    assert watch.ratio > 1.0
    watch.renew()
    assert np.isnan(watch.ratio), "of the reference before"
    watch.add(windows(rng, REFERENCE, 3.0))
    watch.serve(encoder(1))
    assert looked(watch, rng, 30, 3.0) == 0


def test_restored_it_has_the_same_reference(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    kept = watch.reference()
    assert kept is not None and len(kept) == REFERENCE
    again = EmbeddingWatch(0)
    again.restore(Windows.of_arrays(kept.arrays()))
    again.serve(encoder(1))
    seeds = [np.random.default_rng(5) for _ in range(2)]
    for made, each in zip((watch, again), seeds, strict=True):
        looked(made, each, 2 * FILLED, 3.0)
    assert watch.ratio == pytest.approx(again.ratio)


def test_only_the_newest_of_many_are_looked_at(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    watch.add(windows(rng, 10 * BATCH))
    assert watch._waiting is not None and len(watch._waiting) == BATCH


def test_joined_windows_are_those_they_were(rng: np.random.Generator) -> None:
    parts = [windows(rng, n) for n in (3, 1, 5)]
    both = Windows.concat(parts)
    assert len(both) == 9
    np.testing.assert_array_equal(both.entity, np.concatenate([p.entity for p in parts]))
    lo, hi = both.offsets[3:5]
    np.testing.assert_array_equal(both.rows.position[lo:hi], parts[1].rows.position)


def test_for_a_second_opinion_it_has_the_reference_and_what_was_looked_at_last(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    looked(watch, rng, ENOUGH - 1, 0.0)
    assert watch.samples() is None
    looked(watch, rng, 2 * RECENT, 0.0)
    samples = watch.samples()
    assert samples is not None
    reference, lately = samples
    assert len(reference.windows) == len(reference.vectors) == REFERENCE
    assert len(lately.windows) == len(lately.vectors) == RECENT * BATCH
    np.testing.assert_allclose(lately.vectors, embed(encoder(1), lately.windows).numpy(), atol=1e-6)
    watch.serve(encoder(2))
    (reference, again) = watch.samples() or (None, None)
    assert reference is not None and again is not None
    assert again.windows.entity.tolist() == lately.windows.entity.tolist()
    np.testing.assert_allclose(again.vectors, embed(encoder(2), lately.windows).numpy(), atol=1e-6)


def test_the_deleted_leave_what_is_kept_of_them(
    watch: EmbeddingWatch, rng: np.random.Generator
) -> None:
    looked(watch, rng, RECENT, 0.0)
    watch.add(windows(rng, BATCH))
    before = watch.samples()
    assert before is not None and watch._waiting is not None
    of_each = (before[0].windows, before[1].windows, watch._waiting)
    gone = np.concatenate([w.entity[:3] for w in of_each])
    watch.forget(gone)
    after = watch.samples()
    assert after is not None
    for one, other in zip(before, after, strict=True):
        keep = ~np.isin(one.windows.entity, gone)
        assert keep.sum() == len(keep) - 3
        np.testing.assert_array_equal(other.windows.entity, one.windows.entity[keep])
        np.testing.assert_array_equal(other.vectors, one.vectors[keep])
    assert len(watch._waiting) == BATCH - 3
    assert watch.complete


def test_a_reference_of_which_hardly_any_is_left_begins_anew(watch: EmbeddingWatch) -> None:
    kept = watch.reference()
    assert kept is not None
    watch.forget(kept.entity[: REFERENCE - LEAST // 4 + 1])
    assert not watch.complete
    assert watch.samples() is None


def test_who_is_deleted_from_an_unfinished_reference_is_made_up_for(
    rng: np.random.Generator,
) -> None:
    made, first = EmbeddingWatch(0), windows(rng, BATCH)
    made.add(first)
    made.forget(first.entity)
    for _ in range(REFERENCE // BATCH):
        assert not made.complete
        made.add(windows(rng, BATCH))
    assert made.complete


def test_of_nodes_windows_go_that_name_a_deleted_one() -> None:
    made = EmbeddingWatch(0, nodes=True)
    made.add(edges([1, 2, 3], [4, 5, 6], [1, 2, 3]))
    made.forget(np.array([5, 3]))
    assert [w.entity.tolist() for w in made._parts] == [[1]]
