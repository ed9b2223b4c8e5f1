"""A graph on four partitions: whatever dies, each edge counts once on each side."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.faults import brokers, processes
from benchmarks.faults.outcome import Outcome, state_differs
from benchmarks.faults.service import Service, service
from schemas.errors import AfreshError
from schemas.published import EDGE, entity_key
from schemas.records import category_hash
from tests.faults.conftest import Lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
FAULTS: dict[str, Callable[[Service, int, int], Outcome]] = {
    "a shard is killed": partial(processes.kill_actor, what="ShardProcess"),
    "Kafka is killed": brokers.killed,
}


@pytest.fixture(scope="module")
def graph(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "graph", lab.kafka, lab.redis, topic="graph", kind="graph") as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_each_edge_counts_once_on_each_side(graph: Service, fault: str) -> None:
    outcome = FAULTS[fault](graph, 1, len(fault))
    assert outcome.ok, outcome


def test_a_node_publishes_its_edges_and_pairs_are_scored_by_them(graph: Service) -> None:
    names = sorted(graph.counts)
    generation, window = graph.reader.generation(), graph.settings.encoder.window
    hashes = {category_hash(name) for name in names}
    for name in names:
        key = entity_key(graph.settings.name, generation, name)
        found: Any = graph.reader._redis.hmget(key, ["neighbours", "time_us", "count"])
        edges = np.frombuffer(found[0], EDGE)
        assert len(edges) == min(window, int(found[2]))  # far more were sent
        assert (np.diff(edges["time_us"]) >= 0).all()
        assert edges["time_us"][-1] <= int(found[1])
        assert set(edges["neighbour"].tolist()) <= hashes
        assert set(edges["direction"].tolist()) <= {0.0, 1.0}
    now_us = 2_000_000_000_000_000
    told = graph.reader.score(names[0], [*names[1:], "nobody"], now_us)
    assert [known for _, _, known in told] == [True] * (len(names) - 1) + [False]
    logits = np.array([logit for _, logit, known in told if known])
    assert np.isfinite(logits).all() and np.ptp(logits) > 0
    alone = graph.reader.score(names[0], names[3:4], now_us)
    assert alone[0][1] == pytest.approx(logits[2], abs=1e-5), "company changes no score"
    command = [sys.executable, "-m", "daemon", "score", names[0], names[3], "nobody", "--json"]
    asked = [*command, "--now", "2033-05-18T03:33:20Z", "--config", str(graph.config)]
    printed = json.loads(subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout)
    assert printed[0] == {"node": names[3], "score": pytest.approx(logits[2], abs=1e-5)}
    assert printed[1] == {"node": "nobody", "score": None}
    with pytest.raises(AfreshError, match="no node 'nobody'"):
        graph.reader.score("nobody", names[:1], now_us)


def test_what_is_snapshotted_is_what_was_sent(graph: Service) -> None:
    assert graph.stop() == 0
    assert state_differs(graph) == []
