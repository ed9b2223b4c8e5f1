"""A backlog on a real Kafka whose partitions are of different event speed: the bound holds in what the state saw."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import kafka as kafka_python
import pytest

from actors.decode import DecodeConfig, make_decoder
from actors.embed import Releases
from actors.folders import epoch_of
from actors.group import Group
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from actors.source import KafkaSource, SourceConfig
from schemas.records import Told, Windows
from tests.fake_sink import MemoryServer, MemorySink
from tests.fakes import MemoryDeadLetters
from tests.helpers import client_threads, eventually
from tests.services import ENCODER, STREAM, record

HOUR, DAY, START = 3600, 86_400, 1_700_000_000
FAST, SLOW = 3000, 9000  # records: 125 days of event time, and 6 days

# A connection that kafka-python 3.0.12 could not make leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")


class Seen:
    """A learner's port: of which group windows came, and the newest time in them, in order."""

    processes = 0

    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        del positions
        self.at.append((group, int(windows.rows.time_us.max()) // 1_000_000))
        return True

    def poll(self) -> None: ...

    def describe(self, told: Told) -> bool:
        del told
        return True

    def forget(self, entities: list[int]) -> int:
        return len(entities)


@pytest.mark.parametrize("max_skew_s", [None, 7 * DAY], ids=["unbounded", "a week"])
def test_a_backlog_enters_the_state_in_step(
    kafka: str, topics: Callable[..., str], tmp_path: Path, max_skew_s: float | None
) -> None:
    topic = topics("skew", partitions=3)  # the third one is empty
    with closing(kafka_python.KafkaProducer(bootstrap_servers=kafka)) as producer:
        for group, n, every_s in ((0, FAST, HOUR), (1, SLOW, 60)):
            for i in range(n):
                r = record(f"g{group}-{i % 50}", START + i * every_s)
                producer.send(topic, r.value, r.key, partition=group)
        producer.flush(60)
    config = SourceConfig(kafka, (topic,), max_skew_s=max_skew_s)
    source, seen = KafkaSource(config, topic, 3), Seen()
    sizes = (ENCODER.window, ENCODER.state, 256)
    groups = [
        Group.open(n, epoch_of(1, 0), (topic,), tmp_path / f"group-{n}", STREAM.shape, sizes)
        for n in range(3)
    ]
    ports = Ports(
        source, make_decoder(STREAM, DecodeConfig()), MemorySink(MemoryServer()), MemoryDeadLetters(),
        Releases(tmp_path / "releases"), seen,
    )  # fmt: skip
    shard = Shard(
        ShardConfig(snapshot_every_s=3600, sample_share=0.99),
        groups,
        ports,
        max_skew_us=config.max_skew_us(nodes=False),
    )
    fast, slow = groups[0].state, groups[1].state
    worst = 0

    def read() -> bool:
        nonlocal worst
        shard.turn(500)
        if groups[1].positions[0] < SLOW:
            at = [int(s.last_us.max(initial=0)) // 1_000_000 for s in (fast, slow)]
            worst = max(worst, at[0] - max(at[1], START))
        return [int(g.state.count.sum()) for g in groups] == [FAST, SLOW, 0]

    with closing(shard):
        eventually(read, 60.0, "all records")
    bound = 7 * DAY
    assert worst <= bound if max_skew_s else worst > bound

    ahead, at = 0, [START, START]  # the same in the order in which the learner was offered them
    for group, newest in seen.at:
        at[group] = newest
        if at[1] < START + (SLOW - 1) * 60:
            ahead = max(ahead, at[0] - at[1])
    assert ahead <= bound + 2 * 500 * 60 if max_skew_s else ahead > bound
