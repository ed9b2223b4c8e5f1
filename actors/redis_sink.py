"""Embeddings -> Redis: fenced, compare-and-set, in pipelines of script calls.

Every call carries its group's positions, set before the vectors that reflect them, and every vector
carries (epoch, write number): so whatever arrives late, twice or from a zombie changes nothing.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import hiredis
import msgspec
import numpy as np
import redis
from redis.exceptions import NoScriptError, ResponseError

from actors import lua
from actors.redis_client import Breaker, RedisConfig, check_server, connect
from actors.sink import Current, Kind, Stored, Value, Vectors, WriteResult
from schemas.errors import Fenced, SinkDown
from schemas.published import current_key, encoder_key, entity_key, group_key, releases_key

CALLS = 100  # script calls per round trip, at most
LIMIT = 1 << 53
SCANNED = 1000  # keys looked at in one call
T = TypeVar("T")
Call = tuple[str, list[str], list[Any]]
"""A script, its keys, its arguments."""


class RedisSink:
    """One stream's keys in one Redis. Not for several threads at once."""

    def __init__(
        self, config: RedisConfig, stream: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._stream = config, stream
        self._client = connect(config, self._connected)
        self._breaker = Breaker(config, clock)
        self._run_id = ""  # of the server that our writes are in
        self._lost = False  # another server, or one without our fence, answers now
        self._writing = False

    def __repr__(self) -> str:
        return f"RedisSink({self._config.address}, {self._stream!r})"

    def check(self) -> list[str]:
        return self._talk(lambda: check_server(self._client, self._config))

    def raise_fence(self, group: int, epoch: int) -> dict[str, int]:
        key = group_key(self._stream, group)
        ((there, positions),) = self._scripts([(lua.RAISE_FENCE, [key], [_whole(epoch)])])
        if int(there) != epoch:
            raise Fenced(
                f"{key} in Redis holds epoch {int(there)}, ours is {epoch}: a newer owner writes "
                "this group. With an older or a new state folder see 'Restore' in docs/operations.md."
            )
        return {} if positions is None else msgspec.json.decode(positions, type=dict[str, int])

    def write(
        self,
        group: int,
        epoch: int,
        write_number: int,
        generation: int,
        positions: Mapping[str, int],
        vectors: Vectors,
        deletions: list[str],
    ) -> WriteResult:
        return self.post(group, epoch, write_number, generation, positions, vectors, deletions)()

    def post(
        self,
        group: int,
        epoch: int,
        write_number: int,
        generation: int,
        positions: Mapping[str, int],
        vectors: Vectors,
        deletions: list[str],
    ) -> Callable[[], WriteResult]:
        fence = group_key(self._stream, group)
        where = msgspec.json.encode(positions)
        prefix = entity_key(self._stream, generation, "")
        head = [_whole(epoch), _whole(write_number), where, round(self._config.ttl_s * 1000), group]
        keys = [prefix + name for name in vectors.entities]
        each, values = _columns(vectors)
        step, calls = self._config.batch_keys, []
        for i in range(0, len(keys), step):
            tail = values[each * i : each * (i + step)]
            calls.append((lua.WRITE, [fence, *keys[i : i + step]], [*head, each, *tail]))
        gone = [prefix + name for name in deletions]
        head = [*head[:3], round(self._config.deleted_ttl_s * 1000), group]
        starts = range(0, len(gone) or not calls, step)  # without any, the positions go alone
        calls += [(lua.DELETE, [fence, *gone[i : i + step]], head) for i in starts]
        if self._lost:
            raise SinkDown(f"Redis at {self._config.address} was replaced; its data may be lost.")
        written, last = 0, (len(calls) - 1) // CALLS * CALLS
        for i in range(0, last, CALLS):
            written += self._taken(self._write(calls[i : i + CALLS])(), fence, epoch)
        answers = self._write(calls[last:])

        def result() -> WriteResult:
            taken = written + self._taken(answers(), fence, epoch)
            return WriteResult(taken, len(keys) + len(gone) - taken)

        return result

    def publish_release(
        self, release: int, generation: int, encoder: Mapping[str, Value], manifest: str, epoch: int
    ) -> None:
        every = {**encoder, "generation": generation, "manifest": manifest}
        pairs = [part for pair in every.items() for part in pair]
        self._current(lua.PUBLISH, encoder_key(self._stream, release), [_whole(epoch), *pairs])

    def drop_release(self, release: int, epoch: int) -> None:
        self._current(lua.PUBLISH, encoder_key(self._stream, release), [_whole(epoch)])

    def set_current(self, current: Current, epoch: int, kind: Kind = "release") -> bool:
        c = current
        arguments: list[Value] = [_whole(epoch), c.release, c.generation, c.dim, c.dtype, kind]
        arguments.append(self._config.releases_kept)
        return self._current(lua.SET_CURRENT, releases_key(self._stream), arguments) == 1

    def read_current(self) -> Current | None:
        names = [field.name for field in fields(Current)]
        found: Any = self._talk(lambda: self._client.hmget(current_key(self._stream), names))
        if found[0] is None:
            return None
        release, generation, dim, dtype, epoch = found
        return Current(int(release), int(generation), int(dim), dtype.decode(), int(epoch))

    def drop_generation(self, generation: int, cursor: int) -> int:
        pattern = entity_key(self._stream, generation, "*")
        found: Any = self._talk(lambda: self._client.scan(cursor, match=pattern, count=SCANNED))
        cursor, keys = found
        if keys:
            self._talk(lambda: self._client.delete(*keys))
        return int(cursor)

    def read(self, generation: int, entities: list[str]) -> list[Stored | None]:
        names = [field.name for field in fields(Stored)]
        pipe = self._client.pipeline(transaction=False)
        for entity in entities:
            pipe.hmget(entity_key(self._stream, generation, entity), names)
        return [
            None if row[0] is None else Stored(np.frombuffer(row[0], "<f4"), *map(int, row[1:]))
            for row in self._talk(pipe.execute)
        ]

    def ping(self) -> None:
        self._talk(self._client.ping, proves=False)

    def run_id(self) -> str:
        return str(self._talk(lambda: self._client.info("server"), proves=False)["run_id"])

    def server_changed(self) -> bool:
        now = self.run_id()
        changed = self._lost or now != self._run_id
        self._run_id, self._lost = now, False
        return changed

    def close(self) -> None:
        self._client.close()

    # -- one exchange -----------------------------------------------------------------------------

    def _current(self, script: str, key: str, arguments: list[Value]) -> int:
        keys = [current_key(self._stream), key]
        (answer,) = self._scripts([(script, keys, arguments)])
        if answer == lua.FENCED:
            raise Fenced(f"{keys[0]} in Redis was set under a newer lease than {arguments[0]!r}.")
        return int(answer)

    def _taken(self, answers: list[Any], key: str, epoch: int) -> int:
        """Entities that Redis took."""
        if lua.FENCED in answers:
            raise Fenced(f"{key} in Redis holds a newer epoch than {epoch}: a successor writes.")
        if lua.LOST in answers:
            self._lost = True
            raise SinkDown(f"{key} in Redis no longer holds our epoch {epoch}: its data were lost.")
        return sum(answers)

    def _connected(self, connection: Any) -> None:
        """On every connection, since the client makes new ones unasked: is it the same server?"""
        connection.on_connect()
        connection.send_command("INFO", "server")
        seen = _run_id(bytes(connection.read_response()))
        self._run_id = self._run_id or seen
        if seen != self._run_id:
            self._lost = True
            if self._writing:
                raise redis.ConnectionError("it was restarted or replaced; its data may be lost")

    def _talk(self, exchange: Callable[[], T], proves: bool = True) -> T:
        with self._breaker.guard(proves):
            try:
                return exchange()
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                self._client.connection_pool.disconnect()  # an answer may still be under way
                raise

    def _write(self, calls: list[Call]) -> Callable[[], list[Any]]:
        """Sends scripts, whose answers are for later. No new connection may take over halfway."""
        self._writing = True
        try:
            read = self._talk(lambda: self._send(calls))
        finally:
            self._writing = False

        def answers() -> list[Any]:
            self._writing = True
            try:
                return self._again(calls, read)
            finally:
                self._writing = False

        return answers

    def _scripts(self, calls: list[Call]) -> list[Any]:
        """Runs scripts in one round trip."""
        return self._again(calls, lambda: self._run(calls))

    def _again(self, calls: list[Call], first: Callable[[], list[Any]]) -> list[Any]:
        """The answers of `first`; all calls again where Redis did not know one of the scripts."""
        try:
            return self._talk(first)
        except NoScriptError:
            for script in {script for script, _, _ in calls}:
                self._talk(lambda text=script: self._client.script_load(text))  # type: ignore[misc]
        try:
            return self._talk(lambda: self._run(calls))
        except NoScriptError:
            raise SinkDown(f"Redis at {self._config.address} forgets scripts at once.") from None

    def _run(self, calls: list[Call]) -> list[Any]:
        return self._send(calls)()

    def _send(self, calls: list[Call]) -> Callable[[], list[Any]]:
        """Sends without redis-py's cost per command: Redis works while the next call is packed."""
        pool = self._client.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_packed_command(_packed(call) for call in calls)
        except BaseException:
            connection.disconnect()
            pool.release(connection)
            raise

        def read() -> list[Any]:
            answers: list[Any] = []
            try:
                for _ in calls:
                    try:
                        answers.append(connection.read_response())
                    except ResponseError as why:
                        answers.append(why)
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)
            wrong = [a for a in answers if isinstance(a, Exception)]
            if wrong:
                raise next((why for why in wrong if isinstance(why, NoScriptError)), wrong[0])
            return answers

        return read


_SHA = {
    text: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    for text in (lua.RAISE_FENCE, lua.WRITE, lua.DELETE, lua.PUBLISH, lua.SET_CURRENT)
}


def _packed(call: Call) -> bytes:
    script, keys, arguments = call
    words: Any = ("EVALSHA", _SHA[script], len(keys), *keys, *arguments)
    packed: bytes = hiredis.pack_command(words)
    return packed


def _run_id(info: bytes) -> str:
    return info.partition(b"run_id:")[2].split(b"\r\n", 1)[0].decode()


def _whole(value: int) -> int:
    if not 0 <= value < LIMIT:
        raise ValueError(f"{value} is not exact as a Lua number")
    return value


def _columns(vectors: Vectors) -> tuple[int, list[Any]]:
    """How many values each entity has, and those: vector, release, time_us, count, since (and neighbours)."""
    n, each = len(vectors), 6 if vectors.neighbours else 5
    blob = np.ascontiguousarray(vectors.vector, "<f4").tobytes()
    size = len(blob) // max(n, 1)
    out: list[Any] = [None] * (each * n)
    out[0::each] = [blob[i : i + size] for i in range(0, len(blob), size)] if size else []
    integers = (vectors.release, vectors.time_us, vectors.count, vectors.since)
    for at, column in enumerate(integers):
        if n and not (column.min() > -LIMIT and column.max() < LIMIT):
            raise ValueError("an integer that is not exact as a Lua number")
        out[at + 1 :: each] = column.tolist()
    if each == 6:
        out[5::6] = vectors.neighbours
    return each, out
