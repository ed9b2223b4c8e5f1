"""The daemon's answers over real HTTP."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from daemon.http import Http, as_json
from daemon.settings import HttpConfig
from daemon.totals import Snapshot
from schemas.errors import SettingsError
from schemas.stats import LearnerStats, ShardStats


class Known:
    """What the app would say."""

    def __init__(self) -> None:
        self.snapshot = Snapshot("flights", {"shard-0": ShardStats(accepted=3)}, LearnerStats())
        self.health: list[str] = []
        self.ready = ["there is no release yet"]


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def client(known: Known) -> Iterator[httpx.Client]:
    http = Http(
        HttpConfig(port=0), lambda: known.snapshot, lambda: known.health, lambda: known.ready
    )
    address = http.start()
    with httpx.Client(base_url=address, timeout=10) as made:
        yield made
    http.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_health_and_readiness_follow_the_app(client: httpx.Client, known: Known) -> None:
    assert client.get("/healthz").json() == {"ok": True, "reasons": []}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["there is no release yet"])
    known.ready, known.health = [], ["shard-0 has not moved for 40 s"]
    assert client.get("/readyz").status_code == 200
    assert client.get("/healthz").status_code == 503


def test_metrics_are_of_the_moment(client: httpx.Client, known: Known) -> None:
    def accepted() -> list[str]:
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return [
            x for x in answer.text.splitlines() if x.startswith("afresh_records_accepted_total")
        ]

    assert accepted() == ['afresh_records_accepted_total{stream="flights"} 3.0']
    known.snapshot.shards["shard-0"].accepted = 4
    assert accepted() == ['afresh_records_accepted_total{stream="flights"} 4.0']


def test_status_is_json_that_any_parser_reads(client: httpx.Client) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(client.get("/status").text, parse_constant=refuse)
    assert found["learner"]["loss"] is None, "NaN is null"
    assert found["shards"]["shard-0"]["accepted"] == 3
    assert (found["stream"], found["health"], found["ready"]) == (
        "flights", [], ["there is no release yet"],
    )  # fmt: skip


def test_what_is_not_there_is_404_and_nothing_can_be_changed(client: httpx.Client) -> None:
    assert client.get("/").status_code == 404
    assert client.post("/status").status_code == 405


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_taken_port_is_refused_with_what_to_do() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        http = Http(HttpConfig(port=port), lambda: Snapshot("s"), list, list)
        with pytest.raises(SettingsError, match=rf"http\.port {port}.*Change http\.port"):
            http.start()


def test_numbers_that_are_none_are_null_at_any_depth() -> None:
    given = {1: [float("inf"), {"a": float("nan")}, 1.5], "b": (2, "x", None, True)}
    assert as_json(given) == {"1": [None, {"a": None}, 1.5], "b": [2, "x", None, True]}
