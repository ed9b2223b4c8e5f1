"""Reads fresh embeddings out of Redis: a starting point for a service of your own.

Needs redis and numpy, nothing of afresh. As a program:

    python examples/reader.py --stream flights N14228 N24211
    python examples/reader.py --stream flights --follow

What it relies on (docs/contract.md has all of it):

- `afresh:<stream>:current` names the release and the generation. Vectors of one generation can be
  compared; those of two cannot. So poll it, and read all entities of one comparison under the
  generation that one poll gave.
- `afresh:<stream>:g<generation>:<entity>` holds `vector`, little-endian float32 of length 1, as of
  `time_us`, the time of the entity's newest record. Not there: never seen, expired or deleted.
- `count` never falls within one `since`: a reader never sees an entity go back in time.
- `afresh:<stream>:releases` has one entry per release or rollback. It is trimmed: a hint to poll
  `current` at once, not a history.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

FIELDS = ("vector", "release", "time_us", "count", "since")


@dataclass(frozen=True)
class Current:
    """What is served now."""

    release: int
    generation: int
    dim: int
    dtype: str


@dataclass(frozen=True)
class Embedding:
    """One entity's vector [dim], and what it knows."""

    entity: str
    vector: npt.NDArray[np.float32]
    generation: int  # compare vectors of the same one only
    release: int
    time_us: int  # of the newest record in it
    count: int  # records since `since`
    since_us: int

    def staleness_s(self, now_us: int) -> float:
        """Age of the newest record in the vector; for a silent entity it grows, as it should."""
        return (now_us - self.time_us) / 1e6


class Reader:
    """Embeddings of one stream. `poll_s`: how old the knowledge of `current` may be."""

    def __init__(
        self,
        client: redis.Redis,
        stream: str,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if client.get_connection_kwargs().get("decode_responses"):
            raise ValueError("vectors are bytes: make the client without decode_responses=True")
        self._client, self._prefix = client, f"afresh:{stream}:"
        self._poll_s, self._clock = poll_s, clock
        self._current: Current | None = None
        self._polled_at = float("-inf")

    def current(self) -> Current | None:
        """What is served now, at most `poll_s` old; None before the first release."""
        if self._clock() - self._polled_at >= self._poll_s:
            self._poll()
        return self._current

    def _poll(self) -> None:
        names = ["release", "generation", "dim", "dtype"]
        found: Any = self._client.hmget(self._prefix + "current", names)
        self._polled_at = self._clock()
        if found[0] is not None:
            release, generation, dim, dtype = found
            self._current = Current(int(release), int(generation), int(dim), dtype.decode())

    def read(self, entities: Sequence[str]) -> list[Embedding | None]:
        """All in one round trip and of one generation, in order; None where there is none."""
        current = self.current()
        if current is None:
            return [None] * len(entities)
        pipe = self._client.pipeline(transaction=False)
        for entity in entities:
            pipe.hmget(f"{self._prefix}g{current.generation}:{entity}", FIELDS)
        rows = zip(entities, pipe.execute(), strict=True)
        return [_embedding(entity, row, current) for entity, row in rows]

    def follow(self, block_ms: int = 1000) -> Iterator[Current]:
        """Yields what is served now, then every change; does not end.

        The stream wakes it up; `current` is what counts, also when an entry was missed."""
        last: bytes | str = "$"
        told: Current | None = None
        while True:
            self._poll()
            if self._current is not None and self._current != told:
                told = self._current
                yield told
            news: Any = self._client.xread({self._prefix + "releases": last}, block=block_ms)
            for _, entries in news or []:
                last = entries[-1][0]


def _embedding(entity: str, row: list[bytes | None], current: Current) -> Embedding | None:
    if row[0] is None:
        return None
    vector = np.frombuffer(row[0], "<f4")
    if vector.shape != (current.dim,):
        raise ValueError(f"{entity}: a vector of {len(vector)}, and dim is {current.dim}")
    release, time_us, count, since = (int(value or 0) for value in row[1:])
    return Embedding(entity, vector, current.generation, release, time_us, count, since)


def main() -> None:
    parser = argparse.ArgumentParser(description="Read embeddings out of Redis.")
    parser.add_argument("entity", nargs="*")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--follow", action="store_true", help="print each release as it comes")
    given = parser.parse_args()
    client = redis.Redis.from_url(given.redis, socket_timeout=5.0)
    reader = Reader(client, given.stream)
    now_us = time.time_ns() // 1000
    for entity, found in zip(given.entity, reader.read(given.entity), strict=True):
        if found is None:
            print(f"{entity}: not there")
            continue
        head = ", ".join(f"{x:+.3f}" for x in found.vector[:4])
        age = found.staleness_s(now_us)
        print(f"{entity}: [{head}, …] release {found.release}, {found.count} records, {age:.3f} s")
    if given.follow:
        for current in reader.follow():
            print(f"release {current.release} of generation {current.generation}", flush=True)


if __name__ == "__main__":
    main()
