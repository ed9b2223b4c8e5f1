"""Reads Arrow IPC streams without trusting them: what they would expand to is known before they do.

A compressed buffer states its size in its first 8 bytes, and Arrow refuses one that turns out to be
another; so the sum of the stated sizes, found in the metadata (flatbuffers, read here by hand), is
a true bound. Format: https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

from actors.rejected import Rejected

CONTINUATION = 0xFFFFFFFF
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3  # Message.header_type
FAILURES = (pa.ArrowException, OSError, struct.error, IndexError, ValueError, OverflowError)


def batches(data: bytes, limit: int) -> list[pa.RecordBatch]:
    """The record batches of a stream, validated in full; raises Rejected."""
    try:
        size = sum(_expanded(meta, body) for meta, body in _messages(data))
        if size > limit:
            reason = f"{size} bytes when expanded; decode.max_expanded_bytes is {limit}"
            raise Rejected("too_large", reason)
        with pa.ipc.open_stream(data) as reader:
            found = list(reader)
        for batch in found:
            batch.validate(full=True)
            assert batch.schema.names is not None  # which decodes them
    except FAILURES as why:
        text = str(why).splitlines()[0][:200] if str(why) else type(why).__name__
        if isinstance(why, UnicodeDecodeError) or "UTF8" in text:
            raise Rejected("invalid_utf8", "text that is not UTF-8") from None
        raise Rejected("not_arrow", f"no Arrow IPC stream: {text}") from None
    return found


def _messages(data: bytes) -> Iterator[tuple[memoryview, memoryview]]:
    """Metadata and body of each message."""
    view, at = memoryview(data), 0
    while at + 4 <= len(view):
        (size,) = struct.unpack_from("<I", view, at)
        at += 4
        if size == CONTINUATION:
            (size,) = struct.unpack_from("<I", view, at)
            at += 4
        if size == 0:
            return
        meta = view[at : at + size]
        if len(meta) < size:
            raise ValueError("cut short")
        body_size = _Table.root(meta).number(3, "<q", 0)
        at += size
        if not 0 <= body_size <= len(view) - at:
            raise ValueError("cut short")
        yield meta, view[at : at + body_size]
        at += body_size


def _expanded(meta: memoryview, body: memoryview) -> int:
    """Bytes that one message takes in memory; rows count too, since a null column has no bytes."""
    message = _Table.root(meta)
    kind = message.number(1, "<B", 0)
    if kind not in (DICTIONARY, RECORDS):
        return len(meta)
    batch = message.table(2)
    if kind == DICTIONARY:
        batch = batch.table(1)
    rows = batch.number(0, "<q", 0)
    if rows < 0:
        raise ValueError("a negative number of rows")
    compressed = batch.has(3)
    total = rows * 8
    for offset, length in batch.pairs(2):
        if compressed and length:
            (stated,) = struct.unpack_from("<q", body, offset)
            total += length if stated == -1 else stated
            if stated < -1:
                raise ValueError("a negative size")
        else:
            total += length
    return total


class _Table:
    """A flatbuffers table: field i by its slot; every read is bounds-checked by struct."""

    def __init__(self, buffer: memoryview, at: int) -> None:
        self._buffer, self._at = buffer, at
        (back,) = struct.unpack_from("<i", buffer, at)
        self._vtable = at - back
        if self._vtable < 0:
            raise ValueError("a table outside the message")
        (self._size,) = struct.unpack_from("<H", buffer, self._vtable)

    @classmethod
    def root(cls, buffer: memoryview) -> "_Table":
        return cls(buffer, struct.unpack_from("<I", buffer, 0)[0])

    def _slot(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._buffer, self._vtable + entry)
        return self._at + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._slot(field) != 0

    def number(self, field: int, form: str, default: int) -> int:
        slot = self._slot(field)
        return int(struct.unpack_from(form, self._buffer, slot)[0]) if slot else default

    def _follow(self, field: int) -> int:
        slot = self._slot(field)
        if not slot:
            raise ValueError("a part is missing")
        return slot + int(struct.unpack_from("<I", self._buffer, slot)[0])

    def table(self, field: int) -> "_Table":
        return _Table(self._buffer, self._follow(field))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two int64."""
        if not self.has(field):
            return
        start = self._follow(field)
        (n,) = struct.unpack_from("<I", self._buffer, start)
        for i in range(n):
            yield struct.unpack_from("<qq", self._buffer, start + 4 + 16 * i)
