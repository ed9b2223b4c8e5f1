import io

import numpy as np
import pytest
from rich.console import Console

from benchmarks import drift_streams
from benchmarks.college import made_up
from benchmarks.drift_others import BATCH, REFERENCE, drawn
from benchmarks.drift_streams import period, sent
from benchmarks.quality_drift import MOST, NULL, OURS, Case, Waited, _items, ours, table
from learning.mmd import FILLED


def unit(rng, n, centre):
    z = rng.normal(size=(n, 8)) + centre
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def test_the_mean_of_a_time_that_is_cut_off():
    rng = np.random.default_rng(0)
    times = rng.exponential(500.0, 4000)
    waited = Waited(np.minimum(times, 600.0), times < 600.0)
    mean, error = waited.mean()
    assert mean == pytest.approx(500.0, abs=3 * error)
    assert error == pytest.approx(
        500.0 / waited.alarms.sum() ** 0.5, rel=0.05
    )  # of an exponential one
    assert Waited(np.array([9, 9]), np.array([0, 0])).mean()[0] == np.inf


def test_every_detector_is_given_the_same_in_each_run():
    rng = np.random.default_rng(0)
    z, other = unit(rng, 300, 0.0), unit(rng, 200, 1.0)
    chosen, rows = drawn(z, other, 3, 5)
    assert chosen.shape == (REFERENCE, 8) and rows.shape == (5, BATCH) and rows.max() < 200
    again, longer = drawn(z, other, 3, 9)
    assert (chosen == again).all() and (longer[:5] == rows).all()
    assert (drawn(z, other, 4, 5)[1] != rows).any()


def test_a_change_is_seen_as_soon_as_the_window_is_full():
    rng = np.random.default_rng(1)
    waited = ours(Case("delay", unit(rng, 500, 0.0), unit(rng, 500, 2.0)), 2, "made up")
    assert waited.batches.tolist() == [FILLED, FILLED] and waited.mean() == (FILLED, 0.0)


def test_rewiring_keeps_senders_times_and_who_receives_how_much(monkeypatch, tmp_path):
    data = made_up(4000, 100)
    monkeypatch.setattr(drift_streams.college, "load", lambda _: data)
    stream = drift_streams.messages(tmp_path)
    change = stream.changes["edges rewired"]
    which = period(stream.windows)
    before = drift_streams.subset(stream.windows, which)
    after = change(before, np.random.default_rng(0))
    assert (after.entity == before.entity).all() and (
        after.rows.time_us == before.rows.time_us
    ).all()
    moved = after.rows.categories != before.rows.categories
    assert 0.9 < moved.mean() < 1.0
    rng = np.random.default_rng(0)
    assert (np.bincount(rng.permutation(data.dst)) == np.bincount(data.dst)).all()
    assert len(sent(data)) == len(stream.windows)


def test_the_table_has_each_measure_beside_the_others():
    cases = [Case(NULL, np.zeros(0), np.zeros(0)), Case("delay, x", np.zeros(0), np.zeros(0))]
    runs = [Waited(np.array([400, MOST]), np.array([1, 1])), Waited(np.array([10]), np.array([1]))]
    mine = _items("images", OURS, cases, runs)
    items = [*mine, *_items("images", "Evidently", cases, runs)]
    out = io.StringIO()
    Console(file=out, width=150).print(table("images", items))
    row = next(line for line in out.getvalue().splitlines() if "delay, x" in line)
    assert row.count("10") == 2
    assert "500 ± 30%: no" in out.getvalue() and next(i for i in mine if i["bar"])["ok"] is False
