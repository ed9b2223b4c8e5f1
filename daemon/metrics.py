"""Every Prometheus metric, made of the plain stats that the processes return."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from daemon.totals import Snapshot
from schemas.stats import LATENCY_BOUNDS_S, Latency, LearnerStats, PublisherStats

PHASES = ("starting", "replaying", "waiting", "serving", "paused")


class ServiceCollector(Collector):
    """Turns the newest Snapshot into metric families at each scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        s = self._snapshot()
        yield InfoMetricFamily(
            "afresh_build",
            "Version of afresh and of Python.",
            {"version": version("afresh"), "python": platform.python_version()},
        )
        yield from self._shards(s)
        yield from self._groups(s)
        if s.learner is not None:
            yield from self._learner(s.stream, s.learner)
        if s.publisher is not None:
            yield from self._publisher(s.stream, s.publisher)
        yield from self._processes(s)

    def _shards(self, s: Snapshot) -> Iterator[Metric]:
        shards = list(s.shards.values())

        def total(name: str) -> float:
            return float(sum(getattr(shard, name) for shard in shards))

        for name, text in (
            ("accepted", "Records taken into the state."),
            ("encoded", "Windows encoded anew."),
            ("stepped", "Records encoded by one step from the state before."),
            ("written", "Vectors that Redis took."),
            ("refused", "Writes that Redis refused as old; above zero after a restart only."),
            (
                "duplicates",
                "Images so like one seen lately that they are not learnt from, or not written.",
            ),
            ("sampled", "Training windows handed to the learner."),
            (
                "sample_skipped",
                "Training windows not handed over because the learner was full or gone.",
            ),
        ):
            metric = {
                "accepted": "records_accepted", "encoded": "windows_encoded", "stepped": "records_stepped",
                "written": "vectors_written", "refused": "writes_refused", "sampled": "windows_sampled",
                "sample_skipped": "windows_not_sampled", "duplicates": "duplicates",
            }[name]  # fmt: skip
            yield _counter(f"afresh_{metric}", text, s.stream, total(name))
        dead = CounterMetricFamily(
            "afresh_dead_letters",
            "Records sent to the dead-letter topic.",
            labels=["stream", "error"],
        )
        for error in sorted({key for shard in shards for key in shard.dead_letters}):
            dead.add_metric([s.stream, error], sum(x.dead_letters.get(error, 0) for x in shards))
        yield dead
        for name, text in (
            (
                "freshness",
                "From a record's production to its entity's vector being readable in Redis.",
            ),
            ("swap_pause", "How long the stream waited for a new release to be taken up."),
            (
                "snapshot_pause",
                "How long the stream waited for one slab of a snapshot to be copied.",
            ),
        ):
            latencies = [getattr(shard, name) for shard in shards]
            yield _histogram(f"afresh_{name}_seconds", text, s.stream, latencies)
        for name, text in (
            ("source_up", "1 while Kafka answers."),
            ("sink_up", "1 while Redis answers."),
        ):
            up = float(bool(shards) and all(getattr(shard, name) for shard in shards))
            yield _gauge(f"afresh_{name}", text, s.stream, up)

    def _groups(self, s: Snapshot) -> Iterator[Metric]:
        groups = s.groups
        for name, metric, text in (
            ("evicted", "entities_evicted", "Entities evicted past the memory cap."),
            ("deleted", "entities_deleted", "Entities deleted by a null value."),
            ("late", "records_late", "Records placed behind newer ones."),
            ("too_old", "records_too_old", "Records older than their entity's ring: counted only."),
            ("snapshots", "snapshots", "Snapshots written."),
            (
                "snapshot_failures",
                "snapshot_failures",
                "Snapshots that failed; the one before stays.",
            ),
        ):
            # of the groups' state, which outlives processes: as counted there
            yield _counter(
                f"afresh_{metric}", text, s.stream, float(sum(getattr(g, name) for g in groups))
            )
        for name, metric, text in (
            ("entities", "entities", "Entities in the state."),
            ("lag", "lag_records", "Records produced but not yet taken."),
            (
                "held_back",
                "partitions_held_back",
                "Partitions that wait for slower ones (source.max_skew_s).",
            ),
            ("state_bytes", "state_bytes", "Bytes of the entities' state."),
            (
                "to_encode",
                "entities_owed",
                "Entities whose vector in Redis is still to be written.",
            ),
        ):
            yield _gauge(
                f"afresh_{metric}", text, s.stream, float(sum(getattr(g, name) for g in groups))
            )
        phases = GaugeMetricFamily(
            "afresh_groups", "Partition groups by phase.", labels=["stream", "phase"]
        )
        for phase in PHASES:
            phases.add_metric([s.stream, phase], sum(g.phase == phase for g in groups))
        yield phases
        age = max((g.snapshot_age_s for g in groups), default=-1.0)
        yield _gauge(
            "afresh_snapshot_age_seconds",
            "Age of the oldest of the groups' newest snapshots (or since the shard's start); -1: no groups.",
            s.stream,
            age,
        )
        oldest = min((g.oldest_release for g in groups if g.oldest_release), default=0)
        yield _gauge(
            "afresh_oldest_release",
            "Oldest release that an entity's state carries.",
            s.stream,
            oldest,
        )

    def _learner(self, stream: str, x: LearnerStats) -> Iterator[Metric]:
        yield _counter(
            "afresh_updates", "Optimiser updates since the stream began.", stream, x.updates
        )
        yield _counter("afresh_sequences_learnt", "Windows learnt from.", stream, x.sequences)
        yield _counter(
            "afresh_windows_received", "Windows taken from the shards.", stream, x.received
        )
        yield _counter(
            "afresh_learner_snapshot_failures",
            "Snapshots of the learner that failed; the one before stays.",
            stream,
            x.snapshot_failures,
        )
        skipped = CounterMetricFamily(
            "afresh_updates_skipped",
            "Updates that changed nothing, by reason.",
            labels=["stream", "reason"],
        )
        for reason in sorted({"non_finite", *x.skipped}):
            skipped.add_metric([stream, reason], x.skipped.get(reason, 0))
        yield skipped
        losses = GaugeMetricFamily(
            "afresh_objective_loss", "Loss by objective.", labels=["stream", "objective"]
        )
        for name, loss in sorted(x.objective_losses.items()):
            if not math.isnan(loss):
                losses.add_metric([stream, name], loss)
        yield losses
        for metric, text, value in (
            ("loss", "Training loss, weighted over objectives.", x.loss),
            ("held_out_loss", "Loss on entities never trained on.", x.heldout_loss),
            (
                "held_out_entities",
                "Entities never trained on that the learner holds.",
                x.heldout_entities,
            ),
            ("gradient_norm", "Norm of the gradient before clipping.", x.gradient_norm),
            (
                "effective_rank",
                "Dimensions in real use (RankMe); near 1 means collapse.",
                x.effective_rank,
            ),
            (
                "uniformity",
                "Log mean Gaussian potential of pairs; near 0 means collapse.",
                x.uniformity,
            ),
            ("replay_windows", "Windows in the replay.", x.replay_windows),
            (
                "learner_snapshot_age_seconds",
                "Age of the learner's snapshot; -1: none.",
                x.snapshot_age_s,
            ),
        ):
            yield _gauge(f"afresh_{metric}", text, stream, value)

    def _publisher(self, stream: str, x: PublisherStats) -> Iterator[Metric]:
        yield _counter("afresh_releases", "Releases published.", stream, x.releases)
        refused = CounterMetricFamily(
            "afresh_releases_refused", "Releases that a check refused.", labels=["stream", "check"]
        )
        for check in sorted({"parity", *x.refused}):
            refused.add_metric([stream, check], x.refused.get(check, 0))
        yield refused
        for metric, text, value in (
            ("release", "Number of the current release.", x.release),
            ("generation", "Generation of the current release.", x.generation),
            ("release_age_seconds", "Age of the current release; -1: none yet.", x.release_age_s),
            ("export_seconds", "How long the last export took.", x.export_s),
            (
                "overlap_cosine",
                "Mean cosine of a held-out entity's last two releases.",
                x.overlap_cosine,
            ),
            (
                "overlap_neighbours",
                "Share of neighbours common to the last two releases.",
                x.overlap_neighbours,
            ),
        ):
            yield _gauge(f"afresh_{metric}", text, stream, value)

    def _processes(self, s: Snapshot) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "afresh_memory_bytes", "Resident memory.", labels=["stream", "process"]
        )
        cpu = CounterMetricFamily("afresh_cpu_seconds", "CPU time.", labels=["stream", "process"])
        restarts = CounterMetricFamily(
            "afresh_restarts",
            "Processes started again by the supervisor.",
            labels=["stream", "process"],
        )
        for kind, count in sorted(s.restarts.items()):
            restarts.add_metric([s.stream, kind], count)
        for process, bytes_, seconds in self._usage(s):
            memory.add_metric([s.stream, process], bytes_)
            cpu.add_metric([s.stream, process], seconds)
        yield from (memory, cpu, restarts)
        yield _gauge("afresh_epoch", "Epoch of the lease held.", s.stream, s.epoch)

    def _usage(self, s: Snapshot) -> Iterable[tuple[str, float, float]]:
        yield "daemon", s.daemon_memory_bytes, s.daemon_cpu_s
        for name, shard in sorted(s.shards.items()):
            yield name, shard.memory_bytes, shard.cpu_s
        if s.learner is not None:
            yield "learner", s.learner.memory_bytes, s.learner.cpu_s
        if s.publisher is not None:
            yield "publisher", s.publisher.memory_bytes, s.publisher.cpu_s


def _gauge(name: str, text: str, stream: str, value: float) -> Metric:
    """Without a sample while there is no value: NaN would break sums and alerts."""
    family = GaugeMetricFamily(name, text, labels=["stream"])
    if not math.isnan(value):
        family.add_metric([stream], value)
    return family


def _counter(name: str, text: str, stream: str, value: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=["stream"])
    family.add_metric([stream], value)
    return family


def _histogram(name: str, text: str, stream: str, parts: list[Latency]) -> Metric:
    counts = [sum(p.counts[i] for p in parts) for i in range(len(LATENCY_BOUNDS_S) + 1)]
    buckets, running = [], 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), counts, strict=True):
        running += count
        buckets.append((bound, float(running)))
    family = HistogramMetricFamily(name, text, labels=["stream"])
    family.add_metric([stream], buckets=buckets, sum_value=sum(p.sum_s for p in parts))
    return family


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(ServiceCollector(snapshot))
    return found
