"""pytorch-lifestream's CoLES, in an environment of its own: `python lifestream.py train|speed IN OUT`.

Nothing of afresh is imported here. IN is an .npz of rows in order of (entity, time): entity, time
(days), and the columns category_* (from 1) and number_*. `train` also reads the queries: rows
start[q]..end[q]-1, and writes their vectors."""

import json
import logging
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

DIM, BATCH, SLICES = 64, 64, 5
EPOCHS, LEARNING_RATE = 30, 1e-3
SHORTEST, LONGEST = 25, 200  # rows of a slice, as in its README


def sequences(rows: Any, start: Any, end: Any) -> list[dict[str, Any]]:
    """One dictionary of tensors for each run of rows, as its datasets want them."""
    import torch

    columns = {"event_time": torch.from_numpy(rows["time"]).float()}
    for name in rows.files:
        if name.startswith("category_"):
            columns[name] = torch.from_numpy(rows[name]).long()
        elif name.startswith("number_"):
            columns[name] = torch.from_numpy(rows[name]).float()
    pairs = zip(start.tolist(), end.tolist(), strict=True)
    return [{name: c[a:b] for name, c in columns.items()} for a, b in pairs]


def module(rows: Any, category_dim: int, epochs: int) -> Any:
    """Its CoLES with a GRU of 64; the rest is its default: batch norm, hard negatives, Adam."""
    import torch
    from ptls.frames.coles import CoLESModule
    from ptls.nn import RnnSeqEncoder, TrxEncoder

    categories = [name for name in rows.files if name.startswith("category_")]
    numbers = [name for name in rows.files if name.startswith("number_")]
    encoder = TrxEncoder(
        embeddings_noise=0.003,
        embeddings={c: {"in": int(rows[c].max()) + 1, "out": category_dim} for c in categories},
        numeric_values=dict.fromkeys(numbers, "identity"),
    )
    return CoLESModule(
        seq_encoder=RnnSeqEncoder(trx_encoder=encoder, hidden_size=DIM, type="gru"),
        optimizer_partial=partial(torch.optim.Adam, lr=LEARNING_RATE),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=epochs, gamma=0.9),
    )


def data(found: list[dict[str, Any]], splitter: Any) -> Any:
    from ptls.data_load.datasets import MemoryMapDataset
    from ptls.frames import PtlsDataModule
    from ptls.frames.coles import ColesDataset

    return PtlsDataModule(
        train_data=ColesDataset(MemoryMapDataset(found), splitter),
        train_num_workers=0,
        train_batch_size=BATCH,
    )


def trainer(**limits: Any) -> Any:
    import pytorch_lightning as pl

    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **limits,
    )  # fmt: skip


def train(rows: Any) -> tuple[Any, float]:
    """Vectors of the queries after EPOCHS over all entities' rows, and the epochs' CPU time."""
    import torch
    from ptls.data_load.utils import collate_feature_dict
    from ptls.frames.coles.split_strategy import SampleSlices

    torch.manual_seed(0)
    np.random.seed(0)  # its splitter draws from here
    model = module(rows, 16, EPOCHS)
    bounds = np.flatnonzero(np.diff(rows["entity"], prepend=-1, append=-1))
    split = SampleSlices(split_count=SLICES, cnt_min=SHORTEST, cnt_max=LONGEST)
    began = time.process_time()
    found = [f for f in sequences(rows, bounds[:-1], bounds[1:]) if len(f["event_time"]) > 1]
    trainer(max_epochs=EPOCHS).fit(model, data(found, split))
    seconds = time.process_time() - began
    model.eval()
    asked = sequences(rows, rows["start"], rows["end"])
    parts = []
    with torch.no_grad():
        for at in range(0, len(asked), 256):
            parts.append(model.seq_encoder(collate_feature_dict(asked[at : at + 256])).numpy())  # noqa: PERF401
    return np.concatenate(parts), seconds


class Share:
    """Slices as ours are cut: a share of the rows there are, at least 2."""

    def split(self, dates: Any) -> list[Any]:
        n, out = len(dates), []
        for _ in range(SLICES):
            length = int(np.clip(np.rint(np.random.uniform(0.2, 0.8) * n), min(2, n), n))
            start = np.random.randint(0, n - length + 1)
            out.append(np.arange(start, start + length))
        return out


def speed(rows: Any, updates: int = 40, warm: int = 5) -> float:
    """Entities per second of its own training loop, after a few batches."""
    import pytorch_lightning as pl

    class Clock(pl.Callback):  # type: ignore[misc]
        at: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.at.append(time.process_time())

    bounds = np.flatnonzero(np.diff(rows["entity"], prepend=-1, append=-1))
    clock = Clock()
    found = sequences(rows, bounds[:-1], bounds[1:])
    limits = {"max_steps": updates, "callbacks": [clock]}
    trainer(**limits).fit(module(rows, 16, 1), data(found, Share()))
    return BATCH * (len(clock.at) - warm) / (clock.at[-1] - clock.at[warm - 1])


def main() -> None:
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    what, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rows = np.load(source)
    if what == "speed":
        target.write_text(json.dumps({"entities_per_s": speed(rows)}))
    else:
        vectors, seconds = train(rows)
        np.savez(target, vectors=vectors, seconds=seconds)


if __name__ == "__main__":
    main()
