"""Flights as messages of every format, for the tests of the decoder."""

import json
import struct
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import fastavro
import msgspec
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from actors.decode import BadRecord, DecodeConfig, Decoder, make_decoder
from schemas.records import Decoded
from schemas.stream import Field, FieldType, StreamConfig

FIELDS = (
    Field("carrier", FieldType.category),
    Field("gate", FieldType.category, default="none"),
    Field("delay", FieldType.number),
    Field("miles", FieldType.number, path="leg.miles", default=7.5),
    Field("late", FieldType.flag),
    Field("landed", FieldType.time),
)
STREAM = StreamConfig(entity="plane", time="at", field=FIELDS)
T0 = 1_357_020_900_000_000
EPOCH = datetime.fromtimestamp(0, UTC).replace(tzinfo=None)
FORMATS = ("json", "msgpack", "avro", "arrow")
AVRO = {
    "type": "record",
    "name": "Flight",
    "fields": [
        {"name": "plane", "type": ["null", "string", "long"]},
        {"name": "at", "type": ["null", "long", "double", "string"]},
        {"name": "carrier", "type": ["null", "string", "long", "boolean"]},
        {"name": "gate", "type": ["null", "string"]},
        {"name": "delay", "type": ["null", "double"]},
        {"name": "late", "type": ["null", "boolean"]},
        {"name": "landed", "type": ["null", "long"]},
        {"name": "leg", "type": ["null", {"type": "record", "name": "Leg", "fields": [
            {"name": "miles", "type": ["null", "double"]}]}]},
    ],
}  # fmt: skip
ARROW = pa.schema(
    [
        ("plane", pa.string()), ("at", pa.int64()), ("carrier", pa.string()),
        ("gate", pa.dictionary(pa.int32(), pa.string())), ("delay", pa.float64()),
        ("late", pa.bool_()), ("landed", pa.timestamp("us", "UTC")),
        ("leg", pa.struct([("miles", pa.float64())])),
    ]
)  # fmt: skip
Record = dict[str, Any]


def decoder(form: str, schema_file: str, stream: StreamConfig = STREAM, **more: Any) -> Decoder:
    if form == "avro":
        more = {"avro_schema": schema_file, **more}
    return make_decoder(stream, DecodeConfig(format=form, **more))  # type: ignore[arg-type]


def ipc(batch: pa.RecordBatch, **options: Any) -> bytes:
    out = pa.BufferOutputStream()
    written = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(out, batch.schema, options=written) as writer:
        writer.write_batch(batch)
    return bytes(out.getvalue().to_pybytes())


def encode(form: str, record: Record) -> bytes:
    if form == "json":
        return json.dumps(record).encode()
    if form == "msgpack":
        return msgspec.msgpack.encode(record)
    if form == "arrow":
        return ipc(pa.RecordBatch.from_pylist([record], schema=ARROW))
    out = BytesIO()
    fastavro.schemaless_writer(out, AVRO, record)
    return b"\0" + struct.pack(">I", 12) + out.getvalue()


def run(
    what: Decoder, values: list[Any], keys: list[bytes | None] | None = None
) -> tuple[Decoded, list[BadRecord]]:
    n = len(values)
    times = np.arange(n) + 1_000_000
    return what.decode(2, np.arange(n) * 2 + 5, times, keys or [None] * n, values)


def same(a: Decoded, b: Decoded) -> None:
    assert a.entities == b.entities
    for name in ("time_us", "position", "numbers", "missing"):
        np.testing.assert_array_equal(getattr(a.rows, name), getattr(b.rows, name), name)
    there = ~a.rows.missing
    np.testing.assert_array_equal(a.rows.categories[there], b.rows.categories[there])
    np.testing.assert_array_equal(a.timestamp_ms, b.timestamp_ms)


GOOD = {"plane": "N1", "at": T0, "carrier": "UA"}

texts = st.text(max_size=8)
times = st.integers(T0, T0 + 10**15)
maybe_number = st.none() | st.floats(-1e30, 1e30) | st.just(float("nan"))
records = st.fixed_dictionaries(
    {"plane": st.text(min_size=1, max_size=5), "at": times},
    optional={
        "carrier": st.none() | texts,
        "gate": st.none() | texts,
        "delay": maybe_number,
        "late": st.none() | st.booleans(),
        "landed": st.none() | times,
        "leg": st.none() | st.fixed_dictionaries({}, optional={"miles": maybe_number}),
    },
)
