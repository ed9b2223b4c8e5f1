"""A graph's stream in four partition groups, each with a shard of its own, and the oracle: all of it in one state."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from actors.cut import columns
from actors.decode import DecodeConfig, make_decoder
from actors.edges import Edges
from actors.embed import Releases, encode_anew
from actors.encode import Release
from actors.folders import epoch_of
from actors.group import Group
from actors.partitioner import partition_of
from actors.ports import LearnerPort, Mirror
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from actors.state import State
from learning.config import TemporalAttentionConfig
from learning.node_table import NodeTable
from schemas.errors import SourceDown
from schemas.records import Rows, Told, Windows
from schemas.stream import Field, FieldType, StreamConfig
from tests.fake_sink import MemoryServer, MemorySink
from tests.fakes import MemoryDeadLetters, MemorySource, Record

STREAM = StreamConfig(
    kind="graph",
    entity="src",
    neighbour="dst",
    time="at",
    op="op",
    edge_type="type",
    field=(Field("what", FieldType.category), Field("amount", FieldType.number)),
    node=(Field("of", FieldType.category), Field("score", FieldType.number)),
    time_unit="s",
)
ENCODER = TemporalAttentionConfig(
    dim=8, hidden=8, window=64, heads=2, category_dim=3, bucket_bits=4, pair_hidden=8
)
TOPICS = ("edges", "edges.mirror")
GROUPS = 4


def edge(src: str, dst: str, at: int, groups: int = GROUPS, **more: object) -> Record:
    value = {"src": src, "dst": dst, "at": at, **more}
    home = partition_of(src.encode(), groups)
    return Record(msgspec.json.encode(value), src.encode(), home, time_ms=at * 1000)


def node(name: str, at: int, groups: int = GROUPS, **more: object) -> Record:
    """What is said of a node."""
    value = {"src": name, "at": at, "op": "node", **more}
    home = partition_of(name.encode(), groups)
    return Record(msgspec.json.encode(value), name.encode(), home, time_ms=at * 1000)


def deletion(node: str, at: int = 1, groups: int = GROUPS) -> Record:
    return Record(None, node.encode(), partition_of(node.encode(), groups), time_ms=at * 1000)


def stream(n: int, nodes: int, seed: int, late: int = 0, groups: int = GROUPS) -> list[Record]:
    """Edges of distinct times, some of them removals, some loops; what is said of nodes; up to `late` places out
    of order."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        src, dst = (f"n{x}" for x in rng.integers(nodes, size=2))
        more: dict[str, object] = {"what": f"c{rng.integers(4)}", "amount": float(rng.normal())}
        if rng.random() < 0.2:
            more["op"] = "remove"
        if rng.random() < 0.5:
            more["type"] = f"t{rng.integers(2)}"
        if rng.random() < 0.15:
            more = {"of": f"o{rng.integers(4)}", "score": float(rng.normal())}
            out.append(node(src, 1000 + i * 700, groups, **more))
        else:
            out.append(edge(src, dst, 1000 + i * 700, groups, **more))
    order = np.argsort(np.arange(n) + (rng.integers(0, late + 1, n)), kind="stable")
    return [out[i] for i in order.tolist()]


def whole(
    records: Sequence[Record], window: int = ENCODER.window, hidden: int = ENCODER.state
) -> State:
    """All records in one group's state, at once."""
    decoder = make_decoder(STREAM, DecodeConfig())
    n = np.arange(len(records))
    decoded, bad = decoder.decode(0, n, n, [r.key for r in records], [r.value for r in records])
    assert not bad
    state = State(STREAM.shape, window, hidden, 1024)
    state.nodes = NodeTable(STREAM.shape, 1024)
    told = decoded.told
    if told is not None:
        state.nodes.put(told.node, told.features, told.time_us, told.position)
    state.apply(Edges(STREAM.shape, 0, 1, 1, 1, {}).spread(0, decoded).here)
    return state


def from_scratch(records: Sequence[Record], release: Path) -> dict[str, tuple[int, np.ndarray]]:  # type: ignore[type-arg]
    """node -> (count, vector), by `encode` alone."""
    state = whole(records)
    slots = np.array(sorted(state.index.values()), np.int64)
    vectors = encode_anew(state, slots, Release.load(release))
    names = [state.names[slot] or "" for slot in slots.tolist()]
    return {n: (c, v) for n, c, v in zip(names, state.count[slots].tolist(), vectors, strict=True)}


def assert_node(state: State, other: State, name: str) -> None:
    """The same edges live, the same totals, the same count; positions are of other topics."""
    a, b = state.index[name], other.index[name]
    assert state.count[a] == other.count[b], name
    found, wanted = state.windows(np.array([a])), other.windows(np.array([b]))
    for column in ("time_us", "numbers", "missing"):
        np.testing.assert_array_equal(
            getattr(found.rows, column), getattr(wanted.rows, column), f"{name}: {column}"
        )
    there = ~wanted.rows.missing
    np.testing.assert_array_equal(found.rows.categories[there], wanted.rows.categories[there])
    np.testing.assert_allclose(state.totals[a], other.totals[b], atol=1e-9, err_msg=name)
    assert found.first_us == wanted.first_us, name


def assert_known(state: State, other: State) -> None:
    """The same is known of the same nodes."""
    assert state.nodes is not None and other.nodes is not None
    assert set(state.nodes.index) == set(other.nodes.index)
    ids = np.array(sorted(other.nodes.index), np.int64)
    found, wanted = state.nodes.get(ids), other.nodes.get(ids)
    np.testing.assert_array_equal(found.numbers, wanted.numbers)
    np.testing.assert_array_equal(found.categories, wanted.categories)


@dataclass
class MemoryMirror(Mirror):
    """What was sent, in order; `at`: from where the log does not have it yet. Down: nothing gets through."""

    source: MemorySource
    sent: list[tuple[int, bytes]] = field(default_factory=list)
    at: int = 0
    down: bool = False
    room: int = 1 << 30

    def send(self, group: int, message: bytes) -> None:
        self.sent.append((group, message))

    def deliver(self, n: int) -> None:
        """Also again what the log had already, where `at` was set back."""
        for group, message in self.sent[self.at : self.at + n]:
            self.source.put(Record(message, None, group, 1))
        self.at = min(self.at + n, len(self.sent))

    def wait_for_room(self, seconds: float) -> bool:
        del seconds  # there is nothing to wait for
        return len(self.sent) - self.at < self.room

    def flush(self) -> None:
        if self.down:
            raise SourceDown("the mirror is down")
        self.deliver(len(self.sent))

    def close(self) -> None:
        pass


@dataclass
class Log:
    """What a test's learner was offered."""

    windows: list[Windows] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    processes: int = 0

    def describe(self, told: Told) -> bool:
        self.told.append(told)
        return True

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        del group, positions
        self.windows.append(windows)
        return True

    def poll(self) -> None: ...

    def forget(self, entities: list[int]) -> int:
        return len(entities)

    @property
    def rows_of_last(self) -> Rows:
        return self.windows[-1].rows

    @property
    def rows(self) -> Rows:
        return Rows.concat([w.rows for w in self.windows])


@dataclass
class Owner:
    """A process of one group."""

    shard: Shard
    mirror: MemoryMirror
    group: Group


def open_owner(
    folder: Path,
    logs: MemorySource,
    server: MemoryServer,
    number: int,
    restarts: int = 0,
    window: int = ENCODER.window,
    learner: LearnerPort | None = None,
    every_s: float = 1e-9,
    stream: StreamConfig = STREAM,
) -> Owner:
    """A shard of group `number`, which reads the logs by itself."""
    source = MemorySource((), logs.topics, GROUPS)
    source._logs = logs._logs
    sizes = (window, ENCODER.state, 1024)
    group = Group.open(
        number, epoch_of(1, restarts), source.topics, folder / f"group-{number}", stream.shape,
        sizes, stream.columns,
    )  # fmt: skip
    group.join(GROUPS)
    mirror = MemoryMirror(logs)
    ports = Ports(
        source,
        make_decoder(stream, DecodeConfig()),
        MemorySink(server),
        MemoryDeadLetters(),
        Releases(folder / "releases", there=columns(stream)),
        learner,
        mirror,
    )
    return Owner(Shard(ShardConfig(snapshot_every_s=every_s), [group], ports), mirror, group)


def settle(owners: Sequence[Owner], serving: bool = True) -> None:
    """Turns until all is read by everyone, and nothing is owed."""
    for _ in range(3000):
        read = 0
        for owner in owners:
            read += owner.shard.turn()
            owner.mirror.flush()
            if owner.shard.releases._loading is not None:
                owner.shard.releases._loading.join()
        done = all(
            not o.shard.source.lag(o.group.number)
            and (
                not serving
                or (
                    o.group.phase == "serving"
                    and not o.group.state.owed.any()
                    and not o.group.deletions()
                )
            )
            for o in owners
        )
        if not read and done:
            return
    raise AssertionError("the owners do not settle")
