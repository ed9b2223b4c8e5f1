"""The words for what is read: columns of records, windows of one entity's records.

Shapes: N records, T rows of a window, B windows, Fn number-like fields, Fc category fields,
K = 2 + 3·Fn running totals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import compress
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from schemas.stream import NODE_VIEW, Shape

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
U8 = npt.NDArray[np.uint8]

OFFSET_BITS = 48
"""A row's `position` is topic index << 48 | offset: it orders rows of equal time."""


@dataclass(slots=True)
class Rows:
    """Columns of N records."""

    time_us: I64  # [N] since 1970
    position: I64  # [N] topic index << OFFSET_BITS | offset
    numbers: F32  # [N, Fn] NaN is missing, never infinite
    categories: I64  # [N, Fc] category_hash; whatever where missing
    missing: Bool  # [N, Fc]

    def __len__(self) -> int:
        return len(self.time_us)

    def take(self, at: I64 | slice | Bool | tuple[I64, I64]) -> Self:
        return type(self)(*(getattr(self, f.name)[at] for f in fields(self)))

    @staticmethod
    def concat(parts: "Sequence[R]") -> "R":
        kind = type(parts[0])
        return kind(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)))

    @staticmethod
    def empty(shape: Shape, *leading: int) -> "Rows":
        """Of no image and no values; any leading axes, none for N = 0."""
        leading = leading or (0,)
        columns = (
            np.zeros(leading, np.int64),
            np.zeros(leading, np.int64),
            np.full((*leading, shape.numbers), np.nan, np.float32),
            np.zeros((*leading, shape.categories), np.int64),
            np.ones((*leading, shape.categories), np.bool_),
        )
        if not shape.side:
            return Rows(*columns)
        return ImageRows(
            *columns,
            np.zeros((*leading, shape.pixels), np.uint8),
            np.zeros((*leading, shape.kept_uri), np.uint8),
            np.zeros((*leading, 0), np.float32),
            np.zeros(leading, np.int64),
        )

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, f.name).nbytes for f in fields(self))


R = TypeVar("R", bound=Rows)


@dataclass(slots=True)
class ImageRows(Rows):
    """Columns of N images. In a ring `pixels` and `uri` are there as `Shape.keep` says, else without width."""

    pixels: U8  # [N, P] S·S·3 of each side, row by row, each pixel's red, green and blue
    uri: U8  # [N, URI_BYTES] UTF-8, zeros behind it; zeros alone: there is none
    vector: F32  # [N, D] of unit length; D is 0 before it was asked for
    release: I64  # [N] that made the vector; 0: none has


@dataclass(slots=True)
class Features:
    """What nodes have of their own; any leading axes, N below."""

    numbers: F32  # [N, Nn] NaN is missing, never infinite
    categories: I64  # [N, Nc] category_hash; whatever where missing
    missing: Bool  # [N, Nc]

    def take(self, at: Any) -> Self:
        return type(self)(self.numbers[at], self.categories[at], self.missing[at])

    @classmethod
    def empty(cls, shape: Shape, *leading: int) -> Self:
        """Of nodes that nothing is known of."""
        return cls(
            np.full((*leading, shape.node_numbers), np.nan, np.float32),
            np.zeros((*leading, shape.node_categories), np.int64),
            np.ones((*leading, shape.node_categories), np.bool_),
        )

    @classmethod
    def concat(cls, parts: Sequence[Self], axis: int = 0) -> Self:
        columns = ([getattr(p, f.name) for p in parts] for f in fields(cls))
        return cls(*(np.concatenate(column, axis) for column in columns))

    def named(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """The columns by name, as inputs of an encoder have them."""
        return {f"{prefix}_{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of_named(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Self:
        return cls(*(arrays[f"{prefix}_{f.name}"] for f in fields(cls)))

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.categories.nbytes + self.missing.nbytes


@dataclass(slots=True)
class Windows:
    """Windows of B entities, their rows flat and in order of (time, position)."""

    rows: Rows
    offsets: I64  # [B+1] window b is rows[offsets[b]:offsets[b+1]]
    totals: F64  # [B, K] before the first row, but for its session, which counts
    first_us: I64  # [B] time of the entity's first record
    entity: I64  # [B] category_hash of the entity's name
    own: Features | None = None  # [B] of nodes, where the stream has features of them
    far: Features | None = None  # [len(rows)] of each row's far node

    def __len__(self) -> int:
        return len(self.entity)

    @property
    def nbytes(self) -> int:
        of_nodes = sum(f.nbytes for f in (self.own, self.far) if f is not None)
        return self.rows.nbytes + self.totals.nbytes + 8 * 3 * len(self) + of_nodes

    @staticmethod
    def concat(parts: "Sequence[Windows]") -> "Windows":
        """Windows of one stream, one after the other."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([np.diff(w.offsets) for w in parts])
        totals, first_us, entity = (
            np.concatenate([getattr(w, n) for w in parts]) for n in ("totals", "first_us", "entity")
        )
        rows = Rows.concat([w.rows for w in parts])
        own, far = ([f for w in parts if (f := getattr(w, n)) is not None] for n in ("own", "far"))
        return Windows(
            rows,
            np.concatenate([[0], np.cumsum(lengths)]),
            totals,
            first_us,
            entity,
            Features.concat(own) if own else None,
            Features.concat(far) if far else None,
        )

    def of_one_row(self, which: Bool) -> Self:
        """Some of windows that have one row each."""
        rows, n = self.rows.take(which), int(np.count_nonzero(which))
        columns = self.totals[which], self.first_us[which], self.entity[which]
        return type(self)(rows, np.arange(n + 1), *columns)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All columns by name, for a file."""
        rows = {f.name: getattr(self.rows, f.name) for f in fields(self.rows)}
        own = {} if self.own is None else self.own.named("node")
        far = {} if self.far is None else self.far.named("far")
        return (
            rows
            | {name: getattr(self, name) for name in ("offsets", "totals", "first_us", "entity")}
            | own
            | far
        )

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        kind = ImageRows if "pixels" in arrays else Rows
        rows = kind(*(arrays[f.name] for f in fields(kind)))
        found = cls(rows, arrays["offsets"], arrays["totals"], arrays["first_us"], arrays["entity"])
        if NODE_VIEW[0] in arrays:
            found.own, found.far = (Features.of_named(arrays, side) for side in ("node", "far"))
        return found


class Gone(NamedTuple):
    """A node was deleted: what names it as neighbour, before row `before` of the batch, is removed."""

    before: int
    node: int  # category_hash of its name
    position: int
    timestamp_ms: int


@dataclass(slots=True)
class Told:
    """What records said of M nodes."""

    node: I64  # [M] category_hash of its name
    row: I64  # [M] the record among the batch's rows; -1: in another group
    time_us: I64  # [M] with `position` it says which is the newest
    position: I64  # [M] of the record where it was said, in whichever group
    timestamp_ms: I64  # [M]
    features: Features

    def __len__(self) -> int:
        return len(self.node)

    def take(self, at: I64 | Bool | slice) -> Self:
        plain = self.node[at], self.row[at], self.time_us[at], self.position[at]
        return type(self)(*plain, self.timestamp_ms[at], self.features.take(at))

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        return cls(
            np.concatenate([p.node for p in parts]),
            np.concatenate([p.row for p in parts]),
            np.concatenate([p.time_us for p in parts]),
            np.concatenate([p.position for p in parts]),
            np.concatenate([p.timestamp_ms for p in parts]),
            Features.concat([p.features for p in parts]),
        )

    @property
    def nbytes(self) -> int:
        return 40 * len(self) + self.features.nbytes


@dataclass(slots=True)
class Decoded:
    """A micro-batch of one topic of one group, decoded; dead letters are apart."""

    rows: Rows
    entities: list[str]  # [N]
    deleted: Bool  # [N] a null value: forget the entity; such a row's fields mean nothing
    timestamp_ms: I64  # [N] when it was produced, by Kafka's clock
    neighbours: list[str] = field(default_factory=list)  # [N] of a graph: far nodes; else empty
    gone: list[Gone] = field(default_factory=list)
    told: Told | None = None  # rows that say something of their node are no edges
    origin: I64 | None = (
        None  # [N] topic << OFFSET_BITS | offset where the record itself is; None: `position`
    )

    @property
    def upsert(self) -> Bool:
        """[N] which rows say something of their node."""
        out = np.zeros(len(self.entities), np.bool_)
        if self.told is not None:
            out[self.told.row[self.told.row >= 0]] = True
        return out

    @property
    def edge(self) -> Bool:
        """[N] of a graph's nodes: which rows are edges, not deletions or what is said of a node."""
        return np.asarray(~(self.deleted | self.upsert))

    def take(self, keep: Bool) -> Self:
        """The rows that `keep` [N] says."""
        chosen = keep.tolist()
        told = self.told
        if told is not None:
            told = told.take((told.row < 0) | keep[told.row])
            told.row = np.where(told.row < 0, -1, np.cumsum(keep)[told.row] - 1)
        return type(self)(
            self.rows.take(keep),
            list(compress(self.entities, chosen)),
            self.deleted[keep],
            self.timestamp_ms[keep],
            list(compress(self.neighbours, chosen)),
            [g._replace(before=int(np.count_nonzero(keep[: g.before]))) for g in self.gone],
            told,
            None if self.origin is None else self.origin[keep],
        )


def category_hash(text: str | bytes | int) -> int:
    """xxh3_64 (seed 0) of the UTF-8 text (integers as decimals), as a two's complement int64."""
    data = text if isinstance(text, bytes) else str(text).encode()
    value = xxhash.xxh3_64_intdigest(data)
    return value - (1 << 64) if value >= 1 << 63 else value


def symlog(x: F32 | F64) -> F64:
    """sign(x)·log(1+|x|) in float64: bounded by 89 for any float32, so sums of squares stay exact."""
    x64 = x.astype(np.float64)
    return np.asarray(np.sign(x64) * np.log1p(np.abs(x64)))


def contributions(numbers: F32) -> F64:
    """What rows add to the running totals, sessions aside (0 here). [N, Fn] -> [N, K]."""
    there = ~np.isnan(numbers)
    y = np.where(there, symlog(numbers), 0.0)
    n, width = numbers.shape
    out = np.zeros((n, 2 + 3 * width), np.float64)
    out[:, 0] = 1.0
    out[:, 2 : 2 + width] = there
    out[:, 2 + width : 2 + 2 * width] = y
    out[:, 2 + 2 * width :] = y * y
    return out
