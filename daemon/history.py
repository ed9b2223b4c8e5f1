"""The last minutes of the service, for the status page: one table of figures, one small ring of their values.

To show one more: FIGURES gets a line."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, NamedTuple

from daemon.totals import Snapshot, quantile
from schemas.stats import Latency

EVERY_S = 2.0
KEPT = 300
WINDOW = 15
"""Rates and freshness are of so many samples: half a minute."""


@dataclass(frozen=True)
class Window:
    """What was known half a minute ago, what is known now, and the seconds between."""

    before: Snapshot
    now: Snapshot
    seconds: float

    def rate(self, field: str) -> float:
        """Of a shard's count, each second."""
        counts = [
            sum(getattr(x, field) for x in s.shards.values()) for s in (self.before, self.now)
        ]
        return (counts[1] - counts[0]) / self.seconds if self.seconds else nan

    def freshness(self, q: float) -> float:
        """Quantile of what was written between, else none."""
        found = Latency()
        for shard in self.now.shards.values():
            found.add(shard.freshness.counts, shard.freshness.sum_s)
        for shard in self.before.shards.values():
            found.add([-n for n in shard.freshness.counts], -shard.freshness.sum_s)
        return quantile(found, q)

    def groups(self, field: str) -> float:
        return float(sum(getattr(group, field) for group in self.now.groups))

    def learner(self, field: str) -> float:
        return float(getattr(self.now.learner, field, nan))

    def publisher(self, field: str) -> float:
        return float(getattr(self.now.publisher, field, nan))


class Figure(NamedTuple):
    """`bad` above `above`, or below `below`; the page draws these bounds."""

    key: str
    title: str
    unit: str  # "" | per_second | seconds_at_most: the upper bound of a histogram's bucket
    read: Callable[[Window], float]
    above: float | None = None
    below: float | None = None


def _dead(w: Window) -> float:
    return float(sum(sum(shard.dead_letters.values()) for shard in w.now.shards.values()))


def _drift(w: Window) -> float:
    """Population stability index; none before there is a reference."""
    found = getattr(w.now.learner, "drift_psi", {})
    return max(found.values(), default=nan)


FIGURES: tuple[Figure, ...] = (
    Figure("records", "Records", "per_second", lambda w: w.rate("accepted")),
    Figure("p50", "Freshness p50", "seconds_at_most", lambda w: w.freshness(0.5), above=10),
    Figure("p99", "Freshness p99", "seconds_at_most", lambda w: w.freshness(0.99), above=60),
    Figure("lag", "Lag in records", "", lambda w: w.groups("lag")),
    Figure("entities", "Entities", "", lambda w: w.groups("entities")),
    Figure("dead", "Dead letters", "", _dead),
    Figure("loss", "Loss", "", lambda w: w.learner("loss")),
    Figure("held_out", "Held-out loss", "", lambda w: w.learner("heldout_loss")),
    Figure("rank", "Effective rank", "", lambda w: w.learner("effective_rank"), below=2),
    Figure("release", "Release", "", lambda w: w.publisher("release")),
    Figure("embedding", "Drift of embeddings", "", lambda w: w.learner("drift_embedding"), above=1),
    Figure("drift", "Drift of the field that moved most", "", _drift, above=0.25),
)


class History:
    """Of the moment and of the last ten minutes. `add` from one thread, `told` from any."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, Snapshot]] = deque(maxlen=WINDOW + 1)
        self._points: deque[tuple[float, ...]] = deque(maxlen=KEPT)

    def due(self, now_s: float) -> bool:
        return not self._recent or now_s - self._recent[-1][0] >= EVERY_S

    def add(self, now_s: float, snapshot: Snapshot) -> None:
        """now_s: of a monotonic clock."""
        self._recent.append((now_s, snapshot))
        since_s, before = self._recent[0]
        window = Window(before, snapshot, now_s - since_s)
        self._points.append(tuple(figure.read(window) for figure in FIGURES))

    def told(self) -> list[dict[str, Any]]:
        """Each figure with its points, the oldest first; what is none is null."""
        points = list(self._points)
        return [
            {
                "key": f.key, "title": f.title, "unit": f.unit, "above": f.above, "below": f.below,
                "points": [_rounded(point[i]) for point in points],
            }
            for i, f in enumerate(FIGURES)
        ]  # fmt: skip


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if isfinite(value) else None
