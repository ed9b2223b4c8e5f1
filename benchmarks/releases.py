"""Export of a release, the first and the next one; and what a shard's stream sees when it adopts one."""

import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks import flow
from benchmarks.items import Item, at_most, shown
from benchmarks.shard_path import Served, messages, produce
from learning import export

RECORDS, SWAPS, SMALL = 60_000, 3, 64  # of a micro-batch: a shard that keeps up has small ones


def exports() -> list[Item]:
    """Seconds from weights to two checked graphs."""
    seconds = []
    for seed in range(4):
        encoder = flow.untrained(seed)
        began = time.perf_counter()
        export.export(encoder, {"release": str(seed)})
        seconds.append(time.perf_counter() - began)
    first, *later = seconds
    return [
        shown("export, the first", first, "s"),
        at_most("export, after the first", max(later), "s", 1.0),
    ]


def swap(brokers: str, url: str) -> list[Item]:
    """The longest turn of a shard while it adopts a release and re-encodes its entities, less a usual turn."""
    topic = "bench-swap"
    produce(brokers, topic, messages("json", flow.even(RECORDS)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flow.release(folder / "releases", 1)
        with closing(Served(brokers, url, topic, "json", folder)) as path:
            usual = [_turn(path) for _ in range(200)]
            extra, seconds = [], []
            for number in range(2, 2 + SWAPS):
                flow.release(folder / "releases", number)
                during = []
                while path.oldest() < number:
                    during.append(_turn(path))
                extra.append(max(during) - float(np.median(usual)))
                seconds.append(sum(during))
            pause = path.shard._stats.swap_pause.sum_s / (1 + SWAPS)
    what, before = "swap of releases", max(usual) - float(np.median(usual))
    return [
        at_most(
            f"{what}: longest turn, less a usual one", 1000 * float(np.median(extra)), "ms", 50
        ),
        shown(f"{what}: longest of 200 turns without one, less a usual one", 1000 * before, "ms"),
        shown(f"{what}: the adoption itself", 1000 * pause, "ms"),
        shown(f"{what}: {flow.ENTITIES:,} entities encoded anew", float(np.median(seconds)), "s"),
    ]


def _turn(path: Served) -> float:
    began = time.perf_counter()
    path.turn(SMALL)
    return time.perf_counter() - began
