"""Figures of the whole service that may move: how fresh vectors are, how many records come."""

import math

import structlog

from daemon.totals import Snapshot
from learning.scalars import ScalarDrift

log = structlog.get_logger()


class Scalars:
    """Fed by the daemon's loop. A rise of freshness is an alarm, of the rate a change either way."""

    def __init__(self) -> None:
        self._drift = {"freshness": ScalarDrift(), "rate": ScalarDrift(falls=True)}
        self._before: tuple[float, int, int, float] | None = None

    def add(self, now_s: float, known: Snapshot) -> None:
        """now_s: of a monotonic clock. Figures are of what came since the call before; both by their logs."""
        shards = known.shards.values()
        now = (
            now_s,
            sum(s.accepted for s in shards),
            sum(sum(s.freshness.counts) for s in shards),
            sum(s.freshness.sum_s for s in shards),
        )
        before, self._before = self._before, now
        if before is None or not shards:
            return
        seconds, accepted, fresh, waited_s = (a - b for a, b in zip(now, before, strict=True))
        values = {"rate": math.log1p(max(accepted, 0) / seconds)} if seconds > 0 else {}
        if fresh > 0:
            values["freshness"] = math.log(max(waited_s / fresh, 1e-4))
        for name, value in values.items():
            if self._drift[name].update(value):
                log.warning("figure_moved", figure=name, now=round(math.exp(value), 4))

    def alarms(self) -> dict[str, int]:
        return {name: drift.alarms for name, drift in self._drift.items()}
