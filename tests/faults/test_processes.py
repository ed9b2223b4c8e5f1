"""Whatever process dies, hangs or comes twice: nothing lost, nothing doubled, no reader goes back.

One short round each; `make test-faults` does many."""

from functools import partial

import pytest

from benchmarks.faults import processes
from benchmarks.faults.outcome import Outcome, compare, state_differs
from benchmarks.faults.service import Service, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def exact(outcome: Outcome) -> bool:
    assert outcome.ok, outcome
    return outcome.sent > 0


@pytest.mark.parametrize(
    ("what", "rounds"), [("ShardProcess", 2), ("LearnProcess", 1), ("PublishProcess", 1)]
)
def test_an_actor_is_killed(of: Service, what: str, rounds: int) -> None:
    assert exact(processes.kill_actor(of, rounds, 1, what))


def test_one_shard_is_dead_and_the_others_serve(of: Service) -> None:
    assert exact(processes.others_serve(of, 1, 2))


def test_the_daemon_is_killed(of: Service) -> None:
    assert exact(processes.kill_driver(of, 1, 3))


@pytest.mark.parametrize("what", ["raylet", "gcs_server"])
def test_ray_is_killed_and_a_standby_takes_over(of: Service, what: str) -> None:
    assert exact(processes.kill_ray(of, 1, 4, what))


def test_a_daemon_that_stood_still_for_longer_than_its_lease_is_fenced(of: Service) -> None:
    assert exact(processes.freeze_daemon(of, 1, 5))


def test_a_shard_that_stands_still_is_replaced(of: Service) -> None:
    assert exact(processes.hang_actor(of, 1, 6))


def test_a_second_daemon_is_told_who_holds_the_service(of: Service) -> None:
    assert exact(processes.twice(of, 1, 7))


def test_without_an_answer_of_the_learner_vectors_stay_fresh_and_snapshots_go_on(
    of: Service,
) -> None:
    assert exact(processes.silent_learner(of, 1, 8))


def test_a_stop_under_load_drains(of: Service) -> None:
    assert exact(processes.stop_under_load(of, 1, 9))


def test_with_other_numbers_of_shards_the_state_is_the_same(of: Service) -> None:
    assert exact(processes.rescale(of, 1, 10, (4, 1, 2)))


def test_without_a_learner_vectors_stay_fresh_and_snapshots_go_on(of: Service) -> None:
    until(of.settled, 60, of)
    before = of.epoch()
    assert of.stop() == 0
    of.configure(of.shards, ("[learner]", "[learner]\nenabled = false"))
    of.start()
    until(partial(of.succeeded, before), 60, of)
    of.send(300)
    until(of.settled, 60, of)
    until(lambda: of.snapshots() > 1, 30, of)
    assert exact(compare(of, Outcome("no learner", 1)))
    assert of.stop() == 0
    assert state_differs(of) == []
    of.configure(of.shards)
    of.start()
    until(partial(of.succeeded, before), 60, of)
