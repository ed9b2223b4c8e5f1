"""JSON and MessagePack -> columns.

The fast path decodes into one Struct made for the stream's paths; a message that it refuses is read
again value by value, which either finds the reason or accepts what a Struct cannot say.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Raw, Struct, defstruct

from actors.columns import Hashes, Lists, Table, assemble
from actors.paths import Leaf, Tree, leaves, tree
from actors.rejected import Rejected
from schemas.records import I64
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from actors.decode import BadRecord, DecodeConfig

FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
SCALAR = str | int | float | bool | None
_CONSTANTS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|-?(?:NaN|Infinity)\b', re.DOTALL)
"""A string, closed or not, or a constant that Python writes and JSON does not know."""


class Text:
    """Messages of `json` or `msgpack`."""

    def __init__(self, stream: StreamConfig, config: "DecodeConfig") -> None:
        self._stream, self._config = stream, config
        self._leaves = leaves(stream)
        self._tree = tree(self._leaves)
        self._codec: Any = msgspec.json if config.format == "json" else msgspec.msgpack
        self._hashes = Hashes()
        root, self._getters = _struct(self._tree)
        self._blank = root()
        self._decode: Callable[[bytes], Struct] = self._codec.Decoder(root).decode
        self._objects: dict[int, Any] = {}
        self._scalar = self._codec.Decoder(SCALAR).decode
        self._prepare(self._tree)

    def read(self, values: Sequence[bytes]) -> tuple[Table, I64, list["BadRecord"]]:
        records, failed = self._records(values)
        patches: dict[int, dict[str, object]] = {}
        rejected: dict[int, Rejected] = {}
        for at in failed:
            try:
                patches[at] = self._careful(values[at])
            except Rejected as why:
                rejected[at] = why

        def column(path: str) -> list[object]:
            found = self._getters[path](records)
            for at, patch in patches.items():
                found[at] = patch[path]
            return found

        columns = Lists(column, self._hashes)
        table = assemble(self._stream, columns, len(values), self._config.max_entity_bytes)
        table.bad.update(rejected)
        return table, np.arange(len(values)), []

    def _records(self, values: Sequence[bytes]) -> tuple[list[Struct], list[int]]:
        """All records, blank where the fast path failed, and where that was."""
        records: list[Struct] = []
        failed: list[int] = []
        left = map(self._decode, values)
        while True:
            try:
                records.extend(left)  # keeps what came before a failure; `left` goes on behind it
            except FAILURES:
                failed.append(len(records))
                records.append(self._blank)
            else:
                return records, failed

    # -- value by value ---------------------------------------------------------------------------

    def _prepare(self, node: Tree) -> None:
        """Decoders that leave each value of an object as raw bytes: nothing expands."""
        names = {f"f{i}": name for i, name in enumerate(node)}
        raw = defstruct("Raws", [(f, Raw, None) for f in names], rename=names)
        self._objects[id(node)] = self._codec.Decoder(raw).decode
        for child in node.values():
            if not isinstance(child, Leaf):
                self._prepare(child)

    def _careful(self, value: bytes) -> dict[str, object]:
        """The record's values by path; raises Rejected with what is wrong."""
        out: dict[str, object] = dict.fromkeys(self._leaves)
        try:
            self._open(self._tree, value, "the message", out)
        except Rejected as why:
            plain = self._without_constants(value) if why.error == "not_json" else value
            if plain == value:
                raise
            self._open(self._tree, plain, "the message", out)
        return out

    def _open(self, node: Tree, value: bytes | Raw, where: str, out: dict[str, object]) -> None:
        try:
            found = self._objects[id(node)](value)
        except FAILURES as why:
            raise self._reason(why, where, "an object") from None
        for at, child in enumerate(node.values()):
            raw = getattr(found, f"f{at}")
            if raw is None:
                continue
            if isinstance(child, Leaf):
                out[child.path] = self._value(child, raw)
            elif bytes(raw).strip() not in (b"null", b"\xc0"):
                self._open(child, raw, repr(list(node)[at]), out)

    def _value(self, leaf: Leaf, raw: Raw) -> object:
        try:
            return leaf.check(self._scalar(raw))
        except FAILURES as why:
            if leaf.is_time and self._codec is msgspec.msgpack:
                try:
                    return msgspec.msgpack.decode(raw, type=datetime)
                except FAILURES:
                    pass
            if "out of range" in str(why):
                error = Rejected("infinite", f"{leaf.path!r}: beyond float32")
                late = Rejected("bad_time", f"{leaf.path!r}: beyond 2^53 µs")
                raise (late if leaf.is_time else error) from None
            raise self._reason(why, repr(leaf.path), "a single value") from None

    def _reason(self, why: Exception, where: str, needed: str) -> Rejected:
        if isinstance(why, UnicodeDecodeError):
            return Rejected("invalid_utf8", f"{where}: text that is not UTF-8")
        if isinstance(why, RecursionError):
            return Rejected("too_deep", f"{where}: nested too deeply")
        if isinstance(why, msgspec.ValidationError):
            return Rejected("wrong_type", f"{where}: {why}; needed is {needed}")
        if self._codec is msgspec.json:
            return Rejected("not_json", f"{where}: {why}")
        return Rejected("not_msgpack", f"{where}: {why}")

    @staticmethod
    def _without_constants(value: bytes) -> bytes:
        """Python's NaN is missing, its infinities become a number out of range."""
        if b"NaN" not in value and b"Infinity" not in value:
            return value
        put = {b"NaN": b"null", b"Infinity": b"1e999", b"-Infinity": b"-1e999"}
        return _CONSTANTS.sub(lambda found: put.get(found[0], found[0]), value)


Getter = Callable[[list[Struct]], list[object]]


def _struct(node: Tree, prefix: str = "") -> tuple[type[Struct], dict[str, Getter]]:
    """A Struct type for an object, and for each path below it how to get its column."""
    fields, names, getters = [], {}, {}
    for at, (name, child) in enumerate(node.items()):
        attribute = f"f{at}"
        names[attribute] = name
        if isinstance(child, Leaf):
            fields.append((attribute, child.hint, None))
            getters[child.path] = _getter(attribute)
        else:
            inner, deeper = _struct(child, f"{prefix}{at}_")
            fields.append((attribute, inner | None, None))
            blank = inner()
            for path, get in deeper.items():
                getters[path] = _nested(attribute, blank, get)
    made = defstruct(f"Record{prefix}", fields, rename=names, gc=False)
    return made, getters


def _getter(name: str) -> Getter:
    get = attrgetter(name)
    return lambda records: list(map(get, records))


def _nested(name: str, blank: Struct, get: Getter) -> Getter:
    outer = _getter(name)
    return lambda records: get([blank if found is None else found for found in outer(records)])  # type: ignore[misc]
