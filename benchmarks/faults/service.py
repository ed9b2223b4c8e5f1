"""A running service that faults are done to, and the oracle that says what they cost.

The daemon is a process of its own, a producer knows what it sent, a reader polls all the while. Every
record carries an id: an entity's count and the running totals of its ids, in its state and from scratch,
agree only if each record was taken once."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kafka
import msgspec
import psutil

from actors.served import current_release
from benchmarks.faults import streams
from benchmarks.faults.streams import Kind
from daemon import servers
from daemon.children import Server
from daemon.cli import fetch_status
from daemon.reading import Reader
from daemon.settings import Settings, load
from schemas.errors import AfreshError
from schemas.published import entity_key

GROUPS = 4
Found = dict[str, tuple[int, int, Any]]
"""entity -> (count, release, vector)"""


@dataclass
class Service:
    """One service on these servers. `entities`: whom records are of."""

    folder: Path
    kafka: Server
    redis: Server
    entities: int = 40
    shards: int = 2
    topic: str = "faults"
    kind: Kind = "events"
    sent: list[tuple[bytes, bytes]] = field(default_factory=list)
    bad: set[tuple[str, int, int]] = field(default_factory=set)  # (topic, partition, offset)
    counts: Counter[str] = field(default_factory=Counter)
    falls: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        topics = {self.topic: GROUPS, f"{self.topic}.dlq": 1}
        if self.kind == "graph":
            topics[f"{self.topic}.mirror"] = GROUPS
        servers.create_topics(self.kafka.address, topics)
        self.config, self.log = self.folder / "faults.toml", self.folder / "daemon.log"
        self.configure(shards=self.shards)
        self._producer = kafka.KafkaProducer(
            bootstrap_servers=self.kafka.address, linger_ms=5, max_request_size=32 << 20,
            request_timeout_ms=5000, reconnect_backoff_max_ms=500, metadata_max_age_ms=2000,
        )  # fmt: skip
        self._rng = random.Random(0)
        self._seen: dict[str, int] = {}

    def configure(self, shards: int, *changes: tuple[str, str]) -> None:
        """Writes the settings for the next start, with texts replaced."""
        text = streams.settings(
            self.kind,
            folder=self.folder, kafka=self.kafka.address, redis=f"redis://{self.redis.address}",
            topic=self.topic, shards=shards,
        )  # fmt: skip
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        self.config.write_text(text)
        self.settings: Settings = load(self.config)
        self.reader = Reader(self.settings)

    # -- its processes ----------------------------------------------------------------------------

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Starts a daemon and remembers it as the one that serves."""
        command = [sys.executable, "-m", "daemon", "run", "--config", str(self.config), *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | environment,
            )
        return self.process

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        self._producer.close(5)
        if self.process is not None and self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.stop()
                return
            self.process.kill()
            self.process.wait()

    def tree(self) -> list[psutil.Process]:
        """The daemon and all processes below it."""
        assert self.process is not None
        try:
            daemon = psutil.Process(self.process.pid)
            return [daemon, *daemon.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def find(self, what: str) -> psutil.Process | None:
        """The process of the daemon ("daemon"), of an actor's class, or of Ray ("raylet", "gcs_server")."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                words = " ".join(process.cmdline())
                if (
                    what == "daemon"
                    or f"ray::{what}" in words
                    or words.split(" ")[0].endswith(what)
                ):
                    return process
        return None

    def signal(self, what: str, number: signal.Signals) -> bool:
        """False: it does not run now."""
        process = self.find(what)
        if process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        return True

    def age(self, what: str) -> float:
        """Seconds since the process started; below zero while there is none."""
        process = self.find(what)
        return -1.0 if process is None else time.time() - process.create_time()

    def kill(self, what: str) -> bool:
        return self.signal(what, signal.SIGKILL)

    # -- what it says of itself -------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Empty where none answers."""
        try:
            return fetch_status(self.settings)
        except AfreshError:
            return {}

    def epoch(self) -> int:
        """The lease's epoch of the daemon that serves; 0 while none is ready."""
        status = self.status()
        return 0 if not status or status["ready"] else int(status["epoch"])

    def succeeded(self, epoch: int) -> bool:
        return self.epoch() > epoch

    def groups(self) -> list[dict[str, Any]]:
        status = self.status()
        return [g for shard in status.get("shards", {}).values() for g in shard["groups"]]

    def snapshots(self) -> int:
        """Of the group that has written the fewest since its shard started."""
        groups = self.groups()
        return min((g["snapshots"] for g in groups), default=0) if len(groups) == GROUPS else 0

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        address = (self.settings.folder / "address").read_text()
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:  # noqa: S310
            lines = answer.read().decode().splitlines()
        return sum(
            float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith((name + "{", name + " "))
        )

    def said(self, text: str) -> bool:
        """Whether the log has it."""
        return text in self.log.read_text(errors="replace")

    # -- records in -------------------------------------------------------------------------------

    def send(self, n: int) -> None:
        """n records of random entities, in time order; returns once Kafka has them."""
        self.send_to([f"e{self._rng.randrange(self.entities)}" for _ in range(n)])

    def send_to(self, names: list[str]) -> None:
        """A record of each of these entities."""
        pairs = self.made(names)
        for number, (key, value) in enumerate(pairs, len(self.sent)):
            headers = streams.headers(self.kind, number)
            self._producer.send(self.topic, key=key, value=value, headers=headers)
        self._producer.flush(60)
        self.remember(pairs)

    def made(self, names: list[str]) -> list[tuple[bytes, bytes]]:
        """Keys and values of the next records."""
        return [
            (who.encode(), streams.value(self.kind, number, who, self.entities, self._rng))
            for number, who in enumerate(names, len(self.sent))
        ]

    def remember(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """These were sent, and are to be counted."""
        self.sent += pairs
        self.counts.update(key.decode() for key, _ in pairs)
        if self.kind == "graph":  # an edge counts on either side, a loop once
            ends = ((key.decode(), msgspec.json.decode(value).get("whom")) for key, value in pairs)
            self.counts.update(far for near, far in ends if far not in (None, near))

    def send_bad(self, *values: bytes) -> None:
        """Records that no decoder takes."""
        told = [
            self._producer.send(
                self.topic, key=b"e%d" % self._rng.randrange(self.entities), value=v
            )
            for v in values
        ]
        self._producer.flush(60)
        for future in told:
            at = future.get(60)
            self.bad.add((at.topic, at.partition, at.offset))

    def of_group(self, groups: set[int]) -> list[str]:
        """The entities that live in these groups."""
        from actors.partitioner import partitions_of

        names = [f"e{i}" for i in range(self.entities)]
        return [
            n
            for n, g in zip(names, partitions_of(names, GROUPS).tolist(), strict=True)
            if g in groups
        ]

    # -- vectors out ------------------------------------------------------------------------------

    def published(self) -> Found:
        """As a reader finds it; empty before the first release and while Redis does not answer."""
        names = sorted(self.counts)
        try:
            found = self.reader.lookup(names)
        except Exception:
            return {}
        return {
            name: (e["count"], e["release"], e["vector"])
            for name, e in zip(names, found, strict=True)
            if e is not None
        }

    def settled(self) -> bool:
        """Redis has every record, all by the current release."""
        current = current_release(self.settings.releases)
        found = self.published()
        return (
            len(found) == len(self.counts)
            and all(found[name][0] == n for name, n in self.counts.items())
            and all(release == current for _, release, _ in found.values())
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A reader polls all the while and notes every count that fell."""
        self._seen, ended = {}, threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                for name, (count, _, _) in self.published().items():
                    if count < self._seen.get(name, 0):
                        self.falls.append(f"{name}: {self._seen[name]} -> {count}")
                    self._seen[name] = count

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def excuse(self) -> None:
        """Redis itself came back older: readers start anew."""
        self._seen = {}

    def writers(self, names: list[str]) -> set[int]:
        """Lease epochs of those who last wrote these entities."""
        client, generation = self.reader._redis, self.reader.generation()
        found: list[Any] = [
            client.hget(entity_key(self.settings.name, generation, name), "epoch") for name in names
        ]
        return {int(epoch) >> 20 for epoch in found}


def until(condition: Callable[[], object], timeout_s: float, of: Service) -> None:
    """Waits for it. Raises AssertionError with the end of the daemon's log."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            tail = of.log.read_text(errors="replace")[-4000:]
            raise AssertionError(f"not within {timeout_s} s; the daemon's log ends:\n{tail}")
        pause.wait(0.05)


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


@contextmanager
def service(folder: Path, kafka: Server, redis: Server, **more: Any) -> Iterator[Service]:
    """Started, with a first release served."""
    found = Service(folder, kafka, redis, **more)
    found.start()
    try:
        found.send(max(2000, 2 * found.entities))
        until(found.settled, 150, found)
        yield found
    finally:
        found.close()
