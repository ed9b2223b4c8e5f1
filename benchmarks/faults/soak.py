"""Half the maximum rate for as long as is asked, with a kill every minute: what grows, and what is left over."""

import random
import time
from functools import partial

import numpy as np
import psutil

from benchmarks.faults.processes import ACTORS
from benchmarks.faults.service import Outcome, Service, rounds_of, until, wait
from benchmarks.items import Item, at_most, shown

RATE = 1000
EVERY_S = 60.0


def soak(of: Service, seconds: float) -> tuple[Outcome, list[Item]]:
    """Every minute one of shard, learner and publisher is killed; samples are taken before each kill."""
    samples: list[
        tuple[float, float, int, float]
    ] = []  # seconds, MB of the daemon, its files, MB of the GCS
    began, seed = time.monotonic(), 0
    outcome = Outcome("soak", 0)
    shards: dict[int, float] = {}
    while time.monotonic() - began < seconds:
        until_s = time.monotonic() + min(EVERY_S, seconds)
        while time.monotonic() < until_s:
            of.send(RATE // 4)
            wait(0.2)
        samples.append((time.monotonic() - began, *_sample(of)))
        what = ACTORS[seed % len(ACTORS)]
        one = rounds_of(of, "soak", 1, seed, partial(_kill, of, what))
        outcome.rounds += 1
        outcome.recover_s = max(outcome.recover_s, one.recover_s)
        seed += 1
    of.compare(outcome)
    orphans = _orphans(of)
    t, memory, files, gcs = (np.array(column) for column in zip(*samples, strict=True))
    slope = float(np.polyfit(t / 3600, memory, 1)[0]) if len(t) > 2 else 0.0
    outcome.note = f"{len(samples)} kills, {slope:+.0f} MB/h"
    del shards
    return outcome, [
        shown("soak: memory of the daemon, slope", slope, "MB/h"),
        shown("soak: memory of the daemon, last less first", float(memory[-1] - memory[0]), "MB"),
        at_most("soak: open files, last less first", float(files[-1] - files[0]), "", 8),
        at_most("soak: memory of the GCS", float(gcs[-1]), "MB", 150),
        at_most("soak: processes left over", orphans, "", 0),
    ]


def _kill(of: Service, what: str, _: random.Random) -> None:
    until(partial(of.kill, what), 60, of)


def _sample(of: Service) -> tuple[float, int, float]:
    daemon, gcs = of.find("daemon"), of.find("gcs_server")
    assert daemon is not None and gcs is not None
    return daemon.memory_info().rss / 2**20, daemon.num_fds(), gcs.memory_info().rss / 2**20


def _orphans(of: Service) -> int:
    """Actors beyond one learner, one publisher and the shards."""
    names = [" ".join(p.cmdline()) for p in of.tree() if p.status() != psutil.STATUS_ZOMBIE]
    return sum("ray::" in n and any(a in n for a in ACTORS) for n in names) - of.shards - 2
