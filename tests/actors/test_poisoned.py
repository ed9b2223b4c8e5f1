"""A burst of poison: bytes that nobody can read among records that only look well. Readers notice nothing of it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from actors.candidate import ReleaseConfig
from actors.learn import Learn
from actors.publish import Publish
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.served import current_release
from actors.shard_config import ShardConfig
from daemon.reactions import Reactions, ReactionsConfig
from daemon.totals import Snapshot
from learning.config import LearnerConfig
from schemas.published import current_key, entity_key
from schemas.records import Told, Windows
from tests.fakes import MemoryDeadLetters, MemorySource, Record
from tests.services import ENCODER, STREAM, make_shard, record

ENTITIES, TURN = 300, 400  # records of a turn
TURN_S = 2.0  # by the learner's and the daemon's clock
UNREADABLE = (
    b"", b"{", b"\xff\xfe", b"[1]", b'{"at": 5}', b'{"who": "e1"}', b'{"who": [1], "at": 5}',
    b'{"who": "e1", "at": "yesterday"}', b'{"who": "e1", "at": 5, "amount": "12"}', b'{"who": "e1", "at": 1e300}',
)  # fmt: skip


class InProcess:
    """The shard's way to a learner beside it."""

    processes = 1

    def __init__(self, learn: Learn) -> None:
        self._learn = learn

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        return self._learn.offer([(group, list(positions), windows)])

    def describe(self, told: Told) -> bool:
        return self._learn.describe(told)

    def forget(self, entities: list[int]) -> int:
        return len(entities) * self._learn.forget(entities)

    def poll(self) -> None:
        pass


class Service:
    """Shard, learner, publisher and the daemon's rules in one process, which take turns."""

    def __init__(self, root: Path, url: str, reactions: ReactionsConfig) -> None:
        self.root, self.now, self._rng = root, 0.0, np.random.default_rng(0)
        self.sent, self.bad = Counter[str](), 0
        learner = LearnerConfig(
            batch_entities=16, min_entities=16, updates_per_record=0.01, warmup_updates=5, ema_decay=0.9,
            learning_rate=0.01, cpu_share=1.0,
        )  # fmt: skip
        # after 3e38 a float32 differs by 1e-5 from one runtime to the other
        release = ReleaseConfig(first_s=5.0, every_s=120.0, every_updates=5, parity=1e-4)
        folder = root / "learner"
        self.learn = Learn(
            learner, ENCODER, STREAM.shape, folder, 1, release, clock=lambda: self.now
        )
        self.sinks = [RedisSink(RedisConfig(url=url), root.name) for _ in range(2)]
        self.publish = Publish(root, STREAM, ENCODER, release, self.sinks[0], 1)
        self.source = MemorySource()
        config = ShardConfig(snapshot_every_s=1e9, sample_share=0.9, sample_windows=ENTITIES)
        port = InProcess(self.learn)
        self.shard = make_shard(
            root, self.source, self.sinks[1], config=config, slots=2 * ENTITIES, learner=port
        )
        self.reactions = Reactions(reactions)

    def turn(self, records: list[Record]) -> None:
        """All of them are read; then learner and publisher have a turn, and the daemon looks."""
        self.source.put(*records)
        while self.source.lag(0):
            self.shard.turn(TURN)
        self.shard.turn()
        self.shard._report(force=True)
        self.now += TURN_S
        self.learn.turn()
        groups = self.shard.stats().groups
        self.publish.oldest_release = groups[0].oldest_release
        self.publish.turn()
        known = Snapshot("s", {"shard-0": self.shard.stats()}, self.learn.stats())
        self.learn.orders = self.reactions.turn(self.now, known).orders

    def well(self) -> list[Record]:
        """Each entity buys what it likes, for about as much as it always does."""
        who = self._rng.integers(0, ENTITIES, TURN)
        amounts = who % 17 + self._rng.normal(size=TURN)
        pairs = zip(who.tolist(), amounts.tolist(), strict=True)
        return [self._of(f"e{e}", amount, f"c{e % 5}") for e, amount in pairs]

    def poison(self) -> list[Record]:
        """Half cannot be read. Of the rest a third each is at random, huge or constant, and a half of one entity."""
        half = TURN // 2
        self.bad += half
        found = [Record(UNREADABLE[i % len(UNREADABLE)], b"e1") for i in range(half)]
        huge, wild = (3e38, -3e38, 0.0, 1e-38), self._rng.normal(size=half) * 1e6
        for i in range(half):
            amount = (wild[i], huge[i % 4], 1.0)[i % 3]
            what = (f"noise-{self._rng.integers(1 << 40)}", "", "c0")[i % 3]
            found.append(self._of("e7" if i % 2 else f"e{i % ENTITIES}", float(amount), what))
        self._rng.shuffle(found)  # type: ignore[arg-type]
        return found

    def _of(self, who: str, amount: float, what: str) -> Record:
        self.sent[who] += 1
        at = 1_600_000_000 + sum(self.sent.values())
        return record(who, at, amount, what, weight=amount)

    @property
    def current(self) -> int:
        return current_release(self.root / "releases")


@pytest.fixture
def service(tmp_path: Path, stream: str, redis_server: str) -> Iterator[Service]:
    made = Service(tmp_path / stream, redis_server, ReactionsConfig())
    yield made
    for sink in made.sinks:
        sink.close()


def test_a_poisoned_burst_changes_no_release_and_stops_no_stream(
    service: Service, database: redis.Redis, stream: str
) -> None:
    for _ in range(50):  # the reference of fields is complete, and some have come since
        service.turn(service.well())
    assert service.current == 1
    assert not service.reactions.counts
    updates = []
    for _ in range(25):  # the next release is due meanwhile
        service.turn(service.poison())
        assert service.current == 1
        assert database.hget(current_key(stream), "release") == b"1"
        updates.append(service.learn.stats().updates)
    assert service.now > 130.0
    assert service.reactions.counts == {"pause": 1}
    assert updates[-1] == updates[len(updates) // 2], "nothing is learnt of it"
    whole(service, database, stream)
    for _ in range(40):
        service.turn(service.well())
        if service.current > 1:
            break
    assert service.current == 2, "once it is over, learning and releases go on"
    whole(service, database, stream)


def whole(service: Service, database: redis.Redis, stream: str) -> None:
    """Every record counts once, each that could not be read is a dead letter, and vectors are what they should be."""
    assert isinstance(service.shard.dead_letters, MemoryDeadLetters)
    assert len(service.shard.dead_letters.letters) == service.bad
    counts = {}
    for who in service.sent:
        found = database.hgetall(entity_key(stream, 1, who))
        counts[who] = int(found[b"count"])  # type: ignore[index]
        vector = np.frombuffer(found[b"vector"], "<f4")  # type: ignore[index]
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4), who
    assert counts == service.sent
