"""The daemon's own figures: silent while they stay, an alarm where vectors come later or records otherwise."""

import numpy as np

from daemon.scalars import Scalars
from daemon.totals import Snapshot
from schemas.stats import Latency, ShardStats


def fed(scalars: Scalars, rates: np.ndarray, waits: np.ndarray, began: int = 0) -> None:
    """Two seconds apart: records each second, and how long each waited."""
    accepted, sum_s = 0, 0.0
    for turn, (rate, wait) in enumerate(zip(rates, waits, strict=True)):
        accepted += 2 * int(rate)
        sum_s += 2 * int(rate) * wait
        latency = Latency()
        latency.counts[0], latency.sum_s = accepted, sum_s
        shard = ShardStats(accepted=accepted, freshness=latency)
        scalars.add(2.0 * (began + turn), Snapshot("s", {"shard-0": shard}))


def test_steady_figures_are_silent() -> None:
    rng, scalars = np.random.default_rng(0), Scalars()
    fed(scalars, rng.poisson(1000, 3000), rng.lognormal(-4, 0.3, 3000))
    assert scalars.alarms() == {"freshness": 0, "rate": 0}


def test_vectors_that_come_later_are_an_alarm_and_earlier_ones_are_none() -> None:
    rng = np.random.default_rng(1)
    wait = rng.lognormal(-4, 0.3, 1200)
    for factor, wanted in ((4.0, True), (0.25, False)):
        scalars = Scalars()
        later = np.concatenate([wait[:600], factor * wait[600:]])
        fed(scalars, rng.poisson(1000, 1200), later)
        assert bool(scalars.alarms()["freshness"]) == wanted
        assert scalars.alarms()["rate"] == 0


def test_records_that_stay_away_are_an_alarm() -> None:
    rng, scalars = np.random.default_rng(2), Scalars()
    rates = rng.poisson(np.repeat([1000, 0], 600))
    fed(scalars, rates, np.full(1200, 0.01))
    assert scalars.alarms() == {"freshness": 0, "rate": 1}


def test_before_there_are_shards_nothing_is_said() -> None:
    scalars = Scalars()
    scalars.add(0.0, Snapshot("s"))
    scalars.add(2.0, Snapshot("s"))
    assert scalars.alarms() == {"freshness": 0, "rate": 0}
