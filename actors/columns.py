"""Values of records -> typed columns, with a reason for each record that cannot be used.

Every format ends here, so that all mean the same. What NumPy can do per column is not done per
record.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actors.rejected import ErrorClass, Rejected
from actors.times import LIMIT_US, NOTHING, Instants, instants_of, to_us
from schemas.errors import SettingsError
from schemas.records import F32, F64, I64, Bool, Features, Rows, category_hash
from schemas.stream import DIRECTION, ENDS, NEIGHBOUR, Field, FieldType, StreamConfig

NONE_HASH = -0x5AFE_5AFE_5AFE_5AFE  # stands for None until the mask is made
CACHED = 1 << 17  # texts whose hashes are remembered
ADD, REMOVE, NODE = map(category_hash, ("add", "remove", "node"))
MAX_F32 = float(np.finfo(np.float32).max)


class Columns(Protocol):
    """What a format knows of its N records, by path."""

    def entities(self, path: str) -> list[str | None]: ...
    def instants(self, path: str, unit: str) -> Instants: ...
    def numbers(self, path: str) -> F64:
        """NaN where missing."""
        ...

    def categories(self, path: str) -> tuple[I64, Bool]:
        """Hashes, and which are missing."""
        ...


@dataclass(slots=True)
class Table:
    """N records as columns (positions still 0); those in `bad` are to be left out."""

    rows: Rows
    entities: list[str]
    bad: dict[int, Rejected] = field(default_factory=dict)
    neighbours: list[str] = field(default_factory=list)  # of a graph
    # of a graph whose nodes have features:
    upsert: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))  # [N] which are of nodes
    features: Features | None = None  # [N] and what those say

    def flag(self, where: Bool, error: ErrorClass, reason: str) -> None:
        for at in np.flatnonzero(where).tolist():
            self.bad.setdefault(at, Rejected(error, reason))


class Hashes(dict[str | int | None, int]):
    """Remembers category hashes, since categories repeat; starts anew when it is full."""

    def __init__(self) -> None:
        super().__init__({None: NONE_HASH})

    def __missing__(self, key: str | int) -> int:
        value = category_hash(key)
        if len(self) >= CACHED:
            self.clear()
            self[None] = NONE_HASH
        if isinstance(key, int) or len(key) <= 128:
            self[key] = value
        return value


def assemble(stream: StreamConfig, columns: Columns, n: int, max_entity_bytes: int) -> Table:
    """The columns of n records in the order that the stream names its fields."""
    rows = Rows.empty(stream.shape, n)
    table = Table(rows, [])
    names = columns.entities(stream.entity)
    table.entities = _entities(table, names, stream.entity, max_entity_bytes)
    own = columns.instants(stream.time, stream.time_unit)
    table.flag(own.missing, "missing_time", f"{stream.time!r}: no time; a record needs one")
    wrong = own.bad | (own.us <= 0) | (own.us >= LIMIT_US)
    reason = f"{stream.time!r}: not a time after 1970 that fits 2^53 µs (unit {stream.time_unit})"
    table.flag(wrong, "bad_time", reason)
    rows.time_us[:] = np.where(wrong, 0, own.us)
    first = len(stream.numbers) - len(stream.own_numbers)
    _numbers(table, columns, stream.own_numbers, stream.time_unit, rows.numbers[:, first:])
    _categories(columns, stream.categories, rows.categories, rows.missing)
    if stream.graph:
        _edges(stream, columns, table, max_entity_bytes)
    return table


def _edges(stream: StreamConfig, columns: Columns, table: Table, limit: int) -> None:
    """Ends of edges, removals, and what records say of nodes."""
    rows, n = table.rows, len(table.rows)
    removed = upsert = np.zeros(n, np.bool_)
    if stream.op:
        op, absent = columns.categories(stream.op)
        removed, upsert = ~absent & (op == REMOVE), ~absent & (op == NODE) & bool(stream.node)
        more = ', or "node" for what is said of a node' if stream.node else ""
        reason = f'{stream.op!r}: an edge\'s op is "add", "remove", or nothing{more}'
        table.flag(~absent & ~removed & ~upsert & (op != ADD), "bad_op", reason)
    if stream.whole:  # names of nodes are hashes, and nobody's keys
        for path in (stream.source, stream.neighbour):
            _entities(table, columns.entities(path), path, limit)
        rows.missing[:, ENDS] = removed[:, None]
        return
    rows.numbers[:, DIRECTION] = 1.0
    names = columns.entities(stream.neighbour)
    nodes = np.flatnonzero(upsert).tolist()
    if nodes:
        names = list(names)
        for at in nodes:
            names[at] = None
    table.neighbours = _entities(table, names, stream.neighbour, limit, nodes)
    rows.missing[:, NEIGHBOUR] = removed
    if stream.node:
        table.upsert, table.features = upsert, Features.empty(stream.shape, n)
        of = table.features
        _numbers(table, columns, stream.node_numbers, stream.time_unit, of.numbers)
        _categories(columns, stream.node_categories, of.categories, of.missing)
    rows.numbers[upsert], rows.missing[upsert] = np.nan, True


def _numbers(table: Table, columns: Columns, specs: Sequence[Field], unit: str, out: F32) -> None:
    """Fills out [N, len(specs)]."""
    for at, spec in enumerate(specs):
        value = _number(table, columns, spec, unit)
        if spec.default is not None:
            value = np.where(np.isnan(value), default_number(spec, unit, table.rows), value)
        with np.errstate(over="ignore"):
            out[:, at] = value
        table.flag(np.isinf(out[:, at]), "infinite", f"{spec.where!r}: infinite or beyond float32")


def _categories(columns: Columns, specs: Sequence[Field], out: I64, gone: Bool) -> None:
    """Fills out and gone [N, len(specs)]."""
    for at, spec in enumerate(specs):
        hashes, missing = columns.categories(spec.where)
        if spec.default is not None:
            default = category_hash(category_text(spec.default))
            hashes = np.where(missing, default, hashes)
            missing = np.zeros(len(missing), np.bool_)
        out[:, at], gone[:, at] = hashes, missing


def _entities(
    table: Table,
    values: list[str | None],
    path: str,
    limit: int,
    without: Sequence[int] = (),
) -> list[str]:
    """Names of nodes or entities; rows without a usable one are flagged, but for those that need none."""
    absent = []
    if None in values:
        absent = [at for at, value in enumerate(values) if value is None]
    texts: list[str] = [v or "" for v in values] if absent else values  # type: ignore[assignment]
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    fine = frozenset(without)
    for at in absent:
        if at in fine:
            sizes[at] = 1
            continue
        reason = f"{path!r}: no entity; a record needs one"
        table.bad.setdefault(at, Rejected("missing_entity", reason))
    table.flag(sizes == 0, "bad_entity", f"{path!r}: an empty entity")
    long = sizes > limit // 4
    if long.any():
        for at in np.flatnonzero(long).tolist():
            long[at] = len(texts[at].encode()) > limit
        table.flag(long, "bad_entity", f"{path!r}: the entity is longer than {limit} bytes")
    return texts


def _number(table: Table, columns: Columns, spec: Field, unit: str) -> F64:
    if spec.type is not FieldType.time:
        value = columns.numbers(spec.where)
        if spec.type is FieldType.flag:
            wrong = (value != 0.0) & (value != 1.0) & ~np.isnan(value)
            table.flag(wrong, "wrong_type", f"{spec.where!r}: a flag is true, false, 1 or 0")
        return value
    instants = columns.instants(spec.where, unit)
    table.flag(instants.bad, "bad_time", f"{spec.where!r}: not a time (unit {unit})")
    after = (instants.us - table.rows.time_us) / 1e6
    return np.where(instants.missing | instants.bad, np.nan, after)


def category_text(value: str | int | float) -> str | int:
    """What is hashed: text, an integer, or a truth value as JSON writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        raise TypeError("a category is a text or an integer")
    return value


def default_number(spec: Field, unit: str, rows: Rows) -> float | F64:
    """What stands for a missing number. Raises SettingsError for a default of the wrong type."""
    given = spec.default
    if spec.type is FieldType.time:
        if not isinstance(given, bool) and given is not None:
            return (np.int64(to_us(given, unit)) - rows.time_us) / 1e6
    elif isinstance(given, bool) == (spec.type is FieldType.flag) and not isinstance(given, str):
        return np.nan if given is None else float(given)
    raise SettingsError(
        f"stream.field {spec.name!r}: the default {given!r} is no {spec.type}; change or remove it."
    )


def check_defaults(stream: StreamConfig) -> None:
    """Refuses a default that its field cannot hold, before any record is read."""
    for spec in stream.inputs:
        if spec.default is None:
            continue
        if spec.type is not FieldType.category:
            try:
                value = default_number(spec, stream.time_unit, Rows.empty(stream.shape))
                if isinstance(value, float) and not abs(value) <= MAX_F32:
                    raise Rejected("infinite", f"{value} is no finite float32")
            except Rejected as wrong:
                raise SettingsError(f"stream.field {spec.name!r}: default: {wrong}") from None
        elif isinstance(spec.default, float):
            raise SettingsError(
                f"stream.field {spec.name!r}: the default of a category is a text or an integer, "
                f"not {spec.default!r}."
            )


class Lists:
    """Columns of Python values, already of the right types. Source: a function path -> values."""

    def __init__(self, values: Callable[[str], list[object]], hashes: Hashes) -> None:
        self._values = values
        self._hashes = hashes

    def entities(self, path: str) -> list[str | None]:
        values = self._values(path)
        if set(map(type, values)) <= {str}:
            return values  # type: ignore[return-value]
        return [None if value is None else str(value) for value in values]

    def instants(self, path: str, unit: str) -> Instants:
        return instants_of(self._values(path), unit)

    def numbers(self, path: str) -> F64:
        return np.array(self._values(path), np.float64)

    def categories(self, path: str) -> tuple[I64, Bool]:
        values = self._values(path)
        kinds = set(map(type, values))
        if bool in kinds:  # True == 1, so the hashes of one would be found for the other
            values = [category_text(v) if type(v) is bool else v for v in values]
        hashes = np.fromiter(map(self._hashes.__getitem__, values), np.int64, len(values))  # type: ignore[arg-type]
        absent = hashes == NONE_HASH if NOTHING in kinds else np.zeros(len(values), np.bool_)
        return hashes, absent
