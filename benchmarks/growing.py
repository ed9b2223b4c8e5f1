"""A graph whose nodes grow from none to a million during the run, through a whole shard: memory and speed.

The real decoder, state, release and shard, and the learner's replica of the graph; messages are made as they are
read, and vectors go nowhere, so that what is measured is the process of a shard and nothing else. Memory is
private: what other processes share is not counted. Rates are of CPU time: the machine has other work.

`python -m benchmarks.growing` prints the course."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from actors.capacity import StateConfig, capacity, entity_bytes
from actors.decode import DecodeConfig, make_decoder
from actors.embed import Releases
from actors.group import Group
from actors.ports import Batch
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from actors.sink import Vectors, WriteResult
from benchmarks import flow
from benchmarks.apart import apart
from benchmarks.items import Item, at_least, at_most, shown
from learning.config import NextInteractionConfig, ReplayConfig, TemporalAttentionConfig
from learning.edges import EdgeReplay
from schemas.records import Told, Windows
from schemas.stream import StreamConfig
from tests.fake_sink import MemorySink
from tests.fakes import MemoryDeadLetters, MemorySource

STREAM = StreamConfig("src", "at", kind="graph", neighbour="dst", time_unit="ms")
ENCODER = TemporalAttentionConfig(dim=32, hidden=32)  # window 20
NODES = 1_000_000  # an edge brings one new node
RECENT = 20_000  # nine of ten edges lead to one of the newest so many nodes, the tenth to any
CAP_MB, ROOM_MB, REPLICA_MB = 256, 1024, 64
BESIDE_MB = REPLICA_MB + 96
"""Allowed beside the columns: the replica, and a release's run, hash tables that grow, micro-batches in hand."""
PARTS, SMALL = 10, 2 * RECENT


class Growing(MemorySource):
    """Edge i leads from the new node i to an older one, or the other way."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self._nodes, self._at, self._rng = nodes, 0, np.random.default_rng(0)
        self.cpu_s = 0.0  # of making the messages

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        del timeout_s  # there is nothing to wait for
        began, first = time.process_time(), self._at
        n = min(max_records, self._nodes - first)
        if n <= 0 or self._paused:
            return []
        new = first + np.arange(n)
        back = (self._rng.random(n) * np.minimum(new, RECENT)).astype(np.int64) + 1
        old = np.where(self._rng.random(n) < 0.1, self._rng.integers(0, new + 1), new - back)
        old = np.maximum(old, 0)
        ends = np.where(new % 2, [new, old], [old, new])
        lines = zip(ends[0].tolist(), ends[1].tolist(), new.tolist(), strict=True)
        values: list[bytes | None] = [
            b'{"src":"node-%07d","dst":"node-%07d","at":%d}' % (s, d, flow.START_MS + at)
            for s, d, at in lines
        ]
        self._at += n
        stamps = flow.START_MS + new
        self.cpu_s += time.process_time() - began
        return [Batch(0, 0, new, stamps, [None] * n, values, self._at)]

    def start(self, group: int, positions: list[int] | None) -> list[int]:
        del group
        return list(positions or [0])

    def lag(self, group: int) -> int:
        del group
        return self._nodes - self._at


class Nowhere(MemorySink):
    """Takes everything and keeps the positions."""

    def write(
        self,
        group: int,
        epoch: int,
        write_number: int,
        generation: int,
        positions: Mapping[str, int],
        vectors: Vectors,
        deletions: list[str],
    ) -> WriteResult:
        del epoch, write_number, generation
        self.server.groups[group].positions = dict(positions)
        return WriteResult(len(vectors) + len(deletions), 0)


class Replica:
    """The learner's replica of the graph, without its learning."""

    processes = 0

    def __init__(self) -> None:
        config = ReplayConfig(max_bytes=REPLICA_MB << 20)
        self.replay = EdgeReplay(config, STREAM.shape, ENCODER.window, NextInteractionConfig())

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        del group, positions
        self.replay.add(windows)
        return True

    def poll(self) -> None: ...

    def describe(self, told: Told) -> bool:
        del told
        return True

    def forget(self, entities: list[int]) -> int:
        return len(entities)


def private_mb() -> float:
    return float(psutil.Process().memory_full_info().uss) / 2**20


def opened(folder: Path, source: Growing, slots: int, replica: Replica | None) -> Shard:
    sizes = (ENCODER.window, ENCODER.state, slots)
    group = Group.open(0, 1, source.topics, folder / "group-0", STREAM.shape, sizes)
    group.join(1)
    ports = Ports(
        source, make_decoder(STREAM, DecodeConfig()), Nowhere(), MemoryDeadLetters(),
        Releases(folder / "releases"), replica,
    )  # fmt: skip
    config = ShardConfig(snapshot_every_s=1e9, sample_share=0.9)
    group.positions = [0]  # no first snapshot: it is measured elsewhere
    return Shard(config, [group], ports)


class Course(NamedTuple):
    """One tenth of the way."""

    seen: int  # nodes so far
    mb: float  # private memory beyond the start's, the highest of some looks
    rate: float  # records/s of CPU
    usual: float  # ... of a small shard beside it, at the same time


def timed(shard: Shard, source: Growing) -> tuple[int, float]:
    """Records of a turn, and its seconds of CPU without the making of them."""
    first, began = source._at, time.process_time() - source.cpu_s
    shard.turn()
    return source._at - first, time.process_time() - source.cpu_s - began


def serving(folder: Path, nodes: int, slots: int, replica: Replica | None) -> tuple[Shard, Growing]:
    source = Growing(nodes)
    shard = opened(folder, source, slots, replica)
    while shard.groups[0].phase != "serving":
        shard.turn(1)
    return shard, source


def course(shard: Shard, source: Growing, beside: tuple[Shard, Growing] | None) -> list[Course]:
    """Reads all of it; every fourth turn one of another shard, on a machine that is now fast and now slow."""
    nodes, before, out = source._nodes, private_mb(), []
    for part in range(PARTS):
        peak, here, there, turns = 0.0, np.zeros(2), np.zeros(2), 0
        while source._at < nodes * (part + 1) // PARTS:
            here += timed(shard, source)
            turns += 1
            if beside is not None and turns % 4 == 0:
                there += timed(*beside)
            if turns % 16 == 0:
                peak = max(peak, private_mb() - before)
        peak = max(peak, private_mb() - before)
        usual = there[0] / there[1] if beside is not None else 0.0
        out.append(Course(source._at, peak, float(here[0] / here[1]), float(usual)))
    return out


def measure(nodes: int = NODES, cap_mb: int = CAP_MB) -> list[Item]:
    """Under a cap that has room for a third of them."""
    slots = capacity(StateConfig(cap_mb), 1, STREAM.shape, ENCODER.window, ENCODER.state)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flow.release(folder / "releases", 1, ENCODER, STREAM)
        (folder / "small").mkdir()
        (folder / "small" / "releases").symlink_to(folder / "releases")
        beside = serving(folder / "small", 10 * nodes, SMALL, None)
        while beside[1]._at < 2 * SMALL:
            beside[0].turn()
        shard, source = serving(folder, nodes, slots, Replica())
        parts = course(shard, source, beside)
    for part in parts:
        print(
            "{:>9,} nodes: {:4.0f} MB, {:,.0f} records/s of CPU; a small shard {:,.0f}".format(
                *part
            )
        )
    state = shard.groups[0].state
    raw_mb = slots * entity_bytes(STREAM.shape, ENCODER.window, ENCODER.state) / 2**20
    peak = max(part.mb for part in parts)
    pace = [part.rate / part.usual for part in parts]
    full = next(at for at, part in enumerate(parts) if part.seen > slots) + 1
    first, last = np.mean(pace[full : full + 3]), np.mean(pace[-3:])
    evicting = first / np.mean(pace[1 : full - 1])  # the first tenth warms up
    what, beside_it = f"{nodes:,} new nodes, room for {slots:,}", ", each against a small shard"
    return [
        at_most(f"{what}: private memory", peak, "MB", round(1.3 * raw_mb + BESIDE_MB)),
        shown(f"{what}: columns at the cap", raw_mb, "MB"),
        shown(f"{what}: private memory, growth over the last half", peak - parts[4].mb, "MB"),
        shown(f"{what}: evicted", state.counts.evicted, "nodes"),
        shown(f"{what}: the second tenth", parts[1].rate, "records/s of CPU"),
        shown(f"{what}: the last tenth", parts[-1].rate, "records/s of CPU"),
        shown(f"{what}: while it evicts against before{beside_it}", float(evicting), "ratio"),
        at_least(f"{what}: at the end against since it evicts{beside_it}",
                 float(last / first), "ratio", 0.85),
    ]  # fmt: skip


def roomy(nodes: int = NODES, cap_mb: int = ROOM_MB) -> list[Item]:
    """With room for all: bytes of a node, the rows of its ring reserved whether it has as many edges or not."""
    with tempfile.TemporaryDirectory() as temporary:
        slots = capacity(StateConfig(cap_mb), 1, STREAM.shape, ENCODER.window, ENCODER.state)
        source = Growing(nodes)
        shard = opened(Path(temporary), source, slots, None)
        parts = course(shard, source, None)
    state = shard.groups[0].state
    assert state.counts.evicted == 0 and len(state.index) == nodes
    raw = entity_bytes(STREAM.shape, ENCODER.window, ENCODER.state)
    grown = parts[-1].mb * 2**20 / nodes
    what = f"{nodes:,} new nodes, room for all"
    return [
        shown(f"{what}: a node (window {ENCODER.window}, no fields)", grown, "bytes"),
        shown(f"{what}: of these its columns", raw, "bytes"),
        at_most(f"{what}: private memory over the columns'", grown / raw, "ratio", 1.3),
    ]


if __name__ == "__main__":
    for item in apart(measure) + apart(roomy):
        print(f"{item['name']}: {item['value']:,.2f} {item['unit']}", item["ok"])
