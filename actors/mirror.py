"""Messages of the mirror: what a partition group tells another one of a graph's edges.

One message holds rows for one group, as columns in msgpack, in the order of the records that they come from.
A row's origin is (source group, its topic, offset, how manieth row of that record): the receiver keeps how far
it has come of each source topic and drops the rest, so that a sender may send again. A row without a name is of
the node of that hash: it was deleted, or (`upsert`) it is said what it has of its own. A message names its
columns: those of a sender may be others than the receiver's, where fields were added or dropped.

The log has no gaps, whoever wrote it: a sender sends in order, and begins where a snapshot stood, which was
committed when all before it was in the log. So what is beyond a mark follows on it, also where it is of a sender
that has a successor. To drop it for its epoch would lose edges: a third sender may go on from the snapshot that
the first one wrote last, and send none of them (docs/decisions/0013).

Shapes: N rows, Fn numbers, Fc categories."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from actors.cut import Block, Columns, exchange
from actors.decode import BadRecord
from actors.ports import Batch
from actors.rejected import Rejected
from actors.times import LIMIT_US
from schemas.records import I64, OFFSET_BITS, Bool, Decoded, Features, Gone, Rows, Told
from schemas.stream import DIRECTION, NEIGHBOUR, Shape

MESSAGE_BYTES = 256 << 10
"""A sender cuts where its columns are as long."""
MOST_BYTES = 4 << 20
"""A receiver reads no longer one."""


class Message(msgspec.Struct, frozen=True):
    """`numbers` and what follows: little-endian bytes of whole columns."""

    epoch: int  # of the sender, for who looks into the topic
    group: int
    topic: int  # index into the source's topics
    names: list[str]  # [N] of the nodes that the rows are of; "": the neighbour was deleted
    offset: bytes  # [N] int64
    nth: bytes  # [N] int32
    time_us: bytes  # [N] int64
    timestamp_ms: bytes  # [N] int64
    numbers: bytes  # [N, Fn] float32
    categories: bytes  # [N, Fc] int64
    missing: bytes  # [N, Fc] bool
    upsert: bytes = b""  # [N] bool; empty: none
    node_numbers: bytes = b""  # [M, Nn] float32, of the M rows that are upserts, as those below
    node_categories: bytes = b""  # [M, Nc] int64
    node_missing: bytes = b""  # [M, Nc] bool
    columns: list[
        list[str]
    ] = []  # names of Fn, Fc, Nn, Nc; empty: as they were before messages named them


class Mark(NamedTuple):
    """The last row that was taken of a source topic."""

    offset: int
    nth: int


Marks = dict[tuple[int, int], Mark]
"""By source group and topic."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from: one group's one topic, and [N] offsets and places in their record."""

    epoch: int
    group: int
    topic: int
    offset: I64
    nth: I64


def messages(
    origin: Origin,
    names: list[str],
    rows: Rows,
    timestamp_ms: I64,
    told: tuple[Bool, Features | None],
    columns: Columns,
) -> list[bytes]:
    """N rows as messages, each of about MESSAGE_BYTES at most. told: which rows are upserts [N], and what these say."""
    upsert, features = told
    named = [list(names) for names in columns.blocks] if any(columns.blocks) else []
    sizes = np.fromiter(map(len, names), np.int64, len(names))
    sizes = 2 * sizes + 41 + 4 * rows.numbers.shape[1] + 9 * rows.categories.shape[1]
    if features is not None:
        sizes += upsert * (4 * features.numbers.shape[1] + 9 * features.categories.shape[1])
    part = np.cumsum(sizes) // MESSAGE_BYTES
    starts = np.flatnonzero(np.diff(part, prepend=-1)).tolist()
    out = []
    for lo, hi in zip(starts, [*starts[1:], len(names)], strict=True):
        message = _message(origin, names, rows, timestamp_ms, slice(lo, hi), named)
        if features is not None and upsert[lo:hi].any():
            first = int(np.count_nonzero(upsert[:lo]))
            some = features.take(slice(first, first + int(np.count_nonzero(upsert[lo:hi]))))
            message = msgspec.structs.replace(
                message,
                upsert=upsert[lo:hi].tobytes(),
                node_numbers=some.numbers.astype("<f4").tobytes(),
                node_categories=some.categories.astype("<i8").tobytes(),
                node_missing=some.missing.tobytes(),
            )
        out.append(msgspec.msgpack.encode(message))
    return out


def _message(
    origin: Origin,
    names: list[str],
    rows: Rows,
    stamps: I64,
    at: slice,
    columns: list[list[str]],
) -> Message:
    return Message(
        origin.epoch,
        origin.group,
        origin.topic,
        names[at],
        origin.offset[at].astype("<i8").tobytes(),
        origin.nth[at].astype("<i4").tobytes(),
        rows.time_us[at].astype("<i8").tobytes(),
        stamps[at].astype("<i8").tobytes(),
        rows.numbers[at].astype("<f4").tobytes(),
        rows.categories[at].astype("<i8").tobytes(),
        rows.missing[at].tobytes(),
        columns=columns,
    )


_decode = msgspec.msgpack.Decoder(Message).decode


class Reader:
    """Reads the mirror for one group. `marks`, what was taken already, moves on with every message."""

    def __init__(
        self,
        shape: Shape,
        group: int,
        limits: tuple[int, int, int],
        marks: Marks,
        names: tuple[Columns, Columns],
    ) -> None:
        """limits: groups; topics of each source group, the mirror not counted; bytes of a name. names: of the shape's
        columns, and of those of messages that do not name theirs; empty: as the shape has them."""
        self._shape, self._group, self.marks = shape, group, marks
        self._groups, self._topics, self._max_name = limits
        own, unnamed = names
        if not any(own.blocks):  # their places are their names
            own = unnamed = Columns.placed(shape)
        self._own, self._unnamed = own.blocks, unnamed.blocks

    def read(self, batch: Batch) -> tuple[Decoded, list[BadRecord]]:
        """The rows that were not taken before, in order."""
        bad, parts, names, gone, stamps = list[BadRecord](), [], list[str](), list[Gone](), []
        said, ended, seen, origins = list[Told](), dict[int, int](), 0, []
        for at, value in enumerate(batch.values):
            position = (batch.topic << OFFSET_BITS) | int(batch.offsets[at])
            try:
                message, origin, rows, told = self._checked(value)
            except Rejected as why:
                bad.append(BadRecord(at, why.error, str(why)))
                continue
            keep = self._beyond(origin)
            if not keep.any():
                continue
            rows.position[:] = position
            nameless = np.array([not name for name in message.names], np.bool_)
            deleted = keep & nameless
            stamp = _column(message.timestamp_ms, "<i8", len(keep))
            if told is not None:
                deleted[told.row] = False
                told = told.take(keep[told.row])
                told.row += seen
                said.append(told)
            for row in np.flatnonzero(deleted).tolist():
                before = len(names) + int(np.count_nonzero(keep[:row] & ~nameless[:row]))
                node = int(rows.categories[row, NEIGHBOUR])
                gone.append(Gone(before, node, position, int(stamp[row])))
                ended[node] = seen + row
            seen += len(keep)
            keep &= ~nameless
            parts.append(rows.take(keep))
            names += [message.names[i] for i in np.flatnonzero(keep).tolist()]
            stamps.append(stamp[keep])
            origins.append(origin.topic << OFFSET_BITS | origin.offset[keep])
        rows = Rows.concat(parts) if parts else Rows.empty(self._shape)
        n = len(names)
        stamped = np.concatenate(stamps) if stamps else np.zeros(0, np.int64)
        decoded = Decoded(rows, names, np.zeros(n, np.bool_), stamped, gone=gone)
        # both ends put an edge in one place: by where its record is, not by where the mirror has it
        decoded.origin = np.concatenate(origins) if origins else np.zeros(0, np.int64)
        if said:  # what a deletion stands behind has ended
            told = Told.concat(said)
            last = np.array([ended.get(node, -1) for node in told.node.tolist()], np.int64)
            decoded.told = told.take(told.row > last)
            decoded.told.row[:] = -1
        return decoded, bad

    def _beyond(self, origin: Origin) -> Bool:
        """Which rows were not taken before. [N]"""
        key = origin.group, origin.topic
        mark = self.marks.get(key, Mark(-1, -1))
        keep = (origin.offset > mark.offset) | (
            (origin.offset == mark.offset) & (origin.nth > mark.nth)
        )
        if keep.any():  # rows are in order: the last one is the furthest
            self.marks[key] = Mark(int(origin.offset[-1]), int(origin.nth[-1]))
        return np.asarray(keep)

    def _checked(self, value: Any) -> tuple[Message, Origin, Rows, Told | None]:
        if value is None or len(value) > MOST_BYTES:
            raise _bad(f"it has {len(value or b'')} bytes; 1 to {MOST_BYTES} are allowed")
        try:
            told = _decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
            raise _bad(str(why)) from None
        n = len(told.names)
        for name, found, known in (
            ("group", told.group, self._groups), ("topic", told.topic, self._topics),
            ("epoch", told.epoch, 1 << 62),
        ):  # fmt: skip
            if not 0 <= found < known:
                raise _bad(f"{name} {found}; there are 0 to {known - 1}")
        if told.group == self._group:
            raise _bad("it is of the group that it is for")
        if any(len(name.encode()) > self._max_name for name in told.names):
            raise _bad(f"a name of more than {self._max_name} bytes")
        offset, nth = _column(told.offset, "<i8", n), _column(told.nth, "<i4", n)
        named = self._named(told)
        values = told.numbers, told.categories, told.missing
        rows = Rows(
            _column(told.time_us, "<i8", n),
            np.zeros(n, np.int64),
            *_exchanged(values, n, named[:2], self._own[:2]),
        )
        _column(told.timestamp_ms, "<i8", n)
        follows = (np.diff(offset) > 0) | ((np.diff(offset) == 0) & (np.diff(nth) > 0))
        if n and not (offset[0] >= 0 and offset[-1] < 1 << OFFSET_BITS and follows.all()):
            raise _bad("its offsets do not ascend")
        said = _said(told, offset, rows, named[2:], self._own[2:])
        has_name = np.array([bool(name) for name in told.names], np.bool_)
        timed = has_name if said is None else np.isin(np.arange(n), said.row) | has_name
        if ((rows.time_us <= 0) | (rows.time_us >= LIMIT_US))[timed].any():
            raise _bad("a time that is none")
        if np.isinf(rows.numbers).any() or rows.numbers[has_name, DIRECTION].any():
            raise _bad("a number that is infinite, or a direction that is not 0")
        if (rows.missing > 1).any():
            raise _bad("a truth value that is neither 0 nor 1")
        rows.missing = rows.missing.astype(np.bool_)
        return told, Origin(told.epoch, told.group, told.topic, offset, nth), rows, said

    def _named(self, message: Message) -> tuple[Block, ...]:
        """Names of the message's columns, by kind."""
        named = tuple(map(tuple, message.columns)) or self._unnamed
        first = 1 + self._shape.typed  # of the categories, which are no fields
        same = len(named) == len(self._own) and named[0][:1] == self._own[0][:1]
        if not (same and named[1][:first] == self._own[1][:first]):
            raise _bad(f"its columns are {named}")
        return named


def _said(
    message: Message, offset: I64, rows: Rows, named: Sequence[Block], own: Sequence[Block]
) -> Told | None:
    """What is said of nodes; `row`: which rows of the message say it. named, own: columns of the message, and ours."""
    if not message.upsert:
        return None
    upsert = _column(message.upsert, "u1", len(offset))
    if (upsert > 1).any() or not any(named):
        raise _bad("upserts where there are none")
    row = np.flatnonzero(upsert)
    if any(message.names[i] for i in row.tolist()):
        raise _bad("an upsert with a name")
    values = message.node_numbers, message.node_categories, message.node_missing
    numbers, categories, missing = _exchanged(values, len(row), named, own)
    if np.isinf(numbers).any() or (missing > 1).any():
        raise _bad("features that are none")
    features = Features(numbers, categories, missing.astype(np.bool_))
    stamps = _column(message.timestamp_ms, "<i8", len(offset))[row]
    position = message.topic << OFFSET_BITS | offset[row]
    node = rows.categories[row, NEIGHBOUR]
    return Told(node, row, rows.time_us[row], position, stamps, features)


def _exchanged(
    values: Sequence[bytes], n: int, named: Sequence[Block], own: Sequence[Block]
) -> tuple[Any, Any, Any]:
    """Numbers, categories and which are missing, n rows of columns so named, as our columns."""
    widths = len(named[0]), len(named[1]), len(named[1])
    dtypes = "<f4", "<i8", "u1"
    columns = [_column(v, d, n, w) for v, d, w in zip(values, dtypes, widths, strict=True)]
    found = dict(zip(("numbers", "categories", "missing"), columns, strict=True))
    exchange(found, named, own)
    return found["numbers"], found["categories"], found["missing"]


def _column(data: bytes, dtype: str, n: int, width: int | None = None) -> Any:
    shape = (n,) if width is None else (n, width)
    if len(data) != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise _bad(f"a column of {len(data)} bytes; {n} rows are named")
    native = np.dtype(dtype).newbyteorder("=")
    if dtype == "<i4":
        native = np.dtype(np.int64)
    return np.frombuffer(data, dtype).reshape(shape).astype(native)


def _bad(why: str) -> Rejected:
    return Rejected("bad_mirror", f"no message of the mirror: {why}. Only afresh writes there.")
