"""Which partition Kafka's default partitioner gives a key: Java's murmur2, for one key or for many.

Source: org.apache.kafka.common.utils.Utils.murmur2 and toPositive."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from kafka.partitioner.default import murmur2

from schemas.records import I64

_SEED, _M, _R = np.uint32(0x9747B28C), np.uint32(0x5BD1E995), np.uint32(24)


def partition_of(key: bytes, partitions: int) -> int:
    """As Java's clients, kafka-python, and librdkafka's murmur2 and murmur2_random do."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def partitions_of(keys: Sequence[str | bytes] | pa.Array, partitions: int) -> I64:
    """The same for N keys, none of them null: [N] 0 to partitions - 1."""
    if not isinstance(keys, pa.Array):
        keys = pa.array([k.encode() if isinstance(k, str) else k for k in keys], pa.large_binary())
    hashes = _murmur2(keys.cast(pa.large_binary()))
    return (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def _murmur2(keys: pa.LargeBinaryArray) -> npt.NDArray[np.uint32]:
    n = len(keys)
    hashes = np.zeros(n, np.uint32)
    if not n:
        return hashes
    _, starts, data = keys.buffers()
    ends = np.frombuffer(starts, np.int64, n + 1, keys.offset * 8)
    chars = np.frombuffer(data or b"", np.uint8)
    lengths = np.diff(ends)
    for length in np.unique(lengths).tolist():
        at = np.flatnonzero(lengths == length)
        text_NL = chars[ends[at][:, None] + np.arange(length)]
        hashes[at] = _of_one_length(text_NL)
    return hashes


def _of_one_length(text_NL: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """N keys of L bytes; uint32 wraps around as Java's int does."""
    n, length = text_NL.shape
    whole = length // 4
    h = np.full(n, _SEED ^ np.uint32(length), np.uint32)
    words = np.ascontiguousarray(text_NL[:, : whole * 4]).view("<u4")
    for i in range(whole):
        k = words[:, i] * _M
        k = (k ^ (k >> _R)) * _M
        h = (h * _M) ^ k
    rest = text_NL[:, whole * 4 :].astype(np.uint32)
    if rest.shape[1]:
        for i in range(rest.shape[1]):
            h ^= rest[:, i] << np.uint32(8 * i)
        h *= _M
    h = (h ^ (h >> np.uint32(13))) * _M
    return np.asarray(h ^ (h >> np.uint32(15)), np.uint32)
