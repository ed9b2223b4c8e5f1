"""Avro in Confluent's wire format (0, schema id in 4 bytes, body) -> columns, by a local schema."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np

from actors.columns import Hashes, Lists, Table, assemble
from actors.paths import leaves, tree
from actors.rejected import Rejected
from schemas.errors import SettingsError
from schemas.records import I64
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from actors.decode import BadRecord, DecodeConfig

HEADER = 5


class Avro:
    """Messages of `avro`."""

    def __init__(self, stream: StreamConfig, config: "DecodeConfig") -> None:
        self._stream, self._config = stream, config
        self._leaves = leaves(stream)
        tree(self._leaves)
        self._schema = load_schema(config.avro_schema)
        names = {field["name"] for field in self._schema["fields"]}
        named = (stream.entity, stream.time, stream.source, stream.neighbour, stream.op)
        for path in filter(None, named):
            if path.split(".")[0] not in names:
                raise SettingsError(
                    f"stream: decode.avro_schema {config.avro_schema} has no field "
                    f"{path.split('.')[0]!r}; its fields are {', '.join(sorted(names))}."
                )
        self._hashes = Hashes()

    def read(self, values: Sequence[bytes]) -> tuple[Table, I64, list["BadRecord"]]:
        rejected: dict[int, Rejected] = {}
        records: list[dict[str, Any]] = []
        for at, value in enumerate(values):
            try:
                records.append(self._record(value))
            except Rejected as why:
                rejected[at] = why
                records.append({})
        columns = {path: self._column(path, records, rejected) for path in self._leaves}
        lists = Lists(columns.__getitem__, self._hashes)
        table = assemble(self._stream, lists, len(values), self._config.max_entity_bytes)
        table.bad.update(rejected)
        return table, np.arange(len(values)), []

    def _record(self, value: bytes) -> dict[str, Any]:
        if len(value) < HEADER or value[0] != 0:
            raise Rejected("not_avro", "no Confluent header (a zero byte, then a schema id)")
        schema_id = int.from_bytes(value[1:HEADER], "big")
        if self._config.avro_schema_id not in (0, schema_id):
            reason = f"schema {schema_id}; decode.avro_schema_id is {self._config.avro_schema_id}"
            raise Rejected("unknown_schema", reason)
        body = BytesIO(value)
        body.seek(HEADER)
        try:
            record = fastavro.schemaless_reader(body, self._schema, None)
        except UnicodeDecodeError:
            raise Rejected("invalid_utf8", "text that is not UTF-8") from None
        except RecursionError:
            raise Rejected("too_deep", "nested too deeply") from None
        except Exception as why:  # fastavro raises whatever its readers stumble over
            raise Rejected("not_avro", f"not of the schema: {type(why).__name__}") from None
        if body.tell() != len(value):
            raise Rejected("not_avro", "bytes are left over behind the record")
        assert isinstance(record, dict)
        return record

    def _column(
        self, path: str, records: list[dict[str, Any]], rejected: dict[int, Rejected]
    ) -> list[object]:
        """One column; values of a wrong type are None and reject their record."""
        *parents, name = path.split(".")
        inner: list[Any] = records
        for part in parents:
            inner = [record.get(part) if isinstance(record, dict) else None for record in inner]
        found = [record.get(name) if isinstance(record, dict) else None for record in inner]
        leaf = self._leaves[path]
        if set(map(type, found)) <= leaf.types | {type(None)}:
            return found
        for at, value in enumerate(found):
            try:
                found[at] = leaf.check(value)
            except Rejected as why:
                rejected.setdefault(at, why)
                found[at] = None
        return found


def load_schema(path: str) -> dict[str, Any]:
    """A record schema that hostile bytes cannot make endless. Raises SettingsError."""
    try:
        schema = fastavro.parse_schema(json.loads(Path(path).read_bytes()))
    except Exception as why:  # a file, JSON or schema error; each says what it is
        raise SettingsError(f"decode.avro_schema: {path} is no Avro schema ({why}).") from why
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise SettingsError(f"decode.avro_schema: {path} is not of a record; name one that is.")
    _check(schema, path, ())
    return schema


def _check(schema: Any, path: str, inside: tuple[str, ...]) -> None:
    """Refuses a type inside itself (any depth) and lists of what takes no bytes (any length)."""
    if isinstance(schema, str):
        if schema in inside:
            raise SettingsError(
                f"decode.avro_schema: {path}: {schema} holds itself, so that a small message may "
                "be nested without end. Use a schema without recursion."
            )
    elif isinstance(schema, list):
        for branch in schema:
            _check(branch, path, inside)
    elif schema["type"] in ("array", "map"):
        items = schema.get("items", schema.get("values"))
        if schema["type"] == "array" and _empty(items):
            raise SettingsError(f"decode.avro_schema: {path}: an array of what takes no bytes.")
        _check(items, path, inside)
    elif schema["type"] in ("record", "error"):
        for field in schema["fields"]:
            _check(field["type"], path, (*inside, schema["name"]))
    elif isinstance(schema["type"], dict | list):
        _check(schema["type"], path, inside)


def _empty(schema: Any) -> bool:
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind in ("record", "error"):
        return all(_empty(field["type"]) for field in schema["fields"])
    return bool(kind == "null" or (kind == "fixed" and schema["size"] == 0))
