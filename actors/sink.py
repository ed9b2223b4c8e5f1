"""What is published, and the contract of its writer; `actors/redis_sink.py` is the real one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from schemas.records import F32, I64

Value = bytes | str | int | float
Kind = Literal["release", "rollback"]


@dataclass(slots=True)
class Vectors:
    """What is published of N entities, each there once."""

    entities: list[str]  # [N]
    vector: F32  # [N, D]
    release: I64  # [N] each by itself: a swap reaches entities one after another
    time_us: I64  # [N] of the newest record that the vector knows
    count: I64  # [N] records since `since`
    since: I64  # [N] µs: when this life of the entity began
    neighbours: list[bytes] = field(default_factory=list)  # [N] of a graph: see schemas.published

    def __len__(self) -> int:
        return len(self.entities)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """Entities that Redis took, and those that it refused since their stored pair was as new."""

    written: int
    refused: int


@dataclass(frozen=True, slots=True)
class Current:
    """What readers read first."""

    release: int
    generation: int
    dim: int
    dtype: str = "float32"
    epoch: int = 0  # of the lease that set it


@dataclass(frozen=True, slots=True)
class Stored:
    """One entity as a reader finds it."""

    vector: F32
    release: int
    time_us: int
    count: int
    since: int
    epoch: int
    write: int
    group: int


class Sink(Protocol):
    """Redis, or the memory of a test. All may raise SinkDown; what is fenced raises Fenced."""

    def check(self) -> list[str]:
        """Warnings about the server; SettingsError for one that cannot serve."""
        ...

    def raise_fence(self, group: int, epoch: int) -> dict[str, int]:
        """Shuts out older owners; topic -> next offset that readers may have seen."""
        ...

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
        """`write_number` grows within an epoch. No entity is in both vectors and deletions."""
        ...

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
        """Begins what `write` does; the answer is to be asked for before the next write begins."""
        ...

    def publish_release(
        self, release: int, generation: int, encoder: Mapping[str, Value], manifest: str, epoch: int
    ) -> None:
        """Before `set_current`. `epoch` is the lease's, as in all that `current` fences."""
        ...

    def drop_release(self, release: int, epoch: int) -> None: ...
    def set_current(self, current: Current, epoch: int, kind: Kind = "release") -> bool:
        """False where readers are already there; then no entry is added to `releases`."""
        ...

    def read_current(self) -> Current | None: ...
    def drop_generation(self, generation: int, cursor: int) -> int:
        """Removes some of its vectors; where to go on, 0: none is left."""
        ...

    def read(self, generation: int, entities: list[str]) -> list[Stored | None]: ...
    def ping(self) -> None: ...
    def run_id(self) -> str: ...
    def server_changed(self) -> bool:
        """Whether the data may be gone or older than what was written; asked after an outage."""
        ...

    def close(self) -> None: ...
