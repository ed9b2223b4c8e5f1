"""Does the test on embeddings cry wolf, and how soon does it see what changed? `make quality-drift`

On three real streams (purchases, messages, images), each by an encoder that learnt from its first half. **Without a
change**: windows resampled from one period; the run length, batches to the first alarm, is to be within 30% of what was
asked for.
**With one**: delays, of changes that are planted in the records, and of Online Retail before and after 1 June 2011.
**As it is**: alarms on the stream in its order, where the world changes by itself; there is no bar.

Comparisons with other libraries are not here yet."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from actors.decode import DecodeConfig, make_decoder
from actors.learn import learner_of
from actors.state import State
from benchmarks import cifar, college, retail
from benchmarks.items import Item, shown
from benchmarks.one_pass import anchored
from learning.config import EncoderConfig, GruConfig, LearnerConfig, ReplayConfig, VicregConfig
from learning.config_images import TimmConfig
from learning.encoders.base import Encoder
from learning.kinds.events import subset
from learning.mmd import BATCH, MmdDrift
from learning.student import embed
from learning.watch import REFERENCE, RUN_LENGTH
from schemas.records import F32, I64, Decoded, ImageRows, Rows, Windows
from schemas.stream import Shape

OUT = Path(__file__).parent.parent / "build" / "quality-drift.json"
RUNS = int(os.environ.get("AFRESH_RUNS", "40"))
PERIOD = 6000  # windows that are resampled
UPDATES = 150
SAMPLED = 64  # windows of a micro-batch, as a shard samples
JUNE_US = int(np.datetime64("2011-06-01", "us").astype(np.int64))
GRU = GruConfig(dim=64, hidden=64, window=64)
DAY_US = 86_400_000_000


Change = Callable[[Windows, np.random.Generator], Windows]


@dataclass
class Stream:
    """Windows in the order in which they came; `changes`: the same windows, otherwise."""

    name: str
    shape: Shape
    encoder: EncoderConfig
    windows: Windows
    time_us: I64  # [N] of each window
    changes: dict[str, Change]


# -- streams ----------------------------------------------------------------------------------------


def purchases(folder: Path) -> Stream:
    data, seed = retail.load(folder), 0
    shape = retail.STREAM.shape
    decoder = make_decoder(retail.STREAM, DecodeConfig(format="arrow"))
    state = State(shape, GRU.window, GRU.state, len(data.names))
    rng, parts = np.random.default_rng(seed), []
    for at, batch in retail.micro_batches(data):
        position = np.array([at])
        decoded, _ = decoder.decode(0, position, position, [None], [batch])
        touched = state.apply(decoded)
        some = rng.choice(touched.slots, min(SAMPLED, len(touched.slots)), replace=False)
        parts.append(anchored(state, np.sort(some)))
    windows = Windows.concat(parts)
    changes: dict[str, Change] = {
        "mean shift of one deviation": shifted,
        "half of the categories swapped": swapped,
    }
    return Stream("purchases", shape, GRU, windows, _last(windows), changes)


def messages(folder: Path) -> Stream:
    data = college.load(folder)
    shape = Shape(0, 1)
    state = State(shape, GRU.window, GRU.state, data.nodes + 64)
    rng, parts, n = np.random.default_rng(0), [], len(data.src)
    for lo in range(0, n, 512):
        at = np.arange(lo, min(lo + 512, n))
        rows = Rows(
            data.time_s[at] * 1_000_000, at, np.zeros((len(at), 0), np.float32),
            data.dst[at, None] * 7_919, np.zeros((len(at), 1), np.bool_),
        )  # fmt: skip
        names = [f"n{x}" for x in data.src[at].tolist()]
        touched = state.apply(Decoded(rows, names, np.zeros(len(at), np.bool_), at))
        some = rng.choice(touched.slots, min(SAMPLED, len(touched.slots)), replace=False)
        parts.append(anchored(state, np.sort(some)))
    windows = Windows.concat(parts)
    return Stream(
        "messages", shape, GRU, windows, _last(windows), {"half of the edges rewired": swapped}
    )


def images(folder: Path) -> Stream:
    part = cifar.load(folder, PERIOD * 2, 10, 10).train
    windows = cifar.windows(part)
    changes: dict[str, Change] = {"blurred": blurred, "hue shifted": hued}
    return Stream("images", cifar.SHAPE, TimmConfig(width=0.25), windows, _last(windows), changes)


def _last(windows: Windows) -> I64:
    return windows.rows.time_us[windows.offsets[1:] - 1]


# -- changes ----------------------------------------------------------------------------------------


def shifted(windows: Windows, _rng: np.random.Generator) -> Windows:
    rows = windows.rows
    moved = rows.numbers + np.nanstd(np.clip(rows.numbers, -100, 100), axis=0)
    return replace(windows, rows=replace(rows, numbers=moved.astype(np.float32)))


def swapped(windows: Windows, rng: np.random.Generator) -> Windows:
    """Half of the values of the first category become others of it."""
    categories = windows.rows.categories.copy()
    which = rng.random(len(categories)) < 0.5
    categories[which, 0] = rng.permutation(categories[which, 0])
    return replace(windows, rows=replace(windows.rows, categories=categories))


def _pixels(windows: Windows, change: Callable[[torch.Tensor], torch.Tensor]) -> Windows:
    rows = windows.rows
    assert isinstance(rows, ImageRows)
    x = torch.from_numpy(rows.pixels.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).float()
    pixels = change(x).round().clamp(0, 255).byte().permute(0, 2, 3, 1).reshape(len(rows), -1)
    return replace(windows, rows=replace(rows, pixels=pixels.numpy()))


def blurred(windows: Windows, _rng: np.random.Generator) -> Windows:
    pool = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return _pixels(windows, pool.forward)


def hued(windows: Windows, _rng: np.random.Generator) -> Windows:
    return _pixels(windows, lambda x: x[:, [1, 2, 0]])  # a third of a turn


# -- measures ---------------------------------------------------------------------------------------


def learnt(stream: Stream) -> Encoder:
    half = subset(stream.windows, np.arange(len(stream.windows) // 2))
    objective = (VicregConfig(),) if stream.shape.side else LearnerConfig().objective
    config = LearnerConfig(
        objective=objective,
        held_out_share=0.0,
        updates_per_record=1.0,
        replay=ReplayConfig(per_entity=8),
    )
    learner = learner_of(config, stream.encoder, stream.shape, "cpu")
    learner.receive(half)
    for _ in range(UPDATES):
        learner.learn()
    return learner.released()


def vectors(encoder: Encoder, windows: Windows) -> F32:
    return np.asarray(embed(encoder, windows).numpy())


def first_alarm(drift: MmdDrift, z: F32, rng: np.random.Generator, most: int) -> tuple[int, bool]:
    """Batches of rows of z, drawn with replacement, to the first alarm; False: none within `most`."""
    for n in range(1, most + 1):
        value = drift.update(z[rng.integers(0, len(z), BATCH)])
        if value is not None and value > drift.threshold:
            return n, True
    return most, False


def run_length(z: F32, runs: int, name: str) -> tuple[float, float]:
    """Mean batches to an alarm where nothing changes, and its standard error; of an exponential time, cut off."""
    waited, ended = [], 0
    for seed in track(range(runs), f"{name}: runs without a change", transient=True):
        rng = np.random.default_rng([1, seed])
        drift = MmdDrift(z[rng.integers(0, len(z), REFERENCE)], RUN_LENGTH, rng)
        n, alarm = first_alarm(drift, z, rng, int(4 * RUN_LENGTH))
        waited.append(n)
        ended += alarm
    mean = sum(waited) / max(ended, 1)
    return mean, mean / max(ended, 1) ** 0.5


def delay(reference: F32, after: F32, runs: int) -> float:
    """Mean batches to an alarm after the change."""
    found = []
    for seed in range(runs):
        rng = np.random.default_rng([2, seed])
        drift = MmdDrift(reference[rng.integers(0, len(reference), REFERENCE)], RUN_LENGTH, rng)
        found.append(first_alarm(drift, after, rng, int(4 * RUN_LENGTH))[0])
    return float(np.mean(found))


def as_it_is(z: F32, time_us: I64) -> float:
    """Alarms in a week of the stream's time, in its order, after the reference."""
    drift = MmdDrift(z[:REFERENCE], RUN_LENGTH, np.random.default_rng(0))
    alarms = 0
    for lo in range(REFERENCE, len(z) - BATCH, BATCH):
        value = drift.update(z[lo : lo + BATCH])
        if value is not None and value > drift.threshold:
            alarms += 1
            drift.begin()
    weeks = (time_us[-1] - time_us[REFERENCE]) / (7 * DAY_US)
    return float(alarms / max(weeks, 1e-9))


def measured(stream: Stream, console: Console) -> list[Item]:
    with console.status(f"{stream.name}: learning from {len(stream.windows) // 2:,} windows"):
        encoder = learnt(stream)
    late = np.arange(len(stream.windows) // 2, len(stream.windows))
    period = subset(stream.windows, late[:PERIOD])
    z = vectors(encoder, period)
    mean, error = run_length(z, RUNS, stream.name)
    name = stream.name
    within = abs(mean - RUN_LENGTH) <= 0.3 * RUN_LENGTH
    items = [
        Item(name=f"{name}: run length", value=mean, unit="batches", bar=RUN_LENGTH, ok=within),
        shown(f"{name}: run length, standard error", error, "batches"),
    ]
    rng = np.random.default_rng(3)
    for what, change in stream.changes.items():
        after = vectors(encoder, change(period, rng))
        items.append(shown(f"{name}: delay, {what}", delay(z, after, 10), "batches"))
    if name == "purchases":
        every = vectors(encoder, stream.windows)
        before, after = every[stream.time_us < JUNE_US], every[stream.time_us >= JUNE_US]
        items.append(
            shown(f"{name}: delay, before and after 1 June", delay(before, after, 10), "batches")
        )
        items.append(shown(f"{name}: alarms as it is", as_it_is(every, stream.time_us), "a week"))
    elif name == "messages":
        every = vectors(encoder, stream.windows)
        items.append(shown(f"{name}: alarms as it is", as_it_is(every, stream.time_us), "a week"))
    drift = MmdDrift(z[:REFERENCE], RUN_LENGTH, rng)
    began = time.perf_counter()
    for lo in range(0, 40 * BATCH, BATCH):
        drift.update(z[lo : lo + BATCH])
    items.append(
        shown(f"{name}: time of a sample", (time.perf_counter() - began) / 40 / BATCH * 1e6, "µs")
    )
    return items


STREAMS = {"purchases": purchases, "messages": messages, "images": images}


def main(asked: list[str]) -> None:
    given = os.environ.get("AFRESH_DATA")
    if not given or not Path(given).is_dir():
        sys.exit("AFRESH_DATA must name the data folder: make quality-drift AFRESH_DATA=folder")
    if unknown := set(asked) - set(STREAMS):
        sys.exit(f"No stream {', '.join(sorted(unknown))}; there are: {', '.join(STREAMS)}.")
    torch.set_num_threads(1)
    console, items = Console(width=120), list[Item]()
    for name in asked or STREAMS:
        items += measured(STREAMS[name](Path(given)), console)
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(items, indent=1))
    table = Table("what", "value", "", f"{RUN_LENGTH:.0f} ± 30%")
    for item in items:
        ok = {None: "", True: "yes", False: "no"}[item["ok"]]
        table.add_row(item["name"], f"{item['value']:,.4g}", item["unit"], ok)
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
