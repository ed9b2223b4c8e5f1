"""Rollback, through the real daemon under a steady stream: when readers of `current` are back at the old release, and
when the vectors of all resident entities are."""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

from actors import requests
from benchmarks import flow
from benchmarks.freshness import EVENTS, SETTINGS, caught_up, daemon, load, until
from benchmarks.items import Item, at_most, shown
from benchmarks.shard_path import produce
from schemas.published import current_key, entity_key

NAME = EVENTS.name
RATE = 500.0  # records per second beside it
RELEASES = 3
POLL_S = 0.002


def settings(folder: Path, brokers: str, url: str) -> str:
    """The benchmark of freshness's, without a learner: its releases are there, and none comes by itself."""
    text = SETTINGS.format(
        name=NAME, folder=folder, stream=EVENTS.stream, brokers=brokers, url=url,
        encoder=EVENTS.encoder, objective=EVENTS.objective,
    )  # fmt: skip
    return text.replace("objective", "enabled = false, objective")


def served(client: redis.Redis) -> int:
    return int(client.hget(current_key(NAME), "release") or 0)


def wait(done: Callable[[], bool], began: float, seconds: float, every: float = POLL_S) -> float:
    """Seconds since `began` until it is done."""
    while not done():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(every)
    return time.perf_counter() - began


def unlike(client: redis.Redis, release: int) -> int:
    """Entities of the history whose vector is not that release's."""
    pipe = client.pipeline(transaction=False)
    for entity in range(flow.ENTITIES):
        pipe.hget(entity_key(NAME, 1, flow.name_of(entity)), "release")
    return sum(found is None or int(found) != release for found in pipe.execute())


def measure(brokers: str, url: str) -> list[Item]:
    produce(brokers, NAME, EVENTS.history())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(1, RELEASES + 1):
            flow.release(folder / NAME / "releases", number)
        with daemon(folder, settings(folder, brokers, url), NAME) as status:
            context = multiprocessing.get_context("spawn")
            stop, speed = context.Event(), context.Value("d", RATE)
            producing = context.Process(target=load, args=(brokers, speed, stop, EVENTS))
            producing.start()
            try:
                until(status, caught_up, 300)
                with redis.Redis.from_url(url) as client:
                    found = _both(client, folder)
            finally:
                stop.set()
                producing.join()
    return found


def _both(client: redis.Redis, folder: Path) -> list[Item]:
    newest = RELEASES
    wait(lambda: unlike(client, newest) == 0, time.perf_counter(), 120, 0.1)
    began = time.perf_counter()
    requests.ask(folder / NAME / "releases", requests.Request(rollback=newest - 1))
    read = wait(lambda: served(client) == newest - 1, began, 30)
    vectors = wait(lambda: unlike(client, newest - 1) == 0, began, 120, 0.05)
    command = [sys.executable, "-m", "daemon", "rollback", str(newest - 2), "--config"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, str(folder / "afresh.toml")])
    by_command = wait(lambda: served(client) == newest - 2, began, 60)
    process.wait()
    returned = time.perf_counter() - began
    if process.returncode or served(client) != newest - 2:
        raise RuntimeError(f"afresh rollback: exit code {process.returncode}")
    after = wait(lambda: unlike(client, newest - 2) == 0, began, 120, 0.05)
    what = "rollback"
    return [
        at_most(f"{what}, asked until `current` names the old release", read, "s", 1.0),
        shown(f"{what}, until all {flow.ENTITIES:,} vectors are its own", vectors, "s"),
        shown(f"{what} by `afresh rollback`, its start included, until `current`", by_command, "s"),
        shown(f"{what} by `afresh rollback`, until the command returns", returned, "s"),
        shown(f"{what} by `afresh rollback`, until all vectors are the old release's", after, "s"),
    ]
