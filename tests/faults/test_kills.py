"""kill -9 of the daemon and of each actor process in mid-stream: nothing lost, nothing doubled, never back.

One short round each; `make test-faults` kills each ten times."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.faults import GROUPS, Service, kills, service, until


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
    until(running.settled, 60, running)
    assert running.stop() == 0
    assert running.in_state() == running.counts


@pytest.mark.timeout(120)
def test_without_a_learner_vectors_stay_fresh_and_snapshots_go_on(running: Service) -> None:
    text = running.config.read_text()
    running.config.write_text(text.replace("[learner]", "[learner]\nenabled = false"))
    running.start()
    running.send(300)
    until(running.settled, 60, running)
    until(running.snapshotted, 30, running)
    assert running.stop() == 0
    assert running.in_state() == running.counts and running.worst() <= 1e-5


def test_without_a_learner_and_a_release_the_start_is_refused(running: Service) -> None:
    config = running.folder / "other.toml"
    config.write_text(running.config.read_text().replace('name = "faults"', 'name = "other"'))
    command = [sys.executable, "-m", "daemon", "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "learner.enabled is false and there is no release to serve" in done.stderr
