"""The simulated world: a broker, a Redis, a disk, and the shards that live, die, and live on as zombies."""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

import actors
from actors.decode import DecodeConfig, make_decoder
from actors.embed import Releases
from actors.folders import epoch_of
from actors.group import Group
from actors.partitioner import partition_of
from actors.served import set_current
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from benchmarks.faults.small_disks import Disk, SmallPath, Writer
from benchmarks.faults.small_learner import SmallLearner
from benchmarks.faults.stand_ins import (
    GAP_US,
    HIDDEN,
    Consumer,
    Judge,
    Letters,
    Server,
    ServerSink,
    Violation,
)
from schemas.errors import Fenced
from schemas.stream import Field, FieldType, StreamConfig
from tests.fakes import Crashed, Gap, MemorySource, Record

STREAM = StreamConfig(
    entity="who",
    time="at",
    field=(
        Field("what", FieldType.category),
        Field("amount", FieldType.number),
        Field("id", FieldType.number),
    ),
    time_unit="ms",
    session_gap_s=GAP_US / 1e6,
)
SLOTS = 256
TRACED = tuple(str(Path(path)) for path in actors.__path__)
BAD = (b"{", b'{"at": 1}', b"\xff\xfe", b'{"who": "x", "at": "never"}', b"[]", b"")


class Clock:
    """Moves a little whenever it is looked at."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


@dataclass
class Owner:
    """A shard and what its process holds."""

    name: str
    shard: Shard
    source: Consumer
    letters: Letters
    learner: SmallLearner
    disk: Disk


@dataclass
class Shape:
    """What a seed's stream is like."""

    groups: int
    topics: int
    entities: int
    pace_ms: int
    late: float
    window: int
    pinned: bool  # an entity's records are all in one topic: then it may be deleted

    @classmethod
    def draw(cls, rng: random.Random) -> "Shape":
        topics, late = rng.choice((1, 1, 2)), rng.choice((0.0, 0.0, 0.15))
        pinned = topics == 1 or rng.random() < 0.5
        ordered = not late and pinned
        pace = rng.choice((100, 8000))
        # sessions opened by records behind a full ring depend on the micro-batches: see late_rows
        window = rng.choice((4, 8)) if ordered or pace == 100 else 64
        return cls(rng.randint(1, 3), topics, rng.choice((12, 40)), pace, late, window, pinned)


@dataclass
class World:
    seed: int
    folder: Path
    rng: random.Random = field(init=False)
    trace: list[str] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    zombies: list[Owner] = field(default_factory=list)
    durable: set[tuple[int, int, int]] = field(default_factory=set)  # dead letters
    bad: set[tuple[int, int, int]] = field(default_factory=set)  # what should be there
    forgotten: set[int] = field(default_factory=set)  # by the learner: hashes of deleted entities
    sent: int = 0
    lease: int = 1
    made: int = 0  # owners so far
    releases: int = 0

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.shape = shape = Shape.draw(rng)
        topics = ("memory", "other")[: shape.topics]
        self.broker = MemorySource((), topics, shape.groups)
        self.server = Server()
        self.server.watch(Judge(self.home))
        self.clock, self.wall = Clock(1000.0), Clock(1.7e9)
        self.restarts = dict.fromkeys(range(shape.groups), 0)
        self.config = ShardConfig(
            snapshot_every_s=rng.choice((1e-9, 0.3, 2.0)), sample_windows=4, max_records=64
        )
        (self.folder / "releases").mkdir()

    def say(self, text: str) -> None:
        self.trace.append(text)

    def home(self, entity: str) -> int:
        return partition_of(entity.encode(), self.shape.groups)

    # -- records ----------------------------------------------------------------------------------

    def produce(self, n: int) -> None:
        for _ in range(n):
            self._produce()

    def _produce(self) -> None:
        rng, shape = self.rng, self.shape
        who = f"e{int(rng.random() ** 2 * shape.entities)}"  # many are seldom heard of
        topic = rng.randrange(shape.topics)
        if shape.pinned:
            topic = hash_of(who) % shape.topics
        group, self.sent = self.home(who), self.sent + 1
        at = 1_000_000_000 + self.sent * shape.pace_ms
        if rng.random() < shape.late:
            at -= rng.randrange(1, 40) * shape.pace_ms - 1  # times differ all
        value: dict[str, Any] = {"who": who, "at": at, "id": self.sent, "what": f"c{at % 5}"}
        if rng.random() < 0.9:
            value["amount"] = rng.gauss(0, 100)
        kind = rng.random()
        item: Record | Gap = Record(
            msgspec.json.encode(value), who.encode(), group, topic, rng.randrange(1 << 40)
        )
        if kind < 0.03 and shape.pinned:
            item = Record(None, who.encode(), group, topic)
            self.server.judge.reborn.add(who)
        elif kind < 0.08:
            item = self._bad(group, topic, value)
        elif kind < 0.11:
            item = Gap(rng.randint(1, 3), group, topic)
        self.broker.put(item)

    def _bad(self, group: int, topic: int, value: dict[str, Any]) -> Record:
        self.bad.add((topic, group, self.broker._logs[group, topic].end))
        kind = self.rng.randrange(len(BAD) + 2)
        if kind < len(BAD):
            return Record(BAD[kind], b"k", group, topic)
        if kind == len(BAD) or self.shape.groups == 1:
            return Record(None, None, group, topic)
        away = next(n for n in map(str, range(99)) if self.home(n) != group)
        return Record(msgspec.json.encode(value | {"who": away}), away.encode(), group, topic)

    # -- shards -----------------------------------------------------------------------------------

    def open(self, groups: list[int]) -> None:
        """A new process owns the groups, restored from their snapshots, under newer epochs."""
        self.made += 1
        Writer.disk = disk = Disk()
        sizes = self.shape.window, HIDDEN, SLOTS
        opened = []
        for n in groups:
            self.restarts[n] += 1
            epoch = epoch_of(self.lease, self.restarts[n])
            path = SmallPath(self.folder / f"group-{n}")
            group = Group.open(n, epoch, self.broker.topics, path, STREAM.shape, sizes)
            group.partitions = self.shape.groups
            opened.append(group)
        source, letters = Consumer(self.broker), Letters()
        learner = SmallLearner(room=self.rng.randrange(50), forgotten=self.forgotten)
        ports = Ports(
            source, make_decoder(STREAM, DecodeConfig()), ServerSink(self.server), letters,
            Releases(self.folder / "releases"), learner,
        )  # fmt: skip
        skew_us = (0, 5, 50)[self.seed % 3] * self.shape.pace_ms * 1000
        shard = Shard(self.config, opened, ports, self.clock, self.wall, skew_us)
        name = f"{'abcdefghijklmnopqrstuvwxyz'[self.made % 26]}{self.made}"
        self.owners.append(Owner(name, shard, source, letters, learner, disk))
        where = {g.number: g.positions for g in opened}
        self.say(f"{name} opens groups at {where}, swap {[g.swap for g in opened]}")

    def open_missing(self) -> None:
        owned = {n for owner in self.owners for n in owner.shard.groups}
        missing = [n for n in range(self.shape.groups) if n not in owned]
        if len(missing) > 1 and self.rng.random() < 0.3:  # dealt to two processes
            cut = self.rng.randrange(1, len(missing))
            self.open(missing[:cut])
            missing = missing[cut:]
        if missing:
            self.open(missing)

    def act(self, owner: Owner, what: Callable[[], object]) -> bool:
        """Lets a process do something; False where it did not live through it. Its threads rest afterwards."""
        Writer.disk = owner.disk
        try:
            what()
        except Crashed:
            self.bury(owner, "crashed")
        except Fenced as error:
            if owner in self.owners:
                raise Violation(f"{owner.name}, the newest owner, was fenced: {error}") from error
            self.bury(owner, "fenced")
        else:
            self.rest(owner)
            if not owner.disk.dead:
                return True
            self.bury(owner, "died at the disk")
        return False

    def turn(self, owner: Owner, most: int) -> bool:
        owner.shard._chunk = self.rng.randint(1, 6)  # debts are paid in parts
        return self.act(owner, lambda: owner.shard.turn(most))

    def rest(self, owner: Owner) -> None:
        for writer in Writer.made:
            writer.rest()
        if owner.shard.releases._loading is not None:
            owner.shard.releases._loading.join()

    def bury(self, owner: Owner, why: str) -> None:
        """What it had not flushed to the dead letters may have got through or not."""
        self.say(f"{owner.name} {why}")
        for writer in [w for w in Writer.made if w.disk is owner.disk]:
            writer.end()
            Writer.made.remove(writer)
        letters = owner.letters
        upto = self.rng.randint(letters.durable, len(letters.letters))
        self.durable.update(letters.places(upto))
        for kept in (self.owners, self.zombies):
            if owner in kept:
                kept.remove(owner)

    def release(self, number: int = 0) -> None:
        """A new release, or an earlier one again."""
        number = number or self.rng.randint(1, min(self.releases + 1, 4))
        self.releases = max(number, self.releases)
        (self.folder / "releases" / str(number)).mkdir(exist_ok=True)
        set_current(self.folder / "releases", number)
        self.say(f"release {number} is current")


def hash_of(name: str) -> int:
    return sum(name.encode())


def crashing(turn: Callable[[], object], lines: int) -> None:
    """Runs `turn` and raises Crashed at the how-manieth line of our own code, wherever that is."""
    left = lines

    def local(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise Crashed
        return local

    def ours(frame: FrameType, _event: str, _argument: object) -> Any:
        file = frame.f_code.co_filename
        return local if file.startswith(TRACED) or file.endswith("fake_sink.py") else None

    before = sys.gettrace()
    sys.settrace(ours)
    try:
        turn()
    finally:
        sys.settrace(before)
    if left > 0:
        raise Crashed
