"""What the demo prints at its end: figures, one plane's neighbours, and what the vectors know of carriers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.panel import Panel
from rich.table import Table

from actors.decode import make_decoder
from actors.state import State
from daemon.flights import FIELDS, messages
from daemon.reading import Reader
from daemon.settings import Settings
from schemas.records import F32, Windows

NEIGHBOURS = 10
RANDOM_SEEDS = 3


class Report:
    def __init__(self, settings: Settings, table: pa.Table) -> None:
        self._settings, self._table = settings, table.filter(pc.is_valid(table["tailnum"]))
        self._missing = len(table) - len(self._table)
        self.reader = Reader(settings)
        self._names, self._vectors = self.reader.everything()
        self._carriers = _main_carrier(self._table)

    def summary(self, status: Mapping[str, Any], seconds: float) -> Panel:
        from daemon.demo import facts_of

        facts = facts_of(dict(status))
        grid = Table.grid(padding=(0, 2))
        grid.add_row("records", f"{facts['records']:,} in {seconds:.0f} s")
        grid.add_row(
            "records/s", f"{facts['records'] / seconds:,.0f} over the whole demo, learning included"
        )
        grid.add_row(
            "freshness",
            f"p50 {facts['p50']}, p99 {facts['p99']} over {facts['freshness_counted']:,} records",
        )
        grid.add_row("releases", f"{facts['release']}, after {facts['updates']:,} updates")
        grid.add_row(
            "dead letters", f"{facts['dead']:,} (flights without a tailnum: {self._missing:,})"
        )
        grid.add_row("entities", f"{len(self._names):,} planes with a vector in Redis")
        return Panel(grid, title="A year of flights", expand=False)

    def nearest(self) -> Table:
        counts = self._table.group_by("tailnum").aggregate([("tailnum", "count")])
        plane = counts.sort_by([("tailnum_count", "descending")])["tailnum"][0].as_py()
        found, seen, _ = self.reader.neighbours(plane, 5, 100_000)
        vector = self._vectors[self._names.index(plane)]
        head = " ".join(f"{x:+.3f}" for x in vector[:8])
        table = Table(
            "plane",
            "carrier",
            "cosine",
            title_justify="left",
            title=f"{plane} of {self._carriers[plane]}: [{head} …], nearest of {seen:,}",
        )
        for row in found:
            table.add_row(
                row["entity"], self._carriers.get(row["entity"], "?"), f"{row['cosine']:.3f}"
            )
        return table

    def comparison(self) -> Table:
        """Shares of neighbours of the same carrier; no input of any row names the carrier."""
        at = [i for i, name in enumerate(self._names) if name in self._carriers]
        names = [self._names[i] for i in at]
        carriers = np.array([self._carriers[name] for name in names])
        table = Table(
            "vectors of a plane", f"same carrier among {NEIGHBOURS} nearest",
            title=f"Do vectors know whose plane it is? ({len(names):,} planes)",
        )  # fmt: skip
        random = [share(v, carriers) for v in self._random(names)]
        table.add_row(
            "afresh, learnt in one pass without labels", f"{share(self._vectors[at], carriers):.3f}"
        )
        table.add_row(
            "hand-crafted aggregates", f"{share(aggregates(self._table, names), carriers):.3f}"
        )
        spread = (max(random) - min(random)) / 2
        table.add_row("the same encoder, untrained", f"{np.mean(random):.3f} ± {spread:.3f}")
        table.add_row("chance", f"{chance(carriers):.3f}")
        return table

    def _random(self, names: list[str]) -> list[F32]:
        """Vectors of encoders that saw no update, over the same windows and fields."""
        from learning.compatibility import untrained_vectors

        windows = windows_of(self._settings, self._table, names)
        encoder, shape = self._settings.encoder, self._settings.stream.shape
        return [untrained_vectors(encoder, shape, windows, seed) for seed in range(RANDOM_SEEDS)]


def share(vectors: F32, carriers: Any, k: int = NEIGHBOURS) -> float:
    """Mean share of each row's k nearest by cosine that have its carrier. vectors: [N, D]"""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    total = 0.0
    for lo in range(0, len(unit), 512):
        cosine = unit[lo : lo + 512] @ unit.T
        cosine[np.arange(len(cosine)), lo + np.arange(len(cosine))] = -np.inf
        nearest = np.argpartition(-cosine, k, axis=1)[:, :k]
        total += float((carriers[nearest] == carriers[lo : lo + 512, None]).mean(1).sum())
    return total / len(unit)


def chance(carriers: Any) -> float:
    """The share that neighbours drawn at random would have."""
    counts = np.unique(carriers, return_counts=True)[1]
    n = len(carriers)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


def aggregates(table: pa.Table, names: list[str]) -> F32:
    """What an analyst would count: shares of destinations and origins (square roots, so that distances
    are Hellinger's), and the standardised log count, means and spreads of the numbers. [N, features]"""
    numbers = [
        f
        for f in FIELDS
        if pa.types.is_integer(table[f].type) or pa.types.is_floating(table[f].type)
    ]
    rows = np.searchsorted(np.sort(names), table["tailnum"].to_numpy(zero_copy_only=False))
    keep = np.isin(table["tailnum"].to_numpy(zero_copy_only=False), names)
    rows, order = rows[keep], np.argsort(np.argsort(names))
    n = len(names)
    count = np.bincount(rows, minlength=n).astype(np.float64)
    columns, shares = [np.log1p(count)], []
    for name in numbers:
        values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)[keep]
        there = ~np.isnan(values)
        m = np.maximum(np.bincount(rows[there], minlength=n), 1)
        mean = np.bincount(rows[there], values[there], n) / m
        square = np.bincount(rows[there], values[there] ** 2, n) / m
        columns += [mean, np.sqrt(np.maximum(square - mean**2, 0.0))]
    for name in ("dest", "origin"):
        codes = table[name].combine_chunks().dictionary_encode().indices.to_numpy()[keep]
        each = np.zeros((n, int(codes.max()) + 1))
        np.add.at(each, (rows, codes), 1.0)
        shares.append(np.sqrt(each / np.maximum(count, 1)[:, None]))
    scalars = np.stack(columns, 1)
    scalars = (scalars - scalars.mean(0)) / np.maximum(scalars.std(0), 1e-9)
    both = np.concatenate(shares, 1)
    both = (both - both.mean(0)) / both.std(0).max()
    scalars *= np.sqrt(both.var(0).sum() / scalars.var(0).sum())  # either part weighs the same
    return np.concatenate([both, scalars], 1).astype(np.float32)[order]


def windows_of(settings: Settings, table: pa.Table, names: list[str]) -> Windows:
    """The windows that the daemon's state holds of the named planes, built here by the same code."""
    decoder = make_decoder(settings.stream, settings.decode)
    state = State(settings.stream.shape, settings.encoder.window, settings.encoder.state, 8192)
    pairs = messages(table)
    for lo in range(0, len(pairs), 4096):
        part = pairs[lo : lo + 4096]
        offsets = np.arange(lo, lo + len(part))
        decoded, _ = decoder.decode(0, offsets, offsets, [k for k, _ in part], [v for _, v in part])
        state.apply(decoded)
    return state.windows(np.array([state.index[name] for name in names]))


def _main_carrier(table: pa.Table) -> dict[str, str]:
    """The carrier that each plane flew for most."""
    counts = table.group_by(["tailnum", "carrier"]).aggregate([("distance", "count")])
    counts = counts.sort_by([("distance_count", "ascending")])
    return dict(zip(counts["tailnum"].to_pylist(), counts["carrier"].to_pylist(), strict=True))
