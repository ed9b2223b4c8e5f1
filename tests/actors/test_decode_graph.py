"""Edges in every format: the same columns, names of both nodes, removals, and reasons for what is none."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from actors.columns import check_defaults
from actors.decode import BadRecord, DecodeConfig, Decoder, make_decoder
from schemas.errors import SettingsError
from schemas.records import Decoded, category_hash
from schemas.stream import (
    DIRECTION,
    EDGE_TYPE,
    ENDS,
    NEIGHBOUR,
    Field,
    FieldType,
    Shape,
    StreamConfig,
)
from tests.actors.messages import ipc, run

GRAPH = StreamConfig(
    kind="graph",
    entity="from",
    neighbour="to.name",
    time="at",
    op="op",
    edge_type="how",
    field=(Field("sum", FieldType.number), Field("note", FieldType.category)),
    node=(
        Field("kind", FieldType.category, "is.kind"),
        Field("size", FieldType.number, "is.size", default=1.0),
    ),
)
WHOLE = msgspec.structs.replace(GRAPH, unit="graph", entity="case", source="from", node=())
T0 = 1_700_000_000_000_000
AVRO = {
    "type": "record",
    "name": "Edge",
    "fields": [
        {"name": "case", "type": ["null", "string", "long"]},
        {"name": "from", "type": ["null", "string", "long"]},
        {"name": "to", "type": ["null", {"type": "record", "name": "To", "fields": [
            {"name": "name", "type": ["null", "string", "long"]}]}]},
        {"name": "at", "type": ["null", "long"]},
        {"name": "op", "type": ["null", "string"]},
        {"name": "how", "type": ["null", "string"]},
        {"name": "sum", "type": ["null", "double"]},
        {"name": "note", "type": ["null", "string"]},
        {"name": "is", "type": ["null", {"type": "record", "name": "Is", "fields": [
            {"name": "kind", "type": ["null", "string"]},
            {"name": "size", "type": ["null", "double"]}]}]},
    ],
}  # fmt: skip
ARROW = pa.schema(
    [
        ("case", pa.string()), ("from", pa.string()), ("to", pa.struct([("name", pa.string())])), ("at", pa.int64()),
        ("op", pa.dictionary(pa.int8(), pa.string())), ("how", pa.string()),
        ("sum", pa.float64()), ("note", pa.string()),
        ("is", pa.struct([("kind", pa.string()), ("size", pa.float64())])),
    ]
)  # fmt: skip
FORMATS = pytest.mark.parametrize("form", ["json", "msgpack", "avro", "arrow"])
Made = tuple[Decoder, Any]


def encode(form: str, record: dict[str, Any]) -> bytes:
    if form == "json":
        return json.dumps(record).encode()
    if form == "msgpack":
        return msgspec.msgpack.encode(record)
    if form == "arrow":
        return ipc(pa.RecordBatch.from_pylist([record], schema=ARROW))
    out = BytesIO()
    fastavro.schemaless_writer(out, AVRO, record)
    return b"\0\0\0\0\1" + out.getvalue()


def decoded(
    form: str,
    tmp_path: Path,
    records: list[dict[str, Any] | None],
    stream: StreamConfig = GRAPH,
    **more: Any,
) -> tuple[Decoded, list[BadRecord]]:
    if form == "avro":
        (tmp_path / "edge.avsc").write_text(json.dumps(AVRO))
        more["avro_schema"] = str(tmp_path / "edge.avsc")
    values = [None if r is None else encode(form, r) for r in records]
    keys = [b"gone" if r is None else None for r in records]
    return run(make_decoder(stream, DecodeConfig(format=form, **more)), values, keys)  # type: ignore[arg-type]


def edge(src: Any, dst: Any, i: int = 0, **more: Any) -> dict[str, Any]:
    return {"from": src, "to": {"name": dst}, "at": T0 + i, **more}


@FORMATS
def test_edges_become_the_same_columns(form: str, tmp_path: Path) -> None:
    records = [
        edge("a", "b", 0, how="pays", sum=2.5, note="x"),
        edge("a", "b", 1, how="pays", op="remove"),
        None,
        edge("b", "b", 2, op="add"),
        edge("ü", "c", 3, op=None, sum=float("nan")),
    ]
    found, bad = decoded(form, tmp_path, records)
    assert not bad
    assert found.entities == ["a", "a", "gone", "b", "ü"]
    assert found.neighbours == ["b", "b", "", "b", "c"]
    assert found.deleted.tolist() == [False, False, True, False, False]
    rows = found.rows.take(~found.deleted)
    assert GRAPH.columns == (
        "direction", "sum", "neighbour", "edge_type", "note", "node.size", "node.kind",
    )  # fmt: skip
    assert found.told is None
    assert rows.numbers[:, DIRECTION].tolist() == [1.0] * 4
    np.testing.assert_array_equal(rows.numbers[:, 1], [2.5, np.nan, np.nan, np.nan])
    assert rows.categories[:, NEIGHBOUR].tolist() == [category_hash(x) for x in "bbbc"]
    assert rows.missing[:, NEIGHBOUR].tolist() == [False, True, False, False]
    assert rows.missing[:, EDGE_TYPE].tolist() == [False, False, True, True]
    assert (rows.categories[:2, EDGE_TYPE] == category_hash("pays")).all()
    assert rows.missing[:, 2].tolist() == [False, True, True, True]


@FORMATS
def test_what_is_said_of_nodes_is_no_edge(form: str, tmp_path: Path) -> None:
    def said(name: str, i: int, **more: Any) -> dict[str, Any]:
        return {"from": name, "at": T0 + i, "op": "node", "is": more or None}

    records = [
        said("a", 0, kind="ship", size=2.5),
        edge("a", "b", 1, sum=1.0),
        {"from": "x", "at": T0, "op": "node", "is": {"size": float("inf")}},
        None,
        said("gone", 2, kind="car"),
        said("c", 3),
    ]
    found, bad = decoded(form, tmp_path, records)
    assert [(b.at, b.error) for b in bad] == [(2, "infinite")]
    assert found.entities == ["a", "a", "gone", "gone", "c"]
    assert found.deleted.tolist() == [False, False, True, False, False]
    assert found.upsert.tolist() == [True, False, False, True, True]
    told = found.told
    assert told is not None and told.row.tolist() == [0, 3, 4]
    assert told.node.tolist() == [category_hash(x) for x in ("a", "gone", "c")]
    assert told.features.numbers[:, 0].tolist() == [2.5, 1.0, 1.0]
    assert told.features.missing[:, 0].tolist() == [False, False, True]
    assert told.features.categories[0, 0] == category_hash("ship")
    part = found.take(np.array([False, True, True, True, False]))
    assert part.told is not None and part.told.row.tolist() == [2] and part.upsert.tolist()[2]


@FORMATS
def test_what_is_no_edge_is_bad_with_its_reason(form: str, tmp_path: Path) -> None:
    records: list[dict[str, Any] | None] = [
        edge("a", None),
        edge("a", ""),
        edge("a", "b", op="removed"),
        edge("a", "b", op=""),
        {"from": "a", "to": None, "at": T0},
        edge(None, None),
        edge("a", "n" * 9),
        edge("good", "one"),
    ]
    found, bad = decoded(form, tmp_path, records, max_entity_bytes=8)
    assert [b.error for b in bad] == [
        "missing_entity", "bad_entity", "bad_op", "bad_op", "missing_entity", "missing_entity",
        "bad_entity",
    ]  # fmt: skip
    assert "'to.name'" in bad[0].reason and '"remove"' in bad[2].reason
    assert (found.entities, found.neighbours) == (["good"], ["one"])


@FORMATS
def test_edges_of_whole_graphs_are_rows_of_the_graph_alone(form: str, tmp_path: Path) -> None:
    records = [
        {**edge("a", "b", 0, how="pays", sum=2.5, note="x"), "case": "c1"},
        {**edge("b", "a", 1, how="pays", op="remove"), "case": "c1"},
        None,
        {**edge("b", "b", 2), "case": "ü"},
    ]
    found, bad = decoded(form, tmp_path, records, WHOLE)
    assert not bad
    assert WHOLE.columns == ("sum", "source", "neighbour", "edge_type", "note")
    assert WHOLE.shape == Shape(1, 4, graph=True, typed=True, whole=True)
    assert (found.entities, found.neighbours) == (["c1", "c1", "gone", "ü"], [])
    rows = found.rows.take(~found.deleted)
    wanted = [[category_hash(x) for x in ends] for ends in ("ab", "ba", "bb")]
    assert rows.categories[:, ENDS].tolist() == wanted
    assert rows.missing[:, ENDS].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert rows.missing[:, EDGE_TYPE + 1].tolist() == [False, False, True]
    assert (rows.categories[:2, EDGE_TYPE + 1] == category_hash("pays")).all()
    np.testing.assert_array_equal(rows.numbers[:, 0], [2.5, np.nan, np.nan])


@FORMATS
def test_an_edge_of_a_whole_graph_needs_its_graph_and_both_nodes(form: str, tmp_path: Path) -> None:
    records: list[dict[str, Any] | None] = [
        {**edge("a", "b"), "case": None},
        {**edge(None, "b"), "case": "c"},
        {**edge("a", None), "case": "c"},
        {**edge("", "b"), "case": "c"},
        {**edge("a", "n" * 9), "case": "c"},
        {**edge("good", "one"), "case": "c"},
    ]
    found, bad = decoded(form, tmp_path, records, WHOLE, max_entity_bytes=8)
    errors = ["missing_entity"] * 3 + ["bad_entity"] * 2
    assert [b.error for b in bad] == errors
    assert "'from'" in bad[1].reason and "'to.name'" in bad[2].reason
    assert found.entities == ["c"]


@pytest.mark.parametrize("form", ["json", "msgpack", "avro"])
def test_nodes_named_by_integers_are_those_of_their_texts(form: str, tmp_path: Path) -> None:
    found, bad = decoded(form, tmp_path, [edge(7, 8), edge("7", "8", 1)])
    assert not bad
    assert found.entities == ["7", "7"] and found.neighbours == ["8", "8"]
    assert set(found.rows.categories[:, NEIGHBOUR].tolist()) == {category_hash("8")}


def test_an_op_that_is_no_text_is_bad(tmp_path: Path) -> None:
    _, bad = decoded("json", tmp_path, [edge("a", "b", op=1), edge("a", "b", op=True)])
    assert [b.error for b in bad] == ["wrong_type", "wrong_type"]


def test_an_arrow_message_without_the_far_node_is_refused(tmp_path: Path) -> None:
    batch = pa.record_batch({"from": ["a"], "at": [T0]})
    edges = msgspec.structs.replace(GRAPH, node=())
    _, bad = run(make_decoder(edges, DecodeConfig(format="arrow")), [ipc(batch)])
    assert [(b.error, b.row) for b in bad] == [("wrong_columns", None)]
    _, bad = run(make_decoder(GRAPH, DecodeConfig(format="arrow")), [ipc(batch)])
    assert [(b.error, b.row) for b in bad] == [("missing_entity", 0)], "it may hold nodes alone"


def test_a_graph_needs_no_fields() -> None:
    bare = StreamConfig(kind="graph", entity="a", neighbour="b", time="t")
    assert bare.columns == ("direction", "neighbour")
    assert bare.shape == Shape(1, 1, graph=True)
    check_defaults(bare)
    found, bad = run(make_decoder(bare, DecodeConfig()), [b'{"a": "x", "b": "y", "t": 5000000}'])
    assert not bad and found.neighbours == ["y"] and not found.rows.missing.any()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "graph"}, "stream.neighbour is missing"),
        ({"kind": "graph", "neighbour": "a"}, "'a' is named twice"),
        ({"kind": "graph", "neighbour": "b", "op": "t"}, "'t' is named twice"),
        ({"kind": "graph", "neighbour": "b", "unit": "graph"}, "stream.source is missing"),
        ({"kind": "graph", "neighbour": "b", "source": "c"}, "Remove stream.source, or set"),
        ({"kind": "graph", "neighbour": "b", "unit": "graph", "source": "b"}, "'b' is named twice"),
        (
            {
                "kind": "graph",
                "neighbour": "b",
                "unit": "graph",
                "source": "c",
                "op": "o",
                "node": (Field("x", FieldType.number),),
            },
            "stream.node is for graphs whose nodes",
        ),
        ({"unit": "graph", "field": (Field("x", FieldType.number),)}, 'Set stream.kind = "graph"'),
        ({"source": "b", "field": (Field("x", FieldType.number),)}, "stream.source is for"),
        *(
            (
                {
                    "kind": "graph",
                    "unit": "graph",
                    "source": "c",
                    "neighbour": "b",
                    "field": (Field(x, FieldType.number),),
                },
                repr(x),
            )
            for x in ("source", "neighbour", "edge_type")
        ),
        ({"neighbour": "b", "field": (Field("x", FieldType.number),)}, "stream.neighbour is for"),
        ({"op": "b", "field": (Field("x", FieldType.number),)}, "stream.op is for edges"),
        (
            {"node": (Field("x", FieldType.number),), "field": (Field("y", FieldType.number),)},
            "stream.node is for",
        ),
        (
            {"kind": "graph", "neighbour": "b", "node": (Field("x", FieldType.number),)},
            "stream.op is missing",
        ),
        ({"edge_type": "b", "field": (Field("x", FieldType.number),)}, "stream.edge_type is for"),
        ({}, "stream.field is empty"),
        *(
            ({"kind": "graph", "neighbour": "b", "field": (Field(x, FieldType.number),)}, repr(x))
            for x in ("direction", "neighbour", "edge_type")
        ),
    ],
)
def test_settings_that_make_no_stream_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        StreamConfig(entity="a", time="t", **settings)
