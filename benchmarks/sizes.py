"""Memory of the state; pauses, size and time of a snapshot of a million entities; their restore.

The stream goes on while the snapshot is taken: micro-batches are applied between its turns."""

import gc
import time
from pathlib import Path

import numpy as np

from actors.capacity import entity_bytes
from actors.group import Group
from actors.state import State
from actors.usage import resident_bytes
from benchmarks.flow import ENCODER, NUMBERS, START_MS, STREAM, name_of
from benchmarks.items import Item, at_most, shown
from schemas.records import Decoded, Rows
from schemas.stream import Shape

ENTITIES, MILLION, WINDOW = 200_000, 1_000_000, 32
BATCH = 2048
SMALL = Shape(2, 2)


def batch(shape: Shape, names: list[str], at: int) -> Decoded:
    """One record of each name, a second after the batch before."""
    rng = np.random.default_rng(at)
    rows = Rows.empty(shape, len(names))
    rows.time_us[:] = (START_MS + 1000 * at) * 1000
    rows.position[:] = at
    rows.numbers[:] = rng.standard_normal(rows.numbers.shape)
    rows.categories[:] = rng.integers(0, 1 << 60, rows.categories.shape)
    rows.missing[:] = False
    return Decoded(rows, names, np.zeros(len(names), np.bool_), np.zeros(len(names), np.int64))


def memory(entities: int = ENTITIES) -> list[Item]:
    """Resident memory that full rings add, over the bytes of their columns."""
    gc.collect()
    before = resident_bytes()
    state = State(STREAM.shape, ENCODER.window, ENCODER.state, entities)
    for at in range(ENCODER.window):
        for lo in range(0, entities, 50_000):
            names = [name_of(e) for e in range(lo, min(lo + 50_000, entities))]
            state.apply(batch(STREAM.shape, names, at))
    state.recurrent[:] = 1.0
    gc.collect()
    grown = resident_bytes() - before
    raw = entities * entity_bytes(STREAM.shape, ENCODER.window, ENCODER.state)
    assert (state.placed == ENCODER.window).all()
    fields = f"{len(NUMBERS)} numbers, {len(STREAM.categories)} categories, window {ENCODER.window}"
    return [
        at_most("state memory, over the raw column bytes", grown / raw, "ratio", 1.3),
        shown(f"state of an entity ({fields})", grown / entities, "bytes"),
    ]


def filled(group: Group, entities: int) -> None:
    """Full rings, written straight into the columns: a million times 32 records would take minutes."""
    state = group.state
    state.names = [name_of(e) for e in range(entities)]
    state.index = {name: slot for slot, name in enumerate(state.names) if name}
    state.counts.entities = entities
    rng = np.random.default_rng(0)
    for lo in range(0, entities, 50_000):
        at = slice(lo, lo + 50_000)
        rows = state.rows
        rows.time_us[at] = START_MS * 1000 - 1_000_000 * (WINDOW - np.arange(WINDOW))
        rows.numbers[at] = rng.standard_normal(rows.numbers[at].shape, np.float32)
        rows.categories[at] = rng.integers(0, 1 << 60, rows.categories[at].shape)
        state.recurrent[at] = 1.0
    state.placed[:] = state.count[:] = WINDOW
    state.last_us[:], state.first_us[:], state.since_us[:] = START_MS * 1000, 1, 1
    state.totals[:], state.tag[:] = 1.0, 1


def opened(folder: Path, entities: int) -> Group:
    sizes = (WINDOW, ENCODER.state, entities)
    group = Group.open(0, 1, ("bench",), folder / "group-0", SMALL, sizes)
    group.positions = group.positions or [0]
    return group


def snapshot(folder: Path, entities: int = MILLION) -> list[Item]:
    """The stream's waits for a snapshot, its size and its time."""
    group = opened(folder, entities)
    filled(group, entities)
    rng = np.random.default_rng(1)
    at = 0

    def stream() -> float:
        nonlocal at
        at += 1
        names = [name_of(e) for e in rng.integers(0, entities, BATCH).tolist()]
        decoded = batch(SMALL, names, at)
        began = time.perf_counter()
        group.apply([decoded])
        group.positions[0] = at
        return time.perf_counter() - began

    usual = [stream() for _ in range(100)]
    pauses, during = [], []
    began = time.perf_counter()
    group.begin_snapshot(lambda: None, [])
    taken = group.snapshot
    assert taken is not None
    while not taken.done():
        before = time.perf_counter()
        if taken.turn(group.positions):
            pauses.append(time.perf_counter() - before)
        during.append(stream())
    seconds = time.perf_counter() - began
    size = sum(f.stat().st_size for f in taken.result().iterdir())
    what = f"snapshot of {entities:,} entities (window {WINDOW})"
    late = float(np.quantile(during, 0.99) - np.median(usual))
    return [
        at_most(f"{what}: longest pause of the stream", 1000 * max(pauses), "ms", 20),
        shown(
            f"{what}: 99% of its pauses are below", 1000 * float(np.quantile(pauses, 0.99)), "ms"
        ),
        shown(f"{what}: a micro-batch beside it takes longer by (p99)", 1000 * late, "ms"),
        shown(f"{what}: time", seconds, "s"),
        shown(f"{what}: size", size / 1e6, "MB"),
    ]


def restored(folder: Path, entities: int = MILLION) -> list[Item]:
    began = time.perf_counter()
    group = opened(folder, entities)
    seconds = time.perf_counter() - began
    assert group.state.counts.entities == entities
    return [at_most(f"restore of {entities:,} entities", seconds, "s", 60)]
