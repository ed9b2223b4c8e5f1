"""Files as a source: whatever is in them, each row is taken or becomes a dead letter."""

import gzip
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.decode import DecodeConfig, make_decoder
from actors.files import FileSource
from actors.partitioner import partition_of
from schemas.errors import SourceError
from schemas.stream import Field, FieldType, StreamConfig

STREAM = StreamConfig(
    "who.id",
    "t",
    (
        Field("n", FieldType.number, path="in.n"),
        Field("ok", FieldType.flag),
        Field("what", FieldType.category),
    ),
)


def take(
    *paths: Path, groups: int = 1, stream: StreamConfig = STREAM, most: int = 1000
) -> tuple[list[tuple[str, int, float]], list[tuple[str, Any]]]:
    """(entity, time in s, n) of each row, and (error, value) of each dead letter."""
    source = FileSource([str(path) for path in paths], stream, groups)
    config = msgspec.convert({"format": source.decode_format}, DecodeConfig)
    decoder = make_decoder(stream, config)
    for group in range(groups):
        source.start(group, None)
    rows: list[tuple[str, int, float]] = []
    dead: list[tuple[str, Any]] = []
    while not source.finished:
        for batch in source.poll(most, 0.0):
            found, bad = decoder.decode(
                0, batch.offsets, batch.timestamps_ms, batch.keys, batch.values
            )
            for name, at, n in zip(
                found.entities, found.rows.time_us, found.rows.numbers[:, 0], strict=True
            ):
                assert partition_of(name.encode(), groups) == batch.group
                rows.append((name, int(at) // 1_000_000, float(n)))
            dead += [(b.error, batch.values[b.at]) for b in bad]
    assert source.done == source.total
    return rows, dead


def test_csv_is_typed_by_the_fields_and_text_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        "t,who.id,in.n,ok,what,unused\n"
        '1700000001,007,1.5,true,"NA",x\n'
        "1700000002,b,,0,,y\n"
        '2023-11-14T22:13:23Z,"two\nlines",NA,FALSE,c,z\n'.replace(
            "2023-11-14T22:13:23Z", "1700000003"
        )
    )
    rows, dead = take(file)
    assert [row[:2] for row in rows] == [
        ("007", 1700000001),
        ("b", 1700000002),
        ("two\nlines", 1700000003),
    ]
    assert rows[0][2] == 1.5 and rows[1][2] != rows[1][2] and rows[2][2] != rows[2][2]
    assert dead == []


def test_csv_times_may_be_iso(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("t,who.id\n2023-11-14T22:13:21Z,a\nyesterday,b\n2023-11-14T22:13:23Z,c\n")
    rows, dead = take(file)
    assert [row[:2] for row in rows] == [("a", 1700000001), ("c", 1700000003)]
    assert [error for error, _ in dead] == ["bad_time"]


def test_csv_goes_on_behind_what_it_cannot_use(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        b"t,who.id,in.n,ok\n"
        b"1700000001,a,1,1\n"
        b"1700000002,b,not a number,1\n"
        b"one,field,too,many,here\n"
        b"1700000003,c,3,perhaps\n"
        b"1700000004,\xff,4,1\n"
        b"1700000005,e,5,1\n"
    )
    rows, dead = take(file)
    assert rows == [("a", 1700000001, 1.0), ("e", 1700000005, 5.0)]
    assert len(dead) == 4
    assert ("not_arrow", b"one,field,too,many,here") in dead
    odd = [value.to_pylist()[0] for _, value in dead if isinstance(value, pa.RecordBatch)]
    assert [row["in"]["n"] for row in odd] == [b"not a number", b"3", b"4"]


@pytest.mark.parametrize("packed", [False, True])
def test_jsonl_goes_on_behind_what_it_cannot_use(tmp_path: Path, packed: bool) -> None:
    lines = [
        b'{"t": 1700000001, "who": {"id": "a"}, "in": {"n": 1}}',
        b"{broken",
        b"",
        b'{"t": 1700000002, "who": {"id": 7}, "in": {"n": 2.5}, "new": [1, {}]}',
        b'{"t": 1700000003, "who": "nobody"}',
        b'{"t": 1700000004, "who": {"id": "d"}, "in": null}',
    ]
    file = tmp_path / ("a.jsonl.gz" if packed else "a.ndjson")
    file.write_bytes(gzip.compress(b"\n".join(lines)) if packed else b"\n".join(lines))
    rows, dead = take(file)
    assert [row[:2] for row in rows] == [("a", 1700000001), ("7", 1700000002), ("d", 1700000004)]
    assert dead == [("not_json", lines[1]), ("wrong_type", lines[4])]


def test_parquet_keeps_its_types_and_structs(tmp_path: Path) -> None:
    table = pa.table(
        {
            "t": pa.array([1_700_000_001_000, None], pa.timestamp("ms")),
            "who": [{"id": 5}, {"id": 6}],
            "in": [{"n": 1.0}, {"n": 2.0}],
            "what": pa.array(["x", "y"]).dictionary_encode(),
            "ok": [True, False],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows, dead = take(tmp_path / "a.parquet")
    assert rows == [("5", 1700000001, 1.0)]
    assert [error for error, _ in dead] == ["missing_time"]


def test_rows_go_to_the_groups_of_their_keys_in_small_polls(tmp_path: Path) -> None:
    for part in range(3):
        lines = [f'{{"t": {1700000000 + i}, "who": {{"id": "e{i % 17}"}}}}' for i in range(50)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    rows, dead = take(tmp_path / "*.jsonl", groups=4, most=7)
    assert len(rows) == 150 and dead == []


def test_the_total_is_estimated_until_it_is_known(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("t,who.id\n" + "".join(f"{1700000000 + i},e{i}\n" for i in range(200_000)))
    source = FileSource([str(file)], STREAM, 1)
    assert 190_000 < source.total < 210_000
    source.start(0, None)
    while not source.finished:
        source.poll(65_536, 0.0)
    assert source.done == source.total == 200_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"when,who.id\n1,a\n", "no column 't'; there are when, who.id"),
        ("a.csv", b"", "a.csv cannot be read"),
        ("a.parquet", b"no parquet", "a.parquet cannot be read"),
        ("a.txt", b"", "ending tells the format"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        FileSource([str(tmp_path / name)], STREAM, 1)


def test_parquet_of_other_columns_is_refused_at_once(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"t": [1], "who": [{"id": "a"}], "in": [{"n": "x"}]}), tmp_path / "a.pq"
    )
    with pytest.raises(SourceError, match=r"a\.pq: 'in\.n'.*numbers"):
        FileSource([str(tmp_path / "a.pq")], STREAM, 1)


def test_no_match_and_mixed_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="matches no file"):
        FileSource([str(tmp_path / "*.csv")], STREAM, 1)
    (tmp_path / "a.csv").write_text("t,who.id\n")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(SourceError, match="one kind at a time"):
        FileSource([str(tmp_path / "a.*")], STREAM, 1)


def test_a_damaged_file_stops_with_its_name_and_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"t": 1700000001, "who": {"id": "a"}}\n' * 1000)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz"):
        take(file)
