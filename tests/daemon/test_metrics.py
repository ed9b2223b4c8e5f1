"""Plain stats -> Prometheus: counters only grow, histograms add up, everything is explained."""

import math
import shutil
import subprocess
from dataclasses import fields, is_dataclass

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Metric

from daemon.metrics import PHASES, registry
from daemon.totals import Snapshot, Totals, quantile
from schemas.stats import (
    LATENCY_BOUNDS_S,
    Changes,
    Concept,
    GroupStats,
    LabelStats,
    Latency,
    LearnerStats,
    PublisherStats,
    ShardStats,
)


def latency(*seconds: float) -> Latency:
    found = Latency()
    for s in seconds:
        counts = [0] * len(found.counts)
        counts[sum(s > bound for bound in LATENCY_BOUNDS_S)] = 1
        found.add(counts, s)
    return found


def shard(scale: int = 1, group: int = 0) -> ShardStats:
    """A shard that has counted something of everything."""
    n = scale
    return ShardStats(
        progress=9, accepted=100 * n, dead_letters={"not_json": n}, encoded=n, stepped=n, written=n,
        refused=n, sampled=n, sample_skipped=n, freshness=latency(*[0.004, 0.3, 1e3] * n),
        swap_pause=latency(0.001), snapshot_pause=latency(0.002), source_up=True, sink_up=True,
        memory_bytes=1, cpu_s=1.5 * n,
        groups=[GroupStats(group, "serving", {"t": 5}, 3, 7, n, n, n, n, 64, 2, 1, 4, 1.0, n, n)],
    )  # fmt: skip


def learner(scale: int = 1) -> LearnerStats:
    n = scale
    skipped = {"non_finite": n, "stale": n}
    return LearnerStats(
        progress=1, updates=10 * n, sequences=n, received=n, skipped=skipped, loss=0.5,
        objective_losses={"coles": 0.5}, gradient_norm=1.0, effective_rank=9.0, uniformity=-1.0, alignment=0.5,
        lidar=8.0, coding_rate=20.0, modes=7.0, stability=0.8, invariance={"drop": 0.9},
        changes=Changes(0.6, 0.01, 90, {"amount": 0.7}, ["00ff"], [Concept(0.1, 0.3, ["00ff"])], 0.2),
        ageing=0.1, retrieval=0.7, dormant={"gru": 0.1}, weight_norm=9.0, update_ratio=0.01, scalar_alarms={"loss": n},
        heldout_loss=0.4, heldout_entities=30, replay_windows=99, snapshot="1-1", snapshot_age_s=4.0,
        snapshot_failures=n, memory_bytes=1, cpu_s=1.0, drift_embedding=0.7, drift_alarms=n,
        drift_psi={"amount": 0.1}, drift_ks={"amount": 0.2}, drift_missing={"amount": 0.3}, drift_new={"shop": 0.4},
    )  # fmt: skip


def snapshot() -> Snapshot:
    shards = {"shard-0": shard(), "shard-1": shard(group=1)}
    publisher = PublisherStats(
        1,
        2,
        1,
        3.0,
        2,
        {"parity": 1},
        0.5,
        0.9,
        0.8,
        sink_up=True,
        gate_values={"rank": 3.0},
        gate_thresholds={"rank": 2.0},
    )
    labels = LabelStats(1, True, {"taken": 3}, 3, {"knn": 0.5}, 0.4, 1, 1.0)
    restarts = {"shard": 1, "learner": 0}
    return Snapshot("s", shards, learner(), publisher, restarts, 3, 1, 1.0, labels=labels)


def collected(given: Snapshot) -> dict[str, Metric]:
    return {metric.name: metric for metric in registry(lambda: given).collect()}


def values(given: Snapshot) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value  # type: ignore[misc]
        for metric in collected(given).values()
        for sample in metric.samples
    }


def of(given: Snapshot, name: str, **labels: str) -> float:
    return values(given)[name, tuple(sorted({"stream": "s", **labels}.items()))]  # type: ignore[index]


def test_shards_are_added_up() -> None:
    s = snapshot()
    assert of(s, "afresh_records_accepted_total") == 200
    assert of(s, "afresh_dead_letters_total", error="not_json") == 2
    assert of(s, "afresh_lag_records") == 6
    assert of(s, "afresh_entities") == 14
    assert of(s, "afresh_groups", phase="serving") == 2
    assert of(s, "afresh_updates_total") == 10
    assert of(s, "afresh_release") == 2


def test_a_histogram_adds_up() -> None:
    s = snapshot()
    name = "afresh_freshness_seconds"
    assert of(s, f"{name}_bucket", le="0.0025") == 0
    assert of(s, f"{name}_bucket", le="0.005") == 2
    assert of(s, f"{name}_bucket", le="0.5") == 4
    assert of(s, f"{name}_bucket", le="300.0") == 4
    assert of(s, f"{name}_bucket", le="+Inf") == of(s, f"{name}_count") == 6
    assert of(s, f"{name}_sum") == pytest.approx(2 * 1000.304)


def test_counters_only_grow_over_restarts() -> None:
    """Of every process, whatever it counts anew, and whatever its snapshot set back."""
    totals = Totals()
    before: dict[tuple[str, tuple[str, ...]], float] = {}
    # counted 3, died; a new one reports nothing, then what it restored and counted, dies again ...
    history = [(1, False), (3, False), (0, True), (1, False), (2, False), (0, True), (5, False)]
    for scale, anew in history:
        totals.update("shard-0", shard(scale) if scale else ShardStats(), anew)
        totals.update("learner", learner(scale) if scale else LearnerStats(), anew)
        refused = {"parity": scale}
        totals.update("publisher", PublisherStats(releases=scale, refused=refused), anew)
        shards = {"shard-0": totals.get("shard-0")}
        now = values(Snapshot("s", shards, totals.get("learner"), totals.get("publisher")))
        for key, value in before.items():
            if key[0].endswith(("_total", "_bucket", "_sum", "_count")):
                assert now[key] >= value, key
        before = now
    s = Snapshot("s", shards)
    assert of(s, "afresh_records_accepted_total") == 100 * (3 + 2 + 5)
    assert of(s, "afresh_snapshots_total") == 3 + 2 + 5
    assert of(s, "afresh_entities_evicted_total") == 5, "counted in the state, which is restored"
    assert of(s, "afresh_freshness_seconds_count") == 3 * (3 + 2 + 5)


def test_a_new_shard_that_restores_is_not_taken_for_the_one_that_served() -> None:
    totals = Totals()
    totals.update("shard-0", shard(), started_anew=False)
    totals.update("shard-0", ShardStats(), started_anew=True)
    (group,) = totals.get("shard-0").groups
    assert group.phase == "starting"
    totals.update("shard-0", shard(), started_anew=False)
    assert [g.phase for g in totals.get("shard-0").groups] == ["serving"]


@pytest.mark.parametrize("given", [snapshot(), Snapshot("s")], ids=["full", "empty"])
def test_every_metric_is_named_explained_and_a_number(given: Snapshot) -> None:
    for name, metric in collected(given).items():
        assert name.startswith("afresh_")
        assert metric.documentation.endswith(".")
        assert metric.samples or given.learner is None
        for sample in metric.samples:
            assert sample.labels.get("stream") == "s" or name == "afresh_build"
            assert math.isfinite(sample.value)


def test_what_has_no_value_yet_has_no_sample() -> None:
    s = Snapshot("s", {"shard-0": ShardStats()}, LearnerStats(), PublisherStats())
    found = values(s)
    assert not [key for key, value in found.items() if math.isnan(value)]
    assert "afresh_loss" in collected(s)
    assert not collected(s)["afresh_loss"].samples


def test_no_stat_is_forgotten() -> None:
    """Every field of every stage's stats changes some metric, but for those named here."""
    quiet = {f"{where}.progress" for where in ("shard", "learner", "publisher")}
    quiet |= {"shard.groups", "group.group", "group.positions", "group.release", "group.filled"}
    quiet |= {
        "learner.snapshot",
        "publisher.sink_up",
        "publisher.sink_error",
        "shard.floor_us",
        "shard.letters",
        "shard.named",
        "publisher.requests",
    }
    for where in ("shard", "group", "learner", "publisher"):
        for field in fields(stats_of(snapshot(), where)):
            if f"{where}.{field.name}" in quiet:
                continue
            s = snapshot()
            del s.shards["shard-1"]
            plain = values(s)
            target = stats_of(s, where)
            setattr(target, field.name, other(getattr(target, field.name)))
            assert values(s) != plain, f"{where}.{field.name} is in no metric"


def stats_of(s: Snapshot, where: str) -> ShardStats | GroupStats | LearnerStats | PublisherStats:
    found = {"shard": s.shards["shard-0"], "group": s.groups[0]}
    found |= {"learner": s.learner, "publisher": s.publisher}  # type: ignore[dict-item]
    return found[where]


def other(value: object) -> object:
    match value:
        case bool():
            return not value
        case str():
            return PHASES[0]
        case dict():
            return {"other": 1}
        case Changes():
            return Changes(accuracy=0.9)
        case _ if is_dataclass(value):
            return latency(0.1)
    return value + 1000  # type: ignore[operator]


@pytest.mark.parametrize("given", [snapshot(), Snapshot("s")], ids=["full", "empty"])
def test_promtool_finds_nothing_to_say(given: Snapshot) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is in Debian's package prometheus")
    text = generate_latest(registry(lambda: given))
    done = subprocess.run(
        [tool, "check", "metrics"], check=False, input=text, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    found = latency(0.004, 0.004, 0.3, 1e4)
    assert [quantile(found, q) for q in (0.5, 0.75, 0.99)] == [0.005, 0.5, math.inf]
    assert math.isnan(quantile(Latency(), 0.5))
