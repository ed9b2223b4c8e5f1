"""Redis dies, stalls, loses its data, comes back older, or crawls."""

import random
import threading

import psutil
import redis

from benchmarks.faults.outcome import Outcome, rounds_of
from benchmarks.faults.service import Service, until, wait


def _client(of: Service) -> redis.Redis:
    return redis.Redis.from_url(f"redis://{of.redis.address}", socket_timeout=10)


def wiped(of: Service, rounds: int, seed: int) -> Outcome:
    """kill -9 without an append-only file: it comes back empty, under another run_id."""

    def act(rng: random.Random) -> None:
        of.redis.kill()
        of.send(rng.randrange(1, 200))
        (of.redis.folder / "dump.rdb").unlink(missing_ok=True)
        of.redis.start()

    return rounds_of(of, "Redis kill -9, nothing kept", rounds, seed, act)


def killed(of: Service, rounds: int, seed: int) -> Outcome:
    """kill -9 with an append-only file."""
    command = list(of.redis.command)
    with _client(of) as client:
        client.config_set("appendonly", "yes")
        until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 30, of)
    of.redis.command[:] = [*command, "--appendonly", "yes"]

    def act(rng: random.Random) -> None:
        of.redis.kill()
        of.send(rng.randrange(1, 200))
        of.redis.start()

    try:
        return rounds_of(of, "Redis kill -9, append-only file", rounds, seed, act)
    finally:
        with _client(of) as client:
            client.config_set("appendonly", "no")
        of.redis.command[:] = command


def stalled(of: Service, rounds: int, seed: int, seconds: float) -> Outcome:
    """It holds its connections and does not answer; what was sent meanwhile may still be carried out."""

    def act(rng: random.Random) -> None:
        of.redis.pause()
        try:
            of.send(rng.randrange(1, 200))
            wait(seconds)
        finally:
            of.redis.resume()

    return rounds_of(of, f"Redis stalls for {seconds:g} s", rounds, seed, act)


def flushed(of: Service, rounds: int, seed: int) -> Outcome:
    """FLUSHALL under the running service."""

    def act(_: random.Random) -> None:
        with _client(of) as client:
            client.flushall()

    return rounds_of(of, "Redis FLUSHALL", rounds, seed, act)


def older(of: Service, rounds: int, seed: int) -> Outcome:
    """Restarted from a dump that knows less: readers of Redis itself go back, then all is right again."""

    def act(rng: random.Random) -> None:
        with _client(of) as client:
            client.save()
        of.send(rng.randrange(200, 600))
        until(of.settled, 60, of)
        of.redis.kill()
        of.excuse()
        of.redis.start()
        of.excuse()
        (of.redis.folder / "dump.rdb").unlink(missing_ok=True)

    return rounds_of(of, "Redis restarted from an old dump", rounds, seed, act)


def crawling(of: Service, rounds: int, seed: int, seconds: float = 5.0) -> Outcome:
    """It runs for 10 ms of each second. What waits is bounded: Kafka keeps it, not our memory."""
    grown = 0.0

    def act(_: random.Random) -> None:
        nonlocal grown
        ended = threading.Event()

        def crawl() -> None:
            while not ended.is_set():
                of.redis.pause()
                ended.wait(0.99)
                of.redis.resume()
                ended.wait(0.01)

        shard = of.find("ShardProcess")
        assert shard is not None
        before = shard.memory_info().rss
        thread = threading.Thread(target=crawl)
        thread.start()
        try:
            for _second in range(int(seconds)):
                of.send(1000)
                wait(1.0)
            try:
                grown = max(grown, shard.memory_info().rss - before)
            except psutil.NoSuchProcess as error:
                raise AssertionError("the shard gave up on a slow Redis") from error
        finally:
            ended.set()
            thread.join()
            of.redis.resume()

    outcome = rounds_of(of, "Redis at 1% of its speed", rounds, seed, act)
    outcome.note = f"the shard grew by {grown / 2**20:.0f} MB"
    return outcome
