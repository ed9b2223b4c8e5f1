"""Has what comes in changed? Each field of the records now, and the time between an entity's records, against a
reference of the same stream.

The reference is the first records that were seen, and stays so until somebody renews it: what drifts slowly is not
absorbed. Now is an exponential window. Population stability index: Siddiqi 2006, Credit Risk Scorecards, chapter 8,
where 0.1 is worth a look and 0.25 a shift; two-sample statistic of Kolmogorov and Smirnov, at the reference's
quantiles.

Shapes: N records, Fn numbers, Fc categories, Q bins of a number, C kept categories."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.records import F64, I64, Rows, Windows

Q = 20  # bins of a number, by the reference's quantiles
C = 50  # categories of a field, the reference's most frequent; the others are one
SMOOTH = 0.5  # added to every count: a bin that was empty is no proof
REFERENCE = 10_000
"""Records of the reference."""
WINDOW = 5_000
"""... and of now: so many records ago one counts half."""

LEAST = 500
"""... and of now, before anything is said: of fewer, bins that are empty by chance look like a shift."""

INTERVAL = "inter-arrival"
"""The column behind a stream's numbers: log of the seconds since the entity's record before, 1 added."""

State = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class FieldDrift:
    """Of one field. psi, ks: 0 is the same. missing: by how much its share has grown. new: share of values that
    the reference does not know (categories)."""

    psi: float
    missing: float
    ks: float = float("nan")
    new: float = float("nan")


def newest(windows: Windows) -> Rows:
    """The newest record of each window, without its pixels; behind its numbers INTERVAL, which is missing where the
    window has no other record."""
    last = windows.offsets[1:][np.diff(windows.offsets) > 0] - 1
    alone = np.isin(last, windows.offsets[:-1])
    rows = Rows(*(getattr(windows.rows, f.name)[last] for f in fields(Rows)))
    gap_us = rows.time_us - windows.rows.time_us[np.maximum(last - 1, 0)]
    gap = np.where(alone, np.nan, np.log1p(np.maximum(gap_us, 0) * 1e-6))
    rows.numbers = np.column_stack([rows.numbers, gap.astype(np.float32)])
    return rows


class InputDrift:
    """names: of the columns, numbers first, INTERVAL behind them. Until the reference is complete there is nothing to
    compare."""

    def __init__(self, names: tuple[str, ...], numbers: int) -> None:
        self.names, self._numbers = names, numbers
        self.renew()

    def renew(self) -> None:
        """What comes next is the reference."""
        width = len(self.names) - self._numbers
        self._seen = 0
        self._values = np.empty((REFERENCE, self._numbers), np.float32)
        self._hashes = np.empty((REFERENCE, width), np.int64)
        self._gone = np.empty((REFERENCE, width), np.bool_)
        bins = max(Q, C + 1) + 1  # the last is of missing values
        self._reference = np.zeros((len(self.names), bins))
        self._now = np.zeros_like(self._reference)
        self._new = np.zeros(width)
        self._prepared: list[F64] | None = None
        self._known: list[I64] = []
        self._kept: list[I64] = []

    @property
    def ready(self) -> bool:
        """Every record is in one bin of each field."""
        return self._seen >= REFERENCE and float(self._now[0].sum()) >= LEAST

    def add(self, rows: Rows) -> None:
        """N records, as they came."""
        n = min(len(rows), max(REFERENCE - self._seen, 0))
        if n:
            at = slice(self._seen, self._seen + n)
            self._values[at] = rows.numbers[:n]
            self._hashes[at], self._gone[at] = rows.categories[:n], rows.missing[:n]
            self._seen += n
        if self._seen < REFERENCE or n == len(rows):
            return
        live = rows.take(slice(n, None))
        counts, new = self._counted(live.numbers, live.categories, live.missing)
        fade = 0.5 ** (len(live) / WINDOW)
        self._now = self._now * fade + counts
        self._new = self._new * fade + new

    def report(self) -> dict[str, FieldDrift]:
        """By field; empty while there is no reference. Without INTERVAL where no entity has two records in a window."""
        if not self.ready:
            return {}
        named = zip(self.names, (self._reference + self._now)[:, :-1].sum(1), strict=True)
        shown = [at for at, (name, some) in enumerate(named) if some > 0 or name != INTERVAL]
        return {self.names[at]: self._of(at) for at in shown}

    def _of(self, at: int) -> FieldDrift:
        used = [*range(Q), -1] if at < self._numbers else slice(None)
        reference, now = self._reference[at, used], self._now[at, used]
        p, q = (x / x.sum() for x in (reference + SMOOTH, now + SMOOTH))
        psi = float(((q - p) * np.log(q / p)).sum())
        missing = float(now[-1] / now.sum() - reference[-1] / reference.sum())
        if at >= self._numbers:
            there = now[:-1].sum()
            new = self._new[at - self._numbers] / there if there else 0.0
            return FieldDrift(psi, missing, new=float(new))
        steps = [np.cumsum(x[:Q]) / max(x[:Q].sum(), 1.0) for x in (reference, now)]
        return FieldDrift(psi, missing, ks=float(np.abs(steps[0] - steps[1]).max()))

    def _prepare(self) -> list[F64]:
        """Bins of numbers and kept categories, and the reference's counts."""
        share = np.arange(1, Q) / Q
        edges = []
        for at in range(self._numbers):
            values = self._values[:, at]
            there = values[~np.isnan(values)].astype(np.float64)
            edges.append(np.quantile(there, share) if len(there) else np.zeros(Q - 1))
        for at in range(self._hashes.shape[1]):
            found = self._hashes[~self._gone[:, at], at]
            known, times = np.unique(found, return_counts=True)
            self._known.append(known)
            self._kept.append(np.sort(known[np.argsort(-times, kind="stable")[:C]]))
        self._prepared = edges
        self._reference, _ = self._counted(self._values, self._hashes, self._gone)
        return edges

    def _counted(
        self, numbers: npt.NDArray[np.float32], hashes: I64, gone: npt.NDArray[np.bool_]
    ) -> tuple[F64, F64]:
        """Counts by field and bin; of each category field how many values are new."""
        edges = self._prepared if self._prepared is not None else self._prepare()
        counts, new = np.zeros_like(self._reference), np.zeros(hashes.shape[1])
        last = counts.shape[1] - 1
        for at in range(self._numbers):
            bins = np.searchsorted(edges[at], numbers[:, at], side="left")
            bins[np.isnan(numbers[:, at])] = last
            counts[at] = np.bincount(bins, minlength=last + 1)
        for at in range(hashes.shape[1]):
            column, missing = hashes[:, at], gone[:, at]
            bins = np.where(missing, last, _place(self._kept[at], column, C))
            counts[self._numbers + at] = np.bincount(bins, minlength=last + 1)
            strange = _place(self._known[at], column, -1) < 0
            new[at] = np.count_nonzero(strange & ~missing)
        return counts, new

    # -- snapshots --------------------------------------------------------------------------------

    def state_dict(self) -> State:
        n = min(self._seen, REFERENCE)
        columns: State = {
            "values": self._values[:n],
            "hashes": self._hashes[:n],
            "gone": self._gone[:n],
        }
        return {**columns, "now": self._now, "new": self._new}

    def load_state_dict(self, state: State) -> None:
        """Of other fields, or none: the reference begins anew."""
        self.renew()
        n = len(state.get("values", ()))
        if not n or state["values"].shape[1:] + state["hashes"].shape[1:] != (
            self._numbers,
            len(self.names) - self._numbers,
        ):
            return
        self._seen = n
        self._values[:n], self._hashes[:n] = state["values"], state["hashes"]
        self._gone[:n] = state["gone"]
        if n == REFERENCE:
            self._prepare()
        self._now, self._new = state["now"].copy(), state["new"].copy()


def _place(of: I64, values: I64, other: int) -> I64:
    """Place of each value in the sorted `of`; `other` where it is not there."""
    if not len(of):
        return np.full(len(values), other)
    at = np.minimum(np.searchsorted(of, values), len(of) - 1)
    return np.where(of[at] == values, at, other)
