"""A Sink in memory; tests/contracts holds it to what the real one promises."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from actors.sink import Current, Kind, Stored, Value, Vectors, WriteResult
from schemas.errors import Fenced, SinkDown


@dataclass
class Fence:
    epoch: int
    write: int = 0
    positions: dict[str, int] = field(default_factory=dict)


@dataclass
class MemoryServer:
    """What outlives a sink: several may share it. `outage`, `lose` and `fail_after` are the faults."""

    groups: dict[int, Fence] = field(default_factory=dict)
    entities: dict[tuple[int, str], Stored | tuple[int, int]] = field(default_factory=dict)
    encoders: dict[int, dict[str, Value]] = field(default_factory=dict)
    current: Current | None = None
    releases: list[tuple[int, int, Kind]] = field(default_factory=list)
    run: int = 0
    down: bool = False
    fail_after: int | None = None  # entities that the next write takes before the server is gone

    def lose(self) -> None:
        """Restarts without its data."""
        self.__init__(run=self.run + 1)  # type: ignore[misc]

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.down = True
        yield
        self.down = False


class MemorySink:
    """A Sink whose Redis is a dict. A deletion's marker is the bare pair (epoch, write)."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()
        self._run: int | None = None

    def check(self) -> list[str]:
        self.ping()
        return []

    def raise_fence(self, group: int, epoch: int) -> dict[str, int]:
        self.ping()
        there = self.server.groups.get(group)
        if there is not None and there.epoch > epoch:
            raise Fenced(f"group {group} holds epoch {there.epoch}, ours is {epoch}")
        if there is None or there.epoch < epoch:
            positions = there.positions if there else {}
            there = self.server.groups[group] = Fence(epoch, 0, positions)
        return dict(there.positions)

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
        self.ping()
        fence = self.server.groups.get(group)
        if fence is not None and fence.epoch > epoch:
            raise Fenced(f"group {group} holds epoch {fence.epoch}, ours is {epoch}")
        if fence is None or fence.epoch < epoch or self._run != self.server.run:
            self._run = -1
            raise SinkDown("the data were lost")
        if write_number > fence.write:
            fence.write, fence.positions = write_number, dict(positions)
        pair, written = (epoch, write_number), 0
        left = self.server.fail_after
        for at, name in enumerate([*vectors.entities, *deletions]):
            if left is not None and at >= left:
                self.server.down, self.server.fail_after = True, None
                raise SinkDown("gone in the middle of a write")
            if _pair(self.server.entities.get((generation, name))) >= pair:
                continue
            written += 1
            stored = _stored(vectors, at, pair, group) if at < len(vectors) else pair
            self.server.entities[generation, name] = stored
        return WriteResult(written, len(vectors) + len(deletions) - written)

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
        """What goes wrong is told with the answer, as over a network."""
        try:
            result = self.write(
                group, epoch, write_number, generation, positions, vectors, deletions
            )
        except (SinkDown, Fenced) as error:
            wrong = error

            def fail() -> WriteResult:
                raise wrong

            return fail
        return lambda: result

    def publish_release(
        self, release: int, generation: int, encoder: Mapping[str, Value], manifest: str, epoch: int
    ) -> None:
        self._check_lease(epoch)
        fields = {**encoder, "generation": generation, "manifest": manifest}
        self.server.encoders[release] = fields

    def drop_release(self, release: int, epoch: int) -> None:
        self._check_lease(epoch)
        self.server.encoders.pop(release, None)

    def set_current(self, current: Current, epoch: int, kind: Kind = "release") -> bool:
        self._check_lease(epoch)
        old, self.server.current = self.server.current, replace(current, epoch=epoch)
        if old and (old.release, old.generation) == (current.release, current.generation):
            return False
        self.server.releases.append((current.release, current.generation, kind))
        return True

    def read_current(self) -> Current | None:
        self.ping()
        return self.server.current

    def drop_generation(self, generation: int, cursor: int) -> int:
        self.ping()
        gone = [key for key in self.server.entities if key[0] == generation]
        for key in gone[:2]:
            del self.server.entities[key]
        return cursor + 1 if gone[2:] else 0

    def read(self, generation: int, entities: list[str]) -> list[Stored | None]:
        self.ping()
        found = [self.server.entities.get((generation, name)) for name in entities]
        return [entity if isinstance(entity, Stored) else None for entity in found]

    def ping(self) -> None:
        if self.server.down:
            raise SinkDown("down")
        if self._run is None:
            self._run = self.server.run

    def run_id(self) -> str:
        self.ping()
        return str(self.server.run)

    def server_changed(self) -> bool:
        self.ping()
        changed, self._run = self._run != self.server.run, self.server.run
        return changed

    def close(self) -> None:
        pass

    def _check_lease(self, epoch: int) -> None:
        self.ping()
        if self.server.current and self.server.current.epoch > epoch:
            raise Fenced(f"current was set under epoch {self.server.current.epoch}")


def _pair(entity: Stored | tuple[int, int] | None) -> tuple[int, int]:
    if isinstance(entity, Stored):
        return entity.epoch, entity.write
    return entity or (-1, 0)


def _stored(vectors: Vectors, at: int, pair: tuple[int, int], group: int) -> Stored:
    vector = np.array(vectors.vector[at], "<f4")
    columns = (vectors.release, vectors.time_us, vectors.count, vectors.since)
    release, time_us, count, since = (int(column[at]) for column in columns)
    return Stored(vector, release, time_us, count, since, pair[0], pair[1], group)
