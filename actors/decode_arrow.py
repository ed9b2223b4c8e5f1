"""Arrow record batches -> columns, whole columns at a time; the fast path.

One message is one IPC stream with one record batch or more. Only the names of entities become
Python objects."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.arrow_guard import batches
from actors.columns import Hashes, Table, assemble
from actors.paths import leaves, tree
from actors.rejected import Rejected
from actors.times import Instants, instants_of, scaled
from schemas.records import F64, I64, Bool, Features, Rows
from schemas.stream import FieldType, StreamConfig

if TYPE_CHECKING:
    from actors.decode import BadRecord, DecodeConfig


class Arrow:
    """Messages of `arrow`: bytes, or a record batch that is trusted."""

    def __init__(self, stream: StreamConfig, config: "DecodeConfig") -> None:
        self._stream, self._config = stream, config
        tree(leaves(stream))
        self._flags = {f.where for f in stream.inputs if f.type is FieldType.flag}
        self._hashes = Hashes()

    def read(self, values: Sequence[Any]) -> tuple[Table, I64, list["BadRecord"]]:
        from actors.decode import BadRecord

        tables, origin, bad = [], [], []
        for at, value in enumerate(values):
            try:
                found = self._message(value)
            except Rejected as why:
                bad.append(BadRecord(at, why.error, str(why)))
                continue
            tables += found
            origin += [np.full(sum(len(t.rows) for t in found), at)]
        if not tables:
            return Table(Rows.empty(self._stream.shape), []), np.zeros(0, np.int64), bad
        joined = Table(Rows.concat([t.rows for t in tables]), [])
        for table in tables:
            start = len(joined.entities)
            joined.entities += table.entities
            joined.neighbours += table.neighbours
            joined.bad.update({start + i: why for i, why in table.bad.items()})
        if self._stream.node:
            joined.upsert = np.concatenate([t.upsert for t in tables])
            joined.features = Features.concat(
                [t.features for t in tables if t.features is not None]
            )
        return joined, np.concatenate(origin), bad

    def _message(self, value: Any) -> list[Table]:
        limit = self._config.max_expanded_bytes
        found = [value] if isinstance(value, pa.RecordBatch) else batches(value, limit)
        try:
            return [self._table(batch) for batch in found]
        except Rejected:
            raise
        except UnicodeDecodeError:
            raise Rejected("invalid_utf8", "a name that is not UTF-8") from None
        except Exception as why:  # pyarrow raises whatever hostile types lead it to
            text = (str(why).splitlines() or [""])[0][:200]
            reason = f"the columns cannot be read: {type(why).__name__}: {text}"
            raise Rejected("wrong_columns", reason) from None

    def _table(self, batch: pa.RecordBatch) -> Table:
        columns = _Batch(batch, self._flags, self._hashes)
        s = self._stream
        for path in filter(None, (s.entity, s.time, s.source, "" if s.node else s.neighbour)):
            if columns.at(path) is None:
                raise Rejected("wrong_columns", f"no column {path!r}")
        return assemble(self._stream, columns, batch.num_rows, self._config.max_entity_bytes)


class _Batch:
    """The columns of one record batch, by path."""

    def __init__(self, batch: pa.RecordBatch, flags: set[str], hashes: Hashes) -> None:
        self._batch, self._flags, self._hashes = batch, flags, hashes
        self._names: list[str] = batch.schema.names

    def at(self, path: str) -> pa.Array | None:
        """The column; None where there is none or it holds nothing."""
        first, *rest = path.split(".")
        if self._names.count(first) > 1:
            raise Rejected("wrong_columns", f"the column {first!r} is there twice")
        column = self._batch.column(self._names.index(first)) if first in self._names else None
        for part in rest:
            if column is None:
                return None
            if not pa.types.is_struct(column.type):
                raise Rejected("wrong_columns", f"{path!r}: {part!r} is not in a struct")
            names = [field.name for field in column.type]
            column = pc.struct_field(column, part) if part in names else None
        return None if column is None or pa.types.is_null(column.type) else column

    def entities(self, path: str) -> list[str | None]:
        column = self.at(path)
        if column is None:
            return [None] * self._batch.num_rows
        if pa.types.is_boolean(column.type):
            raise _wrong(path, column, "text or integers")
        texts, which = self._texts(path, column)
        texts.append(None)  # the last one is for -1
        return [texts[i] for i in which.tolist()]

    def _texts(self, path: str, column: pa.Array) -> tuple[list[str | None], I64]:
        """Distinct values as texts, and which of them each row has (-1: none)."""
        if not pa.types.is_dictionary(column.type):
            if not _is_text(column.type) and not _is_whole(column.type):
                raise _wrong(path, column, "text or integers")
            column = column.dictionary_encode()
        values = column.dictionary
        if not _is_text(values.type) and not _is_whole(values.type):
            raise _wrong(path, column, "text or integers")
        found = values.to_pylist()
        if not _is_text(values.type):
            found = [None if v is None else str(v).lower() for v in found]
        which = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        return found, np.asarray(which, np.int64)

    def categories(self, path: str) -> tuple[I64, Bool]:
        column = self.at(path)
        n = self._batch.num_rows
        if column is None:
            return np.zeros(n, np.int64), np.ones(n, np.bool_)
        texts, which = self._texts(path, column)
        hashes = np.zeros(len(texts) + 1, np.int64)  # the last one is for -1
        missing = np.array([text is None for text in texts] + [True])
        hashes[:-1] = [0 if t is None else self._hashes[t] for t in texts]
        return hashes[which], missing[which]

    def numbers(self, path: str) -> F64:
        column = self.at(path)
        if column is None:
            return np.full(self._batch.num_rows, np.nan)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        flag = path in self._flags
        fits = _is_whole(kind) and (flag or not pa.types.is_boolean(kind))
        if not fits and not pa.types.is_floating(kind) and not pa.types.is_decimal(kind):
            raise _wrong(path, column, "truth values" if flag else "numbers")
        if pa.types.is_boolean(kind):
            column = column.cast(pa.uint8())
        if pa.types.is_float16(kind):
            column = column.cast(pa.float32())
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.asarray(values, np.float64)  # to_numpy makes nulls NaN

    def instants(self, path: str, unit: str) -> Instants:
        column = self.at(path)
        n = self._batch.num_rows
        if column is None:
            return Instants(np.zeros(n, np.int64), np.ones(n, np.bool_), np.zeros(n, np.bool_))
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        kind = column.type
        if _is_text(kind):
            return instants_of(column.to_pylist(), unit)
        missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
        if pa.types.is_timestamp(kind):
            x = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
            out = scaled(x // 1000, "us") if kind.unit == "ns" else scaled(x, kind.unit)
        elif pa.types.is_floating(kind):
            values = column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
            out = scaled(np.asarray(values, np.float64), unit)
        elif _is_whole(kind) and not pa.types.is_boolean(kind):
            wide = pa.float64() if pa.types.is_uint64(kind) else pa.int64()
            values = column.fill_null(0).cast(wide, safe=False)
            out = scaled(values.to_numpy(zero_copy_only=False), unit)
        else:
            raise _wrong(path, column, "times")
        return Instants(out.us, missing, out.bad & ~missing)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _wrong(path: str, column: pa.Array, needed: str) -> Rejected:
    return Rejected("wrong_columns", f"{path!r} is {column.type}; needed are {needed}")
