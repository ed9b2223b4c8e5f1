"""Whole graphs on four partitions: whatever dies, each graph's vector is that of its live edges."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.encode import Release
from actors.served import current_release
from benchmarks.faults import processes
from benchmarks.faults.outcome import Outcome, state_differs
from benchmarks.faults.service import Service, service, until
from schemas.published import OF_GRAPHS, entity_key
from schemas.records import category_hash
from tests.faults.conftest import Lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
FAULTS: dict[str, Callable[[Service, int, int], Outcome]] = {
    "a shard is killed": partial(processes.kill_actor, what="ShardProcess"),
    "the daemon is killed": processes.kill_driver,
}


@pytest.fixture(scope="module")
def graphs(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "whole", lab.kafka, lab.redis, topic="whole", kind="whole") as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_each_edge_counts_once(graphs: Service, fault: str) -> None:
    outcome = FAULTS[fault](graphs, 1, len(fault))
    assert outcome.ok, outcome


def live(of: Service, name: str) -> list[dict[str, Any]]:
    """The newest L edges without the removed ones, one by one from what was sent."""
    mine = [msgspec.json.decode(value) for key, value in of.sent if key.decode() == name]
    found: list[dict[str, Any]] = []
    for e in mine[-of.settings.encoder.window :]:
        if "op" in e:
            found = [f for f in found if {f["near"], f["far"]} != {e["near"], e["far"]}]
        else:
            found.append(e)
    return found


def test_the_released_encoder_makes_each_vector_of_the_live_edges(graphs: Service) -> None:
    """With the graph's names, hashes and columns as the manifest tells them."""
    until(graphs.settled, 60, graphs)
    number = current_release(graphs.settings.releases)
    release = Release.load(graphs.settings.releases / str(number))
    m = release.manifest
    assert (m.anchor, m.step, m.score) == (OF_GRAPHS, (), ())
    assert (m.numbers, m.categories) == (("amount", "id"), ("source", "neighbour", "what"))
    compared = 0
    for name, (count, by, vector) in graphs.published().items():
        assert count == graphs.counts[name]
        if by != number:
            continue  # a release has just come
        edges = live(graphs, name)
        feed = {
            "time_us": np.array([[e["at"] * 1_000_000 for e in edges]]),
            "numbers": np.array(
                [[(e.get("amount", np.nan), e["id"]) for e in edges]], np.float32
            ).reshape(1, -1, 2),
            "categories": np.array(
                [[[category_hash(e[c]) for c in ("near", "far", "what")] for e in edges]], np.int64
            ).reshape(1, -1, 3),
            "missing": np.zeros((1, len(edges), 3), np.bool_),
            "length": np.array([len(edges)]),
        }
        found: Any = release.encode_session.run(None, feed)[0]
        np.testing.assert_allclose(vector, found[0], atol=1e-5)
        compared += 1
    assert compared > len(graphs.counts) // 2
    generation = graphs.reader.generation()
    key = entity_key(graphs.settings.name, generation, next(iter(graphs.counts)))
    assert graphs.reader._redis.hget(key, "neighbours") is None, "only nodes publish their edges"


def test_what_is_snapshotted_is_what_was_sent(graphs: Service) -> None:
    assert graphs.stop() == 0
    assert state_differs(graphs) == []
