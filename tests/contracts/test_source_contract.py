"""What every source promises, on the fake, on a real broker and on files."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.files import FileSource
from actors.partitioner import partition_of
from actors.ports import Batch, Source
from actors.source import KafkaSource, SourceConfig
from schemas.errors import SourceError
from schemas.stream import Field, FieldType, StreamConfig
from tests.fakes import Crash, Crashed, Down, Gap, Item, MemorySource, Record
from tests.helpers import eventually

GROUPS, ROWS = 3, 60
STREAM = StreamConfig("who.id", "t", (Field("n", FieldType.number),))
NAMES = {g: next(f"e{i}" for i in range(99) if partition_of(b"e%d" % i, 3) == g) for g in range(3)}
RECORDS = [
    {"who": {"id": NAMES[(i // 4 + i * i) % GROUPS]}, "t": 1_700_000_000 + i, "n": i}
    for i in range(ROWS)
]
WANTED = {g: [r["n"] for r in RECORDS if r["who"]["id"] == NAMES[g]] for g in range(GROUPS)}  # type: ignore[index]

Make = Callable[[], Source]


def group_of(record: dict[str, Any]) -> int:
    return next(g for g, name in NAMES.items() if name == record["who"]["id"])


@pytest.fixture(params=["memory", "kafka", "parquet", "csv", "jsonl"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a source of RECORDS in three groups; every call gives a new one."""
    opened: list[Source] = []
    factory = globals()[f"_{request.param}"](request, tmp_path)

    def new() -> Source:
        opened.append(factory())
        return opened[-1]

    yield new
    for source in opened:
        source.close()


def _memory(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    items = [Record(json.dumps(r).encode(), group=group_of(r)) for r in RECORDS]
    return lambda: MemorySource(items, groups=GROUPS)


def _kafka(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    address = request.getfixturevalue("kafka")
    topic = request.getfixturevalue("topics")("contract", GROUPS)
    with closing(kafka.KafkaProducer(bootstrap_servers=address)) as producer:
        for record in RECORDS:
            producer.send(topic, json.dumps(record).encode(), record["who"]["id"].encode())  # type: ignore[index]
    return lambda: KafkaSource(SourceConfig(address, (topic,)), topic, GROUPS)


def _parquet(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    for part in range(2):
        table = pa.Table.from_pylist(RECORDS[part * 30 : part * 30 + 30])
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=7)
    return lambda: FileSource([str(tmp_path / "*.parquet")], STREAM, GROUPS)


def _csv(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    for part in range(2):
        with (tmp_path / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["t", "who.id", "other", "n"])
            for record in RECORDS[part * 30 : part * 30 + 30]:
                writer.writerow([record["t"], record["who"]["id"], "two\nlines", record["n"]])  # type: ignore[index]
    return lambda: FileSource([str(tmp_path / "*.csv")], STREAM, GROUPS)


def _jsonl(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    for part in range(2):
        lines = [json.dumps(record) for record in RECORDS[part * 30 : part * 30 + 30]]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    return lambda: FileSource([str(tmp_path / "*.jsonl")], STREAM, GROUPS)


def numbers(batch: Batch) -> list[int]:
    """The n of each record in the batch."""
    out: list[int] = []
    for value in batch.values:
        if isinstance(value, pa.RecordBatch):
            out += map(int, value.column("n").to_pylist())
        else:
            assert isinstance(value, bytes)
            out.append(json.loads(value)["n"])
    return out


def drain(source: Source, most: int = 1000, wanted: int = ROWS) -> dict[int, list[int]]:
    """Polls until so many records have come."""
    out: dict[int, list[int]] = {g: [] for g in range(GROUPS)}

    def more() -> bool:
        for batch in source.poll(most, 0.02):
            out[batch.group] += numbers(batch)
        return sum(map(len, out.values())) >= wanted

    eventually(more, 20.0, "all records")
    return out


def start_all(
    source: Source, positions: dict[int, list[int]] | None = None
) -> dict[int, list[int]]:
    return {g: source.start(g, positions[g] if positions else None) for g in range(GROUPS)}


@pytest.mark.parametrize("most", [7, 1000])
def test_each_record_comes_once_and_in_its_groups_order(make: Make, most: int) -> None:
    source = make()
    start_all(source)
    assert drain(source, most) == WANTED
    assert source.up


def test_a_batch_is_columnar_and_its_offsets_rise(make: Make) -> None:
    source = make()
    at = {g: positions[0] for g, positions in start_all(source).items()}
    seen = 0
    while seen < ROWS:
        for batch in source.poll(5, 0.02):
            n = len(batch.offsets)
            assert n == len(batch.timestamps_ms) == len(batch.keys) == len(batch.values)
            assert batch.topic == 0
            for offset in batch.offsets.tolist():
                assert offset >= at[batch.group]
                at[batch.group] = offset + 1
            assert batch.next_offset >= at[batch.group]
            at[batch.group] = batch.next_offset
            seen += len(numbers(batch))


@pytest.mark.parametrize("stop", [1, 13, 40])
def test_another_one_goes_on_at_the_positions_and_repeats_nothing(make: Make, stop: int) -> None:
    first = make()
    positions = start_all(first)
    before: dict[int, list[int]] = {g: [] for g in range(GROUPS)}
    while sum(map(len, before.values())) < stop:
        for batch in first.poll(stop, 0.02):
            before[batch.group] += numbers(batch)
            positions[batch.group] = [batch.next_offset]
    second = make()
    assert start_all(second, positions) == positions
    left = ROWS - sum(map(len, before.values()))
    after = drain(second, wanted=left)
    assert {g: before[g] + after[g] for g in before} == WANTED


def test_groups_may_stand_at_different_positions(make: Make) -> None:
    first = make()
    positions = start_all(first)
    ends = dict(positions)
    drained = 0
    while drained < ROWS:
        for batch in first.poll(1000, 0.02):
            ends[batch.group] = [batch.next_offset]
            drained += len(numbers(batch))
    second = make()
    start_all(second, {0: positions[0], 1: ends[1], 2: positions[2]})
    wanted = len(WANTED[0]) + len(WANTED[2])
    assert drain(second, 11, wanted) == WANTED | {1: []}


def test_a_paused_group_waits_while_the_others_go_on_and_loses_nothing(make: Make) -> None:
    source = make()
    start_all(source)
    out: dict[int, list[int]] = {g: [] for g in range(GROUPS)}
    while not out[1]:  # so that more of it is at hand already
        for batch in source.poll(4, 0.02):
            out[batch.group] += numbers(batch)
    source.pause(1, 0)
    had = len(out[1])

    def others() -> bool:
        for batch in source.poll(4, 0.02):
            out[batch.group] += numbers(batch)
        return out[0] == WANTED[0] and out[2] == WANTED[2]

    eventually(others, 20.0)
    for _ in range(3):
        assert [numbers(batch) for batch in source.poll(10, 0.01) if len(batch.offsets)] == []
    assert len(out[1]) == had
    source.resume(1, 0)
    rest = drain(source, wanted=len(WANTED[1]) - had)
    assert out[1] + rest[1] == WANTED[1]


@pytest.mark.parametrize("kind", ["memory", "kafka"])
def test_one_topic_of_a_group_may_be_paused_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    names = ("one", "two")
    if kind == "kafka":
        address, new = request.getfixturevalue("kafka"), request.getfixturevalue("topics")
        names = (new("one"), new("two"))
        with closing(kafka.KafkaProducer(bootstrap_servers=address)) as producer:
            for i in range(40):
                producer.send(names[i % 2], json.dumps({"n": i}).encode(), partition=0)
        source: Source = KafkaSource(SourceConfig(address, names), names[0], 1)
    else:
        items = [Record(json.dumps({"n": i}).encode(), topic=i % 2) for i in range(40)]
        source = MemorySource(items, names)
    out: dict[int, list[int]] = {0: [], 1: []}

    def read(until: Callable[[], bool]) -> None:
        def more() -> bool:
            for batch in source.poll(3, 0.02):
                out[batch.topic] += numbers(batch)
            return until()

        eventually(more, 20.0)

    with closing(source):
        source.start(0, None)
        read(lambda: bool(out[1]))
        source.pause(0, 1)
        had = list(out[1])
        read(lambda: len(out[0]) == 20)
        assert out[1] == had
        eventually(lambda: source.idle(0, 0))
        assert not source.idle(0, 1)
        source.resume(0, 1)
        read(lambda: len(out[1]) == 20)
        assert out == {0: list(range(0, 40, 2)), 1: list(range(1, 40, 2))}


def test_who_has_been_read_is_idle(make: Make) -> None:
    source = make()
    start_all(source)
    assert not any(source.idle(g, 0) for g in range(GROUPS))
    drain(source)
    eventually(lambda: not source.poll(1, 0.01) and all(source.idle(g, 0) for g in range(GROUPS)))


def test_groups_that_are_not_started_do_not_come(make: Make) -> None:
    source = make()
    source.start(2, None)
    assert drain(source, wanted=len(WANTED[2])) == {0: [], 1: [], 2: WANTED[2]}


def test_lag_falls_to_zero(make: Make) -> None:
    source = make()
    start_all(source)
    eventually(lambda: all(source.lag(g) > 0 for g in range(GROUPS)))
    drain(source)
    eventually(lambda: not source.poll(1, 0.01) and not any(map(source.lag, range(GROUPS))))


def test_a_commit_raises_nothing(make: Make) -> None:
    source = make()
    for group, positions in start_all(source).items():
        source.commit(group, positions)


def test_positions_beyond_the_end_are_refused(make: Make, request: pytest.FixtureRequest) -> None:
    source = make()
    if isinstance(source, FileSource):
        pytest.skip("the end of a text file is known once it has been read")
    with pytest.raises(SourceError, match="1000"):
        source.start(0, [1000])


def test_the_fake_has_gaps_outages_and_crashes() -> None:
    items: list[Item] = [Record(b"0"), Gap(3), Record(b"4"), Down(2), Crash(), Record(b"5"), Gap(2)]
    source = MemorySource(items)
    source.start(0, None)
    (batch,) = source.poll(10, 0.0)
    assert (batch.offsets.tolist(), batch.next_offset) == ([0, 4], 5)
    assert [source.poll(10, 0.0) == [] and source.up for _ in range(2)] == [False, False]
    with pytest.raises(Crashed):
        source.poll(10, 0.0)
    source.start(0, [5])
    (batch,) = source.poll(10, 0.0)
    assert (batch.values, batch.next_offset) == ([b"5"], 8)
    assert source.up and source.lag(0) == 0
