"""Bytes of messages -> columns; what cannot be used comes back with its reason.

`make_decoder` gives a Decoder whose `decode` never raises for what is in a message. The formats are
`actors/decode_text.py` (json, msgpack), `actors/decode_avro.py` and `actors/decode_arrow.py`; images have a
decoder of their own, `actors/decode_images.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Annotated, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta

from actors.columns import Table, check_defaults
from actors.ports import Headers
from actors.rejected import ErrorClass, Rejected
from schemas.errors import SettingsError
from schemas.records import I64, OFFSET_BITS, Decoded, Features, Rows, Told, category_hash
from schemas.stream import StreamConfig

Size = Annotated[int, Meta(ge=1)]
Value: TypeAlias = bytes | pa.RecordBatch
"""A message; or what an arrow message holds, as the file source has it."""


class DecodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[decode]`: the format of the messages, and what is too large."""

    format: Literal["json", "msgpack", "avro", "arrow"] = "json"
    avro_schema: str = ""  # a local file
    avro_schema_id: Annotated[int, Meta(ge=0)] = 0  # the only id accepted; 0: any
    max_message_bytes: Size = 8 << 20
    max_expanded_bytes: Size = 64 << 20  # of one arrow message, decompressed
    max_entity_bytes: Size = 512

    def __post_init__(self) -> None:
        if self.format == "avro" and not self.avro_schema:
            raise SettingsError(
                'decode.format is "avro": its messages carry no schema. '
                "Name the schema's local file in decode.avro_schema."
            )


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One message, or one row of it, that goes to the dead letters."""

    at: int  # index into the input
    error: ErrorClass
    reason: str
    row: int | None = None  # arrow only; None is the whole message


class Format(Protocol):
    """One format: messages of the allowed size, none null -> the rows in them."""

    def read(self, values: Sequence[Value]) -> tuple[Table, I64, list[BadRecord]]:
        """A table, the message that each of its rows came from, and messages bad as a whole."""
        ...


class Decoder:
    """One stream's messages -> columns."""

    done = 0
    """Messages decoded so far, while `decode` runs: a sign of life where it may take long."""

    def __init__(self, stream: StreamConfig, config: DecodeConfig, reader: Format) -> None:
        self._stream, self._config, self._reader = stream, config, reader

    def decode(
        self,
        topic_index: int,
        offsets: I64,
        timestamps_ms: I64,
        keys: Sequence[bytes | None],
        values: Sequence[Value | None],
        headers: Sequence[Headers] | None = None,
    ) -> tuple[Decoded, list[BadRecord]]:
        """Messages of one topic of one group, in order of their offsets: [M] -> [N] rows.

        All rows of one message share its position and keep their order."""
        del headers  # records say everything in their values
        bad: list[BadRecord] = []
        chosen, gone = self._choose(values, bad)
        kept = [values[at] for at in chosen] if len(chosen) < len(values) else values
        table, origin, worse = self._reader.read(kept)
        at = np.asarray(chosen, np.int64)[origin] if len(kept) < len(values) else origin
        bad += [BadRecord(chosen[b.at], b.error, b.reason, b.row) for b in worse]
        rows, entities, far = table.rows, table.entities, table.neighbours
        upsert, features = table.upsert, table.features
        if table.bad:
            keep = np.ones(len(at), np.bool_)
            keep[list(table.bad)] = False
            bad += self._row_reasons(table, at)
            rows, at = rows.take(keep), at[keep]
            entities = list(compress(entities, keep.tolist()))
            far = list(compress(far, keep.tolist()))
            if features is not None:
                upsert, features = upsert[keep], features.take(keep)
        deleted = np.zeros(len(at), np.bool_)
        if gone:
            before = len(entities)
            rows, entities, order, at = self._merge(rows, entities, at, gone, keys, bad)
            deleted = order >= before
            if self._stream.nodes:
                far = [*far, *[""] * (len(order) - before)]
                far = [far[i] for i in order.tolist()]
            if features is not None:
                upsert = np.append(upsert, np.zeros(len(order) - before, np.bool_))[order]
                features = features.take(order[upsert])
            rows.time_us[deleted] = timestamps_ms[at[deleted]] * 1000
        elif features is not None:
            features = features.take(upsert)
        rows.position[:] = np.int64(topic_index) << OFFSET_BITS | offsets[at]
        bad.sort(key=lambda b: (b.at, b.row or 0))
        decoded = Decoded(rows, entities, deleted, timestamps_ms[at], far)
        if features is not None and upsert.any():
            decoded.told = _told(decoded, np.flatnonzero(upsert), features)
        return decoded, bad

    def close(self) -> None:
        """Ends what works for it."""

    def _choose(
        self, values: Sequence[Value | None], bad: list[BadRecord]
    ) -> tuple[Sequence[int], list[int]]:
        """Indexes of the messages to read, and of the null ones."""
        limit = self._config.max_message_bytes
        chosen: list[int] = []
        gone: list[int] = []
        for at, value in enumerate(values):
            if value is None:
                gone.append(at)
            elif not isinstance(value, bytes) or len(value) <= limit:
                chosen.append(at)
            else:
                reason = f"{len(value)} bytes; decode.max_message_bytes is {limit}"
                bad.append(BadRecord(at, "too_large", reason))
        return chosen, gone

    def _row_reasons(self, table: Table, at: I64) -> list[BadRecord]:
        """Reasons of the table's bad rows; an arrow row is numbered within its message."""
        arrow = self._config.format == "arrow"
        number = np.arange(len(at)) - np.searchsorted(at, at) if arrow else None
        return [
            BadRecord(int(at[i]), why.error, str(why), None if number is None else int(number[i]))
            for i, why in table.bad.items()
        ]

    def _merge(
        self,
        rows: Rows,
        entities: list[str],
        at: I64,
        gone: list[int],
        keys: Sequence[bytes | None],
        bad: list[BadRecord],
    ) -> tuple[Rows, list[str], I64, I64]:
        """Rows and deletions together, in the order of their messages, which comes third."""
        names, where = [], []
        for index in gone:
            try:
                names.append(self._entity_of(keys[index], "a null value (a deletion)"))
                where.append(index)
            except Rejected as why:
                bad.append(BadRecord(index, why.error, str(why)))
        all_at = np.concatenate([at, np.array(where, np.int64)])
        order = np.argsort(all_at, kind="stable")
        both = [*entities, *names]
        merged = Rows.concat((rows, Rows.empty(self._stream.shape, len(names)))).take(order)
        return merged, [both[i] for i in order.tolist()], order, all_at[order]

    def _entity_of(self, key: bytes | None, what: str) -> str:
        if key is None:
            raise Rejected("missing_entity", f"{what} with a null key")
        if not 0 < len(key) <= self._config.max_entity_bytes:
            limit = self._config.max_entity_bytes
            raise Rejected("bad_entity", f"the key has {len(key)} bytes; needed are 1 to {limit}")
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise Rejected("invalid_utf8", "the key is not UTF-8") from None


def _told(decoded: Decoded, row: I64, features: Features) -> Told:
    """What the records of nodes say."""
    names = [decoded.entities[i] for i in row.tolist()]
    node = np.fromiter(map(category_hash, names), np.int64, len(names))
    rows = decoded.rows
    stamps = decoded.timestamp_ms[row]
    return Told(node, row, rows.time_us[row], rows.position[row], stamps, features)


def make_decoder(stream: StreamConfig, config: DecodeConfig) -> Decoder:
    """The decoder of a stream's format. Raises SettingsError where fields contradict each other."""
    if stream.images:
        from actors.decode_images import ImageDecoder

        return ImageDecoder(stream, config)
    check_defaults(stream)
    reader: Format
    if config.format == "arrow":
        from actors.decode_arrow import Arrow

        reader = Arrow(stream, config)
    elif config.format == "avro":
        from actors.decode_avro import Avro

        reader = Avro(stream, config)
    else:
        from actors.decode_text import Text

        reader = Text(stream, config)
    return Decoder(stream, config, reader)
