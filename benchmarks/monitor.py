"""What watching costs: records per second that the daemon takes with `learner.watch` on and off, in pairs.

The learner learns in both, and snapshots and releases far more often than it does by default, for that is when the
monitor works most. Each run is a daemon of its own on a topic of its own, under more records than it can take."""

import dataclasses
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.freshness import (
    BEFORE,
    EVENTS,
    FLOOD,
    Flow,
    caught_up,
    daemon,
    load,
    settings,
    shard,
    until,
)
from benchmarks.items import Item, at_least, shown
from benchmarks.shard_path import produce

PAIRS, SECONDS, SETTLE_S = 4, 20.0, 10.0
EVERY_S = 20  # between two releases; 300 by default
BAR = 0.95


def measure(brokers: str, url: str) -> list[Item]:
    rates = np.zeros((PAIRS, 2))
    for pair in range(PAIRS):
        for on in (1, 0) if pair % 2 else (0, 1):
            rates[pair, on] = rate(brokers, url, pair, watch=bool(on))
    ratio = rates[:, 1] / rates[:, 0]
    off, on_rate = np.median(rates, axis=0).tolist()
    what = "daemon beside its learner"
    return [
        at_least(f"{what}, monitor on against off", float(np.median(ratio)), "ratio", BAR),
        shown("... lowest of the pairs", float(ratio.min()), "ratio"),
        shown("... highest of the pairs", float(ratio.max()), "ratio"),
        shown(f"{what}, monitor on", on_rate, "records/s"),
        shown(f"{what}, monitor off", off, "records/s"),
    ]


def rate(brokers: str, url: str, pair: int, *, watch: bool) -> float:
    """Of one daemon."""
    of = dataclasses.replace(EVENTS, name=f"bench-monitor-{pair}-{'on' if watch else 'off'}")
    produce(brokers, of.name, of.history())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = settings(folder, brokers, url, of).replace("every_s = 3600", f"every_s = {EVERY_S}")
        text = text.replace("learner = {", f"learner = {{ watch = {str(watch).lower()},")
        with daemon(folder, text, of.name) as status:
            return _flooded(brokers, status, of)


def _flooded(brokers: str, status: Any, of: Flow) -> float:
    context = multiprocessing.get_context("spawn")
    stop, speed = context.Event(), context.Value("d", BEFORE)
    producing = context.Process(target=load, args=(brokers, speed, stop, of))
    producing.start()
    try:
        until(status, caught_up, 600)
        speed.value = FLOOD
        time.sleep(SETTLE_S)
        before, began = shard(status())["accepted"], time.perf_counter()
        time.sleep(SECONDS)
        return float((shard(status())["accepted"] - before) / (time.perf_counter() - began))
    finally:
        stop.set()
        producing.join()
