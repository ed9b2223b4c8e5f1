"""kill -9 of the daemon and of each actor process in mid-stream: nothing lost, nothing doubled, never back.

One short round each; `make test-faults` kills each ten times."""

from collections.abc import Iterator

import pytest

from benchmarks.faults import GROUPS, Service, kills, service


@pytest.fixture(scope="module")
def running(
    kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    from daemon import servers

    topic = tmp_path_factory.mktemp("faults").name
    servers.create_topics(kafka, {topic: GROUPS, f"{topic}.dlq": 1})
    with service(tmp_path_factory.mktemp("service"), kafka, redis_server, topic) as found:
        yield found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("what", "rounds"),
    [("ShardProcess", 3), ("LearnProcess", 1), ("PublishProcess", 1), ("daemon", 2)],
)
def test_a_kill_loses_and_doubles_nothing(running: Service, what: str, rounds: int) -> None:
    outcome = kills(running, what, rounds, seed=rounds)
    assert (outcome.lost, outcome.doubled, running.falls) == (0, 0, [])
    assert outcome.worst <= 1e-5


@pytest.mark.timeout(120)
def test_a_stop_drains_and_the_state_holds_what_was_sent(running: Service) -> None:
    running.send(500)
    assert running.stop() == 0
    assert running.in_state() == running.counts
