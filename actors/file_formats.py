"""Parquet, CSV and JSONL files -> chunks of rows, in order, from any row on.

A row of CSV that cannot be typed stays text, one of JSONL stays its line: the decoder says what is
wrong with it, and it becomes a dead letter as any other."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.decode import DecodeConfig, make_decoder
from actors.paths import leaves
from schemas.errors import SourceError
from schemas.stream import StreamConfig

BLOCK = 1 << 20
CHUNK_ROWS = 16_384
LONGEST_LINE = 64 << 20
Piece: TypeAlias = pa.RecordBatch | bytes


@dataclass(slots=True)
class Chunk:
    """N rows. What is in `odd` (row -> value) or `lost` (no rows at all) goes to the decoder alone."""

    entities: pa.Array  # [N] text; null where there is none
    body: pa.RecordBatch | list[bytes]
    odd: dict[int, Piece] = field(default_factory=dict)
    lost: list[Piece] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entities)


class Format(Protocol):
    """One file. `decode_format`: what the decoder is to be told. `exact`: of `rows`."""

    decode_format: str
    exact: bool

    def rows(self) -> int:
        """How many there are; an estimate unless `exact`."""
        ...

    def chunks(self, skip: int) -> Iterator[tuple[int, Chunk]]:
        """Chunks and their first rows' numbers. Wholly below row `skip` they are only `counted`,
        or left out where `rows` is exact."""
        ...


def counted(n: int) -> Chunk:
    """N rows that nobody wants."""
    return Chunk(pa.nulls(n, pa.string()), [])


def open_file(path: Path, stream: StreamConfig) -> Format:
    """By the name's ending. Raises SourceError."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2")
    if name.endswith((".parquet", ".pq")):
        return Parquet(path, stream)
    if name.endswith((".jsonl", ".ndjson")):
        return Jsonl(path, stream)
    if name.endswith(".csv"):
        from actors.file_csv import Csv

        return Csv(path, stream)
    raise SourceError(
        f"{path}: the name's ending tells the format; needed is .parquet, .csv, .jsonl or .ndjson, "
        "and .gz, .zst or .bz2 after the latter three where compressed."
    )


class Parquet:
    decode_format, exact = "arrow", True

    def __init__(self, path: Path, stream: StreamConfig) -> None:
        self._path, self._entity = path, stream.entity
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            self._rows = int(file.metadata.num_rows)
        roots = dict.fromkeys(where.split(".")[0] for where in leaves(stream))
        self._columns = [name for name in roots if name in schema.names]
        _accept(path, stream, pa.schema([schema.field(name) for name in self._columns]))

    def rows(self) -> int:
        return self._rows

    def chunks(self, skip: int) -> Iterator[tuple[int, Chunk]]:
        with pq.ParquetFile(self._path) as file:
            row, groups = 0, list(range(file.metadata.num_row_groups))
            while groups and row + (n := file.metadata.row_group(groups[0]).num_rows) <= skip:
                row += n
                groups.pop(0)
            if not groups:
                return
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=self._columns):
                yield row, Chunk(_texts(batch, self._entity), batch)
                row += batch.num_rows


class Jsonl:
    """One object a line."""

    decode_format, exact = "json", False

    def __init__(self, path: Path, stream: StreamConfig) -> None:
        self._path = path
        with pa.input_stream(path):
            pass
        self._parts = [f"f{i}" for i, _ in enumerate(stream.entity.split("."))]
        kind: Any = str | int | None
        for part, name in reversed(list(zip(self._parts, stream.entity.split("."), strict=True))):
            kind = msgspec.defstruct("Entity", [(part, kind | None, None)], rename={part: name})
        self._decode = msgspec.json.Decoder(kind).decode

    def rows(self) -> int:
        return estimate(self._path, header=0)

    def chunks(self, skip: int) -> Iterator[tuple[int, Chunk]]:
        left = _lines(self._path)
        row = 0
        while lines := list(itertools.islice(left, CHUNK_ROWS)):
            below = row + len(lines) <= skip
            yield row, counted(len(lines)) if below else Chunk(self._entities(lines), lines)
            row += len(lines)

    def _entities(self, lines: list[bytes]) -> pa.Array:
        return pa.array([self._entity(line) for line in lines], pa.string())

    def _entity(self, line: bytes) -> str | None:
        try:
            found = self._decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # the decoder will say why
        for part in self._parts:
            found = getattr(found, part, None)
        return None if found is None else str(found)


def _accept(path: Path, stream: StreamConfig, schema: pa.Schema) -> None:
    """Refuses columns of which the decoder could use no row."""
    empty = pa.RecordBatch.from_pylist([], schema)
    decoder = make_decoder(stream, DecodeConfig(format="arrow"))
    none = np.zeros(1, np.int64)
    _, bad = decoder.decode(0, none, none, [None], [empty])
    if bad:
        raise SourceError(f"{path}: {bad[0].reason}. Mend the file, or [stream] in the settings.")


def _texts(batch: pa.RecordBatch, path: str) -> pa.Array:
    """A column as the text that a Kafka key would be."""
    first, *rest = path.split(".")
    column = batch.column(first)
    for part in rest:
        column = pc.struct_field(column, part)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def _lines(path: Path) -> Iterator[bytes]:
    """Lines that are not blank. Of one beyond LONGEST_LINE its beginning."""
    rest = b""
    with pa.input_stream(path) as file:
        while block := file.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            yield from (line for line in lines if line.strip())
            while len(rest) > LONGEST_LINE and block:
                block = file.read(BLOCK)
                if b"\n" in block:
                    yield rest
                    rest = block.split(b"\n", 1)[1]
    if rest.strip():
        yield rest


def estimate(path: Path, header: int) -> int:
    """Rows of a text file, from how long the lines of its first megabyte are."""
    with pa.OSFile(os.fspath(path)) as raw:
        size = raw.size()
        if path.suffix in (".gz", ".zst", ".bz2"):
            codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[path.suffix]
            with pa.CompressedInputStream(raw, codec) as opened:
                sample, read = opened.read(BLOCK), raw.tell()
        else:
            sample, read = raw.read(BLOCK), raw.tell()
    lines = max(1, sample.count(b"\n") + (not sample.endswith(b"\n")))
    return int(max(0, round(lines * size / max(1, read)) - header))
