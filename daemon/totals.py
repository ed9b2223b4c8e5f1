"""What is known of the service: the processes' stats, and their counts over restarts.

Counts of a process start at zero with it; what earlier ones counted is kept here, so that counters only grow."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from actors.candidate import ReleaseConfig
from learning.config import LearnerConfig
from schemas.stats import (
    LATENCY_BOUNDS_S,
    LETTERS,
    GroupStats,
    LabelStats,
    Latency,
    LearnerStats,
    PublisherStats,
    ShardStats,
)


@dataclass
class Snapshot:
    """All that is known of the service at one moment; `http.py` and the commands show it too."""

    stream: str
    shards: dict[str, ShardStats] = field(default_factory=dict)
    learner: LearnerStats | None = None
    publisher: PublisherStats | None = None
    restarts: dict[str, int] = field(default_factory=dict)  # shard | learner | publisher -> count
    epoch: int = 0
    daemon_memory_bytes: int = 0
    daemon_cpu_s: float = 0.0
    memory_limit_bytes: int = 0
    disk_bytes: int = 0  # of the filesystem that holds the state folder
    disk_free_bytes: int = 0
    scalar_alarms: dict[str, int] = field(default_factory=dict)  # freshness | rate -> count
    labels: LabelStats | None = None
    reactions: dict[str, int] = field(default_factory=dict)  # daemon/reactions.py -> how often
    learning_paused: bool = False

    @property
    def groups(self) -> list[GroupStats]:
        return [group for shard in self.shards.values() for group in shard.groups]


def no_release(known: Snapshot, learner: LearnerConfig, release: ReleaseConfig) -> str:
    """Why nothing is served yet: what the first release waits for, and the key that says so."""
    seen = known.learner or LearnerStats()
    if known.publisher and known.publisher.refused:
        why = f"one was refused ({', '.join(known.publisher.refused)}); the log says why"
    elif seen.snapshot:
        why = "it is being exported and checked"
    elif seen.updates >= release.every_updates:
        why = f"it comes release.first_s = {release.first_s:g} s after the start"
    elif seen.updates:
        why = (
            f"{seen.updates} of its {release.every_updates} updates (release.every_updates) are made, "
            f"{learner.updates_per_record:g} for each record (learner.updates_per_record)"
        )
    else:
        why = (
            f"the learner has {seen.received} windows (images, or edges of a graph), and begins when they are of "
            f"{learner.min_entities} entities, or are as many edges (learner.min_entities)"
        )
    return f"there is no release yet, and vectors are written from the first one on: {why}"


class Totals:
    """Sums of counts over processes and their restarts."""

    def __init__(self) -> None:
        self._ended: dict[str, Any] = {}
        self._live: dict[str, Any] = {}

    def update(self, process: str, stats: Any, started_anew: bool) -> None:
        """`started_anew`: these stats are of another process than the last ones of that name."""
        if started_anew and process in self._live:
            self._ended[process] = _sum(self._ended.get(process), self._live[process])
        self._live[process] = stats

    def get(self, process: str) -> Any:
        live = self._live.get(process)
        return live if process not in self._ended else _sum(self._ended[process], live)


COUNTS = {
    ShardStats: (
        "accepted", "dead_letters", "encoded", "stepped", "written", "refused", "duplicates", "sampled",
        "sample_skipped", "freshness", "swap_pause", "snapshot_pause", "cpu_s",
    ),
    LearnerStats: (
        "sequences", "received", "skipped", "snapshot_failures", "drift_alarms", "scalar_alarms", "challengers",
        "cpu_s",
    ),
    PublisherStats: ("releases", "refused", "cpu_s", "requests"),
    LabelStats: ("labels", "cpu_s"),
}  # fmt: skip
"""Fields that count; the others are of the moment."""
HIGHEST = {LearnerStats: ("updates",)}
"""Counts that a snapshot restores, to a value a little lower: they show the highest seen."""
GROUP_COUNTS = ("snapshots", "snapshot_failures")
GROUP_HIGHEST = ("evicted", "deleted", "late", "too_old")
"""The same of a group; its other fields are of the moment."""


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    kind = type(b)
    changed = {name: _add(getattr(a, name), getattr(b, name)) for name in COUNTS[kind]}
    for name in HIGHEST.get(kind, ()):
        changed[name] = max(getattr(a, name), getattr(b, name))
    if kind is ShardStats:
        changed["groups"] = _groups(a.groups, b.groups)
        changed["letters"] = [*a.letters, *b.letters][-LETTERS:]
    return dataclasses.replace(b, **changed)


def _groups(ended: list[GroupStats], live: list[GroupStats]) -> list[GroupStats]:
    """The live groups, with what ended processes counted of them; `starting` until they report."""
    before = {group.group: group for group in ended}
    now = {group.group: group for group in live}
    found = []
    for number, group in sorted((before | now).items()):
        changed: dict[str, Any] = {}
        if number not in now:
            changed |= {"phase": "starting", "filled": 0}
        elif (old := before.get(number)) is not None:
            changed = {n: getattr(old, n) + getattr(group, n) for n in GROUP_COUNTS}
            changed |= {n: max(getattr(old, n), getattr(group, n)) for n in GROUP_HIGHEST}
        found.append(dataclasses.replace(group, **changed))
    return found


def _add(a: Any, b: Any) -> Any:
    match a:
        case dict():
            return {key: a.get(key, 0) + b.get(key, 0) for key in a | b}
        case Latency():
            total = Latency(list(a.counts), a.sum_s)
            total.add(b.counts, b.sum_s)
            return total
    return a + b


def quantile(latency: Latency, q: float) -> float:
    """The upper bound of the bucket that holds quantile q; NaN where nothing was measured. Seconds."""
    total = sum(latency.counts)
    if not total:
        return float("nan")
    running = 0
    for bound, count in zip((*LATENCY_BOUNDS_S, float("inf")), latency.counts, strict=True):
        running += count
        if running >= q * total:
            return bound
    return float("inf")
