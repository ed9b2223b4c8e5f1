"""What is said of a stream's fields: nothing while it stays the same, something once it does not."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from learning.drift import INTERVAL, LEAST, REFERENCE, WINDOW, InputDrift, newest
from schemas.records import Rows
from schemas.stream import Shape
from tests.learning.streams import random_windows

NAMES = ("amount", "empty", "shop")


def rows(
    rng: np.random.Generator, n: int, shift: float = 0.0, shops: int = 8, missing: float = 0.1
) -> Rows:
    amount = rng.normal(shift, 1.0, n).astype(np.float32)
    amount[rng.random(n) < missing] = np.nan
    numbers = np.stack([amount, np.full(n, np.nan, np.float32)], 1)
    hashes = rng.integers(0, shops, (n, 1)) * 10**12
    return Rows(np.arange(n), np.arange(n), numbers, hashes, rng.random((n, 1)) < 0.05)


def fed(rng: np.random.Generator, *parts: Rows) -> InputDrift:
    drift = InputDrift(NAMES, 2)
    for part in (rows(rng, REFERENCE), *parts):
        for lo in range(0, len(part), 700):
            drift.add(part.take(slice(lo, lo + 700)))
    return drift


def test_there_is_nothing_to_say_before_the_reference_is_complete() -> None:
    rng = np.random.default_rng(0)
    drift = InputDrift(NAMES, 2)
    drift.add(rows(rng, REFERENCE - 1))
    assert drift.report() == {}
    drift.add(rows(rng, 1))
    assert drift.report() == {}, "nothing came after it"
    drift.add(rows(rng, LEAST - 1))
    assert drift.report() == {}, "hardly anything"
    drift.add(rows(rng, LEAST // 10))
    assert set(drift.report()) == set(NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_that_is_said_of_a_stream_that_stays_the_same_is_no_shift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = rows(rng, REFERENCE + LEAST + 60, shops=400)
    rare = rng.random(len(every)) < 0.9
    every.categories[rare] = 7 * 10**12  # one shop has nearly all, hundreds share the rest
    drift = InputDrift(NAMES, 2)
    for lo in range(0, len(every), 100):
        drift.add(every.take(slice(lo, lo + 100)))
    found = drift.report()
    assert set(found) == set(NAMES)
    assert max(field.psi for field in found.values()) < 0.25


@pytest.mark.parametrize("seed", range(5))
def test_of_a_stream_that_stays_the_same_every_figure_is_small(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for found in fed(rng, rows(rng, 4 * WINDOW)).report().values():
        assert found.psi < 0.02
        assert abs(found.missing) < 0.03
        assert np.isnan(found.ks) or found.ks < 0.04
        assert np.isnan(found.new) or found.new == 0.0


def test_a_shift_shows_in_its_own_field_alone() -> None:
    rng = np.random.default_rng(1)
    found = fed(rng, rows(rng, 4 * WINDOW, shift=1.0)).report()
    assert found["amount"].psi > 0.25
    assert found["shop"].psi < 0.02
    assert found["empty"].psi < 0.02


def test_new_categories_and_values_that_stay_away_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    found = fed(rng, rows(rng, 4 * WINDOW, shops=16)).report()["shop"]
    assert found.new == pytest.approx(0.5, abs=0.03)
    assert found.psi > 0.25
    found = fed(rng, rows(rng, 4 * WINDOW, missing=0.6)).report()["amount"]
    assert found.missing == pytest.approx(0.5, abs=0.05)
    assert found.ks < 0.05, "those that are there have not changed"


def test_the_statistics_are_those_of_the_books() -> None:
    """At the bins, on a window that forgets nothing."""
    rng = np.random.default_rng(3)
    live = rows(rng, 600, shift=0.7)
    drift = fed(rng)
    reference = drift._values[:, 0].copy()
    drift.add(live)
    found = drift.report()["amount"]
    a, b = (x[~np.isnan(x)] for x in (reference, live.numbers[:, 0]))
    assert found.ks == pytest.approx(scipy.stats.ks_2samp(a, b).statistic, abs=0.04)
    edges = np.quantile(a.astype(np.float64), np.arange(1, 20) / 20)
    psi = 0.0
    for k in range(21):  # the last bin is of missing values
        share = []
        for x in (reference, live.numbers[:, 0]):
            at = np.searchsorted(edges, x, side="left")
            at[np.isnan(x)] = 20
            share.append((np.sum(at == k) + 0.5) / (len(x) + 10.5))
        psi += (share[1] - share[0]) * np.log(share[1] / share[0])
    assert found.psi == pytest.approx(psi, rel=1e-6)


def test_what_changed_and_went_back_fades() -> None:
    rng = np.random.default_rng(4)
    drift = fed(rng, rows(rng, 2 * WINDOW, shift=2.0))
    high = drift.report()["amount"].psi
    drift.add(rows(rng, 10 * WINDOW))
    assert drift.report()["amount"].psi < 0.05 < high


def test_slow_drift_is_not_absorbed_until_the_reference_is_renewed() -> None:
    rng = np.random.default_rng(5)
    drift = fed(rng, *(rows(rng, WINDOW, shift=0.1 * k) for k in range(11)))
    assert drift.report()["amount"].psi > 0.25
    drift.renew()
    assert drift.report() == {}
    drift.add(rows(rng, REFERENCE + WINDOW, shift=1.0))
    assert drift.report()["amount"].psi < 0.02


@pytest.mark.parametrize("more", [0, 3 * WINDOW])
def test_restored_it_says_the_same(more: int) -> None:
    rng = np.random.default_rng(6)
    drift = InputDrift(NAMES, 2)
    drift.add(rows(rng, REFERENCE // 2 + more, shift=0.5))
    again = InputDrift(NAMES, 2)
    again.load_state_dict(drift.state_dict())
    last = rows(rng, REFERENCE)
    for each in (drift, again):
        each.add(last)
    for mine, wanted in zip(again.report().values(), drift.report().values(), strict=True):
        assert dataclasses.asdict(mine) == pytest.approx(dataclasses.asdict(wanted), nan_ok=True)


def test_a_snapshot_of_other_fields_begins_anew() -> None:
    rng = np.random.default_rng(7)
    other = InputDrift(("amount", "shop"), 1)
    other.load_state_dict(fed(rng).state_dict())
    assert other.report() == {}


def paced(rng: np.random.Generator, n: int, mean_s: float) -> Rows:
    """Records behind whose numbers are exponential times between them."""
    found = rows(rng, n)
    gap = np.log1p(rng.exponential(mean_s, n)).astype(np.float32)
    found.numbers = np.column_stack([found.numbers, gap])
    return found


def test_a_stream_that_slows_down_shows_in_the_time_between_an_entitys_records() -> None:
    rng = np.random.default_rng(8)
    drift = InputDrift(("amount", "empty", INTERVAL, "shop"), 3)
    drift.add(paced(rng, REFERENCE, 60.0))
    drift.add(paced(rng, WINDOW, 60.0))
    assert drift.report()[INTERVAL].psi < 0.02
    drift.add(paced(rng, 4 * WINDOW, 240.0))
    found = drift.report()
    assert found[INTERVAL].psi > 0.25
    assert found[INTERVAL].ks > 0.3
    assert found["amount"].psi < 0.02


def test_the_time_between_records_is_that_of_a_windows_last_two() -> None:
    windows = random_windows(np.random.default_rng(9), 30, Shape(2, 1))
    found = newest(windows)
    n = np.diff(windows.offsets)
    assert len(found) == len(n)
    for at, lo, hi in zip(range(30), windows.offsets, windows.offsets[1:], strict=False):
        assert found.position[at] == windows.rows.position[hi - 1]
        gap = found.numbers[at, 2]
        if n[at] == 1:
            assert np.isnan(gap)
        else:
            seconds = (windows.rows.time_us[hi - 1] - windows.rows.time_us[hi - 2]) / 1e6
            assert gap == pytest.approx(np.log1p(seconds)), lo


def test_where_no_entity_has_two_records_in_a_window_nothing_is_said_of_the_time_between() -> None:
    rng = np.random.default_rng(10)
    drift = InputDrift(("amount", "empty", INTERVAL, "shop"), 3)
    parts = rows(rng, REFERENCE + LEAST + 60)
    parts.numbers = np.column_stack([parts.numbers, np.full(len(parts), np.nan, np.float32)])
    drift.add(parts)
    assert set(drift.report()) == {"amount", "empty", "shop"}
