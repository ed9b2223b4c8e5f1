"""What watching costs: records per second that the daemon takes with `learner.watch` on and off, in pairs.

Each run is a daemon of its own, on a topic of its own. It learns a history, is stopped, and finds a backlog longer than
it can take in the time, so that nothing is produced beside it. The learner learns in both, and snapshots and releases
fifteen times as often as by default, for that is when the monitor works most."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import flow
from benchmarks.freshness import EVENTS, caught_up, daemon, settings, shard, until
from benchmarks.items import Item, at_least, shown
from benchmarks.shard_path import produce

PAIRS, SECONDS, SETTLE_S = 5, 40.0, 5.0
EVERY_S = 20  # between two releases; 300 by default
BATCHES, ROWS = 7_000, 500  # of the backlog
BAR = 0.95


def measure(brokers: str, url: str) -> list[Item]:
    rates = np.zeros((PAIRS, 2))
    for pair in range(PAIRS):
        for on in (1, 0) if pair % 2 else (0, 1):
            rates[pair, on] = rate(brokers, url, f"bench-monitor-{pair}-{on}", watch=bool(on))
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


def backlog() -> Iterator[bytes]:
    """Arrow batches, each later than the one before: the same rows again and again."""
    made = [
        pa.ipc.open_stream(m).read_next_batch()
        for m in flow.arrow_messages(flow.even(10_000), ROWS)
    ]
    for at in range(BATCHES):
        batch, began = made[at % len(made)], flow.START_MS + 10**6 + at * ROWS
        times = pa.array(np.arange(began, began + ROWS))
        batch = batch.set_column(batch.schema.get_field_index("at"), "at", times)
        yield flow.arrow_message(batch)


def rate(brokers: str, url: str, name: str, *, watch: bool) -> float:
    """Of one daemon."""
    produce(brokers, name, flow.arrow_messages(flow.uneven()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = settings(folder, brokers, url, EVENTS).replace(EVENTS.name, name)
        text = text.replace("every_s = 3600", f"every_s = {EVERY_S}")
        text = text.replace("learner = {", f"learner = {{ watch = {str(watch).lower()},")
        text += 'decode = { format = "arrow" }\n'
        with daemon(folder, text, name) as status:
            until(status, caught_up, 600)
        produce(brokers, name, list(backlog()))
        with daemon(folder, text, name) as status:
            until(status, _serving, 60)
            time.sleep(SETTLE_S)
            return _taken(status)


def _serving(found: Any) -> bool:
    groups = shard(found)["groups"]
    return bool(groups) and all(group["phase"] == "serving" for group in groups)


def _taken(status: Any) -> float:
    before, began = status(), time.perf_counter()
    time.sleep(SECONDS)
    after, seconds = status(), time.perf_counter() - began
    if sum(group["lag"] for group in shard(after)["groups"]) == 0:
        raise RuntimeError(f"the backlog of {BATCHES * ROWS} rows was not long enough")
    return float(shard(after)["accepted"] - shard(before)["accepted"]) / seconds
