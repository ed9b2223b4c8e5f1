"""Computes an entity's vector from its raw records and compares it with the one in Redis.

Needs redis, onnxruntime, numpy and xxhash, nothing of afresh; docs/contract.md says why each line
is as it is. Records are JSON lines, as they were produced, one topic after the other where there
are several, each in order of its offsets; those of other entities are passed over:

    kcat -C -q -b localhost:9092 -t flights -o beginning -e -f '%s\\n' |
        python examples/encode_alone.py --stream flights --entity N14228
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import redis
import xxhash

Array = npt.NDArray[Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LIMIT = 1 << 53
TOLERANCE = 1e-5


class BadRecordError(ValueError):
    """The daemon sends such a record to the dead letters: it is in no vector."""


# -- records -> columns -----------------------------------------------------------------------------


def category_hash(text: str) -> int:
    """xxh3_64 (seed 0) of the UTF-8 text, as a two's complement int64."""
    value = xxhash.xxh3_64_intdigest(text.encode())
    return value - (1 << 64) if value >= 1 << 63 else value


def microseconds(value: Any, unit: str) -> int:
    """µs since 1970; `auto` takes texts as ISO 8601, numbers by their size as s, ms or µs."""
    if isinstance(value, str) and unit in ("auto", "iso"):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise BadRecordError(f"{value!r} is no time") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - EPOCH) // timedelta(microseconds=1)
    if isinstance(value, bool) or not isinstance(value, int | float) or unit == "iso":
        raise BadRecordError(f"{value!r} is no time")
    if unit == "auto":
        unit = "s" if abs(value) < 1e11 else "ms" if abs(value) < 1e14 else "us"
    scaled = value * {"s": 1_000_000, "ms": 1000, "us": 1}[unit]
    if not abs(scaled) < LIMIT:
        raise BadRecordError(f"{value!r} is no time that fits 2^53 µs")
    return round(scaled)


def at(record: Any, path: str) -> Any:
    """The value at a dotted path; None where it, or an object on the way, is absent."""
    for name in path.split("."):
        if record is None:
            return None
        if not isinstance(record, dict):
            raise BadRecordError(f"{path!r}: {record!r} is no object")
        record = record.get(name)
    return record


def number(value: Any, field: dict[str, Any], time_us: int, unit: str) -> float:
    """A number, flag or time as float32; NaN is missing."""
    value = field["default"] if value is None or value != value else value
    if value is None:
        return float("nan")
    if field["type"] == "time":
        return (microseconds(value, unit) - time_us) / 1e6
    flag = field["type"] == "flag"
    if not isinstance(value, int | float) or (isinstance(value, bool) and not flag):
        raise BadRecordError(f"{field['name']}: {value!r} is no {field['type']}")
    if flag and value not in (0, 1):
        raise BadRecordError(f"{field['name']}: {value!r} is no flag")
    if not abs(float(value)) <= np.finfo(np.float32).max:
        raise BadRecordError(f"{field['name']}: {value!r} is beyond float32")
    return float(value)


def category(value: Any, field: dict[str, Any]) -> int | None:
    """The hash of a text, an integer or a truth value; None is missing."""
    value = field["default"] if value is None else value
    if isinstance(value, bool):
        return category_hash("true" if value else "false")
    if value is not None and not isinstance(value, str | int):
        raise BadRecordError(f"{field['name']}: {value!r} is no category")
    return None if value is None else category_hash(str(value))


Row = tuple[int, list[float], list[int | None]]
"""Time, numbers, categories."""


def row(record: Any, manifest: dict[str, Any]) -> Row:
    unit = manifest["time_unit"]
    time_us = microseconds(at(record, manifest["time"]), unit)
    if time_us <= 0:
        raise BadRecordError(f"the time {time_us} µs is not after 1970")
    numbers: list[float] = []
    categories: list[int | None] = []
    for field in manifest["fields"]:
        value = at(record, field["path"] or field["name"])
        if field["type"] == "category":
            categories.append(category(value, field))
        else:
            numbers.append(number(value, field, time_us, unit))
    return time_us, numbers, categories


def rows(lines: Iterable[str], entity: str, manifest: dict[str, Any]) -> Iterator[Row]:
    """Those of the entity; what the daemon would not have taken is named and left out."""
    for line in filter(str.strip, lines):  # kcat prints the null value of a deletion as nothing
        try:
            record = json.loads(line)
            name = at(record, manifest["entity"])
            if name is not None and not isinstance(name, bool | float) and str(name) == entity:
                yield row(record, manifest)
        except ValueError as why:
            print(f"left out: {why}", file=sys.stderr)


@dataclass(frozen=True)
class Columns:
    """N records of one entity in order of (time, topic, offset); Fn numbers, Fc categories."""

    time_us: Array  # [N] int64
    numbers: Array  # [N, Fn] float32
    categories: Array  # [N, Fc] int64, 0 where missing
    missing: Array  # [N, Fc] bool

    @classmethod
    def of(cls, found: Sequence[Row]) -> "Columns":
        found = sorted(found, key=lambda r: r[0])  # stable: equal times stay in order
        hashes = [[0 if h is None else h for h in categories] for _, _, categories in found]
        missing = [[h is None for h in categories] for _, _, categories in found]
        n = len(found)
        return cls(
            np.array([time_us for time_us, _, _ in found], np.int64),
            np.array([numbers for _, numbers, _ in found], np.float32).reshape(n, -1),
            np.array(hashes, np.int64).reshape(n, -1),
            np.array(missing, np.bool_).reshape(n, -1),
        )

    def totals(self, before: int, session_of: int, gap_us: int) -> Array:
        """Running totals of the first `before` records, sessions through record `session_of`.

        [1, 2 + 3·Fn] float64: records, sessions; then, for each number, how many are there, the sum
        of their symlogs, the sum of its squares."""
        x = self.numbers[:before].astype(np.float64)
        there = ~np.isnan(x)
        y = np.where(there, np.sign(x) * np.log1p(np.abs(x)), 0.0)
        sessions = 1 + np.count_nonzero(np.diff(self.time_us[: session_of + 1]) > gap_us)
        return np.concatenate([[before, sessions], there.sum(0), y.sum(0), (y * y).sum(0)])[None]


# -- columns -> vectors -----------------------------------------------------------------------------


class Release:
    """A release as Redis holds it. The hashes are checked before a graph is parsed."""

    def __init__(self, client: redis.Redis, stream: str, release: int) -> None:
        key = f"afresh:{stream}:encoder:{release}"
        found: Any = client.hmget(key, ["manifest", "onnx", "step_onnx"])
        if found[0] and found[1] and not found[2]:
            raise SystemExit(
                f"{key} has no step_onnx: {stream!r} is a graph; this program is for streams of events."
            )
        if None in found:
            raise SystemExit(f"Redis has no {key}: it is too old, or this is another Redis.")
        self.manifest: dict[str, Any] = json.loads(found[0])
        for graph, wanted in ((found[1], "encode_sha256"), (found[2], "step_sha256")):
            if hashlib.sha256(graph).hexdigest() != self.manifest[wanted]:
                raise SystemExit(f"{key}: {wanted} of the manifest is not that of the graph.")
        cpu = ["CPUExecutionProvider"]
        self._encode = onnxruntime.InferenceSession(found[1], providers=cpu)
        self._step = onnxruntime.InferenceSession(found[2], providers=cpu)

    def _run(self, graph: str, feed: dict[str, Array]) -> tuple[Array, Array]:
        session = self._encode if graph == "encode" else self._step
        inputs = {i["name"]: feed[i["name"]] for i in self.manifest[graph]}
        embedding, state = session.run(["embedding", "new_state"], inputs)
        return embedding, state

    def _zero(self) -> Array:
        return np.zeros((1, self.manifest["state"]), np.float32)

    def encode(self, c: Columns, start: int, end: int) -> tuple[Array, Array]:
        """Records start..end-1 from a zero state, the first Δt zero: embedding [1, D], state [1, H]."""
        feed = {
            "time_us": c.time_us[None, start:end],
            "numbers": c.numbers[None, start:end],
            "categories": c.categories[None, start:end],
            "missing": c.missing[None, start:end],
            "length": np.array([end - start]),
            "previous_us": c.time_us[start : start + 1],
            "totals": c.totals(start, start, self.manifest["session_gap_us"]),
            "first_us": c.time_us[:1],
            "state": self._zero(),
        }
        return self._run("encode", feed)

    def step(self, c: Columns, i: int, state: Array) -> tuple[Array, Array]:
        """Record i, given the state after record i-1."""
        before = max(i - 1, 0)
        feed = {
            "time_us": c.time_us[i : i + 1],
            "numbers": c.numbers[i : i + 1],
            "categories": c.categories[i : i + 1],
            "missing": c.missing[i : i + 1],
            "previous_us": c.time_us[before : before + 1],
            "totals": c.totals(i, before, self.manifest["session_gap_us"]),
            "first_us": c.time_us[:1],
            "state": state,
        }
        return self._run("step", feed)

    def window(self, n: int) -> int:
        """The anchor rule: how many of the newest records the vector after the n-th encodes."""
        half = self.manifest["window"] // 2
        return int(n if n < half else half + n % half)

    def encoded(self, c: Columns) -> Array:
        """The vector [D] after all records, in one call of `encode`."""
        n = len(c.time_us)
        return np.asarray(self.encode(c, n - self.window(n), n)[0][0])

    def stepped(self, c: Columns) -> Array:
        """The same by `step`: since the last multiple of L/2, where the last L/2 are encoded."""
        n, half = len(c.time_us), self.manifest["window"] // 2
        anchor = n // half * half
        embedding, state = np.empty((1, 0)), self._zero()
        if anchor:
            embedding, state = self.encode(c, anchor - half, anchor)
        for i in range(anchor, n):
            embedding, state = self.step(c, i, state)
        return np.asarray(embedding[0])


# -- Redis ------------------------------------------------------------------------------------------


def compare(client: redis.Redis, stream: str, entity: str, lines: Iterable[str]) -> float:
    """Prints and returns the largest difference between Redis's vector and ours."""
    generation: Any = client.hget(f"afresh:{stream}:current", "generation")
    if generation is None:
        raise SystemExit(f"Redis has no afresh:{stream}:current: there is no release yet.")
    key = f"afresh:{stream}:g{int(generation)}:{entity}"
    served: Any = client.hmget(key, ["vector", "release", "count", "time_us"])
    if served[0] is None:
        raise SystemExit(f"Redis has no vector in {key}.")
    vector = np.frombuffer(served[0], "<f4")
    number, count, time_us = map(int, served[1:])
    release = Release(client, stream, number)
    found = list(rows(lines, entity, release.manifest))
    if len(found) < count:
        raise SystemExit(f"{len(found)} records were given; the vector knows {count}.")
    if len(found) > count:  # deleted or evicted in between: then it began anew
        print(f"{len(found)} records were given; the vector knows the last {count}.")
    columns = Columns.of(found[-count:])
    if columns.time_us[-1] != time_us:
        raise SystemExit(f"the newest record is of {columns.time_us[-1]} µs, Redis has {time_us}.")
    worst = 0.0
    for how, ours in (("encode", release.encoded(columns)), ("step", release.stepped(columns))):
        difference = float(np.abs(ours - vector).max())
        print(f"{how}: release {number}, {count} records, largest difference {difference:.1e}")
        worst = max(worst, difference)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute a vector from raw records.")
    parser.add_argument("records", nargs="?", default="-", help="JSON lines; - is stdin")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--entity", required=True)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    given = parser.parse_args()
    file = sys.stdin if given.records == "-" else Path(given.records)
    lines = file.read_text("utf-8").splitlines() if isinstance(file, Path) else file
    client = redis.Redis.from_url(given.redis, socket_timeout=5.0)
    worst = compare(client, given.stream, given.entity, lines)
    if worst > TOLERANCE:
        raise SystemExit(f"the vectors differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
