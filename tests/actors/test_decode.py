"""Bytes -> columns: four formats that mean the same, and a reason for all that cannot be used."""

import json

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import OFFSET_BITS, category_hash
from tests.actors.messages import (
    FORMATS,
    GOOD,
    T0,
    Record,
    decoder,
    encode,
    ipc,
    records,
    run,
    same,
)


@given(batch=st.lists(records, max_size=6))
@settings(max_examples=150, deadline=None)
def test_all_formats_give_the_same_columns(batch: list[Record], schema_file: str) -> None:
    found = [run(decoder(f, schema_file), [encode(f, r) for r in batch]) for f in FORMATS]
    for decoded, bad in found:
        assert not bad
        same(found[0][0], decoded)
    decoded = found[0][0]
    assert decoded.entities == [r["plane"] for r in batch]
    assert decoded.rows.time_us.tolist() == [r["at"] for r in batch]
    wanted = 2 << OFFSET_BITS
    assert decoded.rows.position.tolist() == [wanted + 5 + 2 * i for i in range(len(batch))]
    for at, record in enumerate(batch):
        carrier = record.get("carrier")
        assert decoded.rows.missing[at].tolist() == [carrier is None, False]
        if carrier is not None:
            assert decoded.rows.categories[at, 0] == category_hash(carrier)
        gate = record.get("gate")
        wanted = category_hash("none" if gate is None else gate)
        assert decoded.rows.categories[at, 1] == wanted
        landed = record.get("landed")
        after = np.nan if landed is None else (landed - record["at"]) / 1e6
        late = record.get("late")
        delay = record.get("delay")
        miles = (record.get("leg") or {}).get("miles")
        row = [
            np.nan if delay is None else delay,
            7.5 if miles is None or np.isnan(miles) else miles,
            np.nan if late is None else late,
            after,
        ]
        np.testing.assert_array_equal(decoded.rows.numbers[at], np.array(row, np.float32))


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_bytes_end_in_columns_or_as_bad(
    form: str, data: st.DataObject, schema_file: str
) -> None:
    """Noise, and valid messages with a few bytes altered or cut off."""
    values = []
    for _ in range(data.draw(st.integers(0, 4))):
        value = bytearray(encode(form, data.draw(records)))
        for at in data.draw(st.lists(st.integers(0, len(value) - 1), max_size=3)):
            value[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(value)) | st.just(len(value)))
        values.append(bytes(value[:cut]))
    values += data.draw(st.lists(st.binary(max_size=64), max_size=2))
    decoded, bad = run(decoder(form, schema_file), values)
    n = len(decoded.entities)
    assert len(decoded.rows) == len(decoded.deleted) == len(decoded.timestamp_ms) == n
    assert not np.isinf(decoded.rows.numbers).any()
    assert all(0 < time < 1 << 53 for time in decoded.rows.time_us.tolist())
    positions = set(decoded.rows.position.tolist())
    wholly_bad = {b.at for b in bad if b.row is None}
    assert len(positions) + len(wholly_bad) <= len(values)
    if form != "arrow":
        assert n + len(bad) == len(values)
        assert len({b.at for b in bad}) == len(bad)


DEEP = b'{"plane": "N1", "at": 1357020900, "x": ' + b"[" * 200_000
BAD = [
    ("json", b"{", "not_json"),
    ("json", b"", "not_json"),
    ("json", b"[1]", "wrong_type"),
    ("json", DEEP, "too_deep"),
    ("json", b'{"plane": "\xff", "at": 1357020900}', "invalid_utf8"),
    ("json", {**GOOD, "leg": 3}, "wrong_type"),
    ("json", {**GOOD, "carrier": 1.5}, "wrong_type"),
    ("json", {**GOOD, "carrier": ["UA"]}, "wrong_type"),
    ("json", {**GOOD, "delay": "12"}, "wrong_type"),
    ("json", {**GOOD, "delay": True}, "wrong_type"),
    ("json", {**GOOD, "late": 2}, "wrong_type"),
    ("json", {**GOOD, "delay": 1e39}, "infinite"),
    ("json", {**GOOD, "delay": float("-inf")}, "infinite"),
    ("json", {**GOOD, "delay": 10**400}, "infinite"),
    ("json", {**GOOD, "at": 10**400}, "bad_time"),
    ("json", {"at": T0}, "missing_entity"),
    ("json", {"at": T0, "plane": None}, "missing_entity"),
    ("json", {"at": T0, "plane": ""}, "bad_entity"),
    ("json", {"at": T0, "plane": "é" * 257}, "bad_entity"),
    ("json", {"at": T0, "plane": True}, "wrong_type"),
    ("json", {"plane": "N1"}, "missing_time"),
    ("json", {"plane": "N1", "at": "soon"}, "bad_time"),
    ("json", {"plane": "N1", "at": 0}, "bad_time"),
    ("json", {"plane": "N1", "at": -5}, "bad_time"),
    ("json", {"plane": "N1", "at": T0 * 1000}, "bad_time"),
    ("json", {**GOOD, "landed": "soon"}, "bad_time"),
    ("json", b"x" * 3000, "too_large"),
    ("msgpack", b"\xc1", "not_msgpack"),
    ("msgpack", b"\x81\xa1x" + b"\x91" * 2000, "too_deep"),
    ("msgpack", b"\x81\xa5plane\xa1\xff", "invalid_utf8"),
    ("msgpack", msgspec.msgpack.encode({**GOOD, "delay": float("inf")}), "infinite"),
    ("avro", b"\1\0\0\0\1", "not_avro"),
    ("avro", b"\0\0\0\0\x0d", "unknown_schema"),
    ("avro", b"\0\0\0\0\x0c\x02", "not_avro"),
    ("avro", encode("avro", GOOD) + b"\0", "not_avro"),
    ("avro", encode("avro", {**GOOD, "delay": float("inf")}), "infinite"),
    ("arrow", b"ARROW1", "not_arrow"),
    ("arrow", ipc(pa.RecordBatch.from_pylist([{"at": T0}])), "wrong_columns"),
    ("arrow", ipc(pa.RecordBatch.from_pylist([{**GOOD, "delay": "12"}])), "wrong_columns"),
    ("arrow", ipc(pa.RecordBatch.from_pylist([{**GOOD, "leg": 1}])), "wrong_columns"),
]


@pytest.mark.parametrize(("form", "value", "error"), BAD)
def test_each_class_of_error(
    form: str, value: bytes | Record, error: str, schema_file: str
) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    more = {"avro_schema_id": 12} if form == "avro" else {}
    limit = 2500 if error == "too_large" else 1 << 20
    made = decoder(form, schema_file, max_message_bytes=limit, **more)
    good = encode(form, GOOD)
    decoded, bad = run(made, [good, data, good])
    assert [(b.at, b.error) for b in bad] == [(1, error)]
    assert bad[0].reason
    assert decoded.entities == ["N1", "N1"]
    assert decoded.rows.position.tolist() == [(2 << OFFSET_BITS) + 5, (2 << OFFSET_BITS) + 9]
    decoded, bad = run(made, [data] * 3)
    assert len(bad) == 3
    assert not decoded.entities
    assert not len(decoded.rows)


def test_no_messages(schema_file: str) -> None:
    for form in FORMATS:
        decoded, bad = run(decoder(form, schema_file), [])
        assert not bad
        assert not decoded.entities
        assert decoded.rows.numbers.shape == (0, 4)


@pytest.mark.parametrize("form", FORMATS)
def test_a_null_value_deletes(form: str, schema_file: str) -> None:
    values = [encode(form, GOOD), None, None, encode(form, {**GOOD, "plane": "N2"}), None, None]
    keys = [b"N1", "Zoë".encode(), None, b"N2", b"\xff", b"x" * 513]
    decoded, bad = run(decoder(form, schema_file), values, keys)
    assert decoded.entities == ["N1", "Zoë", "N2"]
    assert decoded.deleted.tolist() == [False, True, False]
    assert decoded.rows.position.tolist() == [(2 << OFFSET_BITS) + at for at in (5, 7, 11)]
    assert decoded.timestamp_ms.tolist() == [1_000_000, 1_000_001, 1_000_003]
    assert decoded.rows.time_us[1] == 1_000_001_000
    found = [(b.at, b.error) for b in bad]
    assert found == [(2, "missing_entity"), (4, "invalid_utf8"), (5, "bad_entity")]
