"""`afresh backfill`: history from files, then live reading from the named offsets; on real Kafka and Redis."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from rich.console import Console

from actors.folders import Folder, folders, newest
from actors.partitioner import partition_of
from actors.shard import Shard
from actors.snapshot import restore
from actors.state import State
from daemon.backfill import Backfill
from daemon.settings import Settings, load
from schemas.errors import AfreshError
from schemas.published import entity_key, group_key
from tests.fakes import Record
from tests.helpers import eventually
from tests.services import ENCODER, STREAM, assert_same, from_scratch, make_release, record

GROUPS = 2
ROWS = [record(f"e{i % 7}", 1_000_000 + i, float(i)) for i in range(500)]


@pytest.fixture
def config(tmp_path: Path, kafka: str, redis_server: str, topics: Callable[..., str]) -> Path:
    fields = "".join(
        f'[[stream.field]]\nname = "{f.name}"\ntype = "{f.type}"\n' for f in STREAM.field
    )
    text = f"""
    name = "history-{tmp_path.name}"
    state_dir = "{tmp_path}/state"
    [source]
    brokers = "{kafka}"
    topics = ["{topics("live", partitions=GROUPS)}"]
    [redis]
    url = "{redis_server}"
    [state]
    max_memory_mb = 16
    [encoder]
    name = "gru"
    dim = {ENCODER.dim}
    hidden = {ENCODER.hidden}
    window = {ENCODER.window}
    category_dim = {ENCODER.category_dim}
    bucket_bits = {ENCODER.bucket_bits}
    [stream]
    entity = "who"
    time = "at"
    time_unit = "s"
    {fields}"""
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def command(config: Path, file: Path, then: str) -> list[str]:
    daemon = [sys.executable, "-m", "daemon"]
    return [*daemon, "backfill", str(file), "-c", str(config), "--then", then]


def backfill(config: Path, file: Path, then: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(config, file, then), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def signals() -> Iterator[None]:
    """A backfill in this process sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def parquet(path: Path, rows: Iterable[Record] = ROWS) -> Path:
    pq.write_table(pa.Table.from_pylist([json.loads(r.value or b"") for r in rows]), path)
    return path


def snapshots(settings: Settings) -> int:
    """How many the last group has written."""
    found = folders(settings.group_folder(GROUPS - 1))
    return int(found[0].name.split("-")[1]) if found else 0


def released(config: Path) -> Settings:
    settings = load(config)
    settings.folder.mkdir(parents=True)
    make_release(settings.releases, 1)
    return settings


@pytest.fixture(params=["parquet", "jsonl"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"history.{request.param}"
    if request.param == "jsonl":
        path.write_bytes(b"\n".join(r.value or b"" for r in ROWS) + b"\n{\n")
    else:
        parquet(path)
    return path


def held(settings: Settings) -> tuple[Counter[str], list[list[int]], list[list[str]]]:
    """Counts, positions and topics of the groups' newest snapshots."""
    counts: Counter[str] = Counter()
    positions, topics = [], []
    for group in range(GROUPS):
        folder = settings.group_folder(group)
        state = State(STREAM.shape, ENCODER.window, ENCODER.state, 1 << 15)
        found = newest(folder, lambda f, state=state: restore(f, state))  # type: ignore[misc]
        positions.append(found or [])
        topics.append(Folder.open(folders(folder)[0]).meta["topics"])
        for name, slot in state.index.items():
            assert partition_of(name.encode(), GROUPS) == group
            counts[name] = int(state.count[slot])
    return counts, positions, topics


def test_history_is_in_the_state_and_live_reading_is_handed_over(
    config: Path, history: Path
) -> None:
    settings = load(config)
    done = backfill(config, history, "0:0,1:0")
    assert done.returncode == 0, done.stderr
    counts, positions, topics = held(settings)
    assert counts == Counter(f"e{i % 7}" for i in range(500))
    assert positions == [[0], [0]] and topics == [list(settings.source.topics)] * GROUPS
    again = backfill(config, history, "earliest")
    assert again.returncode == 2 and "history goes in first" in " ".join(again.stderr.split())


def test_with_a_release_every_entity_gets_its_vector_once(
    config: Path, tmp_path: Path, redis_server: str
) -> None:
    settings = released(config)
    done = backfill(config, parquet(tmp_path / "history.parquet"), "earliest")
    assert done.returncode == 0, done.stderr
    client = redis.Redis.from_url(redis_server)
    wanted = from_scratch(ROWS, settings.releases / "1")
    found = {}
    for name in wanted:
        vector, count = client.hmget(entity_key(settings.name, 1, name), "vector", "count")
        found[name] = int(count), np.frombuffer(vector, "<f4")
    assert_same(found, wanted)


@pytest.mark.parametrize("then", ["0:5", "x:1", "0:1,1:2,2:3", "yesterday"])
def test_a_wrong_place_to_go_on_is_refused(config: Path, tmp_path: Path, then: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(msgspec.json.encode({"who": "a", "at": 1}))
    done = backfill(config, path, then)
    assert done.returncode == 2 and ("--then" in done.stderr or "start" in done.stderr), done.stderr


# -- what stops it halfway ------------------------------------------------------------------------


def test_a_kill_loses_no_row_whatever_the_next_runs_batches(config: Path, tmp_path: Path) -> None:
    """Rows of one message share an offset; the next run cuts its messages elsewhere."""
    settings, plain = load(config), config.read_text()
    rows = [record(f"e{i % 20_000}", 1_000_000 + i, float(i)) for i in range(300_000)]
    path = parquet(tmp_path / "history.parquet", rows)
    config.write_text(plain + "[shard]\nmax_records = 500\nsnapshot_every_s = 0.01\n")
    with subprocess.Popen(command(config, path, "earliest"), stderr=subprocess.DEVNULL) as running:
        eventually(lambda: snapshots(settings) >= 6, 60.0, "snapshots")
        running.kill()
    config.write_text(plain + "[shard]\nmax_records = 700\n")
    done = backfill(config, path, "earliest")
    assert done.returncode == 0, done.stderr
    assert held(settings)[0] == Counter(f"e{i % 20_000}" for i in range(300_000))


def test_a_kill_between_the_groups_is_made_good_by_the_same_command(
    config: Path, tmp_path: Path
) -> None:
    settings, path = load(config), parquet(tmp_path / "history.parquet")
    assert backfill(config, path, "0:0,1:0").returncode == 0
    shutil.rmtree(folders(settings.group_folder(1))[0])  # as if it had not come so far
    run = [sys.executable, "-m", "daemon", "run", "-c", str(config)]
    refused = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 7 and "backfill was not finished" in refused.stderr
    done = backfill(config, path, "0:0,1:0")
    assert done.returncode == 0, done.stderr
    counts, positions, topics = held(settings)
    assert counts == Counter(f"e{i % 7}" for i in range(500))
    assert positions == [[0], [0]] and topics == [list(settings.source.topics)] * GROUPS


class StopsAfterReading(Backfill):
    def _pin(self, shard: Shard) -> None:
        super()._pin(shard)
        self._stop.set()


def test_a_stop_while_vectors_are_written_says_that_run_goes_on(
    config: Path, tmp_path: Path, signals: None
) -> None:
    settings, path = released(config), parquet(tmp_path / "history.parquet")
    stopped = StopsAfterReading(settings, [str(path)], "0:0,1:0", Console(file=StringIO()))
    with pytest.raises(AfreshError, match="history is in, and afresh run writes the vectors"):
        stopped.run()
    counts, positions, topics = held(settings)
    assert counts == Counter(f"e{i % 7}" for i in range(500))
    assert positions == [[0], [0]] and topics == [list(settings.source.topics)] * GROUPS


def test_a_redis_that_knows_later_records_does_not_keep_it_for_ever(
    config: Path, tmp_path: Path, redis_server: str
) -> None:
    """Vectors wait until live reading has passed what readers have seen."""
    settings = released(config)
    client = redis.Redis.from_url(redis_server)
    positions = json.dumps({settings.source.topics[0]: 100})
    client.hset(group_key(settings.name, 0), mapping={"epoch": 1, "positions": positions})
    done = backfill(config, parquet(tmp_path / "history.parquet"), "0:0,1:0")
    assert done.returncode == 0, done.stderr
    assert "Redis has seen more of the groups [0]" in " ".join(done.stderr.split())
    for name in {f"e{i}" for i in range(7)}:
        there = client.exists(entity_key(settings.name, 1, name))
        assert there == partition_of(name.encode(), GROUPS)


def test_a_lease_that_cannot_be_written_for_a_while_is_kept(config: Path) -> None:
    config.write_text(config.read_text() + "[service]\nlease_s = 1\n")
    settings = load(config)
    file = settings.folder / "lease.json"

    def counter() -> int:
        return int(json.loads(file.read_bytes())["counter"])

    with Backfill(settings, [], "latest", Console(file=StringIO()))._lease():
        before = counter()
        file.unlink()
        file.mkdir()  # the next renewal fails
        eventually(lambda: list(settings.folder.glob(".lease.json.*.part")))
        file.rmdir()
        eventually(lambda: file.is_file() and counter() > before + 1)
