"""A figure that stays says nothing; one that moves, in the direction that matters, is an alarm."""

import numpy as np
import pytest

from learning.scalars import FIRST, ScalarDrift


def alarms(drift: ScalarDrift, values: np.ndarray) -> list[int]:
    return [at for at, x in enumerate(values.tolist()) if drift.update(x)]


def steps(seed: int, *means: float, n: int = 1000, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(mean, scale, n) for mean in means])


def test_it_is_rivers_adwin() -> None:
    """Of values in its range, alarm by alarm."""
    from river.drift import ADWIN  # slow to load

    ours, theirs = ScalarDrift(falls=True), ADWIN()
    values = steps(0, 0.0, 1.5)
    found = alarms(ours, values)
    first = values[:FIRST]
    scaled = np.clip((values - first.mean()) / (8 * first.std()) + 0.5, 0, 1)
    wanted = []
    for at, x in enumerate(scaled.tolist()):
        theirs.update(x)
        if theirs.drift_detected:
            wanted.append(at)
    assert found == wanted != []


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_rise_is_seen_whatever_the_scale_and_a_fall_where_it_is_asked_for(scale: float) -> None:
    rise, fall = scale * steps(1, 5.0, 7.0), scale * steps(1, 7.0, 5.0)
    assert 1000 < alarms(ScalarDrift(), rise)[0] < 1100
    assert alarms(ScalarDrift(), fall) == []
    assert 1000 < alarms(ScalarDrift(falls=True), fall)[0] < 1100


def test_a_figure_that_stays_is_silent() -> None:
    heavy = np.random.default_rng(2).standard_t(3, 20_000)
    drift = ScalarDrift(falls=True)
    assert len(alarms(drift, heavy)) == drift.alarms <= 1


def test_what_is_no_number_is_passed_over() -> None:
    values = steps(3, 0.0, 3.0)
    spoilt = np.insert(values, [100, 900, 1500], [np.nan, np.inf, np.nan])
    one, other = ScalarDrift(), ScalarDrift()
    alarms(one, values)
    alarms(other, spoilt)
    assert one.alarms == other.alarms > 0
