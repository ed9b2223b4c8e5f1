"""Files as a source: history comes in by the same path as the stream.

Rows are numbered through all files in their order; a group's position is the number of the next
row that may be its own. Rows are dealt to groups as Kafka's partitioner would deal their keys."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.file_formats import Chunk, Format, Piece, open_file
from actors.partitioner import partitions_of
from actors.ports import Batch, Source
from schemas.errors import SourceError
from schemas.records import I64
from schemas.stream import StreamConfig

HELD_ROWS = 65_536
"""Rows that may wait for paused groups; then reading waits too."""


class FileSource(Source):
    """`decode_format` is what the decoder must read: arrow (Parquet, CSV) or json (JSONL).

    paths: names or patterns. groups: of the whole stream. `done` of about `total` rows are read;
    `finished` once all were handed out."""

    def __init__(self, paths: Sequence[str], stream: StreamConfig, groups: int) -> None:
        self.topics, self.up = ("files",), True
        self._groups = groups
        opened = [_opened(path, stream) for path in _found(paths)]
        self._files = [(path, file) for path, file, _ in opened]
        self._estimates = [rows for _, _, rows in opened]
        kinds = {file.decode_format for _, file in self._files}
        if len(kinds) > 1:
            raise SourceError(
                "The files are JSONL and others at once: take them one kind at a time."
            )
        self.decode_format = kinds.pop()
        self._ended = 0  # files read to their end: their rows are counted, no longer estimated
        self._next: dict[int, int] = {}
        self._held: dict[int, list[Batch]] = {}
        self._paused: set[int] = set()
        self._reading: Iterator[tuple[int, Chunk]] | None = None
        self._at_end = False
        self._open: tuple[int, Chunk, int] | None = None  # first row, chunk, rows of it dealt
        self.done = 0

    @property
    def total(self) -> int:
        return max(self.done, sum(self._estimates))

    @property
    def finished(self) -> bool:
        return self._at_end and not any(self._held.values())

    def start(self, group: int, positions: list[int] | None) -> list[int]:
        if not 0 <= group < self._groups:
            raise SourceError(f"There is no group {group} among {self._groups}.")
        (position,) = positions or [0]
        self._next[group], self._held[group] = position, []
        self._reading, self._open, self._at_end = None, None, False  # from the least advanced group
        return [position]

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        del timeout_s  # files do not keep one waiting
        out: list[Batch] = []
        for group, held in self._held.items():
            if held and group not in self._paused:
                out, self._held[group] = out + held, []
        waiting = sum(_rows(b) for held in self._held.values() for b in held)
        if out or self._at_end or not self._next or waiting >= HELD_ROWS:
            return out
        for batch in self._read(max_records):
            if batch.group in self._paused:
                self._held[batch.group].append(batch)
            else:
                out.append(batch)
        return out

    def pause(self, group: int, topic: int) -> None:
        del topic  # there is one
        self._paused.add(group)

    def resume(self, group: int, topic: int) -> None:
        del topic
        self._paused.discard(group)

    def idle(self, group: int, topic: int) -> bool:
        del topic
        return self.lag(group) == 0

    def lag(self, group: int) -> int:
        held = self._held[group]
        position = held[0].offsets[0] if held and len(held[0].offsets) else self._next[group]
        return 0 if self.finished else max(0, self.total - int(position))

    def commit(self, group: int, positions: list[int]) -> None:
        """There is nobody to tell."""

    def close(self) -> None:
        self._reading = self._open = None
        self._at_end = True

    # -- reading ----------------------------------------------------------------------------------

    def _read(self, most: int) -> list[Batch]:
        """The next rows, at most `most`, dealt to the groups."""
        if self._reading is None:
            self._reading = self._chunks(min(self._next.values()))
        if self._open is None:
            found = next(self._reading, None)
            if found is None:
                return self._end()
            self._open = (*found, 0)
        first, chunk, dealt = self._open
        until = min(len(chunk), dealt + most)
        out = self._deal(first, chunk, dealt, until)
        self._open = (first, chunk, until) if until < len(chunk) else None
        self.done = max(self.done, first + until)
        return out

    def _chunks(self, skip: int) -> Iterator[tuple[int, Chunk]]:
        """Chunks and their first rows' numbers; rows below `skip` may be left out."""
        begin = 0
        for at, (path, file) in enumerate(self._files):
            end = begin + self._estimates[at]
            if not ((file.exact or at < self._ended) and end <= skip):
                end = begin
                try:
                    for row, chunk in file.chunks(skip - begin):
                        end = begin + row + len(chunk)
                        yield begin + row, chunk
                except (pa.ArrowException, OSError, EOFError) as error:
                    raise SourceError(
                        f"{path}: after row {end - begin} of the file: {error}. Mend it and go on: "
                        "what was taken before is not read again."
                    ) from error
                self._estimates[at] = end - begin
            begin, self._ended = end, max(self._ended, at + 1)

    def _deal(self, first: int, chunk: Chunk, begin: int, end: int) -> list[Batch]:
        texts = chunk.entities.slice(begin, end - begin)
        group_of = partitions_of(pc.fill_null(texts, ""), self._groups)
        group_of[np.asarray(texts.is_null())] = 0  # as good as any for a dead letter
        rows = np.arange(begin, end)
        out = []
        for group, position in self._next.items():
            mine = rows[(group_of == group) & (rows + first >= position)]
            found = _messages(chunk, mine)
            if begin == 0 and group == 0 and first >= position:
                found = [(0, value) for value in chunk.lost] + found
            if first + end > position:
                self._next[group] = first + end
            if found:
                out.append(_batch(group, found, first, first + end))
        return out

    def _end(self) -> list[Batch]:
        """Every group learns that nothing more is its own."""
        self._at_end = True
        end = sum(self._estimates)
        return [_batch(group, [], 0, max(end, at)) for group, at in self._next.items()]


def _messages(chunk: Chunk, rows: I64) -> list[tuple[int, Piece]]:
    """Row of the chunk and value of each message that these rows make."""
    if isinstance(chunk.body, list):
        return [(at, chunk.body[at]) for at in rows.tolist()]
    plain = [at for at in rows.tolist() if at not in chunk.odd] if chunk.odd else rows.tolist()
    found: list[tuple[int, Any]] = [(at, chunk.odd[at]) for at in rows.tolist() if at in chunk.odd]
    if plain:
        found.append((plain[0], chunk.body.take(pa.array(plain, pa.int64()))))
    return sorted(found, key=lambda each: each[0])


def _batch(group: int, found: list[tuple[int, Any]], first: int, end: int) -> Batch:
    n = len(found)
    offsets = np.array([first + at for at, _ in found], np.int64)
    values = [value for _, value in found]
    return Batch(group, 0, offsets, np.zeros(n, np.int64), [None] * n, values, end)


def _rows(batch: Batch) -> int:
    return sum(v.num_rows if isinstance(v, pa.RecordBatch) else 1 for v in batch.values)


def _found(paths: Sequence[str]) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in paths:
        path = Path(pattern)
        names = [path]
        if any(sign in pattern for sign in "*?[") and not path.exists():
            names = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        there = [name for name in names if name.is_file()]
        if not there:
            raise SourceError(f"{pattern} matches no file. Paths start at the working directory.")
        found |= dict.fromkeys(there)
    return list(found)


def _opened(path: Path, stream: StreamConfig) -> tuple[Path, Format, int]:
    try:
        file = open_file(path, stream)
        return path, file, file.rows()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
