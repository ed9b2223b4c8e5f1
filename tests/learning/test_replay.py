import numpy as np

from learning.config import ReplayConfig
from learning.held_out import held_out, lowered
from learning.replay import Replay
from schemas.stream import Shape
from tests.learning.streams import joined, random_rows, random_windows, window_of

SHAPE = Shape(2, 1)
L = 12


def test_what_is_kept_is_what_came():
    rng = np.random.default_rng(0)
    replay = Replay(ReplayConfig(), SHAPE, L)
    windows = random_windows(rng, 30, SHAPE, L)
    new = replay.add(windows, rng)
    assert new.tolist() == np.diff(windows.offsets).tolist()
    drawn = replay.draw(30, rng)
    place = {e: b for b, e in enumerate(windows.entity.tolist())}
    assert len(set(drawn.entity.tolist())) == len(drawn)
    for at, entity in enumerate(drawn.entity.tolist()):
        b = place[entity]
        ours = drawn.rows.take(slice(drawn.offsets[at], drawn.offsets[at + 1]))
        theirs = windows.rows.take(slice(windows.offsets[b], windows.offsets[b + 1]))
        for name in ("time_us", "position", "numbers", "categories", "missing"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(drawn.totals[at], windows.totals[b])
        assert drawn.first_us[at] == windows.first_us[b]


def test_a_newer_window_counts_its_new_rows_and_an_entity_owns_few():
    rng = np.random.default_rng(1)
    replay = Replay(ReplayConfig(per_entity=2), SHAPE, L)
    rows = random_rows(rng, 100, SHAPE)
    for last in range(1, 101):
        new = replay.add(window_of(rows, max(0, last - L), last, SHAPE, 7), rng)
        assert new.tolist() == [1]
        assert len(replay) <= 2
    assert len(replay.draw(10, rng)) == 1


def test_a_window_seen_before_brings_nothing_new():
    rng = np.random.default_rng(1)
    replay = Replay(ReplayConfig(), SHAPE, L)
    windows = random_windows(rng, 9, SHAPE, L)
    replay.add(windows, rng)
    assert not replay.add(windows, rng).any()


def test_memory_is_bounded_and_the_newest_stay():
    rng = np.random.default_rng(2)
    replay = Replay(ReplayConfig(max_bytes=1 << 16), SHAPE, L)
    for _ in range(8):
        windows = random_windows(rng, 60, SHAPE, L)
        replay.add(windows, rng)
        assert set(windows.entity.tolist()) <= set(replay.owners().tolist())
    assert len(replay) == replay.slots
    assert sum(v.nbytes for v in replay.state_dict().values()) <= 1 << 16
    huge = random_windows(rng, replay.slots + 20, SHAPE, L)
    replay.add(huge, rng)
    assert len(replay) == replay.slots


def test_half_of_a_batch_is_fresh_and_fresh_but_once():
    rng = np.random.default_rng(3)
    replay = Replay(ReplayConfig(), SHAPE, L)
    replay.add(random_windows(rng, 50, SHAPE, L), rng)
    while replay.fresh:
        replay.draw(20, rng)
    new = random_windows(rng, 10, SHAPE, L)
    replay.add(new, rng)
    assert replay.fresh == 10
    drawn = replay.draw(20, rng)
    assert set(new.entity.tolist()) <= set(drawn.entity.tolist())
    assert replay.fresh == 0


def test_old_times_are_drawn_as_often_as_busy_ones():
    rng = np.random.default_rng(4)
    replay = Replay(ReplayConfig(strata=2, fresh=0.0), SHAPE, L)
    windows = random_windows(rng, 200, SHAPE, 1)
    windows.rows.time_us[:] = np.where(np.arange(200) < 20, 0, 1_000_000)
    replay.add(windows, rng)
    few = set(windows.entity[:20].tolist())
    share = np.mean([np.isin(replay.draw(10, rng).entity, list(few)).mean() for _ in range(50)])
    assert 0.35 < share < 0.6


def test_forgetting_and_restoring():
    rng = np.random.default_rng(5)
    replay = Replay(ReplayConfig(), SHAPE, L)
    windows = random_windows(rng, 40, SHAPE, L)
    replay.add(windows, rng)
    replay.forget(windows.entity[:10])
    assert len(replay) == 30
    other = Replay(ReplayConfig(), SHAPE, L)
    other.load_state_dict(replay.state_dict())
    more = random_windows(rng, 40, SHAPE, L)
    ours, theirs = np.random.default_rng(6), np.random.default_rng(6)
    for kept, g in ((replay, ours), (other, theirs)):
        kept.add(more, g)
    a, b = replay.draw(32, ours), other.draw(32, theirs)
    np.testing.assert_array_equal(a.entity, b.entity)
    np.testing.assert_array_equal(a.rows.numbers, b.rows.numbers)


def test_windows_of_one_entity_in_one_receive_keep_the_last():
    rng = np.random.default_rng(7)
    replay = Replay(ReplayConfig(), SHAPE, L)
    rows = random_rows(rng, 8, SHAPE)
    replay.add(joined([window_of(rows, 0, n, SHAPE, 3) for n in (5, 6, 7)]), rng)
    assert replay.draw(4, rng).offsets.tolist() == [0, 7]


def test_held_out_shares_are_exact_and_nested():
    entities = np.arange(100_000)
    small, large = held_out(entities, 0.01), held_out(entities, 0.1)
    assert abs(small.mean() - 0.01) < 0.002
    assert abs(large.mean() - 0.1) < 0.005
    assert not (small & ~large).any()
    assert lowered(0.1, 500, 0.01, 1000) == 0.1
    assert lowered(0.1, 2000, 0.01, 1000) == 0.05
    assert lowered(0.1, 10**6, 0.01, 1000) == 0.01
    assert lowered(0.1, 10, 0.0, 1000) == 0.0
