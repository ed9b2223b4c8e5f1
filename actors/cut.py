"""Some of a state's columns: fields that were named later, or are named no more, stand beside those of a release."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from actors.folders import write_file
from actors.served import read_manifest, served
from schemas.errors import SettingsError
from schemas.published import Manifest
from schemas.records import F64, I64, Rows, Windows
from schemas.stream import Field, FieldType, StreamConfig

FIELDS = "fields"  # file beside the learner's snapshots: the names of their columns


class Columns(NamedTuple):
    """Their names, in order."""

    numbers: tuple[str, ...]
    categories: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str], numbers: int) -> "Columns":
        """Of one list, numbers first."""
        every = tuple(names)
        return cls(every[:numbers], every[numbers:])


def columns(stream: StreamConfig) -> Columns:
    """Of a record, without those of nodes."""
    shape = stream.shape
    return Columns.of(stream.columns[: shape.numbers + shape.categories], shape.numbers)


@dataclass(frozen=True)
class Cut:
    """Where the columns are among those that there are."""

    numbers: I64
    categories: I64
    totals: I64

    @classmethod
    def of(cls, wanted: Columns, there: Columns) -> "Cut | None":
        """None where they are all there are, in the same order. Raises KeyError where one is not there."""
        if wanted == there:
            return None
        at = [dict(zip(names, range(len(names)), strict=True)) for names in there]
        numbers, categories = (
            np.array([where[name] for name in names], np.int64)
            for where, names in zip(at, wanted, strict=True)
        )
        return cls(numbers, categories, totals_at(numbers, len(there.numbers)))

    def rows(self, rows: Rows) -> Rows:
        return replace(
            rows,
            numbers=rows.numbers[..., self.numbers],
            categories=rows.categories[..., self.categories],
            missing=rows.missing[..., self.categories],
        )

    def windows(self, windows: Windows) -> Windows:
        return replace(windows, rows=self.rows(windows.rows), totals=windows.totals[:, self.totals])


def totals_at(numbers: I64, width: int) -> I64:
    """Where the running totals of these numbers are: count and sessions, then three blocks of `width`."""
    blocks = 2 + np.arange(3)[:, None] * width + numbers
    return np.concatenate([np.arange(2), blocks.ravel()])


def moved(old: F64, before: Columns, now: Columns) -> F64:
    """Totals [E, K] as other columns have them; of what is new nothing was seen."""
    out = np.zeros((len(old), 2 + 3 * len(now.numbers)), np.float64)
    both = [n for n in now.numbers if n in before.numbers]
    to, of = (
        totals_at(np.array([c.numbers.index(n) for n in both], np.int64), len(c.numbers))
        for c in (now, before)
    )
    out[:, to] = old[:, of]
    return out


def wide(stream: StreamConfig, releases: Path) -> StreamConfig:
    """The stream with the fields too that only releases still name: the one that is served, or is being filled.

    Raises SettingsError where a name now is of another kind of column."""
    if stream.graph or stream.images:
        return stream
    now = served(releases)
    for number in (now.release, now.next):
        if number:
            stream = _with(stream, read_manifest(releases / str(number)))
    return stream


def _with(stream: StreamConfig, manifest: Manifest) -> StreamConfig:
    known = {field.name: field for field in stream.field}
    more: list[Field] = []
    for field in manifest.fields:
        other = known.get(field.name)
        if other is None:
            more.append(field)
        elif (other.type is FieldType.category) != (field.type is FieldType.category):
            raise SettingsError(
                f"stream.field {field.name!r} is a {other.type.value}, and of release {manifest.release} a "
                f"{field.type.value}: give what it is now another name."
            )
    return msgspec.structs.replace(stream, field=(*stream.field, *more))


def set_learner_aside(root: Path, stream: StreamConfig) -> Path | None:
    """A learner of other fields begins anew, with nothing that it remembers: where what it had is now; None where its
    fields are the stream's."""
    folder, names = root / "learner", "\n".join(stream.columns)
    file = folder / FIELDS
    aside = None
    if file.exists() and file.read_text() != names and stream.shape.unit == "events":
        n = 1 + sum(1 for _ in root.glob("learner.before-*"))
        aside = folder.rename(root / f"learner.before-{n}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(file, names.encode())
    return aside
