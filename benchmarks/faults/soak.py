"""Half the maximum rate for as long as is asked, with a kill every minute: what grows, and what is left over.

Two streams into one topic: the watched one, whose every vector is compared at the end, and a broad one of
10,000 entities at RATE, whose counts are. Of the two shards one is never killed: its memory is what is shown."""

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import kafka
import numpy as np
import psutil

from benchmarks.faults.outcome import Outcome, compare, rounds_of
from benchmarks.faults.processes import ACTORS
from benchmarks.faults.service import Service, until, wait
from benchmarks.items import Item, at_most, shown

RATE = 13_000.0  # records/s: half of what `make bench` finds the daemon to take
BROAD = 10_000
EVERY_S = 60.0
Sample = tuple[float, float, float, float, float, float]
"""Seconds; MB of the daemon, of the shard, of the GCS; open files of the daemon; MB that the shard shares.

Memory is what is a process's own: Ray's object store, which all share and whose size is fixed, is touched page
by page as windows pass through it, and would look like growth."""


def broad(brokers: str, topic: str, rate: float, stop: Any, counts: Any) -> None:
    """A process of its own: records of BROAD entities in turn, until told to stop; counts what Kafka took."""
    names = [f"broad-{i}" for i in range(BROAD)]
    heads = [
        f'{{"who":"{n}","what":"c{i % 6}","id":{i},"at":'.encode() for i, n in enumerate(names)
    ]
    keys = [name.encode() for name in names]
    producer = kafka.KafkaProducer(
        bootstrap_servers=brokers, linger_ms=5, batch_size=64 << 10, acks="all"
    )
    with closing(producer):
        last, due, sent = time.perf_counter(), 0.0, 0
        while not stop.is_set():
            now = time.perf_counter()
            due, last = min(due + (now - last) * rate, sent + rate), now
            while sent < due:
                i, at = sent % BROAD, 1_600_000_000 + sent // 100
                producer.send(topic, key=keys[i], value=heads[i] + b"%d}" % at)
                sent += 1
            time.sleep(0.01)
        producer.flush(60)
    whole, rest = divmod(sent, BROAD)
    counts[:] = [whole + (i < rest) for i in range(BROAD)]


@contextmanager
def broadly(of: Service, rate: float) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    stop, counts = context.Event(), context.Array("q", BROAD)
    process = context.Process(target=broad, args=(of.kafka.address, of.topic, rate, stop, counts))
    process.start()
    try:
        yield counts
    finally:
        stop.set()
        process.join()


def soak(of: Service, seconds: float, rate: float = RATE) -> tuple[Outcome, list[Item]]:
    """Every minute a shard, the learner or the publisher is killed, in turn."""
    outcome, samples = Outcome("soak", 0), list[Sample]()
    survivor = _shards(of)[0]
    with broadly(of, rate) as counts:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            until_s = time.monotonic() + min(EVERY_S, seconds)
            while time.monotonic() < until_s:
                of.send(50)
                wait(0.5)
            samples.append((time.monotonic() - began, *_sample(of, survivor)))
            act = partial(_kill, of, ACTORS[outcome.rounds % len(ACTORS)])
            one = rounds_of(of, "soak", 1, outcome.rounds, act)
            outcome.rounds += 1
            outcome.recover_s = max(outcome.recover_s, one.recover_s)
    wanted = {f"broad-{i}": n for i, n in enumerate(counts) if n}
    until(lambda: not _missing(of, wanted), 180, of)
    compare(of, outcome)
    outcome.sent += sum(wanted.values())
    outcome.doubled += sum(
        max(there - wanted[name], 0) for name, there in _counts(of, wanted).items()
    )
    return outcome, _items(of, outcome, samples)


def _items(of: Service, outcome: Outcome, samples: list[Sample]) -> list[Item]:
    t, daemon, shard, gcs, files, shared = np.array(
        samples[1:] or samples
    ).T  # the first minute warms up
    out = []
    for name, memory in (("daemon", daemon), ("shard that was not killed", shard)):
        slope, noise = 0.0, 0.0
        if len(t) > 2:
            slope, start = np.polyfit(t / 3600, memory, 1).tolist()
            noise = 2.0 * float(np.std(memory - slope * t / 3600 - start))
        out.append(shown(f"soak: memory of the {name}, slope", slope, "MB/h"))
        grown = slope * float(t[-1] - t[0]) / 3600
        out.append(at_most(f"soak: memory of the {name}, by which the slope exceeds twice its noise",
                           max(grown - noise, 0.0), "MB", 5))  # fmt: skip
        outcome.note += f"{name} {slope:+.0f} MB/h; "
    left = sum(p.status() != psutil.STATUS_ZOMBIE for p in _actors(of)) - of.shards - 2
    return [
        *out,
        at_most(
            "soak: open files of the daemon, last less first", float(files[-1] - files[0]), "", 8
        ),
        shown(
            "soak: memory that the shard shares with Ray's object store", float(shared[-1]), "MB"
        ),
        at_most("soak: memory of the GCS", float(gcs[-1]), "MB", 150),
        at_most("soak: processes left over", left, "", 0),
    ]


def _kill(of: Service, what: str, _: random.Random) -> None:
    """Of two shards the younger one."""
    victims = sorted(_actors(of, what), key=lambda p: p.create_time())
    if victims and (what != "ShardProcess" or len(victims) == of.shards):
        victims[-1].kill()


def _actors(of: Service, *kinds: str) -> list[psutil.Process]:
    found = []
    for process in of.tree():
        try:
            words = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(f"ray::{kind}" in words for kind in kinds or ACTORS):
            found.append(process)
    return found


def _shards(of: Service) -> list[psutil.Process]:
    return sorted(_actors(of, "ShardProcess"), key=lambda p: p.create_time())


def _sample(of: Service, survivor: psutil.Process) -> tuple[float, float, float, float, float]:
    daemon, gcs = of.find("daemon"), of.find("gcs_server")
    assert daemon is not None and gcs is not None
    own = [p.memory_full_info().uss / 2**20 for p in (daemon, survivor, gcs)]
    shared = survivor.memory_info().rss / 2**20 - own[1]
    return own[0], own[1], own[2], daemon.num_fds(), shared


def _counts(of: Service, wanted: dict[str, int]) -> dict[str, int]:
    names = list(wanted)
    found = of.reader.lookup(names)
    return {name: e["count"] for name, e in zip(names, found, strict=True) if e is not None}


def _missing(of: Service, wanted: dict[str, int]) -> int:
    there = _counts(of, wanted)
    return sum(max(n - there.get(name, 0), 0) for name, n in wanted.items())
