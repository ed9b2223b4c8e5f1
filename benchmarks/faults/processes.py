"""Processes of the service die, hang, are asked to stop, or come twice."""

import random
import signal
import time
from functools import partial

import psutil

from benchmarks.faults.outcome import Outcome, rounds_of, state_differs
from benchmarks.faults.service import Service, until

ACTORS = ("ShardProcess", "LearnProcess", "PublishProcess")
LOADING_S = {"ShardProcess": 0.0, "LearnProcess": 8.0, "PublishProcess": 4.0}


def kill_actor(of: Service, rounds: int, seed: int, what: str) -> Outcome:
    """The supervisor starts it again. One that has hardly begun is waited for: else it is what starts up
    that is killed, after ever longer pauses."""

    def act(rng: random.Random) -> None:
        old_enough = LOADING_S[what] + rng.random()
        until(lambda: of.age(what) > old_enough, 90, of)
        assert of.kill(what)

    return rounds_of(of, f"kill -9 {what}", rounds, seed, act)


def kill_driver(of: Service, rounds: int, seed: int) -> Outcome:
    """What it leaves behind may serve on for a moment; its successor fences it."""

    def act(rng: random.Random) -> None:
        before, daemon = of.epoch(), of.process
        assert daemon is not None
        daemon.kill()
        daemon.wait()
        of.send(rng.randrange(1, 200))
        of.start()
        until(partial(of.succeeded, before), 90, of)

    return rounds_of(of, "kill -9 daemon", rounds, seed, act)


def kill_ray(of: Service, rounds: int, seed: int, what: str) -> Outcome:
    """Of the raylet or the GCS: the daemon notices, says so and ends; a standby takes over."""

    def act(rng: random.Random) -> None:
        before, daemon = of.epoch(), of.process
        assert daemon is not None
        children = of.tree()
        until(partial(of.kill, what), 30, of)
        standby = of.start("--standby")
        of.send(rng.randrange(1, 200))
        assert daemon.wait(60) != 0, "a daemon without Ray says that it ended well"
        until(partial(of.succeeded, before), 90, of)
        gone(children)
        touched = of.of_group({0, 1, 2, 3})[:8]
        of.send_to(touched)
        until(of.settled, 60, of)
        epochs = of.writers(touched)
        assert min(epochs) > before, f"epoch {min(epochs)} wrote after {before} was replaced"
        assert of.process is standby

    return rounds_of(of, f"kill -9 {what}", rounds, seed, act)


def gone(processes: list[psutil.Process]) -> None:
    """Nothing of a daemon that ended is left."""
    left = psutil.wait_procs(processes, 20)[1]
    assert not left, f"orphans: {left}"


def freeze_daemon(of: Service, rounds: int, seed: int) -> Outcome:
    """All of it stands still for longer than the lease; a standby takes over; then the zombie goes on."""

    def act(rng: random.Random) -> None:
        before, zombie, tree = of.epoch(), of.process, of.tree()
        assert zombie is not None
        _signal(tree, signal.SIGSTOP)
        of.start("--standby")
        try:
            of.send(rng.randrange(1, 200))
            until(partial(of.succeeded, before), 90, of)
        finally:
            _signal(tree, signal.SIGCONT)
        assert zombie.wait(60) == 4, "the zombie ends with the code for a lost lease"
        assert of.said("a successor")
        gone(tree)

    return rounds_of(of, "SIGSTOP daemon, successor, SIGCONT", rounds, seed, act)


def _signal(tree: list[psutil.Process], number: signal.Signals) -> None:
    for process in tree:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def hang_actor(of: Service, rounds: int, seed: int) -> Outcome:
    """A shard that stands still is found by missing progress, and replaced."""

    def act(rng: random.Random) -> None:
        hung = of.find("ShardProcess")
        assert hung is not None
        hung.suspend()
        of.send(rng.randrange(1, 200))
        until(partial(_ended, hung), 60, of)

    return rounds_of(of, "SIGSTOP ShardProcess", rounds, seed, act)


def _ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def stop_under_load(of: Service, rounds: int, seed: int) -> Outcome:
    """SIGTERM with records under way: snapshots, exit 0; the next start goes on."""
    slowest = 0.0

    def act(_: random.Random) -> None:
        nonlocal slowest
        before = of.epoch()
        of.send(3000)
        began = time.monotonic()
        assert of.stop() == 0, "a drain in time ends with 0"
        slowest = max(slowest, time.monotonic() - began)
        of.start()
        until(partial(of.succeeded, before), 90, of)

    outcome = rounds_of(of, "SIGTERM under load", rounds, seed, act)
    outcome.note = f"stopped within {slowest:.1f} s"
    return outcome


def rescale(of: Service, rounds: int, seed: int, shards: tuple[int, ...] = (4, 1)) -> Outcome:
    """Stopped, and started with another number of shards."""
    turn = iter(shards * rounds)

    def act(rng: random.Random) -> None:
        until(of.settled, 60, of)
        before = of.epoch()
        assert of.stop() == 0
        assert state_differs(of) == []
        of.configure(next(turn))
        of.send(rng.randrange(1, 200))
        of.start()
        until(partial(of.succeeded, before), 90, of)

    return rounds_of(
        of, f"rescale to {', '.join(map(str, shards))} shards", rounds * len(shards), seed, act
    )


def others_serve(of: Service, rounds: int, seed: int) -> Outcome:
    """A shard is dead, and nobody starts it again yet: the other one's entities stay fresh."""

    def act(_: random.Random) -> None:
        daemon, dead = of.find("daemon"), of.find("ShardProcess")
        assert daemon is not None and dead is not None
        halves = [of.of_group({g, g + 2}) for g in range(2)]  # whose each shard of two is
        daemon.suspend()
        try:
            dead.kill()
            of.send_to((halves[0] + halves[1]) * 3)
            until(lambda: any(_fresh(of, half) for half in halves), 60, of)
            assert not all(_fresh(of, half) for half in halves), "the dead one serves"
        finally:
            daemon.resume()

    return rounds_of(of, "one shard dead, the others serve", rounds, seed, act)


def _fresh(of: Service, names: list[str]) -> bool:
    found = of.published()
    return all(name in found and found[name][0] == of.counts[name] for name in names)


def twice(of: Service, rounds: int, seed: int) -> Outcome:
    """A second daemon of the same name: refused, told who holds the service."""

    def act(_: random.Random) -> None:
        first = of.process
        second = of.start()
        assert second.wait(60) == 3
        assert of.said("is held by")
        of.process = first

    return rounds_of(of, "a second daemon", rounds, seed, act)


def silent_learner(of: Service, rounds: int, seed: int) -> Outcome:
    """The learner stands still for a while: vectors stay fresh and snapshots go on."""

    def act(rng: random.Random) -> None:
        learner = of.find("LearnProcess")
        assert learner is not None
        before = of.snapshots()
        learner.suspend()
        try:
            of.send(rng.randrange(200, 600))
            until(of.settled, 60, of)
            until(lambda: of.snapshots() > before + 1, 30, of)
        finally:
            learner.resume()

    return rounds_of(of, "a learner that does not answer", rounds, seed, act)
