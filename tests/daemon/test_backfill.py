"""`afresh backfill`: history from files, then live reading from the named offsets; on real Kafka and Redis."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from actors.partitioner import partition_of
from actors.snapshot import Folder, folders, newest, restore
from actors.state import State
from daemon.settings import Settings, load
from schemas.published import entity_key
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


def backfill(config: Path, file: Path, then: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "daemon", "backfill", str(file), "-c", str(config), "--then", then],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(params=["parquet", "jsonl"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"history.{request.param}"
    if request.param == "jsonl":
        path.write_bytes(b"\n".join(r.value or b"" for r in ROWS) + b"\n{\n")
    else:
        pq.write_table(pa.Table.from_pylist([json.loads(r.value or b"") for r in ROWS]), path)
    return path


def held(settings: Settings) -> tuple[Counter[str], list[list[int]], list[list[str]]]:
    """Counts, positions and topics of the groups' newest snapshots."""
    counts: Counter[str] = Counter()
    positions, topics = [], []
    for group in range(GROUPS):
        folder = settings.group_folder(group)
        state = State(STREAM.shape, ENCODER.window, ENCODER.state, 1024)
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
    settings = load(config)
    settings.folder.mkdir(parents=True)
    make_release(settings.releases, 1)
    path = tmp_path / "history.parquet"
    pq.write_table(pa.Table.from_pylist([json.loads(r.value or b"") for r in ROWS]), path)
    done = backfill(config, path, "earliest")
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
