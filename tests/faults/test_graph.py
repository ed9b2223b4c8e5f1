"""A graph on four partitions: whatever dies, each edge counts once on each side."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from benchmarks.faults import brokers, processes
from benchmarks.faults.outcome import Outcome, state_differs
from benchmarks.faults.service import Service, service
from tests.faults.conftest import Lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
FAULTS: dict[str, Callable[[Service, int, int], Outcome]] = {
    "a shard is killed": partial(processes.kill_actor, what="ShardProcess"),
    "Kafka is killed": brokers.killed,
    "stopped under load": processes.stop_under_load,
    "four shards, then one": processes.rescale,
}


@pytest.fixture(scope="module")
def graph(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "graph", lab.kafka, lab.redis, topic="graph", graph=True) as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_each_edge_counts_once_on_each_side(graph: Service, fault: str) -> None:
    outcome = FAULTS[fault](graph, 1, len(fault))
    assert outcome.ok, outcome


def test_what_is_snapshotted_is_what_was_sent(graph: Service) -> None:
    assert graph.stop() == 0
    assert state_differs(graph) == []
