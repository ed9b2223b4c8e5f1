"""Training: entities per second of the learner against pytorch-lifestream's CoLES.

The same windows of Online Retail, slices by the same law, batch, GRU of 64, category size and one
thread; CPU time, so that a busy machine does not decide. Ours includes the draw from replay, the
slices, the objective, the step and the average of the weights."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.decode import DecodeConfig, make_decoder
from actors.state import State
from benchmarks import reference
from benchmarks.retail import STREAM, load, micro_batches
from learning.config import ColesConfig, GruConfig, LearnerConfig
from learning.field_learner import FieldLearner
from learning.kinds.events import subset
from schemas.records import F64, I64, Windows

BAR = 3.0
UPDATES, WARM, ROUNDS = 40, 10, 3
NAME = "learner, entities/s against pytorch-lifestream's CoLES"


def windows_of(folder: Path) -> Windows:
    """The last 64 rows of every customer of Online Retail."""
    data = load(folder)
    decoder = make_decoder(STREAM, DecodeConfig(format="arrow"))
    state = State(STREAM.shape, GruConfig().window, GruConfig().state, len(data.names))
    for at, batch in micro_batches(data):
        position = np.array([at])
        decoded, _ = decoder.decode(0, position, position, [None], [batch])
        state.apply(decoded)
    return state.windows(np.arange(len(state.names)))


def made_up(n: int = 4096) -> Windows:
    """Windows like Online Retail's, where the data are not at hand."""
    rng = np.random.default_rng(0)
    state = State(STREAM.shape, GruConfig().window, GruConfig().state, n)
    from schemas.records import Decoded, Rows

    who = np.repeat(np.arange(n), np.clip(rng.lognormal(3.5, 1.2, n).astype(int), 1, 400))
    rows = Rows.empty(STREAM.shape, len(who))
    rows.time_us[:] = 1_300_000_000_000_000 + np.cumsum(rng.exponential(1e8, len(who))).astype(int)
    rows.position[:] = np.arange(len(who))
    rows.numbers[:] = rng.lognormal(1, 1, rows.numbers.shape)
    rows.categories[:] = rng.zipf(1.3, rows.categories.shape) % 3600 * 7919
    rows.missing[:] = False
    names = [str(i) for i in who]
    state.apply(Decoded(rows, names, np.zeros(len(who), np.bool_), np.zeros(len(who), np.int64)))
    return state.windows(np.arange(n))


def ours(windows: Windows) -> float:
    """Entities per second of the learner's own loop."""
    learner = FieldLearner(
        LearnerConfig(objective=(ColesConfig(slices=5),)), GruConfig(), STREAM.shape
    )
    for at in range(0, len(windows), 256):
        learner.receive(subset(windows, np.arange(at, min(at + 256, len(windows)))))
    began, before = 0.0, 0
    for update in range(WARM + UPDATES):
        if update == WARM:
            began, before = time.process_time(), learner.sequences
        learner.learn()
    return (learner.sequences - before) / (time.process_time() - began)


def as_columns(windows: Windows) -> reference.Columns:
    """The same rows as the reference wants them: categories by rank from 1, time in days."""
    n = np.diff(windows.offsets)
    keep = np.repeat(n > 1, n)
    rows = windows.rows
    numbers: F64 = np.sign(rows.numbers) * np.log1p(np.abs(rows.numbers))
    columns: dict[str, Any] = {
        "entity": np.repeat(np.arange(len(windows)), n)[keep],
        "time": (rows.time_us / 86_400e6)[keep],
    }
    for at in range(numbers.shape[1]):
        columns[f"number_{at}"] = numbers[keep, at]
    for at in range(rows.categories.shape[1]):
        columns[f"category_{at}"] = ranks(rows.categories[:, at])[keep]
    return columns


def ranks(values: I64) -> I64:
    """1 for the most frequent value, 2 for the next, ..."""
    _, code, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.empty(len(count), np.int64)
    rank[np.argsort(-count, kind="stable")] = np.arange(1, len(count) + 1)
    return rank[code]


def measure() -> list[dict[str, Any]]:
    """In turns, best of three; without the reference only our own figure, which cannot fail."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        folder = os.environ.get("AFRESH_DATA")
        windows = windows_of(Path(folder)) if folder else made_up()
        columns = as_columns(windows)
        mine, theirs = [], []
        why = ""
        for _ in range(ROUNDS):
            mine.append(ours(windows))
            try:
                theirs.append(reference.LIFESTREAM.measure(columns, "entities_per_s"))
            except reference.Missing as error:
                why = str(error)
                break
    finally:
        torch.set_num_threads(threads)
    out: list[dict[str, Any]] = [_item("learner", max(mine), "entities/s")]
    if why:
        print(f"Without the reference: {why}")
        return out
    ratio = max(mine) / max(theirs)
    out.append(_item("pytorch-lifestream's CoLES", max(theirs), "entities/s"))
    return [*out, {"name": NAME, "value": ratio, "unit": "ratio", "bar": BAR, "ok": ratio >= BAR}]


def _item(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "bar": None, "ok": None}


if __name__ == "__main__":
    for item in measure():
        print(f"{item['name']:60} {item['value']:10.2f} {item['unit']}")
