"""CSV files -> chunks of typed columns; see file_formats.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from actors.file_formats import BLOCK, Chunk, Piece, counted, estimate
from actors.paths import leaves
from schemas.errors import SourceError
from schemas.stream import FieldType, StreamConfig

NOTHING = pa.array(["", "NA", "N/A", "null", "NULL", "NaN", "nan", "None"], pa.string())
"""In a column of numbers, flags or times these are missing; in one of text only "" is."""

_FLAGS = {"true": True, "false": False, "1": True, "0": False}


class Csv:
    """With a header. Every column is read as text, then typed as the stream's fields say."""

    decode_format, exact = "arrow", False

    def __init__(self, path: Path, stream: StreamConfig) -> None:
        self._path, self._stream = path, stream
        skip = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        with pa.input_stream(path) as file, pa.csv.open_csv(file, None, skip) as reader:
            there = reader.schema.names
        self._paths = [where for where in leaves(stream) if where in there]
        for needed in (stream.entity, stream.time):
            if needed not in there:
                raise SourceError(f"{path}: no column {needed!r}; there are {', '.join(there)}.")
        self._types: dict[str, pa.DataType | None] = dict.fromkeys(self._paths)
        for spec in stream.inputs:
            if spec.where in self._types and spec.type is FieldType.number:
                self._types[spec.where] = pa.float64()
            elif spec.where in self._types and spec.type is FieldType.flag:
                self._types[spec.where] = pa.bool_()
        timed = [f.where for f in stream.inputs if f.type is FieldType.time]
        self._times = {stream.time, *timed} if stream.time_unit != "iso" else set()

    def rows(self) -> int:
        return estimate(self._path, header=1)

    def chunks(self, skip: int) -> Iterator[tuple[int, Chunk]]:
        lost: list[Piece] = []

        def keep(row: Any) -> str:
            lost.append(row.text.encode())
            return "skip"

        options = pa.csv.ConvertOptions(
            include_columns=self._paths,
            column_types=dict.fromkeys(self._paths, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
        )
        parse = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep)
        read = pa.csv.ReadOptions(use_threads=False, block_size=BLOCK)
        row = 0
        with (
            pa.input_stream(self._path) as file,
            pa.csv.open_csv(file, read, parse, options) as reader,
        ):
            for batch in reader:
                taken, lost[:] = list(lost), []
                n = batch.num_rows
                yield row, counted(n) if row + n <= skip else self._chunk(batch, taken)
                row += n
        if lost:
            yield row, Chunk(pa.nulls(0, pa.string()), [], lost=lost)

    def _chunk(self, raw: pa.RecordBatch, lost: list[Piece]) -> Chunk:
        columns, bad = {}, set()
        for name, column in zip(self._paths, raw.columns, strict=True):
            text, wrong = _attempt(column, pa.string(), bytes.decode)
            bad |= wrong
            kind = self._types[name]
            if kind is not None or name in self._times:
                text = pc.if_else(pc.is_in(text, NOTHING), None, text)
            if kind is not None:
                parse = float if pa.types.is_floating(kind) else _FLAGS.__getitem__
                text, wrong = _attempt(text, kind, parse)
                bad |= wrong
            elif name in self._times:
                text = _epoch(text)
            columns[name] = text
        body = _nested(columns)
        plain = _nested(dict(zip(self._paths, raw.columns, strict=True)))
        odd: dict[int, Piece] = {at: plain.slice(at, 1) for at in sorted(bad)}
        return Chunk(columns[self._stream.entity], body, odd, lost)


def _attempt(
    column: pa.Array, kind: pa.DataType, parse: Callable[[Any], Any]
) -> tuple[pa.Array, set[int]]:
    """The column cast; where a value cannot be, null, and its row is told."""
    try:
        return column.cast(kind), set()
    except pa.ArrowInvalid:
        values, bad = column.to_pylist(), set()
    for at, value in enumerate(values):
        try:
            values[at] = None if value is None else parse(value)
        except (ValueError, KeyError):
            values[at] = None
            bad.add(at)
    return pa.array(values, kind), bad


def _epoch(text: pa.Array) -> pa.Array:
    """Texts of numbers as numbers; others, such as ISO 8601, as they are."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    return text


def _nested(columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """Columns by dotted path -> structs, as the decoder looks for them."""
    tree: dict[str, Any] = {}
    for path, column in columns.items():
        *parents, name = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = column

    def build(node: dict[str, Any]) -> tuple[list[pa.Array], list[str]]:
        arrays = [
            pa.StructArray.from_arrays(*build(child)) if isinstance(child, dict) else child
            for child in node.values()
        ]
        return arrays, list(node)

    return pa.RecordBatch.from_arrays(*build(tree))
