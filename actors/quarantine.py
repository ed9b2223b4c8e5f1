"""Records that end the process which decodes them: found at the cost of two crashes, then set aside.

While a micro-batch is decoded, a marker on disk says which: a few bytes written into a file that stays open.
They outlive a killed process unsynced. Who opens the group and finds a marker set knows over what the one
before it ended: these records are *suspects*, decoded one at a time, each under a marker of its own. A record
that was alone under its marker when the process ended is *set aside*: it goes to the dead letters undecoded,
also when an older snapshot has it read again. An innocent kill -9 costs a slower pass over one micro-batch."""

import os
import struct
import zlib
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np
import structlog

from actors.decode import BadRecord, Decoder
from actors.folders import Folder, folders, write_file
from actors.ports import Batch
from schemas.errors import SnapshotError
from schemas.records import Decoded, Rows, Told

MARKER, KNOWN = "decoding", "crashes.json"
BATCH, ALONE = 1, 2
REASON = (
    "the process ended twice while decoding it: first among others, then alone. It is not decoded again; "
    "the daemon's log tells of both."
)
_MARK = struct.Struct("<BIqq")  # kind (0: none), crc32 of the topic's name, first and last offset
_CHECK = struct.Struct("<I")
_NONE = bytes(_MARK.size + _CHECK.size)
log = structlog.get_logger()


class Known(msgspec.Struct):
    """What is remembered of crashes, durably."""

    suspects: list[tuple[str, int, int]] = []  # topic, first and last offset
    aside: list[tuple[str, int]] = []  # topic, offset


class Quarantine:
    """Decodes one group's batches so that a record that crashes the decoder does so twice at most."""

    def __init__(self, folder: Path, topics: tuple[str, ...]) -> None:
        """Looks at what an earlier process left in the group's folder."""
        self._folder, self._topics = folder, topics
        self._known = _read(folder / KNOWN)
        self._fd = -1
        passed = _passed_by_all(folder)
        before = msgspec.json.encode(self._known)
        self._learn_from(_marked(folder / MARKER))
        known = self._known
        known.suspects = [s for s in known.suspects if s[2] >= passed.get(s[0], 0)]
        known.aside = [a for a in known.aside if a[1] >= passed.get(a[0], 0)]
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if msgspec.json.encode(known) != before:
                self._write()
            # a new file: one that still stands by, thinking that it owns the group, keeps the old one
            (folder / MARKER).unlink(missing_ok=True)
            self._fd = os.open(folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.pwrite(self._fd, _NONE, 0)
        except OSError as error:
            self._unprotected(error)

    def decode(self, batch: Batch, decoder: Decoder) -> tuple[Decoded, list[BadRecord]]:
        """As the decoder does, but for what is set aside."""
        topic = self._topics[batch.topic]
        if not len(batch.offsets):
            return plain(batch, decoder)
        if not any(known[0] == topic for known in (*self._known.suspects, *self._known.aside)):
            return self._under(BATCH, batch, decoder)
        decoded, bad = self._apart(batch, decoder)
        if any(t == topic and last < batch.next_offset for t, _, last in self._known.suspects):
            self._clear(topic, batch.next_offset)
        return decoded, bad

    def _under(self, kind: int, batch: Batch, decoder: Decoder) -> tuple[Decoded, list[BadRecord]]:
        """Decodes under a marker, which stays where that raises or ends the process."""
        crc = zlib.crc32(self._topics[batch.topic].encode())
        mark = _MARK.pack(kind, crc, batch.offsets[0], batch.offsets[-1])
        self._put(mark + _CHECK.pack(zlib.crc32(mark)))
        found = plain(batch, decoder)
        self._put(_NONE)
        return found

    def _apart(self, batch: Batch, decoder: Decoder) -> tuple[Decoded, list[BadRecord]]:
        """What is set aside not at all, suspects alone, the stretches between them as usual."""
        topic, n = self._topics[batch.topic], len(batch.offsets)
        suspect = np.zeros(n, np.bool_)
        for name, first, last in self._known.suspects:
            if name == topic:
                suspect |= (batch.offsets >= first) & (batch.offsets <= last)
        gone = np.isin(batch.offsets, [at for name, at in self._known.aside if name == topic])
        odd = np.flatnonzero(suspect | gone).tolist()
        parts, bad, at = [], list[BadRecord](), 0
        for here in (*odd, n):
            if here > at:
                parts.append((at, *self._under(BATCH, batch.cut(at, here), decoder)))
            if here < n and gone[here]:
                bad.append(BadRecord(here, "crashes_decoder", REASON))
            elif here < n:
                parts.append((here, *self._under(ALONE, batch.cut(here, here + 1), decoder)))
            at = here + 1
        if not parts:
            return plain(batch.cut(0, 0), decoder)[0], bad
        bad += [replace(b, at=b.at + start) for start, _, found in parts for b in found]
        bad.sort(key=lambda b: (b.at, b.row or 0))
        return joined([decoded for _, decoded, _ in parts]), bad

    # -- what is remembered -----------------------------------------------------------------------

    def _learn_from(self, mark: tuple[int, int, int, int] | None) -> None:
        """The process before this one ended under the mark."""
        if mark is None:
            return
        kind, crc, first, last = mark
        for topic in self._topics:
            if zlib.crc32(topic.encode()) != crc:
                continue
            if kind == ALONE and (topic, first) not in self._known.aside:
                self._known.aside.append((topic, first))
                log.error("record_set_aside", topic=topic, offset=first, folder=str(self._folder))
            elif kind == BATCH and (topic, first, last) not in self._known.suspects:
                self._known.suspects.append((topic, first, last))
                log.warning(
                    "ended_while_decoding", topic=topic, first=first, last=last,
                    next="these records are decoded one at a time",
                )  # fmt: skip

    def _clear(self, topic: str, position: int) -> None:
        """Suspects below the position were decoded and nothing happened."""
        left = [s for s in self._known.suspects if s[0] != topic or s[2] >= position]
        self._known.suspects = left
        try:
            if self._fd >= 0:
                os.fsync(self._fd)  # after a loss of power no marker of a single record is found
            self._write()
        except OSError as error:
            log.warning("suspects_not_cleared", reason=str(error), folder=str(self._folder))

    def _write(self) -> None:
        write_file(self._folder / KNOWN, msgspec.json.encode(self._known))

    def _put(self, mark: bytes) -> None:
        if self._fd < 0:
            return
        try:
            os.pwrite(self._fd, mark, 0)
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            self._unprotected(error)

    def _unprotected(self, error: OSError) -> None:
        log.warning(
            "decoder_unwatched", reason=str(error), folder=str(self._folder),
            next="a record that crashes the decoder will do so at each start",
        )  # fmt: skip


def joined(parts: list[Decoded]) -> Decoded:
    ends = list(accumulate((len(p.entities) for p in parts), initial=0))
    told = [
        replace(p.told, row=np.where(p.told.row < 0, -1, p.told.row + n))
        for p, n in zip(parts, ends, strict=False)
        if p.told is not None
    ]
    return Decoded(
        Rows.concat([p.rows for p in parts]),
        [name for p in parts for name in p.entities],
        np.concatenate([p.deleted for p in parts]),
        np.concatenate([p.timestamp_ms for p in parts]),
        [name for p in parts for name in p.neighbours],
        [
            g._replace(before=g.before + n)
            for p, n in zip(parts, ends, strict=False)
            for g in p.gone
        ],
        Told.concat(told) if told else None,
        np.concatenate([p.rows.position if p.origin is None else p.origin for p in parts]),
    )


def plain(batch: Batch, decoder: Decoder) -> tuple[Decoded, list[BadRecord]]:
    """Decodes without a marker."""
    return decoder.decode(
        batch.topic, batch.offsets, batch.timestamps_ms, batch.keys, batch.values, batch.headers
    )


def _read(path: Path) -> Known:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Known)
    except FileNotFoundError:
        return Known()
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("crashes_unreadable", path=str(path), reason=str(error))
        return Known()


def _marked(path: Path) -> tuple[int, int, int, int] | None:
    """What was being decoded when the process before this one ended."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    mark, check = data[: _MARK.size], data[_MARK.size :]
    if len(data) != len(_NONE) or data == _NONE or _CHECK.unpack(check)[0] != zlib.crc32(mark):
        return None
    kind, crc, first, last = _MARK.unpack(mark)
    return kind, crc, first, last


def _passed_by_all(folder: Path) -> dict[str, int]:
    """Per topic, below which offset no snapshot that is kept will have anything read again."""
    kept = []
    for path in folders(folder):
        try:
            meta = Folder.open(path).meta
            kept.append(dict(zip(meta["topics"], meta["positions"], strict=True)))
        except (SnapshotError, KeyError, ValueError):
            return {}
    return {
        topic: min(positions.get(topic, 0) for positions in kept)
        for topic in {topic for positions in kept for topic in positions}
    }
