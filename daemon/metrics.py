"""Every Prometheus metric: one table, from which /metrics, docs/metrics.md and the tests follow.

To add one: give the stats a field (schemas/stats.py) and TABLE a line, then `make docs`."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from actors.gates import KEYS as GATES
from actors.rejected import ErrorClass
from daemon.reactions import REACTIONS
from daemon.totals import Snapshot
from schemas.stats import LATENCY_BOUNDS_S, GroupStats, Latency

SIGNALS = ("embedding", "loss", "gradient_norm", "freshness", "rate")
PHASES = ("starting", "replaying", "waiting", "serving", "paused")

Value = float | Mapping[Any, float] | list[Latency] | Mapping[str, str] | None
"""One number; one for each value of the label, or tuple of values of the labels; parts of a histogram; words of an
info. None, and a number that is NaN: no sample."""
Read = Callable[[Snapshot], Value]


class Spec(NamedTuple):
    """`name` as /metrics and PromQL have it; `labels` beside `stream`; `always`: values of the label that have a
    sample from the start, without which `increase()` misses the first."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    read: Read
    labels: tuple[str, ...] = ()
    always: tuple[str, ...] = ()

    @property
    def all_labels(self) -> list[str]:
        return sorted(self.labels if self.kind == "info" else ("stream", *self.labels))


# -- where values come from -------------------------------------------------------------------------


def shards(field: str) -> Read:
    """The sum over shards, of a number or of a count by label."""
    return lambda s: _added(getattr(shard, field) for shard in s.shards.values())


def parts(field: str) -> Read:
    """Each shard's histogram."""
    return lambda s: [getattr(shard, field) for shard in s.shards.values()]


def all_shards(field: str) -> Read:
    """1 where it is true of every shard, and there is one."""
    return lambda s: float(
        bool(s.shards) and all(getattr(shard, field) for shard in s.shards.values())
    )


def groups(field: str) -> Read:
    """The sum over partition groups."""
    return lambda s: float(sum(getattr(group, field) for group in s.groups))


def over_groups(reduce: Callable[[list[GroupStats]], float]) -> Read:
    return lambda s: reduce(s.groups)


def learner(field: str) -> Read:
    return lambda s: getattr(s.learner, field, None)


def changes(field: str) -> Read:
    return lambda s: getattr(s.learner.changes, field) if s.learner is not None else None


def publisher(field: str) -> Read:
    return lambda s: getattr(s.publisher, field, None)


def labels(field: str) -> Read:
    return lambda s: getattr(s.labels, field, None)


def daemon(field: str) -> Read:
    return lambda s: getattr(s, field)


def processes(daemons: str, field: str) -> Read:
    """Of the daemon and of each process below it."""

    def read(s: Snapshot) -> Value:
        found = {"daemon": getattr(s, daemons)}
        found |= {name: getattr(shard, field) for name, shard in sorted(s.shards.items())}
        others = {"learner": s.learner, "publisher": s.publisher, "labels": s.labels}
        return found | {n: getattr(x, field) for n, x in others.items() if x is not None}

    return read


def _added(values: Iterable[Any]) -> Value:
    total: dict[Any, float] = {}
    number = 0.0
    for value in values:
        if isinstance(value, dict):
            for key, count in value.items():
                total[key] = total.get(key, 0) + count
        else:
            number += value
    return total or number


def _phases(s: Snapshot) -> Value:
    return {phase: sum(g.phase == phase for g in s.groups) for phase in PHASES}


def _drift_alarms(s: Snapshot) -> Value:
    if s.learner is None:
        return s.scalar_alarms
    return {"embedding": s.learner.drift_alarms, **s.learner.scalar_alarms, **s.scalar_alarms}


def _snapshot_age(found: list[GroupStats]) -> float:
    return max((g.snapshot_age_s for g in found), default=-1.0)


def _oldest_release(found: list[GroupStats]) -> float:
    return min((g.oldest_release for g in found if g.oldest_release), default=0)


# -- the table --------------------------------------------------------------------------------------

TABLE: tuple[Spec, ...] = (
    Spec("afresh_build_info", "info", "Version of afresh and of Python.",
         lambda _: {"version": version("afresh"), "python": platform.python_version()},
         ("version", "python")),
    # the stream
    Spec("afresh_records_accepted_total", "counter", "Records taken into the state.", shards("accepted")),
    Spec("afresh_windows_encoded_total", "counter", "Windows encoded anew.", shards("encoded")),
    Spec("afresh_records_stepped_total", "counter", "Records encoded by one step from the state before.",
         shards("stepped")),
    Spec("afresh_vectors_written_total", "counter", "Vectors that Redis took.", shards("written")),
    Spec("afresh_writes_refused_total", "counter",
         "Writes that Redis refused as old; above zero after a restart only.", shards("refused")),
    Spec("afresh_duplicates_total", "counter",
         "Images so like one seen lately that they are not learnt from, or not written (stream.image.duplicate).",
         shards("duplicates")),
    Spec("afresh_windows_sampled_total", "counter",
         "Training windows handed over for the learner; it may still refuse a call when it is full.",
         shards("sampled")),
    Spec("afresh_windows_not_sampled_total", "counter",
         "Training windows not handed over because the learner was full or gone.", shards("sample_skipped")),
    Spec("afresh_dead_letters_total", "counter", "Records sent to the dead-letter topic.",
         shards("dead_letters"), ("error",), get_args(ErrorClass)),
    Spec("afresh_freshness_seconds", "histogram",
         "From a record's production to its entity's vector being readable in Redis.", parts("freshness")),
    Spec("afresh_swap_pause_seconds", "histogram",
         "How long the stream waited for a new release to be taken up.", parts("swap_pause")),
    Spec("afresh_snapshot_pause_seconds", "histogram",
         "How long the stream waited for one slab of a snapshot to be copied.", parts("snapshot_pause")),
    Spec("afresh_source_up", "gauge", "1 while Kafka answers.", all_shards("source_up")),
    Spec("afresh_sink_up", "gauge", "1 while Redis answers.", all_shards("sink_up")),
    # the state: as its groups count, which outlives processes
    Spec("afresh_entities_evicted_total", "counter", "Entities evicted past the memory cap.", groups("evicted")),
    Spec("afresh_entities_deleted_total", "counter", "Entities deleted by a null value.", groups("deleted")),
    Spec("afresh_records_late_total", "counter", "Records placed behind newer ones.", groups("late")),
    Spec("afresh_records_too_old_total", "counter", "Records older than their entity's ring: counted only.",
         groups("too_old")),
    Spec("afresh_snapshots_total", "counter", "Snapshots written.", groups("snapshots")),
    Spec("afresh_snapshot_failures_total", "counter", "Snapshots that failed; the one before stays.",
         groups("snapshot_failures")),
    Spec("afresh_entities", "gauge", "Entities in the state.", groups("entities")),
    Spec("afresh_lag_records", "gauge", "Records produced but not yet taken.", groups("lag")),
    Spec("afresh_partitions_held_back", "gauge",
         "Partitions that wait for slower ones (source.max_skew_s); while catching up only.", groups("held_back")),
    Spec("afresh_state_bytes", "gauge", "Bytes of the entities' state.", groups("state_bytes")),
    Spec("afresh_entities_owed", "gauge", "Entities whose vector in Redis is still to be written.",
         groups("to_encode")),
    Spec("afresh_groups", "gauge", "Partition groups by phase.", _phases, ("phase",)),
    Spec("afresh_snapshot_age_seconds", "gauge",
         "Age of the oldest of the groups' newest snapshots (or since the shard's start); -1: no groups.",
         over_groups(_snapshot_age)),
    Spec("afresh_entities_to_fill", "gauge", "Entities that lack a vector of the generation that is being filled.",
         groups("to_fill")),
    Spec("afresh_records_to_read_again", "gauge", "Records to be read again for fields that were named later.",
         shards("to_refill")),
    Spec("afresh_oldest_release", "gauge", "Oldest release that an entity's state carries.",
         over_groups(_oldest_release)),
    # learning
    Spec("afresh_updates_total", "counter", "Optimiser updates since the stream began.", learner("updates")),
    Spec("afresh_sequences_learnt_total", "counter", "Windows learnt from.", learner("sequences")),
    Spec("afresh_windows_received_total", "counter", "Windows taken from the shards.", learner("received")),
    Spec("afresh_learner_snapshot_failures_total", "counter",
         "Snapshots of the learner that failed; the one before stays.", learner("snapshot_failures")),
    Spec("afresh_updates_skipped_total", "counter", "Updates that changed nothing, by reason.",
         learner("skipped"), ("reason",), ("non_finite", "stale", "paused")),
    Spec("afresh_objective_loss", "gauge", "Loss by objective.", learner("objective_losses"), ("objective",)),
    Spec("afresh_loss", "gauge", "Training loss, weighted over objectives.", learner("loss")),
    Spec("afresh_held_out_loss", "gauge", "Loss on entities never trained on.", learner("heldout_loss")),
    Spec("afresh_held_out_entities", "gauge", "Entities never trained on that the learner holds.",
         learner("heldout_entities")),
    Spec("afresh_gradient_norm", "gauge", "Norm of the gradient before clipping.", learner("gradient_norm")),
    Spec("afresh_effective_rank", "gauge", "Dimensions in real use (RankMe); near 1 means collapse.",
         learner("effective_rank")),
    Spec("afresh_uniformity", "gauge", "Log mean Gaussian potential of pairs; near 0 means collapse.",
         learner("uniformity")),
    Spec("afresh_alignment", "gauge",
         "Mean squared distance of two views of one window, over all transformations; 0 to 4, lower is more alike.",
         learner("alignment")),
    Spec("afresh_lidar", "gauge",
         "Dimensions that tell entities apart by more than their views differ (LiDAR); near 1 means collapse.",
         learner("lidar")),
    Spec("afresh_coding_rate", "gauge", "Coding rate of the vectors at a squared error of 0.5; 0 is collapse.",
         learner("coding_rate")),
    Spec("afresh_modes", "gauge",
         "Eigenvalues of the vectors' covariance above 0.1 / dim: modes learned, one after another.", learner("modes")),
    Spec("afresh_neighbour_stability", "gauge",
         "Share of a held-out entity's ten neighbours that the snapshot before gave it too.", learner("stability")),
    Spec("afresh_invariance", "gauge",
         "Mean cosine of a window's vector with that of the window transformed; 1: the encoder ignores that.",
         learner("invariance"), ("transformation",)),
    Spec("afresh_dormant_units", "gauge",
         "Share of units that hardly answer to anything any more, by kind of layer.", learner("dormant"), ("layer",)),
    Spec("afresh_challenger_updates", "gauge", "Updates of the second learner (learner.challenger); 0: there is none.",
         learner("challenger_updates")),
    Spec("afresh_challengers_total", "counter", "Second learners, by what became of them.", learner("challengers"),
         ("outcome",), ("won", "lost")),
    Spec("afresh_weight_norm", "gauge", "Norm of the encoder's weights.", learner("weight_norm")),
    Spec("afresh_update_ratio", "gauge", "How far one update moves the encoder's weights, in their own norm.",
         learner("update_ratio")),
    Spec("afresh_replay_windows", "gauge", "Windows in the replay.", learner("replay_windows")),
    Spec("afresh_learner_snapshot_age_seconds", "gauge", "Age of the learner's snapshot; -1: none.",
         learner("snapshot_age_s")),
    # the world
    Spec("afresh_drift_embedding", "gauge",
         "Discrepancy of embeddings from those of the reference, over its threshold: above 1 is an alarm.",
         learner("drift_embedding")),
    Spec("afresh_drift_alarms_total", "counter",
         "Alarms that something has changed: of embeddings one in 500 batches of 64 comes without a change.",
         _drift_alarms, ("signal",), SIGNALS),
    Spec("afresh_drift_psi", "gauge", "Population stability index of a field against its reference; 0.25 is a shift.",
         learner("drift_psi"), ("field",)),
    Spec("afresh_drift_ks", "gauge", "Largest difference of a number's distribution from its reference's; 0 to 1.",
         learner("drift_ks"), ("field",)),
    Spec("afresh_drift_missing", "gauge", "By how much the share of missing values has grown; -1 to 1.",
         learner("drift_missing"), ("field",)),
    Spec("afresh_drift_new_categories", "gauge", "Share of a field's values that its reference does not know.",
         learner("drift_new"), ("field",)),
    Spec("afresh_classifier_accuracy", "gauge",
         "How often a classifier tells what came lately from the reference, by entities it has not seen; 0.5: never.",
         changes("accuracy")),
    Spec("afresh_concept_change", "gauge",
         "Largest change of the share of embeddings that are nearest to one prototype of the reference.",
         changes("share_change")),
    Spec("afresh_ageing", "gauge",
         "Self-retrieval that the served release has lost since it was made: recall at 1 then less now.",
         learner("ageing")),
    Spec("afresh_retrieval", "gauge",
         "Self-retrieval of the served release now: share of held-out entities found by their earlier part.",
         learner("retrieval")),
    Spec("afresh_reactions_total", "counter", "What the daemon did by itself after an alarm.", daemon("reactions"),
         ("reaction",), REACTIONS),
    Spec("afresh_learning_paused", "gauge", "1 while nothing is learnt, for what comes looks poisoned.",
         lambda s: float(s.learning_paused)),
    # releases
    Spec("afresh_releases_total", "counter", "Releases published.", publisher("releases")),
    Spec("afresh_releases_refused_total", "counter", "Releases that a check refused.", publisher("refused"),
         ("check",), (*GATES, "export")),
    Spec("afresh_gate_value", "gauge", "Of each gate, what the last release that was tried had.",
         publisher("gate_values"), ("gate",)),
    Spec("afresh_gate_threshold", "gauge", "Of each gate, what it needed: parity at most, the others at least.",
         publisher("gate_thresholds"), ("gate",)),
    Spec("afresh_releases_held", "gauge", "1 where no release comes by itself: after a rollback.",
         lambda s: None if s.publisher is None else float(bool(s.publisher.held))),
    Spec("afresh_release", "gauge", "Number of the current release; 0: none yet.", publisher("release")),
    Spec("afresh_generation", "gauge", "Generation of the current release.", publisher("generation")),
    Spec("afresh_next_release", "gauge", "The release of another generation that is being filled; 0: none.",
         publisher("next_release")),
    Spec("afresh_release_age_seconds", "gauge", "Age of the current release; -1: none yet.",
         publisher("release_age_s")),
    Spec("afresh_export_seconds", "gauge", "How long the last export took.", publisher("export_s")),
    Spec("afresh_overlap_cosine", "gauge", "Mean cosine of a held-out entity's last two releases.",
         publisher("overlap_cosine")),
    Spec("afresh_overlap_neighbours", "gauge", "Share of neighbours common to the last two releases.",
         publisher("overlap_neighbours")),
    # labels
    Spec("afresh_labels_total", "counter", "Labels that came on a topic of their own, by what became of them.",
         labels("labels"), ("result",)),
    Spec("afresh_labels_known", "gauge", "Entities of whom a label is known.", labels("known")),
    Spec("afresh_probe_accuracy", "gauge",
         "Share of the newest 1,000 labels that served vectors foretold before they were told.", labels("accuracy"),
         ("probe",)),
    Spec("afresh_probe_average_precision", "gauge",
         "Average precision of the rarer of two labels, foretold by the linear probe.", labels("average_precision")),
    # the machine
    Spec("afresh_memory_bytes", "gauge", "Resident memory.", processes("daemon_memory_bytes", "memory_bytes"),
         ("process",)),
    Spec("afresh_memory_limit_bytes", "gauge", "Memory of the machine, or what its container may have.",
         daemon("memory_limit_bytes")),
    Spec("afresh_cpu_seconds_total", "counter", "CPU time.", processes("daemon_cpu_s", "cpu_s"), ("process",)),
    Spec("afresh_disk_bytes", "gauge", "Size of the filesystem that holds the state folder.", daemon("disk_bytes")),
    Spec("afresh_disk_free_bytes", "gauge", "Room that is left on it.", daemon("disk_free_bytes")),
    Spec("afresh_restarts_total", "counter", "Processes started again by the supervisor.", daemon("restarts"),
         ("process",)),
    Spec("afresh_epoch", "gauge", "Epoch of the lease held; one more with each start of a daemon.",
         daemon("epoch")),
)  # fmt: skip
NAMES = frozenset(spec.name for spec in TABLE)

# -- from the table to Prometheus -------------------------------------------------------------------

_FAMILIES: dict[str, Callable[..., Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


class ServiceCollector(Collector):
    """Turns the newest Snapshot into metric families at each scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        s = self._snapshot()
        for spec in TABLE:
            yield _family(spec, s.stream, spec.read(s))


def _family(spec: Spec, stream: str, value: Value) -> Metric:
    if spec.kind == "info":
        assert isinstance(value, dict)
        return InfoMetricFamily(spec.name.removesuffix("_info"), spec.text, value)
    if spec.kind == "histogram":
        assert isinstance(value, list)
        return _histogram(spec, stream, value)
    labels = ["stream", *spec.labels]
    family: Metric = _FAMILIES[spec.kind](
        spec.name.removesuffix("_total"), spec.text, labels=labels
    )
    for key, number in _samples(spec, value):
        if not math.isnan(number):  # NaN would break sums and alerts
            family.add_metric([stream, *key], number)  # type: ignore[attr-defined]
    return family


def _samples(spec: Spec, value: Value) -> Iterator[tuple[tuple[str, ...], float]]:
    if value is None:
        return
    if not spec.labels:
        assert isinstance(value, int | float)
        yield (), float(value)
        return
    given: dict[Any, Any] = (
        dict(value) if isinstance(value, Mapping) else {}
    )  # without shards the sum is 0.0
    for key, number in (dict.fromkeys(spec.always, 0.0) | given).items():
        yield key if isinstance(key, tuple) else (key,), float(number)


def _histogram(spec: Spec, stream: str, found: list[Latency]) -> Metric:
    counts = [sum(p.counts[i] for p in found) for i in range(len(LATENCY_BOUNDS_S) + 1)]
    buckets, running = [], 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), counts, strict=True):
        running += count
        buckets.append((bound, float(running)))
    family = HistogramMetricFamily(spec.name, spec.text, labels=["stream"])
    family.add_metric([stream], buckets=buckets, sum_value=sum(p.sum_s for p in found))
    return family


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(ServiceCollector(snapshot))
    return found
