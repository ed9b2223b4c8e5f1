"""Which values a stream reads, by dotted path, and which Python types each may have."""

from dataclasses import dataclass
from datetime import datetime
from typing import Union

from actors.rejected import Rejected
from schemas.errors import SettingsError
from schemas.stream import FieldType, StreamConfig

_TYPES: dict[str, frozenset[type]] = {
    "number": frozenset({int, float}),
    "flag": frozenset({bool, int}),
    "category": frozenset({str, int, bool}),
    "entity": frozenset({str, int}),
    "text": frozenset({str}),
    "auto": frozenset({int, float, str, datetime}),
    "iso": frozenset({str, datetime}),
    "s": frozenset({int, float, datetime}),
    "ms": frozenset({int, float, datetime}),
    "us": frozenset({int, float, datetime}),
}
_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Leaf:
    """One value of a record: where it stands, and what it may be."""

    path: str
    types: frozenset[type]

    @property
    def hint(self) -> object:
        """As an annotation for msgspec; floats take integers, and None is always allowed."""
        types = self.types - {datetime}
        if types == {int, float}:
            types = frozenset({float})
        return Union[*sorted(types, key=str), None]

    @property
    def is_time(self) -> bool:
        return datetime in self.types

    def check(self, value: object) -> object:
        """The value if its type is allowed (None always is); raises Rejected otherwise."""
        if value is None or type(value) in self.types:
            if type(value) is int and float in self.types and not self.is_time:
                try:
                    return float(value)
                except OverflowError:
                    raise Rejected("infinite", f"{self.path!r}: beyond float32") from None
            return value
        needs = " or ".join(_NAMES[t] for t in _NAMES if t in self.types)
        got = type(value).__name__
        raise Rejected("wrong_type", f"{self.path!r}: got {got}; needed is {needs}")


Tree = dict[str, "Tree | Leaf"]
"""Leaves by the segments of their paths."""


def leaves(stream: StreamConfig) -> dict[str, Leaf]:
    """By path. A path that is used twice must hold what both uses allow."""
    uses = [(stream.entity, "entity"), (stream.time, stream.time_unit)]
    edge = [(stream.source, "entity"), (stream.neighbour, "entity")]
    edge += [(stream.op, "text"), (stream.edge_type, "category")]
    uses += [(path, kind) for path, kind in edge if path]
    for field in stream.inputs:
        kind = stream.time_unit if field.type is FieldType.time else str(field.type)
        uses.append((field.where, kind))
    out: dict[str, Leaf] = {}
    for path, kind in uses:
        types = _TYPES[kind] & (out[path].types if path in out else _TYPES[kind])
        if not types:
            raise SettingsError(
                f"stream: {path!r} is read as {kind} and as something that is never {kind}; "
                "give the two fields types that agree."
            )
        out[path] = Leaf(path, types)
    return out


def tree(found: dict[str, Leaf]) -> Tree:
    """The leaves nested as their paths are."""
    root: Tree = {}
    for path, leaf in found.items():
        *parents, name = path.split(".")
        if not all((*parents, name)):
            raise SettingsError(f"stream: the path {path!r} has an empty part; write it as a.b.c.")
        node: Tree | Leaf = root
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or name in node:
            raise SettingsError(
                f"stream: {path!r} and another path are an object and a value at once; rename one."
            )
        node[name] = leaf
    return root
