"""The stream that the benchmarks of the shard read: nine fields, made up; and a release to serve it with."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch

from actors.folders import write_folder
from actors.graphs import described, files
from actors.served import set_current
from learning import encoders, export
from learning.config import EncoderConfig, GruConfig
from learning.encoders.base import Encoder
from schemas.published import Manifest
from schemas.records import I64, Decoded, Rows, category_hash
from schemas.stream import Field, FieldType, StreamConfig

CATEGORIES, NUMBERS = ("what", "shop", "channel"), ("amount", "weight", "age", "score")
STREAM = StreamConfig(
    entity="who",
    time="at",
    field=(
        *(Field(name, FieldType.category) for name in CATEGORIES),
        *(Field(name, FieldType.number) for name in NUMBERS),
    ),
    time_unit="ms",
)
ENCODER = GruConfig(dim=128, hidden=64, window=64)  # vectors of 512 bytes
ENTITIES = 10_000
START_MS = 1_700_000_000_000


def even(n: int, entities: int = ENTITIES) -> I64:
    """Whose each record is: all in turn, so that no micro-batch holds two of one entity."""
    order = np.random.default_rng(0).permutation(entities)
    return np.resize(order, n)


def uneven(entities: int = ENTITIES) -> I64:
    """Whose each record of a history is: one to L/2 records of each, so that later not all of them come to
    an anchor, and are encoded anew, at the same moment."""
    rng = np.random.default_rng(1)
    who = np.repeat(np.arange(entities), rng.integers(1, ENCODER.window // 2 + 1, entities))
    return rng.permutation(who)


def skewed(n: int, entities: int = ENTITIES) -> I64:
    """Whose each record is: a few have most, as in streams that people make."""
    return np.asarray(np.random.default_rng(0).zipf(1.2, n) % entities)


def name_of(entity: int) -> str:
    return f"entity-{entity:06d}"


def columns(who: I64, start_ms: int = START_MS, seed: int = 0) -> dict[str, list[Any]]:
    """Values of the records, a millisecond apart."""
    rng = np.random.default_rng(seed)
    n = len(who)
    out: dict[str, list[Any]] = {"who": [name_of(e) for e in who.tolist()]}
    out["at"] = (start_ms + np.arange(n)).tolist()
    for name in CATEGORIES:
        out[name] = [f"{name}-{v}" for v in (rng.zipf(1.4, n) % 500).tolist()]
    for name in NUMBERS:
        out[name] = rng.lognormal(1, 1, n).round(3).tolist()
    return out


def json_messages(who: I64) -> list[bytes]:
    table = columns(who)
    rows = zip(*table.values(), strict=True)
    return [msgspec.json.encode(dict(zip(table, row, strict=True))) for row in rows]


def arrow_messages(who: I64, rows: int = 500) -> list[bytes]:
    batch = pa.RecordBatch.from_pydict(columns(who))
    return [arrow_message(batch.slice(at, rows)) for at in range(0, len(who), rows)]


def arrow_message(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def history(entities: int = ENTITIES) -> Decoded:
    """Rows before the stream, half a ring to three halves: entities reach their anchors at different records."""
    rng = np.random.default_rng(1)
    half = ENCODER.window // 2
    who = np.repeat(np.arange(entities), rng.integers(half, 3 * half, entities))
    n = len(who)
    rows = Rows.empty(STREAM.shape, n)
    rows.time_us[:] = START_MS * 1000 - 1_000_000 * (n - np.arange(n))
    rows.numbers[:] = rng.lognormal(1, 1, rows.numbers.shape)
    for at, name in enumerate(CATEGORIES):
        hashes = np.array([category_hash(f"{name}-{v}") for v in range(500)])
        rows.categories[:, at] = hashes[rng.zipf(1.4, n) % 500]
    rows.missing[:] = False
    names = [name_of(e) for e in range(entities)]
    whose = [names[e] for e in who.tolist()]
    return Decoded(rows, whose, np.zeros(n, np.bool_), np.zeros(n, np.int64))


def untrained(
    seed: int, encoder: EncoderConfig = ENCODER, stream: StreamConfig = STREAM
) -> Encoder:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    return encoders.build(encoder, stream.shape).eval()


def release(
    releases: Path,
    number: int,
    encoder: EncoderConfig = ENCODER,
    stream: StreamConfig = STREAM,
    module: Encoder | None = None,
) -> None:
    """Writes a release, an untrained one unless told, and names it as current."""
    module = module or untrained(number, encoder, stream)
    graphs = export.export(module, {"release": str(number)})
    manifest = Manifest(
        stream="bench", release=number, generation=1, created_us=number, dim=encoder.dim,
        window=encoder.window, entity=stream.entity, time=stream.time, time_unit=stream.time_unit,
        fields=stream.field, numbers=tuple(f.name for f in stream.numbers),
        categories=tuple(f.name for f in stream.categories),
        session_gap_us=stream.shape.session_gap_us, state=encoder.state,
        **described(graphs),
    )  # fmt: skip
    write_folder(releases, str(number), files(graphs), lambda: msgspec.to_builtins(manifest))
    set_current(releases, number)
