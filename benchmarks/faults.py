"""`make test-faults`: processes of a running service are killed in mid-stream, and nothing is lost or doubled.

The oracle: after catching up, every entity's count in state and in Redis equals what was produced, no reader
saw a count fall, and the vectors equal those computed from scratch by the same ONNX file to 1e-5."""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import kafka
import msgspec
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from actors.decode import make_decoder
from actors.embed import encode_anew
from actors.encode import Release, current_release
from actors.snapshot import newest, restore
from actors.state import State
from daemon import servers
from daemon.cli import fetch_status
from daemon.reading import Reader
from daemon.settings import Settings, load
from schemas.errors import AfreshError

GROUPS = 2
ENTITIES = 40
SETTINGS = """
name = "faults"
state_dir = "{folder}/state"
[stream]
entity = "who"
time = "at"
time_unit = "s"
[[stream.field]]
name = "what"
type = "category"
[[stream.field]]
name = "amount"
type = "number"
[source]
brokers = "{kafka}"
topics = ["{topic}"]
[redis]
url = "{redis}"
[state]
max_memory_mb = 64
[shard]
snapshot_every_s = 1
[encoder]
name = "gru"
dim = 8
hidden = 8
window = 16
category_dim = 4
bucket_bits = 6
[learner]
min_entities = 16
batch_entities = 16
held_out_share = 0.0
updates_per_record = 0.2
[[learner.objective]]
name = "coles"
[release]
first_s = 1
every_s = 8
every_updates = 5
[service]
lease_s = 4
hang_s = 30
[http]
port = 0
"""


@dataclass
class Outcome:
    """One fault, several rounds. `recover_s`: from a kill until Redis had all that was sent; the worst."""

    fault: str
    kills: int
    sent: int
    lost: int = 0
    doubled: int = 0
    falls: int = 0
    worst: float = 0.0  # largest difference of a vector from the one computed from scratch
    recover_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.falls) and self.worst <= 1e-5


@dataclass
class Service:
    """The daemon as a process of its own, a producer that knows what it sent, a reader that watches."""

    folder: Path
    brokers: str
    redis: str
    topic: str
    sent: list[tuple[bytes, bytes]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    falls: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.config = self.folder / "faults.toml"
        self.config.write_text(
            SETTINGS.format(
                folder=self.folder, kafka=self.brokers, redis=self.redis, topic=self.topic
            )
        )
        self.settings: Settings = load(self.config)
        self.reader = Reader(self.settings)
        self._producer = kafka.KafkaProducer(bootstrap_servers=self.brokers, linger_ms=5)
        self._rng = random.Random(0)
        self._ended = threading.Event()

    def start(self) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "daemon", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def kill(self, what: str) -> bool:
        """kill -9 of the daemon, or of the actor whose class is `what`. False: it does not run now."""
        assert self.process is not None
        if what == "daemon":
            self.process.kill()
            self.process.wait()
            return True
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if f"ray::{what}" in " ".join(child.cmdline()):
                    child.kill()
                    return True
        except psutil.NoSuchProcess:
            pass
        return False

    def epoch(self) -> int:
        """The lease's epoch of the daemon that serves; 0 while none is ready."""
        try:
            status = fetch_status(self.settings)
        except AfreshError:
            return 0
        return 0 if status["ready"] else int(status["epoch"])

    def succeeded(self, epoch: int) -> bool:
        return self.epoch() > epoch

    def snapshotted(self) -> bool:
        """Every group has written a snapshot since the daemon started."""
        shards = fetch_status(self.settings)["shards"].values()
        return all(g["snapshots"] for shard in shards for g in shard["groups"])

    def send(self, n: int) -> None:
        """n records of random entities, in time order."""
        for _ in range(n):
            who = f"e{self._rng.randrange(ENTITIES)}"
            at = 1_600_000_000 + 7 * len(self.sent)
            value: dict[str, Any] = {"who": who, "at": at, "what": f"c{self._rng.randrange(6)}"}
            if self._rng.random() < 0.9:
                value["amount"] = self._rng.gauss(0, 50)
            pair = who.encode(), msgspec.json.encode(value)
            self._producer.send(self.topic, key=pair[0], value=pair[1])
            self.sent.append(pair)
            self.counts[who] += 1
        self._producer.flush()

    def published(self) -> dict[str, tuple[int, int, Any]]:
        """entity -> (count, release, vector), as a reader finds it; empty before the first release."""
        try:
            found = self.reader.lookup(sorted(self.counts))
        except Exception:
            return {}
        return {
            name: (e["count"], e["release"], e["vector"])
            for name, e in zip(sorted(self.counts), found, strict=True)
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
        seen: dict[str, int] = {}
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                for name, (count, _, _) in self.published().items():
                    if count < seen.get(name, 0):
                        self.falls.append(f"{name}: {seen[name]} -> {count}")
                    seen[name] = count

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # -- the oracle -------------------------------------------------------------------------------

    def worst(self) -> float:
        """Largest difference of a published vector from the one that a new state and `encode` give."""
        s = self.settings
        decoder = make_decoder(s.stream, s.decode)
        offsets = np.arange(len(self.sent))
        keys, values = [k for k, _ in self.sent], [v for _, v in self.sent]
        decoded, bad = decoder.decode(0, offsets, offsets, keys, values)
        assert not bad
        state = State(s.stream.shape, s.encoder.window, s.encoder.state, 256)
        state.apply(decoded)
        names = sorted(self.counts)
        release = Release.load(s.releases / str(current_release(s.releases)))
        wanted = encode_anew(state, np.array([state.index[name] for name in names]), release)
        found = self.published()
        return float(max(np.abs(found[n][2] - w).max() for n, w in zip(names, wanted, strict=True)))

    def in_state(self) -> Counter[str]:
        """Counts in the last snapshots of all groups, the daemon having stopped."""
        s = self.settings
        counts: Counter[str] = Counter()
        for group in range(GROUPS):
            state = State(s.stream.shape, s.encoder.window, s.encoder.state, 1024)
            newest(s.group_folder(group), partial(restore, state=state))
            counts.update({name: int(state.count[slot]) for name, slot in state.index.items()})
        return counts


@contextmanager
def service(folder: Path, brokers: str, redis: str, topic: str) -> Iterator[Service]:
    """Started, with a first release served."""
    found = Service(folder, brokers, redis, topic)
    found.start()
    try:
        found.send(2000)
        until(found.settled, 120, found)
        yield found
    finally:
        if found.process is not None and found.process.poll() is None:
            found.process.kill()
            found.process.wait()


def until(condition: Callable[[], bool], timeout_s: float, of: Service) -> None:
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            tail = (of.folder / "daemon.log").read_text(errors="replace")[-3000:]
            raise AssertionError(f"not within {timeout_s} s; the daemon's log ends:\n{tail}")
        pause.wait(0.05)


def kills(of: Service, what: str, rounds: int, seed: int) -> Outcome:
    """Kills `what` `rounds` times in mid-stream, at random points; then lets it catch up and compares."""
    rng = random.Random(seed)
    pause = threading.Event()
    outcome = Outcome(f"kill -9 {what}", rounds, 0)
    with of.watched():
        for _ in range(rounds):
            of.send(rng.randrange(50, 400))
            pause.wait(rng.random() * 0.3)
            before = of.epoch()
            until(partial(of.kill, what), 60, of)
            began = time.monotonic()
            of.send(rng.randrange(1, 200))
            if (
                what == "daemon"
            ):  # what it left behind may serve on for a while: wait for the successor
                of.start()
                until(partial(of.succeeded, before), 60, of)
            of.send(rng.randrange(1, 200))
            until(of.settled, 120, of)
            outcome.recover_s = max(outcome.recover_s, time.monotonic() - began)
        outcome.sent = len(of.sent)
    found = {name: count for name, (count, _, _) in of.published().items()}
    outcome.lost = sum(max(n - found.get(name, 0), 0) for name, n in of.counts.items())
    outcome.doubled = sum(max(found.get(name, 0) - n, 0) for name, n in of.counts.items())
    outcome.falls, outcome.worst = len(of.falls), of.worst()
    return outcome


PROCESSES = ("ShardProcess", "LearnProcess", "PublishProcess", "daemon")


def main() -> None:
    out, rounds, outcomes = Console(), int(os.environ.get("AFRESH_ROUNDS", "10")), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        broker = stack.enter_context(servers.kafka_server(folder / "kafka"))
        store = stack.enter_context(servers.redis_server(folder / "redis"))
        servers.create_topics(broker.address, {"faults": GROUPS, "faults.dlq": 1})
        (folder / "service").mkdir()
        url = store.address if "://" in store.address else f"redis://{store.address}"
        with service(folder / "service", broker.address, url, "faults") as of:
            for seed, what in enumerate(PROCESSES):
                outcomes.append(kills(of, what, rounds, seed))
                out.print(outcomes[-1])
            code = of.stop()
            same = of.in_state() == of.counts
    table = Table(
        "fault", "rounds", "sent", "lost", "doubled", "falls", "worst vector", "s to recover"
    )
    for o in outcomes:
        table.add_row(
            o.fault, str(o.kills), f"{o.sent:,}", str(o.lost), str(o.doubled), str(o.falls),
            f"{o.worst:.1e}", f"{o.recover_s:.1f}",
        )  # fmt: skip
    out.print(table)
    rows = [
        {"name": f"{o.fault}: {name}", "value": getattr(o, name), "unit": unit, "bar": bar, "ok": o.ok}
        for o in outcomes
        for name, unit, bar in (
            ("lost", "records", 0), ("doubled", "records", 0), ("falls", "counts", 0),
            ("worst", "absolute", 1e-5), ("recover_s", "s", None), ("sent", "records", None),
        )
    ]  # fmt: skip
    rows.append(
        {
            "name": "counts in state equal what was sent",
            "value": same,
            "unit": "",
            "bar": True,
            "ok": same,
        }
    )
    rows.append(
        {"name": "exit code after SIGTERM", "value": code, "unit": "", "bar": 0, "ok": code == 0}
    )
    Path("build").mkdir(exist_ok=True)
    Path("build/test-faults.json").write_text(json.dumps(rows, indent=1))
    if not (same and code == 0 and all(o.ok for o in outcomes)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
