"""Plain numbers that the stages report; `daemon/metrics.py` turns them into Prometheus metrics.

Counts are totals since the actor started; they only grow. Latencies are bucket counts over LATENCY_BOUNDS_S."""

from dataclasses import dataclass, field, replace

LATENCY_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


@dataclass
class Latency:
    """A histogram: how many fell at or under each bound, then all others; and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, counts: list[int], sum_s: float) -> None:
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.sum_s += sum_s


@dataclass
class GroupStats:
    """One partition group of a shard."""

    group: int
    phase: str = "starting"  # starting | replaying | waiting (no release yet) | serving | paused
    positions: dict[str, int] = field(default_factory=dict)  # topic -> next offset
    lag: int = 0  # records produced but not yet applied
    entities: int = 0
    evicted: int = 0
    deleted: int = 0
    late: int = 0  # placed by time behind newer rows
    too_old: int = 0  # older than the ring: counted only
    state_bytes: int = 0
    release: int = 0  # the newest one that vectors are encoded with
    oldest_release: int = 0  # the oldest one some entity's state still carries; 0: none
    to_encode: int = 0  # entities that a release has still to re-encode
    snapshot_age_s: float = -1.0  # of the newest one of this process; without one since it started
    snapshots: int = 0
    snapshot_failures: int = 0
    held_back: int = 0  # partitions that wait for slower ones: source.max_skew_s
    to_fill: int = 0  # entities that lack a vector of the generation that is being filled
    filled: int = 0  # the release of another generation of which all of them have one


@dataclass
class BadLetter:
    """A record that could not be used: where it is, and why, without what is in it."""

    error: str
    reason: str
    topic: str
    partition: int
    offset: int
    time_ms: int  # Kafka's


LETTERS = 8
"""So many of the newest are reported."""


@dataclass
class ShardStats:
    """What a shard reports at each status call."""

    progress: int = 0  # turns of its loop: the heartbeat
    accepted: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)  # reason class -> count
    letters: list[BadLetter] = field(default_factory=list)  # the newest of them, the oldest first
    encoded: int = 0  # windows encoded anew
    stepped: int = 0
    written: int = 0  # vectors that Redis took
    refused: int = 0  # writes that Redis refused as old
    duplicates: int = (
        0  # images so like one seen lately that they are not learnt from, or not written
    )
    sampled: int = 0  # windows handed to the learner
    sample_skipped: int = 0  # windows not handed over because it was full
    freshness: Latency = field(default_factory=Latency)  # produced -> readable in Redis
    swap_pause: Latency = field(default_factory=Latency)
    snapshot_pause: Latency = field(default_factory=Latency)
    source_up: bool = False
    sink_up: bool = False
    floor_us: int | None = None  # time of the slowest partition that has records; 0: not known
    memory_bytes: int = 0
    cpu_s: float = 0.0
    groups: list[GroupStats] = field(default_factory=list)
    named: dict[str, str] = field(
        default_factory=dict
    )  # hash, as Changes has it -> name, of those asked for
    to_refill: int = 0  # records still to be read again, for fields that were named later


@dataclass
class Concept:
    """A kind of embedding: vectors near one prototype of the reference. Entities are hashes, as 16 digits of hex."""

    then: float  # share of the reference
    now: float  # ... and of what came lately
    entities: list[str] = field(default_factory=list)  # examples


@dataclass
class Changes:
    """What came lately against the reference: learning/changes.py. NaN before it was looked at."""

    accuracy: float = float("nan")  # of a classifier that tells them apart; 0.5: it cannot
    p: float = float("nan")  # how likely so much is by chance
    entities_compared: int = 0  # of either
    fields: dict[str, float] = field(default_factory=dict)  # that moved: the accuracy by each alone
    entities: list[str] = field(default_factory=list)  # that look newest
    concepts: list[Concept] = field(default_factory=list)  # whose shares changed most
    share_change: float = float("nan")  # the largest change of any

    @property
    def who(self) -> list[str]:
        """All entities that are named here, by their hashes."""
        return sorted({*self.entities, *(e for concept in self.concepts for e in concept.entities)})

    def named(self, names: dict[str, str]) -> "Changes":
        """With names in place of those hashes that are known."""

        def known(entities: list[str]) -> list[str]:
            return [names.get(entity, entity) for entity in entities]

        concepts = [replace(c, entities=known(c.entities)) for c in self.concepts]
        return replace(self, entities=known(self.entities), concepts=concepts)


@dataclass
class LearnerStats:
    """What the learner reports at each status call; all from one process since it started."""

    progress: int = 0
    updates: int = 0  # since the stream began, restarts included
    sequences: int = 0  # windows learnt from
    received: int = 0  # windows taken from shards
    skipped: dict[str, int] = field(default_factory=dict)  # non_finite | stale -> count
    loss: float = float("nan")
    objective_losses: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = float("nan")
    effective_rank: float = float("nan")
    uniformity: float = float("nan")
    alignment: float = float("nan")  # these six on held-out entities: see learning/report.py
    lidar: float = float("nan")
    coding_rate: float = float("nan")
    modes: float = float("nan")
    stability: float = float("nan")
    invariance: dict[str, float] = field(default_factory=dict)
    dormant: dict[str, float] = field(
        default_factory=dict
    )  # these three: see learning/plasticity.py
    weight_norm: float = float("nan")
    update_ratio: float = float("nan")
    heldout_loss: float = float("nan")
    heldout_entities: int = 0
    replay_windows: int = 0
    snapshot: str = ""  # name of the newest durable one
    snapshot_age_s: float = -1.0
    snapshot_failures: int = 0
    memory_bytes: int = 0
    cpu_s: float = 0.0
    drift_embedding: float = float("nan")  # the statistic over its threshold
    drift_alarms: int = 0  # of embeddings
    scalar_alarms: dict[str, int] = field(default_factory=dict)  # loss | gradient_norm -> count
    changes: Changes = field(default_factory=Changes)
    ageing: float = float(
        "nan"
    )  # recall that the served release has lost since: learning/ageing.py
    retrieval: float = float("nan")  # ... and what it has now
    drift_psi: dict[str, float] = field(default_factory=dict)  # by field: see learning/drift.py
    drift_ks: dict[str, float] = field(default_factory=dict)
    drift_missing: dict[str, float] = field(default_factory=dict)
    drift_new: dict[str, float] = field(default_factory=dict)
    challenger_updates: int = 0  # of a second learner; 0: there is none
    challengers: dict[str, int] = field(default_factory=dict)  # won | lost -> count


@dataclass
class PublisherStats:
    """What the publisher reports."""

    progress: int = 0
    release: int = 0
    generation: int = 0
    release_age_s: float = -1.0
    releases: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # parity | export | onnx | ... -> count
    export_s: float = float("nan")
    overlap_cosine: float = float("nan")
    overlap_neighbours: float = float("nan")
    sink_up: bool = False
    sink_error: str = ""  # why Redis does not name the current release
    memory_bytes: int = 0
    cpu_s: float = 0.0
    gate_values: dict[str, float] = field(default_factory=dict)  # of the last release tried
    gate_thresholds: dict[str, float] = field(default_factory=dict)
    held: str = ""  # why no release comes by itself
    requests: int = 0  # of an operator, dealt with
    next_release: int = 0  # of another generation, which is being filled; 0: none


@dataclass
class LabelStats:
    """What the reader of labels reports; see learning/probe.py."""

    progress: int = 0
    up: bool = True  # Kafka and Redis answer it
    labels: dict[str, int] = field(default_factory=dict)  # taken | no_vector | bad -> count
    known: int = 0  # entities of whom a label is known
    accuracy: dict[str, float] = field(default_factory=dict)  # by probe
    average_precision: float = float("nan")
    memory_bytes: int = 0
    cpu_s: float = 0.0
