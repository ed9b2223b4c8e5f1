"""What single formats have of their own: times, texts, rows of arrow messages, schemas, bombs."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dead_letters import arrow_stream
from actors.decode import DecodeConfig, make_decoder
from schemas.errors import SettingsError
from schemas.records import OFFSET_BITS, category_hash
from schemas.stream import Field, FieldType, StreamConfig
from tests.actors.messages import (
    ARROW,
    EPOCH,
    GOOD,
    STREAM,
    T0,
    decoder,
    encode,
    ipc,
    run,
)


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_integers_and_truth_values_as_text(form: str, schema_file: str) -> None:
    values = [True, 1, "1", False, 0, "", None, -3, 2**64]
    made = decoder(form, schema_file)
    if form == "msgpack":
        values.pop()
    decoded, bad = run(made, [encode(form, {**GOOD, "plane": 8, "carrier": v}) for v in values])
    assert not bad
    assert set(decoded.entities) == {"8"}
    texts = ["true", "1", "1", "false", "0", "", None, "-3", str(2**64)][: len(values)]
    for at, text in enumerate(texts):
        assert decoded.rows.missing[at, 0] == (text is None)
        if text is not None:
            assert decoded.rows.categories[at, 0] == category_hash(text)


def test_python_writes_nan_into_json(schema_file: str) -> None:
    """NaN is missing; the word in a text stays what it is."""
    value = b'{"plane": "NaN", "at": 1357020900, "delay": NaN, "carrier": "a\\"NaN"}'
    decoded, bad = run(decoder("json", schema_file), [value, value[:-1]])
    assert decoded.entities == ["NaN"]
    assert np.isnan(decoded.rows.numbers[0, 0])
    assert decoded.rows.categories[0, 0] == category_hash('a"NaN')
    assert [b.error for b in bad] == ["not_json"]


SAME_TIME = [
    T0, T0 // 1000, T0 // 10**6, T0 / 1e6, "2013-01-01T06:15:00Z", "2013-01-01T01:15:00-05:00",
    "2013-01-01 06:15", "2013-01-01T06:15:00.000000", "20130101T061500+00:00",
]  # fmt: skip


@pytest.mark.parametrize("form", ["json", "msgpack", "avro"])
def test_times_of_all_kinds_in_one_batch(form: str, schema_file: str) -> None:
    made = decoder(form, schema_file)
    for batch in (SAME_TIME, *([at] for at in SAME_TIME)):
        decoded, bad = run(made, [encode(form, {**GOOD, "at": at}) for at in batch])
        assert not bad
        assert set(decoded.rows.time_us.tolist()) == {T0}


def test_msgpack_and_arrow_have_times_of_their_own(schema_file: str) -> None:
    at = datetime(2013, 1, 1, 6, 15, tzinfo=UTC)
    packed = msgspec.msgpack.encode({**GOOD, "at": at, "landed": at + timedelta(seconds=9)})
    decoded, bad = run(decoder("msgpack", schema_file), [packed])
    assert not bad
    assert decoded.rows.time_us[0] == T0
    assert decoded.rows.numbers[0, 3] == 9.0
    for kind in (pa.timestamp("s"), pa.timestamp("ns", "Europe/Paris"), pa.string(), pa.float64()):
        x: object = T0 / 1e6 if kind == pa.float64() else at
        x = at.isoformat() if kind == pa.string() else x
        batch = pa.record_batch({"plane": pa.array(["N1"]), "at": pa.array([x], kind)})
        decoded, bad = run(decoder("arrow", schema_file), [ipc(batch)])
        assert not bad, kind
        assert decoded.rows.time_us.tolist() == [T0], kind


@given(
    at=st.datetimes(EPOCH + timedelta(days=365), EPOCH + timedelta(days=80_000)),
    unit=st.sampled_from(["auto", "iso"]),
)
@settings(deadline=None)
def test_iso_times_are_exact(at: datetime, unit: str) -> None:
    stream = msgspec.structs.replace(STREAM, time_unit=unit)
    wanted = (at - EPOCH) // timedelta(microseconds=1)
    forms = [at.isoformat(), at.isoformat(" ") + "Z", at.replace(tzinfo=UTC).isoformat()]
    values = [encode("json", {**GOOD, "at": form}) for form in forms]
    made = make_decoder(stream, DecodeConfig())
    for batch in (values, *([value] for value in values)):
        decoded, bad = run(made, batch)
        assert not bad
        assert set(decoded.rows.time_us.tolist()) == {wanted}


def test_a_named_unit_is_taken_at_its_word(schema_file: str) -> None:
    made = make_decoder(msgspec.structs.replace(STREAM, time_unit="s"), DecodeConfig())
    values = [{**GOOD, "at": 5}, {**GOOD, "at": T0}, {**GOOD, "at": "2013-01-01T06:15:00Z"}]
    decoded, bad = run(made, [encode("json", v) for v in values])
    assert decoded.rows.time_us.tolist() == [5_000_000]
    assert [b.error for b in bad] == ["bad_time", "wrong_type"]


def test_rows_of_one_arrow_message(schema_file: str) -> None:
    """They share a position; a bad one is named by its number; a batch of one carries it on."""
    rows = [{**GOOD, "plane": f"N{i}"} for i in range(5)]
    rows[1]["plane"], rows[3]["delay"] = None, float("inf")
    batch = pa.RecordBatch.from_pylist(rows, schema=ARROW)
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, ARROW) as writer:
        writer.write_batch(batch.slice(0, 2))
        writer.write_batch(batch.slice(2))
    value = out.getvalue().to_pybytes()
    made = decoder("arrow", schema_file)
    for given_value in (value, batch):
        decoded, bad = run(made, [b"nothing", given_value])
        assert decoded.entities == ["N0", "N2", "N4"]
        assert set(decoded.rows.position.tolist()) == {(2 << OFFSET_BITS) + 7}
        assert [(b.at, b.row, b.error) for b in bad] == [
            (0, None, "not_arrow"), (1, 1, "missing_entity"), (1, 3, "infinite"),
        ]  # fmt: skip
        again, bad = run(made, [arrow_stream(given_value, 3)])
        assert not again.entities
        assert [(b.row, b.error) for b in bad] == [(0, "infinite")]


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_an_arrow_bomb_is_refused_before_it_expands(codec: str, schema_file: str) -> None:
    n = 4_000_000
    batch = pa.record_batch(
        {"plane": pa.array(["N1"] * 8), "at": pa.array([T0] * 8), "x": pa.array([b""] * 8)}
    )
    small = ipc(batch, compression=codec)
    wide = pa.record_batch({"plane": pa.nulls(n, pa.string()), "at": np.zeros(n, np.int64)})
    bomb = ipc(wide, compression=codec)
    nulls = ipc(pa.record_batch({"plane": pa.nulls(1 << 26), "at": pa.nulls(1 << 26)}))
    assert len(bomb) < 1 << 20
    assert len(nulls) < 1 << 10
    made = decoder("arrow", schema_file, max_expanded_bytes=1 << 24)
    before = pa.total_allocated_bytes()
    decoded, bad = run(made, [small, bomb, nulls])
    assert pa.total_allocated_bytes() - before < 1 << 22
    assert len(decoded.entities) == 8
    assert [(b.at, b.error) for b in bad] == [(1, "too_large"), (2, "too_large")]


def test_fields_that_contradict_each_other_are_refused() -> None:
    def make(*fields: Field, **more: Any) -> None:
        make_decoder(StreamConfig(entity="plane", time="at", field=fields), DecodeConfig(**more))

    number, category = FieldType.number, FieldType.category
    for fields in (
        (Field("a", number), Field("b", number, path="a.b")),
        (Field("a", number, path="plane.x"),),
        (Field("a", number, path="x..y"),),
        (Field("a", FieldType.flag, path="t"), Field("b", FieldType.time, path="t", default=True)),
        (Field("a", number, default="x"),),
        (Field("a", number, default=True),),
        (Field("a", number, default=1e300),),
        (Field("a", category, default=1.5),),
        (Field("a", FieldType.flag, default=1.0),),
        (Field("a", FieldType.time, default="soon"),),
    ):
        with pytest.raises(SettingsError):
            make(*fields)
    with pytest.raises(SettingsError, match="avro_schema"):
        make(Field("a", number), format="avro")


def test_an_avro_schema_that_could_run_away_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.avsc"
    fields = [{"name": "plane", "type": "string"}, {"name": "at", "type": "long"}]
    for kind in (
        ["null", "R"],
        {"type": "array", "items": "null"},
        {"type": "map", "values": {"type": "array", "items": "R"}},
    ):
        path.write_text(
            json.dumps(
                {"type": "record", "name": "R", "fields": [*fields, {"name": "x", "type": kind}]}
            )
        )
        with pytest.raises(SettingsError):
            decoder("avro", str(path))
    path.write_text(json.dumps({"type": "record", "name": "R", "fields": fields[:1]}))
    with pytest.raises(SettingsError, match="'at'"):
        decoder("avro", str(path))
