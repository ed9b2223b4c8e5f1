"""From an event's production to its vector in Redis, through the real daemon with its learner at work.

The maximum rate is what this daemon takes while producer, Kafka, Redis and its own learner run on the same
machine. A steady stream at half of it is then produced by one process; another produces a probe now and
then, and asks Redis until its entity's count says that the vector knows of it."""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kafka
import msgspec
import numpy as np
import redis

from benchmarks import flow
from benchmarks.items import Item, at_most, shown
from benchmarks.shard_path import produce
from schemas.published import entity_key

SECONDS, EVERY_S = 25.0, 0.05
BEFORE = 500.0  # records per second until the first release
FLOOD, FLOOD_S = 200_000.0, 10.0  # more per second than anybody can send, and for how long
SETTINGS = """
name = "{name}"
state_dir = "{folder}"
stream = {stream}
source = {{ brokers = "{brokers}", topics = ["{name}"], start = "earliest" }}
redis = {{ url = "{url}" }}
state = {{ max_memory_mb = 512 }}
shard = {{ snapshot_every_s = 10 }}
encoder = {encoder}
learner = {{ objective = [{objective}] }}
release = {{ first_s = 2, every_s = 3600 }}
http = {{ port = 0 }}
"""


@dataclass(frozen=True)
class Flow:
    """What is produced and waited for. Functions of a module: they go to other processes by name."""

    name: str
    stream: str  # of the settings, as encoder and objective
    encoder: str
    objective: str
    history: Callable[[], list[bytes]]
    steady: Callable[
        [], list[bytes]
    ]  # a millisecond apart from flow.START_MS on; sent again and again
    probe: Callable[[int], tuple[dict[str, Any], list[str]]]  # a record, and who must be readable
    what: str
    bars: bool = True
    rows: int = 1  # that the daemon counts for each record: of an edge, both ends'


def _history() -> list[bytes]:
    return flow.json_messages(flow.uneven())


def _steady() -> list[bytes]:
    return flow.json_messages(flow.even(20_000))


def _probe(at: int) -> tuple[dict[str, Any], list[str]]:
    values = {n: v[0] for n, v in flow.columns(np.zeros(1, np.int64)).items()}
    who = f"probe-{at:06d}"
    return {**values, "who": who, "at": flow.START_MS + 10**9 + at}, [who]


def _fields() -> str:
    return ", ".join(f'{{name = "{f.name}", type = "{f.type}"}}' for f in flow.STREAM.field)


EVENTS = Flow(
    name="bench-freshness",
    stream=f'{{entity = "who", time = "at", time_unit = "ms", field = [{_fields()}]}}',
    encoder='{ name = "gru", dim = 128, hidden = 64, window = 64 }',
    objective='{ name = "coles" }',
    history=_history,
    steady=_steady,
    probe=_probe,
    what="freshness, produced to readable",
)


def settings(folder: Path, brokers: str, url: str, of: Flow) -> str:
    text = SETTINGS.format(
        name=of.name, folder=folder, stream=of.stream, brokers=brokers, url=url,
        encoder=of.encoder, objective=of.objective,
    )  # fmt: skip
    tomllib.loads(text)
    return text


@contextmanager
def daemon(folder: Path, text: str, name: str) -> Iterator[Callable[[], Any]]:
    """Runs it; gives a function that asks for its status."""
    config = folder / "afresh.toml"
    config.write_text(text)
    command = [sys.executable, "-m", "daemon", "run", "--config", str(config)]
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = folder / name / "address"

    def status() -> Any:
        if process.poll() is not None:
            raise RuntimeError((folder / "daemon.log").read_text()[-3000:])
        try:
            with urllib.request.urlopen(f"{address.read_text()}/status", timeout=5) as answer:  # noqa: S310
                return json.load(answer)
        except OSError:
            return {}

    try:
        yield status
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()


def until(status: Callable[[], Any], done: Callable[[Any], bool], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = status()
        if found and found["shards"] and done(found):
            return found
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds} s: {status()}")


def shard(found: Any) -> Any:
    return next(iter(found["shards"].values()))


def caught_up(found: Any) -> bool:
    s = shard(found)
    return bool(s["groups"]) and all(
        g["phase"] == "serving" and g["lag"] < 2000 and not g["to_encode"] for g in s["groups"]
    )


def load(brokers: str, rate: Any, stop: Any, of: Flow) -> None:
    """Produces `rate.value` records per second, in steps of 10 ms, until told to stop. A process of its own."""
    made = [message.split(b"%d" % (flow.START_MS + at)) for at, message in enumerate(of.steady())]
    producer = kafka.KafkaProducer(bootstrap_servers=brokers, linger_ms=5, batch_size=64 << 10)
    with closing(producer):
        last, due, sent = time.perf_counter(), 0.0, 0
        while not stop.is_set():
            now = time.perf_counter()
            due, last = min(due + (now - last) * rate.value, sent + 0.1 * rate.value), now
            while sent < due and not stop.is_set():  # times go on where the history ended
                head, tail = made[sent % len(made)]
                producer.send(of.name, head + b"%d" % (flow.START_MS + 10**6 + sent) + tail)
                sent += 1
            time.sleep(0.01)


def probe(brokers: str, url: str, seconds: float, of: Flow) -> list[float]:
    """Seconds until each probe could be read; those of the last second are given two more."""
    producer = kafka.KafkaProducer(bootstrap_servers=brokers, linger_ms=0)
    waits: list[float] = []
    with closing(producer), redis.Redis.from_url(url) as client:
        waiting: dict[str, float] = {}
        began, asked = time.perf_counter(), 0
        while waiting or time.perf_counter() - began < seconds:
            now = time.perf_counter()
            if now - began < seconds and now - began > EVERY_S * asked:
                record, names = of.probe(asked)
                waiting |= dict.fromkeys(names, time.perf_counter())
                producer.send(of.name, msgspec.json.encode(record))
                asked += 1
            pipe = client.pipeline(transaction=False)
            for each in waiting:
                pipe.hget(entity_key(of.name, 1, each), "count")
            for each, count in zip(list(waiting), pipe.execute(), strict=True):
                if count is not None:
                    waits.append(time.perf_counter() - waiting.pop(each))
            if now - began > seconds + 30:
                raise TimeoutError(f"{len(waiting)} probes were never readable")
            time.sleep(0.001)
    return waits


def flood(status: Callable[[], Any], speed: Any, rows: int) -> float:
    """Records per second that the daemon takes when more come than it can."""
    speed.value = FLOOD
    time.sleep(FLOOD_S / 2)
    before, began = status(), time.perf_counter()
    time.sleep(FLOOD_S / 2)
    after, seconds = status(), time.perf_counter() - began
    speed.value = BEFORE
    until(status, caught_up, 60)
    return float(shard(after)["accepted"] - shard(before)["accepted"]) / seconds / rows


def measure(brokers: str, url: str, of: Flow = EVENTS) -> list[Item]:
    produce(brokers, of.name, of.history())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with daemon(folder, settings(folder, brokers, url, of), of.name) as status:
            context = multiprocessing.get_context("spawn")
            stop, speed = context.Event(), context.Value("d", BEFORE)
            producing = context.Process(target=load, args=(brokers, speed, stop, of))
            producing.start()
            try:
                until(status, caught_up, 180)
                most = flood(status, speed, of.rows)
                speed.value = most / 2
                time.sleep(3)
                before, began = status(), time.perf_counter()
                waits = np.array(probe(brokers, url, SECONDS, of))
                after, seconds = status(), time.perf_counter() - began
            finally:
                stop.set()
                producing.join()
    taken = (shard(after)["accepted"] - shard(before)["accepted"]) / seconds / of.rows
    updates = (after["learner"]["updates"] - before["learner"]["updates"]) / seconds
    p50, p99 = (1000 * np.quantile(waits, (0.5, 0.99))).tolist()
    what = f"{of.what}, at half the maximum rate"
    p50s, p99s = f"{what}: p50", f"{what}: p99"
    bars = [at_most(p50s, p50, "ms", 50), at_most(p99s, p99, "ms", 250)]
    return [
        *(bars if of.bars else [shown(p50s, p50, "ms"), shown(p99s, p99, "ms")]),
        shown(
            f"maximum rate of the daemon beside its learner, producer, Kafka and Redis{'' if of.bars else ', edges'}",
            most,
            "records/s",
        ),
        shown(f"{what}: records taken", taken, "records/s"),
        shown(f"{what}: learner beside it", updates, "updates/s"),
        shown(f"{what}: probes", len(waits), ""),
    ]
