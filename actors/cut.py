"""Some of a state's columns: fields that were named later, or are named no more, stand beside those of a release; of
images, pixels of other sides."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from actors.folders import write_file
from actors.served import read_manifest, served
from schemas.errors import SettingsError
from schemas.published import Manifest
from schemas.records import F64, I64, Features, ImageRows, Rows, Windows
from schemas.stream import (
    CHANNELS,
    Field,
    FieldType,
    ImageConfig,
    Shape,
    SidesConfig,
    StreamConfig,
)

FIELDS = "fields"  # file beside the learner's snapshots: the names of their columns
A = TypeVar("A", bound=np.generic)
Block = tuple[str, ...]


class Columns(NamedTuple):
    """Their names, in order: of records, of nodes; and the sides that images have, one behind the other."""

    numbers: Block = ()
    categories: Block = ()
    node_numbers: Block = ()
    node_categories: Block = ()
    sides: tuple[int, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str], shape: Shape) -> "Columns":
        """Of one list, as StreamConfig has it."""
        return cls._split(names, _widths(shape), shape.sides)

    @classmethod
    def placed(cls, shape: Shape) -> "Columns":
        """Named by their places."""
        return cls.of(map(str, range(sum(_widths(shape)))), shape)

    @classmethod
    def saved(cls, meta: Mapping[str, Any]) -> "Columns":
        """Of a snapshot. Those of nodes and of images came later than its format."""
        widths = meta["numbers"], meta["categories"]
        of_nodes = meta.get("node numbers", 0), meta.get("node categories", 0)
        side = meta.get("side", 0)
        sides = meta.get("sides", [side] if side else [])
        return cls._split(meta.get("fields", []), (*widths, *of_nodes), tuple(sides))

    @classmethod
    def released(cls, m: Manifest) -> "Columns":
        numbers, categories = (
            tuple(f"node.{n}" for n in names) for names in (m.node_numbers, m.node_categories)
        )
        return cls(m.numbers, m.categories, numbers, categories, (m.side,) if m.side else ())

    @classmethod
    def _split(
        cls, names: Iterable[str], widths: Iterable[int], sides: tuple[int, ...]
    ) -> "Columns":
        every, ends = tuple(names), accumulate(widths, initial=0)
        a, b, c, d = (every[first:end] for first, end in pairwise(ends))
        return cls(a, b, c, d, sides)

    @property
    def blocks(self) -> tuple[Block, Block, Block, Block]:
        return self[:4]

    @property
    def pixels(self) -> int:
        """Bytes of an image, all its sides."""
        return sum(map(_bytes, self.sides))


def _widths(shape: Shape) -> tuple[int, int, int, int]:
    return shape.numbers, shape.categories, shape.node_numbers, shape.node_categories


def columns(stream: StreamConfig) -> Columns:
    return Columns.of(stream.columns, stream.shape)


@dataclass(frozen=True)
class Cut:
    """Where the columns are among those that there are."""

    numbers: I64
    categories: I64
    node_numbers: I64
    node_categories: I64
    pixels: slice
    totals: I64

    @classmethod
    def of(cls, wanted: Columns, there: Columns) -> "Cut | None":
        """None where they are all there are, in the same order. Raises KeyError, in words, where one is not there."""
        if wanted == there:
            return None
        at = list[I64]()
        for names, known in zip(wanted.blocks, there.blocks, strict=True):
            if lacking := [name for name in names if name not in known]:
                raise KeyError(f"the field {lacking[0]!r}")
            at.append(np.array([known.index(name) for name in names], np.int64))
        pixels = slice(0, there.pixels)
        for side in wanted.sides:
            if side not in there.sides:
                raise KeyError(f"images of {side} × {side} pixels")
            first = sum(map(_bytes, there.sides[: there.sides.index(side)]))
            pixels = slice(first, first + _bytes(side))
        return cls(at[0], at[1], at[2], at[3], pixels, totals_at(at[0], len(there.numbers)))

    @property
    def noded(self) -> bool:
        """Whether columns of nodes are among them."""
        return len(self.node_numbers) + len(self.node_categories) > 0

    def rows(self, rows: Rows) -> Rows:
        some = replace(
            rows,
            numbers=rows.numbers[..., self.numbers],
            categories=rows.categories[..., self.categories],
            missing=rows.missing[..., self.categories],
        )
        if isinstance(some, ImageRows):
            some.pixels = some.pixels[..., self.pixels]
        return some

    def features(self, of_nodes: Features) -> Features:
        return Features(
            of_nodes.numbers[..., self.node_numbers],
            of_nodes.categories[..., self.node_categories],
            of_nodes.missing[..., self.node_categories],
        )

    def windows(self, windows: Windows) -> Windows:
        return replace(windows, rows=self.rows(windows.rows), totals=windows.totals[:, self.totals])


def _bytes(side: int) -> int:
    return CHANNELS * side**2


def totals_at(numbers: I64, width: int) -> I64:
    """Where the running totals of these numbers are: count and sessions, then three blocks of `width`."""
    blocks = 2 + np.arange(3)[:, None] * width + numbers
    return np.concatenate([np.arange(2), blocks.ravel()])


# -- columns as others have them --------------------------------------------------------------------


def renamed(
    column: npt.NDArray[A], before: Sequence[str], now: Sequence[str], blank: object
) -> npt.NDArray[A]:
    """[..., before] -> [..., now]: what both have; of the rest `blank`."""
    out = np.full((*column.shape[:-1], len(now)), blank, column.dtype)
    both = [name for name in now if name in before]
    to, of = ([names.index(name) for name in both] for names in (now, before))
    out[..., to] = column[..., of]
    return out


def moved(old: F64, before: Block, now: Block) -> F64:
    """Totals [E, K] as other numbers have them; of what is new nothing was seen."""
    out = np.zeros((len(old), 2 + 3 * len(now)), np.float64)
    both = [n for n in now if n in before]
    to, of = (
        totals_at(np.array([names.index(n) for n in both], np.int64), len(names))
        for names in (now, before)
    )
    out[:, to] = old[:, of]
    return out


def exchange(t: dict[str, npt.NDArray[Any]], before: Sequence[Block], now: Sequence[Block]) -> None:
    """The `numbers`, `categories` and `missing` of rows or nodes with other fields: all lack what is new.

    before, now: names of numbers and of categories."""
    for name, block, blank in (("numbers", 0, np.nan), ("categories", 1, 0), ("missing", 1, True)):
        if before[block] != now[block]:
            t[name] = renamed(t[name], before[block], now[block], blank)


# -- what a shard's rows are to have ----------------------------------------------------------------


def wide(stream: StreamConfig, releases: Path) -> StreamConfig:
    """The stream with the fields too, or sides of images, that only releases still read: the one that is served, or is
    being filled.

    Raises SettingsError where a name now is of another kind of column."""
    now = served(releases)
    for number in (now.release, now.next):
        if number:
            stream = _with(stream, read_manifest(releases / str(number)))
    return stream


def _with(stream: StreamConfig, manifest: Manifest) -> StreamConfig:
    if stream.images:
        return msgspec.structs.replace(stream, image=_several(stream.image, manifest.side))
    field = _both(stream.field, manifest.fields, "stream.field", manifest.release)
    node = _both(stream.node, manifest.node_fields, "stream.node", manifest.release)
    if node and not stream.op:
        raise SettingsError(
            f"release {manifest.release} reads what records say of nodes, and stream.op is missing: name it until that "
            "release is served no more."
        )
    return msgspec.structs.replace(stream, field=field, node=node)


def _both(
    named: tuple[Field, ...], read: tuple[Field, ...], key: str, release: int
) -> tuple[Field, ...]:
    known = {field.name: field for field in named}
    more: list[Field] = []
    for field in read:
        other = known.get(field.name)
        if other is None:
            more.append(field)
        elif (other.type is FieldType.category) != (field.type is FieldType.category):
            raise SettingsError(
                f"{key} {field.name!r} is a {other.type.value}, and of release {release} a {field.type.value}: give "
                "what it is now another name."
            )
    return (*named, *more)


def _several(image: ImageConfig, side: int) -> ImageConfig:
    if side in (0, *image.sides):
        return image
    settings = {name: getattr(image, name) for name in ImageConfig.__struct_fields__}
    return SidesConfig(**settings, others=(*image.sides[1:], side))


def set_learner_aside(root: Path, stream: StreamConfig) -> Path | None:
    """A learner of other fields, or of another side, begins anew, with nothing that it remembers: where what it had is
    now; None where they are the stream's."""
    names = "\n".join(stream.columns)
    known = {names}
    if stream.images:
        known.add(names + f"\n{stream.image.side}")
    folder, now = root / "learner", max(known, key=len)
    file = folder / FIELDS
    aside = None
    if file.exists() and file.read_text() not in known:  # without a side: as it once was written
        before = (root / f"learner.before-{n}" for n in count(1))
        aside = folder.rename(next(path for path in before if not path.exists()))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(file, now.encode())
    return aside
