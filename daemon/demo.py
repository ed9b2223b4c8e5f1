"""`afresh demo`: a year of flights through a real Kafka, the daemon and a real Redis, watched live."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kafka
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from daemon import servers
from daemon.cli import fetch_status
from daemon.demo_graph import GraphReport
from daemon.demo_images import ImageReport, digits
from daemon.demo_report import Report
from daemon.flights import flights, messages, nodes
from daemon.reading import Reader
from daemon.settings import Settings, load
from daemon.totals import quantile
from schemas.errors import AfreshError
from schemas.stats import Latency

PARTITIONS = 2
BUDGET_S, GRAPH_BUDGET_S, IMAGE_BUDGET_S = 170.0, 80.0, 70.0
"""Each stream ends by itself within this time, whatever has been reached; without a release, on a busy machine,
in PATIENCE times as much."""
PATIENCE = 3
UPDATES, GRAPH_UPDATES, IMAGE_UPDATES = 1500, 600, 400
"""Enough to see what is learnt; learning itself never ends."""
HISTORY = 0.3
"""This share of the flights is sent at once; the others follow after the first release, at RATE, so that
freshness is what a stream sees and not what a backlog does."""
RATE = 6000.0
"""Records per second."""


@dataclass(frozen=True)
class Plan:
    """When a stream has been seen enough."""

    records: int
    updates: int
    budget_s: float
    sends: bool = True  # False: all of it is in Kafka already


class Demo:
    def __init__(self, out: Console, keep: bool, limit: int) -> None:
        self.out, self.keep, self.limit = out, keep, limit
        self.folder = Path("build/demo") if Path("pyproject.toml").exists() else Path("afresh-demo")
        self._stop = threading.Event()
        self._released = threading.Event()
        self._sent = 0
        self._error: BaseException | None = None
        self._rates: deque[tuple[float, int]] = deque(maxlen=20)
        self._log = self.folder / "daemon.log"

    def run(self) -> int:
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with contextlib.ExitStack() as stack:
            try:
                settings, config = self._servers(stack)
                daemon = self._daemon(stack, config)
                began = time.monotonic()
                table = flights()
                if self.limit:
                    table = table.slice(0, self.limit)
                self.out.print(
                    f"Replaying {len(table):,} flights of 2013 into Kafka, in order of departure."
                )
                sender = threading.Thread(
                    target=self._send, args=(settings, messages(table)), daemon=True
                )
                sender.start()
                stack.callback(sender.join, 20)
                stack.callback(self._stop.set)  # last in, first out: before anything else stops
                plan = Plan(len(table), UPDATES, BUDGET_S)
                status = self._watch(settings, daemon, plan, began)
                report = Report(settings, table)
                self.out.print(report.summary(status, time.monotonic() - began))
                self.out.print(report.nearest())
                self._graph(stack, table)
                digits = self._images(stack)
                if self.keep:
                    stack.pop_all()
                else:  # the vectors are read; what follows has the machine to itself
                    with self.out.status("Stopping what was started"):
                        stack.close()
                with self.out.status("Comparing with an untrained encoder and with aggregates"):
                    tables = report.comparison(), digits.comparison()
                for table in tables:
                    self.out.print(table)
                if self.keep:
                    self._kept(settings, config)
            except KeyboardInterrupt:
                self.out.print("Stopped; everything that was started is being stopped too.")
                return 130
            finally:
                self._stop.set()
        return 0

    def _graph(self, stack: contextlib.ExitStack, table: Any) -> None:
        """The same topic as a graph, read by a daemon of its own."""
        config = Path(__file__).parent.parent / "deploy" / "demo-graph.toml"
        settings = load(config)
        known = nodes(table["time"][0].as_py() - 1)
        topic = settings.source.topics[1]
        self._topics(stack, settings, [f"{settings.name}.mirror", topic])
        _send_all(topic, [(key, value, []) for key, value in known])
        self.out.print(
            f"The same flights as a graph, from planes to airports, and what is known of {len(known):,} of them."
        )
        report = GraphReport(settings, table, len(known))
        plan = Plan(report.rows, GRAPH_UPDATES, GRAPH_BUDGET_S, sends=False)
        status = self._another(stack, settings, config, plan)
        self.out.print(report.nearest(facts_of(status)))
        self.out.print(report.next_flights())

    def _images(self, stack: contextlib.ExitStack) -> ImageReport:
        """Images of digits, read by a third daemon."""
        config = Path(__file__).parent.parent / "deploy" / "demo-images.toml"
        settings, sent = load(config), digits()
        topic = settings.source.topics[0]
        self._topics(stack, settings, [topic, f"{topic}.dlq"])
        _send_all(topic, [(d.name.encode(), d.png, [("label", d.label.encode())]) for d in sent])
        self.out.print(f"{len(sent):,} images of handwritten digits, as PNG.")
        plan = Plan(len(sent), IMAGE_UPDATES, IMAGE_BUDGET_S, sends=False)
        status = self._another(stack, settings, config, plan)
        report = ImageReport(settings, sent)
        self.out.print(report.nearest(facts_of(status)))
        return report

    def _topics(self, stack: contextlib.ExitStack, settings: Settings, own: list[str]) -> None:
        brokers = os.environ["AFRESH_KAFKA"]
        servers.create_topics(brokers, dict.fromkeys(own, PARTITIONS))
        if os.environ["AFRESH_DEMO_NAME"] != "flights":
            stack.callback(self._leave_clean, settings, brokers, own)

    def _another(
        self, stack: contextlib.ExitStack, settings: Settings, config: Path, plan: "Plan"
    ) -> dict[str, Any]:
        """A daemon beside the first; its last status."""
        self._log = self.folder / f"daemon-{config.stem.removeprefix('demo-')}.log"
        self._rates.clear()
        began = time.monotonic()
        return self._watch(settings, self._daemon(stack, config), plan, began)

    # -- what it starts ---------------------------------------------------------------------------

    def _servers(self, stack: contextlib.ExitStack) -> tuple[Settings, Path]:
        """Kafka and Redis (the environment's, else our own), topics, settings."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        name = "flights"
        brokers, redis = os.environ.get("AFRESH_KAFKA"), os.environ.get("AFRESH_REDIS")
        if brokers is not None or redis is not None:
            name = f"flights-{os.urandom(3).hex()}"  # others may use these servers
        if brokers is None:
            with self.out.status("Starting Apache Kafka"):
                server = stack.enter_context(
                    servers.kafka_server(self.folder / "kafka", keep=self.keep)
                )
            brokers = server.address
        if redis is None:
            with self.out.status("Starting Redis"):
                server = stack.enter_context(
                    servers.redis_server(self.folder / "redis", keep=self.keep)
                )
            redis = server.address if "://" in server.address else f"redis://{server.address}"
        self.out.print(f"Kafka at {brokers}, Redis at {redis}.")
        servers.create_topics(brokers, {name: PARTITIONS, f"{name}.dlq": 1})
        os.environ |= {
            "AFRESH_KAFKA": brokers,
            "AFRESH_REDIS": redis,
            "AFRESH_DEMO_NAME": name,
            "AFRESH_DEMO_TOPIC": name,
            "AFRESH_DEMO_FOLDER": str((self.folder / "state").resolve()),
        }
        config = Path(__file__).parent.parent / "deploy" / "demo.toml"
        settings = load(config)
        if name != "flights":
            topic = settings.source.topics[0]
            stack.callback(self._leave_clean, settings, brokers, [topic, f"{topic}.dlq"])
        return settings, config

    def _leave_clean(self, settings: Settings, brokers: str, topics: list[str]) -> None:
        """On servers that are not ours, what we made goes with us."""
        with contextlib.suppress(Exception):
            Reader(settings).remove()
        with contextlib.suppress(Exception):
            with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=brokers)) as admin:
                admin.delete_topics(topics)

    def _daemon(self, stack: contextlib.ExitStack, config: Path) -> "subprocess.Popen[bytes]":
        log = self._log.open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", "--config", str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        log.close()

        def stop() -> None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()

        stack.callback(stop)
        return process

    def _send(self, settings: Settings, pairs: list[tuple[bytes | None, bytes]]) -> None:
        """In a thread: the history at once, the rest as a stream."""
        try:
            producer = kafka.KafkaProducer(
                bootstrap_servers=os.environ["AFRESH_KAFKA"], linger_ms=20, batch_size=128 << 10
            )
            topic = settings.source.topics[0]
            try:
                for self._sent, (key, value) in enumerate(pairs, start=1):
                    producer.send(topic, value=value, key=key)
                    if self._sent % 100 == 0 and not self._pace(self._sent / len(pairs)):
                        break
                producer.flush(30)
            finally:
                producer.close(5)
        except BaseException as error:
            self._error = error

    def _pace(self, share: float) -> bool:
        """Waits as the plan asks. False: stop sending."""
        if share >= HISTORY:
            while not self._released.wait(0.2) and not self._stop.is_set():
                pass
            self._stop.wait(100 / RATE)
        return not self._stop.is_set()

    # -- what it shows ----------------------------------------------------------------------------

    def _watch(
        self, settings: Settings, daemon: "subprocess.Popen[bytes]", plan: "Plan", began: float
    ) -> dict[str, Any]:
        """Shows the daemon's status until all is read, learnt and released. Returns the last one."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeElapsedColumn(),
        )
        sent = bar.add_task("sent to Kafka ", total=plan.records, visible=plan.sends)
        read = bar.add_task("read by afresh", total=plan.records)
        learnt = bar.add_task("updates       ", total=plan.updates)
        status: dict[str, Any] = {}
        release_wanted: int | None = None
        with Live(bar, console=self.out, refresh_per_second=4) as live:
            while True:
                if daemon.poll() is not None or self._error is not None:
                    raise AfreshError(self._why(daemon))
                with contextlib.suppress(AfreshError):
                    status = fetch_status(settings)
                elapsed = time.monotonic() - began
                if status:
                    facts = facts_of(status)
                    if facts["release"] and facts["owed"] == 0:
                        self._released.set()
                    bar.update(sent, completed=min(self._sent, plan.records))
                    bar.update(read, completed=facts["records"])
                    bar.update(learnt, completed=min(facts["updates"], plan.updates))
                    live.update(Group(bar, self._tiles(facts, status)))
                    done = facts["records"] >= plan.records and facts["lag"] == 0
                    if (
                        release_wanted is None
                        and done
                        and (facts["updates"] >= plan.updates or elapsed > plan.budget_s - 30)
                    ):
                        release_wanted = facts["release"] + 1
                    settled = facts["owed"] == 0 and facts["oldest"] == facts["release"]
                    if (
                        release_wanted is not None
                        and facts["release"] >= release_wanted
                        and settled
                    ):
                        return status
                if elapsed > plan.budget_s:
                    if facts_of(status)["release"] if status else 0:
                        return status
                    if elapsed > PATIENCE * plan.budget_s:
                        raise AfreshError(f"no release after {elapsed:.0f} s. {self._why(daemon)}")
                self._stop.wait(0.5)

    def _why(self, daemon: "subprocess.Popen[bytes]") -> str:
        if self._error is not None:
            return f"the flights could not be sent: {self._error}"
        tail = self._log.read_text(errors="replace").splitlines()[-15:]
        state = "is still running" if daemon.poll() is None else f"ended with {daemon.returncode}"
        return f"the daemon {state}; the end of {self._log}:\n" + "\n".join(tail)

    def _tiles(self, facts: dict[str, Any], status: dict[str, Any]) -> Panel:
        now = time.monotonic()
        self._rates.append((now, facts["records"]))
        (t0, r0), (t1, r1) = self._rates[0], self._rates[-1]
        rate = (r1 - r0) / max(t1 - t0, 1e-9) if len(self._rates) > 1 else 0.0
        table = Table.grid(padding=(0, 3))
        table.add_row(
            "records/s",
            f"{rate:,.0f}",
            "lag",
            f"{facts['lag']:,}",
            "dead letters",
            f"{facts['dead']:,}",
        )
        table.add_row(
            "freshness p50", facts["p50"], "p99", facts["p99"], "entities", f"{facts['entities']:,}"
        )
        table.add_row(
            "loss",
            number(facts["loss"]),
            "effective rank",
            number(facts["rank"]),
            "release",
            str(facts["release"]),
        )
        waiting = "; ".join(status["ready"]) or "ready"
        return Panel(table, title="afresh", subtitle=waiting, expand=False)

    def _kept(self, settings: Settings, config: Path) -> None:
        address = (settings.folder / "address").read_text()
        names = " ".join(
            f"{key}={os.environ[key]}"
            for key in (
                "AFRESH_KAFKA",
                "AFRESH_REDIS",
                "AFRESH_DEMO_NAME",
                "AFRESH_DEMO_TOPIC",
                "AFRESH_DEMO_FOLDER",
            )
        )
        self.out.print(
            f"Left running. Metrics: {address}/metrics  Status: {address}/status", soft_wrap=True
        )
        self.out.print("To stop it, the daemon first: see the README, 'Try it by hand'.")
        self.out.print(
            f"Commands, after this line: afresh status --config {config}", soft_wrap=True
        )
        self.out.print(f"export {names}", soft_wrap=True, highlight=False)


def _send_all(topic: str, messages: list[tuple[bytes, bytes, list[tuple[str, bytes]]]]) -> None:
    """Keys, values and headers, all at once."""
    brokers = os.environ["AFRESH_KAFKA"]
    with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=brokers)) as producer:
        for key, value, headers in messages:
            producer.send(topic, value=value, key=key, headers=headers)
        producer.flush(30)


def facts_of(status: dict[str, Any]) -> dict[str, Any]:
    """The figures that the demo shows, from /status."""
    shards = list(status["shards"].values())
    groups = [g for shard in shards for g in shard["groups"]]
    learner, publisher = status["learner"] or {}, status["publisher"] or {}
    freshness = Latency()
    for shard in shards:
        freshness.add(shard["freshness"]["counts"], shard["freshness"]["sum_s"])
    dead = sum(sum(shard["dead_letters"].values()) for shard in shards)
    return {
        "records": sum(shard["accepted"] for shard in shards) + dead,
        "dead": dead,
        "lag": sum(g["lag"] for g in groups),
        "owed": sum(g["to_encode"] for g in groups),
        "oldest": min((g["oldest_release"] for g in groups if g["oldest_release"]), default=0),
        "entities": sum(g["entities"] for g in groups),
        "release": publisher.get("release", 0),
        "updates": learner.get("updates", 0),
        "loss": learner.get("loss"),
        "rank": learner.get("effective_rank"),
        "p50": milliseconds(quantile(freshness, 0.5)),
        "p99": milliseconds(quantile(freshness, 0.99)),
        "freshness_counted": sum(freshness.counts),
    }


def milliseconds(seconds: float) -> str:
    if np.isnan(seconds):
        return "-"
    return f"≤ {seconds * 1000:,.3g} ms" if seconds < 1 else f"≤ {seconds:,.3g} s"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
