from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.clusters import Clusters
from learning.config import Policy, ReplayConfig
from learning.image_replay import ImageReplay
from schemas.records import ImageRows
from schemas.stream import Shape
from tests.learning.images import windows_of

POLICIES = get_args(Policy)
SHAPE = Shape(0, 1, side=2, keep="pixels")
DIM = 4
BYTES = SHAPE.pixels + 2 * DIM + 80


def replay(slots: int = 100, dim: int = DIM, **changes) -> ImageReplay:
    """Of so many slots: fewer bytes than settings may name."""
    config = ReplayConfig(**changes)
    msgspec.structs.force_setattr(config, "max_bytes", slots * BYTES)
    made = ImageReplay(config, SHAPE, dim)
    assert made.slots == slots
    return made


def images(first: int, n: int, entity=None, time_us=None):
    """Each image has its number in its pixels."""
    number = np.arange(first, first + n)
    pixels = np.zeros((n, 2, 2, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number % 256, number // 256
    windows = windows_of(
        pixels, number if entity is None else entity, number if time_us is None else time_us
    )
    windows.rows.position[:] = number
    return windows


def numbers(windows) -> list[int]:
    rows = windows.rows
    assert isinstance(rows, ImageRows)
    return (rows.pixels[:, 0].astype(int) + 256 * rows.pixels[:, 1].astype(int)).tolist()


def kept(of: ImageReplay) -> list[int]:
    return sorted(numbers(of.take(of.live)))


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    z = rng.standard_normal((n, DIM)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


RNG = np.random.default_rng(0)


def test_what_is_put_in_comes_out_as_it_was():
    made = replay()
    windows = images(0, 10)
    windows.rows.categories[:, 0], windows.rows.missing[::2] = np.arange(10), False
    made.add(windows, RNG)
    back = made.take(made.live)
    for name in ("time_us", "position", "categories", "missing", "pixels"):
        assert np.array_equal(getattr(back.rows, name), getattr(windows.rows, name)), name
    assert np.array_equal(back.entity, windows.entity)


def test_its_bytes_are_bounded():
    made = ImageReplay(ReplayConfig(max_bytes=1 << 20), Shape(0, 1, side=16), 64)
    state = sum(a.nbytes for name, a in vars(made).items() if isinstance(a, np.ndarray))
    assert 0.9 * (1 << 20) < state <= 1 << 20


def test_an_image_is_new_once():
    made = replay()
    assert made.add(images(0, 5), RNG).tolist() == [1] * 5
    assert made.add(images(3, 4), RNG).tolist() == [0, 0, 1, 1]
    assert kept(made) == list(range(7))


@pytest.mark.parametrize("policy", POLICIES)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_it_is_never_too_full_and_keeps_nothing_twice(policy, sizes, seed):
    rng = np.random.default_rng(seed)
    made, first = replay(slots=40, policy=policy, clusters=4), 0
    for size in sizes:
        made.add(images(first, size), rng)
        first += size
        drawn = made.draw(16, rng)
        assert len(set(drawn.tolist())) == len(drawn) and made._used[drawn].all()
        made.learnt(drawn, unit(rng, len(drawn)))
        there = kept(made)
        assert len(there) == min(40, first)
        assert len(set(there)) == len(there) and set(there) <= set(range(first))


def test_the_oldest_goes_first_out_of_a_fifo():
    made = replay(slots=10, policy="fifo")
    for first in (0, 4, 8, 12):
        made.add(images(first, 4), RNG)
    assert kept(made) == list(range(6, 16))


def test_of_more_than_there_is_room_for_the_last_stay():
    made = replay(slots=10)
    made.add(images(0, 30), RNG)
    assert kept(made) == list(range(20, 30))


def test_an_entity_keeps_its_newest_images_and_pushes_nobody_out():
    made = replay(slots=10, per_entity=3, policy="fifo")
    made.add(images(0, 6), RNG)
    made.add(images(100, 20, entity=np.full(20, 77)), RNG)
    assert kept(made) == [0, 1, 2, 3, 4, 5, 117, 118, 119]
    made.add(images(200, 2, entity=np.full(2, 77), time_us=[118, 50]), RNG)
    assert kept(made) == [
        0,
        1,
        2,
        3,
        4,
        5,
        118,
        119,
        200,
    ]  # 200 is of the time of 118, 201 is too old


def test_half_of_a_batch_is_fresh_while_there_is_something_fresh():
    made = replay(slots=100)
    made.add(images(0, 50), RNG)
    while made.fresh:
        made.draw(16, RNG)
    made.add(images(50, 50), RNG)
    drawn = numbers(made.take(made.draw(20, RNG)))
    assert sum(n >= 50 for n in drawn) >= 10
    assert made.fresh == 50 - sum(n >= 50 for n in drawn)


def test_strata_of_time_are_equally_likely():
    made = replay(slots=100, strata=2, fresh=0.0)
    made.add(images(0, 100, time_us=[0] * 90 + [1000] * 10), RNG)
    counts = np.zeros(100)
    for _ in range(300):
        counts[numbers(made.take(made.draw(8, RNG)))] += 1
    assert counts[90:].sum() / counts.sum() == pytest.approx(0.5, abs=0.06)


def test_minred_drops_what_is_most_like_another():
    """Ten of one look and ten unlike any: as new ones come, one of the alike stays, and all the others."""
    made, rng = replay(slots=20, policy="minred"), np.random.default_rng(0)
    made.add(images(0, 20), rng)
    made.draw(40, rng)
    z = np.zeros((20, DIM), np.float32)
    z[:10] = np.eye(DIM)[0] + 0.01 * unit(rng, 10)
    angle = np.linspace(0.0, np.pi, 10)  # no two within 0.3 of each other
    z[10:, 1], z[10:, 2] = np.cos(angle), np.sin(angle)
    made.learnt(np.arange(20), z / np.linalg.norm(z, axis=1, keepdims=True))
    for n in range(9):
        made.add(images(100 + n, 1), rng)
        made.learnt(made.live, made._vector[made.live].astype(np.float32))
    there = kept(made)
    assert set(range(10, 20)) <= set(there)
    assert len([n for n in there if n < 10]) == 1


def test_minred_drops_several_at_once_but_never_both_of_a_pair():
    made, rng = replay(slots=8, policy="minred"), np.random.default_rng(0)
    made.add(images(0, 8), rng)
    z = np.repeat(np.eye(DIM, dtype=np.float32), 2, axis=0)  # four pairs
    made.learnt(np.arange(8), z)
    made.add(images(100, 4), rng)
    assert kept(made) == [1, 3, 5, 7, 100, 101, 102, 103]  # the older of each pair went


def test_minred_knows_the_nearest_as_it_is_computed_by_hand():
    made, rng = replay(slots=50, policy="minred"), np.random.default_rng(1)
    made.add(images(0, 50), rng)
    z = unit(rng, 50)
    for part in np.array_split(rng.permutation(50), 4):
        made.learnt(np.sort(part), z[np.sort(part)])
    made.learnt(np.arange(50), z)
    like = z @ z.T - 3 * np.eye(50)
    assert np.allclose(made._like, like.max(1), atol=2e-3)  # float16
    assert np.mean(made._nearest == like.argmax(1)) > 0.9


def test_balanced_draws_from_small_clusters_as_often_as_from_large_ones():
    made, rng = (
        replay(slots=400, policy="balanced", clusters=4, fresh=0.0),
        np.random.default_rng(0),
    )
    made.add(images(0, 400), rng)
    of = np.repeat([0, 1, 2, 3], [340, 20, 20, 20])
    z = np.eye(DIM, dtype=np.float32)[of] + 0.02 * unit(rng, 400)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for _ in range(6):
        order = rng.permutation(400)
        for part in np.split(order, 10):
            made.learnt(part, z[part])
    counts = np.zeros(4)
    for _ in range(200):
        counts += np.bincount(of[made.draw(16, rng)], minlength=4)
    assert counts.min() / counts.sum() > 0.15


def test_centres_are_the_means_of_what_came_to_them():
    rng = np.random.default_rng(0)
    of = Clusters(2, DIM)
    z = np.eye(DIM, dtype=np.float32)[rng.integers(0, 2, 600)] + 0.1 * rng.standard_normal(
        (600, DIM)
    )
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    for part in np.split(z, 60):
        of.move(part)
    near = np.abs(of.centres[0] @ np.eye(DIM, dtype=np.float32)[:2].T)
    assert sorted(near.argmax(1).tolist()) == [0, 1] and near.max(1).min() > 0.97
    assert np.allclose(np.linalg.norm(of.centres[0], axis=1), 1.0, atol=1e-5)


def test_a_centre_that_nothing_comes_to_moves_to_where_vectors_are():
    of = Clusters(2, DIM)
    a, b, c = np.eye(DIM, dtype=np.float32)[:3]
    of.move(np.stack([a, b]))
    for _ in range(3000):  # b is seen no more, c comes as often as a
        of.move(np.stack([a, c]))
    assert sorted((of.centres[0] @ np.stack([a, c]).T).max(1).tolist()) == pytest.approx(
        [1, 1], abs=0.02
    )


def test_deleted_entities_are_gone():
    made = replay()
    made.add(images(0, 10), RNG)
    made.forget(np.array([3, 4]))
    assert kept(made) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert made.add(images(3, 1), RNG).tolist() == [1]


def test_the_newest_of_each_entity_come_first():
    made = replay()
    made.add(images(0, 6, entity=[5, 5, 5, 9, 9, 1], time_us=[3, 9, 4, 2, 1, 7]), RNG)
    assert numbers(made.newest(2)) == [5, 1] and made.newest(2).entity.tolist() == [1, 5]
    assert numbers(made.newest(9)) == [5, 1, 3, 2, 4, 0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_replay_goes_on_bit_by_bit(policy):
    def step(of: ImageReplay, rng: np.random.Generator, first: int) -> list[int]:
        of.add(images(first, 7), rng)
        drawn = of.draw(12, rng)
        of.learnt(drawn, unit(rng, len(drawn)))
        return drawn.tolist()

    one, rng = replay(slots=30, policy=policy, clusters=4), np.random.default_rng(0)
    for first in range(0, 70, 7):
        step(one, rng, first)
    two, again = replay(slots=30, policy=policy, clusters=4), np.random.default_rng(1)
    two.load_state_dict({k: v.copy() for k, v in one.state_dict().items()})
    again.bit_generator.state = rng.bit_generator.state
    for first in range(70, 140, 7):
        assert step(one, rng, first) == step(two, again, first)
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("before", [{"policy": "fifo"}, {"policy": "balanced", "clusters": 9}])
def test_clusters_of_other_settings_are_made_anew(before):
    one, two = replay(**before), replay(policy="balanced", clusters=4)
    one.add(images(0, 20), RNG)
    for made in (one, two, two):
        drawn = made.draw(20, RNG)
        made.learnt(drawn, unit(RNG, len(drawn)))
        two.load_state_dict(made.state_dict())
    assert kept(two) == kept(one)


def test_windows_of_several_images_are_refused():
    windows = images(0, 4)
    windows.offsets, windows.entity = np.array([0, 2, 4]), windows.entity[:2]
    with pytest.raises(ValueError, match="needed is one each"):
        replay().add(windows, RNG)
