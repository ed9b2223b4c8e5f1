"""Times of records -> int64 µs since 1970: epoch numbers by unit or size, ISO 8601, datetimes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from actors.rejected import Rejected
from schemas.records import F64, I64, Bool

LIMIT_US = 1 << 53  # beyond, a time is not exact as a Lua number or a float64
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOTHING = type(None)


@dataclass(slots=True)
class Instants:
    """Times of N records: µs since 1970, which are absent, which cannot be read."""

    us: I64
    missing: Bool
    bad: Bool


def to_us(value: object, unit: str) -> int:
    """One time as µs since 1970; ISO 8601 without an offset is UTC."""
    if isinstance(value, str) and unit in ("auto", "iso"):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise Rejected("bad_time", "not an ISO 8601 time") from None
    if isinstance(value, datetime):
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (value - EPOCH) // timedelta(microseconds=1)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and abs(value) < LIMIT_US:  # type: ignore[arg-type]
        us = scaled(np.array([value]), unit)
        if not us.bad[0]:
            return int(us.us[0])
    raise Rejected("bad_time", f"not a time (unit {unit}) that fits 2^53 µs")


def scaled(x: I64 | F64, unit: str) -> Instants:
    """Epoch numbers as µs. `auto` goes by size: below 1e11 seconds, below 1e14 ms, else µs.

    So seconds reach the year 5138, and ms and µs start in March 1973."""
    size = np.abs(x.astype(np.float64))
    if unit == "auto":
        factor = np.where(size < 1e11, 1_000_000, np.where(size < 1e14, 1000, 1))
    else:
        factor = np.array({"s": 1_000_000, "ms": 1000, "us": 1, "iso": 0}[unit])
    bad = ~(size * factor < LIMIT_US) | (unit == "iso")
    kept = np.where(bad, 0, x)
    us = kept * factor if kept.dtype.kind == "i" else np.rint(kept * factor)
    return Instants(us.astype(np.int64), np.zeros(len(x), np.bool_), bad)


def _iso(values: Sequence[str | None]) -> I64 | None:
    """ISO 8601 texts by Arrow's parser, all with an offset or none; None if it cannot."""
    texts = pa.array(values, pa.string())
    for zone in ("UTC", None):
        try:
            times = texts.cast(pa.timestamp("us", zone)).cast(pa.int64()).fill_null(0)
            return np.asarray(times.to_numpy(zero_copy_only=False), np.int64)
        except pa.ArrowInvalid:
            continue
    return None


def instants_of(values: Sequence[object], unit: str) -> Instants:
    """Times of any kind, each int, float, str, datetime or None."""
    kinds = set(map(type, values))
    missing = np.zeros(len(values), np.bool_)
    if NOTHING in kinds:
        missing[:] = [value is None for value in values]
    kinds -= {NOTHING}
    if kinds <= {int, float}:
        known = [0 if v is None else v for v in values] if missing.any() else values
        try:
            exact = float not in kinds
            x = np.array(known, np.int64) if exact else np.array(known, np.float64)
            out = scaled(x, unit)
            return Instants(out.us, missing, out.bad & ~missing)
        except OverflowError:
            pass
    elif kinds == {str} and unit in ("auto", "iso"):
        us = _iso(values)  # type: ignore[arg-type]  # kinds says so
        if us is not None:
            bad = np.abs(us.astype(np.float64)) >= LIMIT_US
            return Instants(np.where(bad, 0, us), missing, bad)
    return _one_by_one(values, unit, missing)


def _one_by_one(values: Sequence[object], unit: str, missing: Bool) -> Instants:
    us, bad = np.zeros(len(values), np.int64), np.zeros(len(values), np.bool_)
    for at, value in enumerate(values):
        if value is None:
            continue
        try:
            us[at] = to_us(value, unit)
        except Rejected:
            bad[at] = True
    return Instants(us, missing, bad)
