"""Does the test on embeddings cry wolf, and how soon does it see what changed? `make quality-drift`

On three real streams (purchases, messages, images), each by an encoder that learnt from its first half. **Without a
change**: windows resampled from one period; the run length, batches to the first alarm, is to be within 30% of what was
asked for.
**With one**: delays, of changes that are planted in the records, and of Online Retail before and after 1 June 2011.
**As it is**: alarms on the stream in its order, where the world changes by itself; there is no bar.

Beside it, on the same vectors in the same order: alibi-detect's online MMD and Evidently's drift of embeddings, in an
environment of their own: drift_others.py."""

import json
import os
import sys
import time
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.drift_others import drawn
from benchmarks.drift_streams import STREAMS, Stream, learnt, period, vectors
from benchmarks.items import Item, shown
from benchmarks.reference import BUILD, DRIFT, Columns, Missing
from learning.kinds.events import subset
from learning.mmd import BATCH, MmdDrift
from learning.watch import REFERENCE, RUN_LENGTH
from schemas.records import F32, I64

OUT = BUILD / "quality-drift.json"
RUNS = int(os.environ.get("AFRESH_RUNS", "200"))  # without a change
CHANGED = 10  # with one
THEIRS = 40, 5  # of the others
MOST = int(4 * RUN_LENGTH)  # batches of a run
JUNE_US = int(np.datetime64("2011-06-01", "us").astype(np.int64))
WEEK_US = 7 * 86_400_000_000
OURS, OTHERS = "afresh", {"alibi": "alibi-detect", "evidently": "Evidently"}
NULL = "run length"


class Case(NamedTuple):
    """Vectors to draw from, [N, D]."""

    what: str
    reference: F32
    stream: F32


class Waited(NamedTuple):
    """Of several runs: batches until the first alarm, or until they were cut off, and which."""

    batches: F32 | I64
    alarms: F32 | I64

    def mean(self) -> tuple[float, float]:
        """Mean batches to an alarm, of a time that is cut off, and its standard error; inf: there was none."""
        alarms = float(self.alarms.sum())
        if not alarms:
            return float("inf"), float("nan")
        mean = float(self.batches.sum()) / alarms
        return mean, float(np.square(self.batches - mean * self.alarms).sum()) ** 0.5 / alarms


def ours(case: Case, runs: int, name: str) -> Waited:
    """Each with a reference of its own, as each daemon has."""
    found = []
    for run in track(range(runs), f"{name}: {case.what}", transient=True):
        reference, rows = drawn(case.reference, case.stream, run, MOST)
        drift = MmdDrift(reference, RUN_LENGTH, np.random.default_rng([2, run]))
        features = drift.features(case.stream)
        values = (drift.step(features[row].mean(0)) for row in rows)
        alarm = next(
            (n for n, v in zip(count(1), values) if v is not None and v > drift.threshold), 0
        )
        found.append((alarm or MOST, bool(alarm)))
    return Waited(*np.array(found).T)


def theirs(who: str, cases: list[Case]) -> tuple[list[Waited], float]:
    """And µs of a sample; raises Missing."""
    columns: Columns = {
        "runs": np.array([THEIRS[case.what != NULL] for case in cases]),
        "most": np.array(MOST), "target": np.array(RUN_LENGTH),
    }  # fmt: skip
    for at, case in enumerate(cases):
        columns |= {f"reference_{at}": case.reference, f"stream_{at}": case.stream}
    answer = json.loads(DRIFT.ask(who, columns, ".json").read_text())
    pairs = zip(answer["batches"], answer["alarms"], strict=True)
    return [Waited(np.array(n), np.array(alarm)) for n, alarm in pairs], float(answer["us"])


def as_it_is(z: F32, time_us: I64) -> float:
    """Alarms in a week of the stream's time, in its order, after the reference."""
    drift = MmdDrift(z[:REFERENCE], RUN_LENGTH, np.random.default_rng(0))
    alarms = 0
    for lo in range(REFERENCE, len(z) - BATCH, BATCH):
        value = drift.update(z[lo : lo + BATCH])
        if value is not None and value > drift.threshold:
            alarms += 1
            drift.begin()
    weeks = (time_us[-1] - time_us[REFERENCE]) / WEEK_US
    return float(alarms / max(weeks, 1e-9))


def of_a_sample(z: F32) -> float:
    """µs of CPU."""
    drift = MmdDrift(z[:REFERENCE], RUN_LENGTH, np.random.default_rng(3))
    began = time.process_time()
    for lo in range(0, 40 * BATCH, BATCH):
        drift.update(z[lo : lo + BATCH])
    return (time.process_time() - began) / 40 / BATCH * 1e6


def to_calibrate(z: F32) -> float:
    """Seconds of CPU that a new release costs, encoding apart."""
    began = time.process_time()
    MmdDrift(z[:REFERENCE], RUN_LENGTH, np.random.default_rng(3))
    return time.process_time() - began


def measured(stream: Stream, console: Console) -> list[Item]:
    name, when = stream.name, stream.time_us
    with console.status(f"{name}: learning from {len(stream.windows) // 2:,} windows"):
        encoder = learnt(stream)
        every = vectors(encoder, stream.windows)
    part = period(stream.windows)
    windows, z, rng = subset(stream.windows, part), every[part], np.random.default_rng(3)
    cases = [Case(NULL, z, z)]
    for what, change in stream.changes.items():
        cases.append(Case(f"delay, {what}", z, vectors(encoder, change(windows, rng))))
    if name == "purchases":
        june = every[when < JUNE_US], every[when >= JUNE_US]
        cases.append(Case("delay, before and after 1 June", *june))
    found = [ours(case, CHANGED if at else RUNS, name) for at, case in enumerate(cases)]
    items = _items(name, OURS, cases, found)
    if name != "images":  # which have no order in time
        items.append(shown(f"{name}: alarms as it is", as_it_is(every, when), "a week"))
    items.append(shown(f"{name}: a sample, {OURS}", of_a_sample(z), "µs"))
    items.append(shown(f"{name}: to calibrate, {OURS}", to_calibrate(z), "s"))
    for key, who in OTHERS.items():
        try:
            with console.status(f"{name}: {who}; its first run on these vectors takes minutes"):
                found, us = theirs(key, cases)
        except Missing as why:
            console.print(f"Without {who}: {why}")
            continue
        items += [*_items(name, who, cases, found), shown(f"{name}: a sample, {who}", us, "µs")]
    return items


def _items(name: str, who: str, cases: list[Case], found: list[Waited]) -> list[Item]:
    items = []
    for case, waited in zip(cases, found, strict=True):
        mean, error = waited.mean()
        item = shown(f"{name}: {case.what}, {who}", mean, "batches")
        if case.what == NULL:
            text = f"{name}: run length, standard error, {who}"
            items.append(shown(text, error, "batches"))
            if who == OURS:
                item["bar"], item["ok"] = RUN_LENGTH, abs(mean - RUN_LENGTH) <= 0.3 * RUN_LENGTH
        items.append(item)
    return items


def table(name: str, items: list[Item]) -> Table:
    """A row for each measure, a column for each detector."""
    out = Table(f"{name}, batches where nothing else is said", OURS, *OTHERS.values(), "bar")
    of = {item["name"]: item for item in items}
    whats = [
        n.removesuffix(f", {OURS}").removeprefix(f"{name}: ") for n in of if n.startswith(name)
    ]
    for what in dict.fromkeys(w for w in whats if not w.endswith(tuple(OTHERS.values()))):
        cells, bar = [], ""
        for who in (OURS, *OTHERS.values()):
            item = of.get(f"{name}: {what}, {who}") or (
                of.get(f"{name}: {what}") if who == OURS else None
            )
            unit = "" if item is None or item["unit"] == "batches" else f" {item['unit']}"
            cells.append("" if item is None else f"{item['value']:,.4g}{unit}")
            if item is not None and item["bar"] is not None:
                bar = f"{item['bar']:.0f} ± 30%: {'yes' if item['ok'] else 'no'}"
        out.add_row(what, *cells, bar)
    return out


def main(asked: list[str]) -> None:
    given = os.environ.get("AFRESH_DATA")
    if not given or not Path(given).is_dir():
        sys.exit("AFRESH_DATA must name the data folder: make quality-drift AFRESH_DATA=folder")
    if unknown := set(asked) - set(STREAMS):
        sys.exit(f"No stream {', '.join(sorted(unknown))}; there are: {', '.join(STREAMS)}.")
    torch.set_num_threads(1)
    console, items = Console(width=120), list[Item]()
    BUILD.mkdir(exist_ok=True)
    for name in asked or STREAMS:
        items += measured(STREAMS[name](Path(given)), console)
        OUT.write_text(json.dumps(items, indent=1))
        console.print(table(name, items))


if __name__ == "__main__":
    main(sys.argv[1:])
