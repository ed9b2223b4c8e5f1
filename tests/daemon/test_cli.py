"""The commands, on a real Kafka, a real Redis and a daemon that runs as a process of its own.

One service is started for all tests of this file; what ends it comes last."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import kafka as kafka_python
import numpy as np
import pytest

from daemon import dashboard, servers
from daemon.metrics import NAMES
from tests.daemon.browser import browse
from tests.daemon.prometheus import ALERTS, ask, prometheus
from tests.helpers import eventually

pytestmark = pytest.mark.timeout(300)

SETTINGS = """
name = "{name}"
state_dir = "{folder}"

[stream]
entity = "who"
time = "at"

[[stream.field]]
name = "what"
type = "category"

[[stream.field]]
name = "amount"
type = "number"

[source]
brokers = "{kafka}"
topics = ["{name}"]

[redis]
url = "{redis}"

[state]
max_entities = 1000

[encoder]
name = "gru"
dim = 8
hidden = 8
window = 8
category_dim = 4
bucket_bits = 6

[learner]
min_entities = 8
batch_entities = 8
updates_per_record = 0.2

[[learner.objective]]
name = "coles"

[release]
first_s = 1
every_s = 3600
every_updates = 3

[http]
port = 0

[service]
lease_s = 6
object_store_mb = 80
"""
ENTITIES = 20


@dataclass
class Service:
    name: str
    folder: Path
    kafka: str
    redis: str
    process: "subprocess.Popen[bytes] | None" = None
    produced: dict[str, int] = field(default_factory=dict)
    watched: list[tuple[int, list[str]]] = field(default_factory=list)  # healthz, reasons of readyz
    _at: int = 1_700_000_000

    @property
    def config(self) -> Path:
        return self.folder / "afresh.toml"

    def write_settings(self) -> None:
        text = SETTINGS.format(
            name=self.name, folder=self.folder / "state", kafka=self.kafka, redis=self.redis
        )
        self.config.write_text(text)
        servers.create_topics(self.kafka, {self.name: 2, f"{self.name}.dlq": 1})

    def produce(self, count: int, *more: bytes) -> None:
        """So many good records, and `more` that are not."""
        with closing(kafka_python.KafkaProducer(bootstrap_servers=self.kafka)) as producer:
            for i in range(count):
                who = f"e{i * 7 % ENTITIES}"
                self._at += 600
                value = {"who": who, "at": self._at, "what": f"w{i % 3}", "amount": i % 11}
                producer.send(self.name, json.dumps(value).encode(), who.encode())
                self.produced[who] = self.produced.get(who, 0) + 1
            for value in more:
                producer.send(self.name, value, b"k")
            producer.flush(30)

    def start(self) -> None:
        log = (self.folder / "daemon.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", "--config", str(self.config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        eventually(self.ready, 150, "the daemon is ready")

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "daemon.log").read_text()[-3000:]
        with suppress(OSError, httpx.TransportError):
            health, _ = self.get("healthz")
            code, reasons = self.get("readyz")
            self.watched.append((health, reasons))
            return code == 200
        return False

    @property
    def address(self) -> str:
        return (self.folder / "state" / self.name / "address").read_text()

    def get(self, path: str) -> tuple[int, list[str]]:
        answer = httpx.get(f"{self.address}/{path}", timeout=5)
        return answer.status_code, answer.json()["reasons"]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command; the settings are named by the environment."""
        return subprocess.run(
            [sys.executable, "-m", "daemon", *arguments],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "AFRESH_CONFIG": str(self.config), "COLUMNS": "160"},
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        return json.loads(done.stdout)

    def counts(self) -> dict[str, int]:
        """What readers find of each entity that was produced."""
        found = self.json("lookup", *self.produced)
        return {row["entity"]: row["count"] for row in found if row["found"]}


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, kafka: str, redis_server: str
) -> Iterator[Service]:
    name = f"test-{os.urandom(6).hex()}"
    made = Service(name, tmp_path_factory.mktemp("service"), kafka, redis_server)
    made.write_settings()
    made.produce(400, b"{", b'{"who": "e1"}')
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                made.process.wait(40)
            made.process.kill()


def test_ready_comes_with_the_first_release_and_health_all_along(service: Service) -> None:
    assert all(code == 200 for code, _ in service.watched)
    waited_for = [reasons for _, reasons in service.watched]
    assert waited_for[0], "not ready at once"
    assert any("there is no release yet" in text for reasons in waited_for for text in reasons)
    assert waited_for[-1] == []


def test_readers_find_what_was_produced(service: Service) -> None:
    eventually(lambda: service.counts() == service.produced, 20)
    (row,) = service.json("lookup", "e3")
    assert (row["entity"], row["found"], row["release"]) == ("e3", True, 1)
    assert np.linalg.norm(row["vector"]) == pytest.approx(1.0, abs=1e-5)
    assert row["time_us"] > row["since"] > 0


def test_lookup_says_who_is_not_there(service: Service) -> None:
    done = service.run("lookup", "e3", "nobody")
    assert done.returncode == 1
    assert "e3" in done.stdout
    assert "no such entity" in done.stdout


def test_status_tells_of_everything(service: Service) -> None:
    found = service.json("status")
    shards = list(found["shards"].values())
    assert (found["stream"], found["health"], found["ready"]) == (service.name, [], [])
    assert sum(s["accepted"] for s in shards) == sum(service.produced.values())
    assert shards[0]["dead_letters"] == {"not_json": 1, "missing_time": 1}
    assert found["learner"]["updates"] >= 3
    assert found["publisher"]["release"] == 1
    assert not any(found["restarts"].values())
    done = service.run("status")
    assert done.returncode == 0
    assert "well" in done.stdout


def test_neighbours_are_near(service: Service) -> None:
    found = service.json("neighbours", "e3", "-k", "4")
    assert found["compared"] == ENTITIES
    assert not found["capped"]
    cosines = [n["cosine"] for n in found["neighbours"]]
    assert len(cosines) == 4
    assert cosines == sorted(cosines, reverse=True)
    assert "e3" not in {n["entity"] for n in found["neighbours"]}
    done = service.run("neighbours", "e3", "--cap", "5")
    assert done.returncode == 0
    assert "there are more" in done.stderr


def test_releases_are_listed(service: Service) -> None:
    (release,) = service.json("releases")
    assert (release["release"], release["current"], release["stream"]) == (1, True, service.name)
    assert "1 (current)" in service.run("releases").stdout


def test_a_file_of_settings_is_checked(service: Service, tmp_path: Path) -> None:
    assert service.run("check-config", str(service.config)).returncode == 0
    graph = tmp_path / "graph.toml"
    graph.write_text(
        'name = "g"\nstate_dir = "s"\nstream = { kind = "graph", entity = "a", neighbour = "b", time = "t" }\n'
        'source = { brokers = "localhost:1", topics = ["edges"] }\n'
    )
    assert "'g.mirror' must be there" in service.run("check-config", str(graph)).stdout.replace(
        "\n", " "
    )
    assert (
        "'soon' is not an ISO 8601 time" in service.run("score", "a", "b", "--now", "soon").stderr
    )
    bad = tmp_path / "bad.toml"
    bad.write_text(service.config.read_text() + "\n[kafka]\n")
    done = service.run("check-config", str(bad))
    assert done.returncode == 2
    assert "kafka: there is no such key" in done.stderr


@pytest.mark.parametrize(
    ("encoder", "found"),
    [
        ('backbone = "resnet10tx"', "timm has no such model, but ['resnet10t'"),
        ('weights = "none.safetensors"', "it cannot be read as safetensors"),
        ('backbone = "vit_tiny_patch16_224"\nsize = 8', "encoder.backbone"),
    ],
)
def test_a_backbone_that_cannot_be_made_is_refused(
    service: Service, tmp_path: Path, encoder: str, found: str
) -> None:
    images = tmp_path / "images.toml"
    images.write_text(
        'name = "i"\nstate_dir = "s"\nstream = { kind = "image" }\n'
        'source = { brokers = "localhost:1", topics = ["i"] }\n'
        f'[encoder]\nname = "timm"\n{encoder}\n'
    )
    done = service.run("check-config", str(images))
    assert done.returncode == 2
    assert found in done.stderr
    assert "under [encoder]." in done.stderr


def test_a_real_prometheus_scrapes_it_and_can_evaluate_everything(
    service: Service, tmp_path: Path
) -> None:
    def value(query: str) -> list[str]:
        return [row["value"][1] for row in ask(address, "query", query=query)["result"]]

    def evaluated() -> list[Any]:
        found = [rule for group in ask(address, "rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    exposed = httpx.get(f"{service.address}/metrics", timeout=5).text
    with prometheus(tmp_path, service.address.removeprefix("http://")) as address:
        eventually(lambda: value('up{job="afresh"}') == ["1"], 60)
        of = f'{{stream="{service.name}"}}'
        accepted = str(sum(service.produced.values()))
        assert value(f"afresh_records_accepted_total{of}") == [accepted]
        found = eventually(evaluated, 60)
        assert {rule["name"] for rule in found} >= set(ALERTS)
        assert [rule for rule in found if rule["health"] != "ok" or rule.get("lastError")] == []
        assert {rule["name"] for rule in found if rule.get("state") == "firing"} == set()
        eventually(lambda: value(f"afresh:records:rate5m{of}"), 60)
        for expr in dashboard.expressions(dashboard.dashboard()):
            value(expr.replace('stream="s"', of[1:-1]))
        series = {row["metric"]["__name__"] for row in ask(address, "query", query=of)["result"]}
    lines = exposed.splitlines()
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == NAMES
    there = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert there - series == {"afresh_build_info"}, "it has no stream"


def test_a_browser_shows_the_running_service(service: Service, tmp_path: Path) -> None:
    seen = browse(f"{service.address}/", tmp_path)
    assert seen.console == []
    assert {url.removeprefix(service.address) for url in seen.asked} == {"/page.json", "/map.json"}
    assert {key: seen.text(key) for key in ("entities", "lag", "dead", "release")} == {
        "entities": str(ENTITIES), "lag": "0", "dead": "2", "release": "1",
    }  # fmt: skip
    assert seen.text("loss") != "–"
    assert "missing_time" in seen.dom and f"{service.name} [" in seen.dom
    assert ">well<" in seen.dom and "1 current" in seen.dom
    assert f"{ENTITIES} of the newest" in seen.dom


def test_rolled_back_in_one_command_readers_see_the_old_release(service: Service) -> None:
    """Vectors follow; nothing is released until somebody asks for it."""

    def by() -> set[int]:
        return {row["release"] for row in service.json("lookup", *service.produced)}

    service.produce(600)
    eventually(lambda: "Release 2 is served" in service.run("release").stdout, 60, "a release")
    eventually(lambda: by() == {2}, 30, "vectors of it")
    done = service.run("rollback")
    assert "Release 1 is served in place of 2" in done.stdout, done.stderr
    assert service.json("status")["publisher"]["release"] == 1
    eventually(lambda: by() == {1}, 30, "vectors of the old one")
    assert "rolled back to 1" in service.run("releases").stdout
    assert "there is no release before 1" in service.run("rollback").stderr
    service.produce(600)
    eventually(lambda: "Release 3 is served" in service.run("release").stdout, 60, "a release")
    assert "no release comes by itself" not in service.run("releases").stdout.lower()
    eventually(lambda: by() == {3}, 30, "vectors of it")


def test_a_second_daemon_is_refused_and_told_who_holds_it(service: Service) -> None:
    done = service.run("run")
    assert done.returncode == 3
    assert service.process is not None
    assert f":{service.process.pid} (epoch 1), which is alive" in done.stderr.replace("\n", " ")
    assert service.process.poll() is None


def test_forget_deletes_everywhere(service: Service) -> None:
    assert service.run("forget", "e5").returncode == 0
    (row,) = service.json("lookup", "e5")
    assert not row["found"]
    del service.produced["e5"]
    groups = [g for s in service.json("status")["shards"].values() for g in s["groups"]]
    assert sum(g["entities"] for g in groups) == ENTITIES - 1


def test_it_drains_and_the_next_one_continues(service: Service) -> None:
    service.produce(100)
    assert service.stop() == 0
    done = service.run("status")
    assert done.returncode == 1
    assert "no daemon of" in done.stderr
    service.produce(100)
    service.watched.clear()
    service.start()
    assert not any("no release" in text for _, reasons in service.watched for text in reasons)
    eventually(lambda: service.counts() == service.produced, 30)
    eventually(lambda: service.json("status")["learner"] is not None, 60)
    found = service.json("status")
    assert found["epoch"] == 2
    assert found["learner"]["updates"] >= 3
    assert service.stop(signal.SIGINT) == 0
