"""Compressed batches of records expand to a bounded size: kafka-python 3.0.12 takes whatever comes out.

Its decoders are replaced, here alone, by ones that stop. The broker checks that a batch is well-formed, not
how large it becomes: one of 1 MB may hold gigabytes of the same byte."""

import io
import zlib
from typing import Any

import kafka.errors
import lz4.frame
import snappy
import zstandard
from kafka.record import default_records

_most = 256 << 20


class TooLarge(kafka.errors.KafkaError):  # type: ignore[misc]
    """A batch that would take too much memory."""


def expand_at_most(most_bytes: int) -> None:
    """For all Kafka clients of this process, from now on."""
    global _most  # noqa: PLW0603 - the library's decoders are global too
    _most = most_bytes
    default_records.gzip_decode = _gzip
    default_records.lz4_decode = _lz4
    default_records.zstd_decode = _zstd
    default_records.snappy_decode = _snappy


def _checked(data: bytes, compressed: int) -> bytes:
    if len(data) > _most:
        raise TooLarge(f"{compressed} compressed bytes of records are more than {_most} bytes")
    return data


def _gzip(payload: Any) -> bytes:
    out, left = b"", bytes(payload)
    while left:  # members, one behind the other
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        out += member.decompress(left, _most + 1 - len(out))
        _checked(out, len(payload))
        if not member.eof:
            raise kafka.errors.CorruptRecordError("a gzip batch that is cut short")
        left = member.unused_data
    return out


def _lz4(payload: bytes) -> bytes:
    out, left = b"", payload
    while left:
        frame = lz4.frame.LZ4FrameDecompressor()
        most = 256 * len(left) + 1024  # it takes so much memory at once; no lz4 expands further
        out += frame.decompress(left, min(_most + 1 - len(out), most))
        _checked(out, len(payload))
        if not frame.eof:
            raise kafka.errors.CorruptRecordError("an lz4 batch that is cut short")
        left = frame.unused_data or b""
    return out


def _zstd(payload: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor()
    parts, left = [], _most
    with decompressor.stream_reader(io.BytesIO(payload), read_across_frames=True) as reader:
        while left >= 0 and (part := reader.read(1 << 16)):
            parts.append(part)
            left -= len(part)
    return _checked(b"".join(parts), len(payload))


def _snappy(payload: bytes) -> bytes:
    """Raw, or in blocks behind a header of 16 bytes (xerial's)."""
    blocks = [payload]
    if payload[:8] == b"\x82SNAPPY\0":
        blocks, at = [], 16
        while at < len(payload):
            size = int.from_bytes(payload[at : at + 4], "big")
            blocks.append(payload[at + 4 : at + 4 + size])
            at += 4 + size
    stated = sum(map(_stated, blocks))
    if stated > _most:
        raise TooLarge(f"{len(payload)} compressed bytes of records are {stated} bytes")
    return b"".join(snappy.decompress(block) for block in blocks)


def _stated(block: bytes) -> int:
    """A snappy block begins with its size, seven bits a byte."""
    size = 0
    for at, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            break
    return size
