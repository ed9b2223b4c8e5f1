"""What the simulation puts in place of the world: a release in NumPy, a broker, a Redis.

They do what they are told to: nothing here reads a clock or draws by chance.

Shapes: B entities, T rows, D dimensions, H recurrent state, K totals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from actors.ports import Batch
from actors.sink import Stored, Vectors, WriteResult
from schemas.errors import Fenced, ReleaseError, SinkDown, SourceDown
from schemas.records import F32, F64, I64, Features, Rows, contributions
from tests.fake_sink import MemoryServer, MemorySink
from tests.fakes import MemoryDeadLetters, MemorySource

DIM, HIDDEN = 6, 3
GAP_US = 30_000_000


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class SmallManifest:
    """As much of schemas.published.Manifest as a shard reads."""

    release: int
    generation: int = 1
    side: int = 0
    dim: int = DIM
    state: int = HIDDEN
    numbers: tuple[str, ...] = ("amount", "id")
    categories: tuple[str, ...] = ("what",)
    session_gap_us: int = GAP_US
    node_numbers: tuple[str, ...] = ()
    node_categories: tuple[str, ...] = ()
    window: int = 64  # at most the ring
    kept: int = HIDDEN
    step: tuple[str, ...] = ("row",)  # there is such a graph


@dataclass(frozen=True)
class SmallRelease:
    """A linear recurrence whose weights follow from its number; its vectors depend on all that it is given."""

    manifest: SmallManifest

    @classmethod
    def load(cls, folder: Path, threads: int = 1, there: object = None) -> "SmallRelease":
        del threads, there
        if not folder.is_dir():
            raise ReleaseError(f"{folder} is gone.")
        return cls(SmallManifest(int(folder.name)))

    @property
    def number(self) -> int:
        return self.manifest.release

    @cached_property
    def _weights(self) -> tuple[F64, F64]:
        rng = np.random.default_rng(self.number)
        return rng.normal(size=(16, HIDDEN)), rng.normal(size=(HIDDEN + 8, DIM))

    def encode(
        self, rows: Rows, lengths: I64, totals: F64, first_us: I64, *nodes: Features | None
    ) -> tuple[F32, F32]:
        """Windows [B, T, ...] from a zero state, the first Δt zero: embeddings [B, D], states [B, H]."""
        del nodes  # events have none
        state = np.zeros((len(lengths), HIDDEN), np.float32)
        out = np.zeros((len(lengths), DIM), np.float32)
        previous, totals = rows.time_us[:, 0], totals.copy()
        for t in range(int(lengths.max(initial=0))):
            live = np.flatnonzero(lengths > t)
            row = Rows(
                *(
                    c[live, t]
                    for c in (
                        rows.time_us,
                        rows.position,
                        rows.numbers,
                        rows.categories,
                        rows.missing,
                    )
                )
            )
            out[live], state[live] = self.step(
                row, previous[live], totals[live], first_us[live], state[live]
            )
            added = contributions(row.numbers)
            added[:, 1] = row.time_us - previous[live] > GAP_US
            totals[live] += added
            previous = rows.time_us[:, t]
        return out, state

    def step(
        self, rows: Rows, previous_us: I64, totals: F64, first_us: I64, state: F32
    ) -> tuple[F32, F32]:
        """One record more for each of B entities."""
        into, out = self._weights
        age, gap = rows.time_us - first_us, rows.time_us - previous_us
        known = np.log1p(np.abs(totals))
        x = np.concatenate(
            [
                np.nan_to_num(rows.numbers) / 100.0,
                np.isnan(rows.numbers),
                np.where(rows.missing, 0, rows.categories % 7),
                rows.missing,
                np.log1p(np.abs(np.stack([age, gap], 1)) / 1e6),
                known,
            ],
            axis=1,
        )
        new = (0.9 * state + np.tanh(x @ into)).astype(np.float32)
        z = np.concatenate([new, known], 1) @ out
        z /= np.linalg.norm(z, axis=1, keepdims=True) + 1e-9
        return z.astype(np.float32), new


# -- the broker -----------------------------------------------------------------------------------


class Consumer(MemorySource):
    """One shard's view of a broker that several read. `again` batches already read come once more."""

    def __init__(self, broker: MemorySource) -> None:
        groups = 1 + max(group for group, _ in broker._logs)
        super().__init__((), broker.topics, groups)
        self._logs = broker._logs
        self._read_before: list[Batch] = []
        self.again: list[float] = []  # which of them, as shares of what was read
        self.fails = 0  # polls that raise

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        if self.fails:
            self.fails -= 1
            raise SourceDown("the broker does not answer")
        batches = super().poll(max_records, timeout_s)
        before, again = self._read_before, self.again
        if again and before:
            old = [before[int(at * len(before))] for at in again]
            cut = int(again[0] * (len(batches) + 1))
            self._read_before, self.again = [*before, *batches][-40:], []
            return [
                *batches[:cut],
                *(b for b in old if (b.group, b.topic) not in self._paused),
                *batches[cut:],
            ]
        self._read_before = [*before, *batches][-40:]
        return batches

    def rewind(self, group: int, share: float) -> None:
        """The next polls begin with what was read already."""
        if not any(paused == group for paused, _ in self._paused):
            positions = [self._positions[group, t] for t in range(len(self.topics))]
            self.start(group, [int(p * share) for p in positions])


class Letters(MemoryDeadLetters):
    """`flush_fails`: of what is not durable yet, so much gets through, then the broker is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.flush_fails: float | None = None

    def flush(self) -> None:
        if self.flush_fails is not None:
            self.durable += int((len(self.letters) - self.durable) * self.flush_fails)
            self.flush_fails = None
            raise SourceDown("the broker does not answer")
        super().flush()

    def places(self, upto: int) -> list[tuple[int, int, int]]:
        """(topic, group, offset) of the first `upto` letters."""
        return [
            (letter.batch.topic, letter.batch.group, int(letter.batch.offsets[letter.at]))
            for letter in self.letters[:upto]
        ]


# -- Redis ----------------------------------------------------------------------------------------

Entry = Stored | tuple[int, int]
Write = tuple[int, int, int, int, dict[str, int], Vectors, list[str]]
"""Arguments of Sink.write."""


@dataclass
class Judge:
    """Looks at every single change of an entity, as a reader might who polls all the time."""

    home: Callable[[str], int]  # the group that an entity belongs to
    raised: dict[int, int] = field(default_factory=dict)  # group -> highest fence raised
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # entity -> count, since
    reborn: set[str] = field(default_factory=set)  # entities with a deletion in their stream

    def changed(self, name: str, entry: Entry) -> None:
        epoch = entry.epoch if isinstance(entry, Stored) else entry[0]
        fence = self.raised.get(self.home(name), -1)
        if epoch < fence:
            raise Violation(
                f"{name}: a write of epoch {epoch} was taken behind the fence of {fence}"
            )
        if not isinstance(entry, Stored):
            self.seen.pop(name, None)
            return
        count, since = self.seen.get(name, (0, entry.since))
        if entry.count < count and (since == entry.since or name not in self.reborn):
            raise Violation(f"{name}: a reader saw its count fall from {count} to {entry.count}")
        self.seen[name] = entry.count, entry.since


class Watched(dict[tuple[int, str], Entry]):
    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    def __setitem__(self, key: tuple[int, str], entry: Entry) -> None:
        self._judge.changed(key[1], entry)
        super().__setitem__(key, entry)


class Server(MemoryServer):
    """`next_write`: "unanswered", taken, the answer is lost; "late", it comes some time; "lost", never."""

    judge: Judge
    next_write: str = ""
    late: list[tuple[int, Write]]

    def watch(self, judge: Judge) -> None:
        self.judge, self.entities, self.late = judge, Watched(judge), []

    def lose(self) -> None:
        judge = self.judge
        super().lose()
        self.watch(judge)
        judge.raised.clear()
        judge.seen.clear()

    def arrive(self, share: float) -> None:
        """One of the late writes comes, if it is the server that it was sent to."""
        run, write = self.late.pop(int(share * len(self.late)))
        sink = MemorySink(self)
        sink._run = run
        if run == self.run and not self.down:
            try:
                sink.write(*write)
            except (SinkDown, Fenced):
                return


class ServerSink(MemorySink):
    server: Server

    def raise_fence(self, group: int, epoch: int) -> dict[str, int]:
        seen = super().raise_fence(group, epoch)
        raised = self.server.judge.raised
        raised[group] = max(epoch, raised.get(group, epoch))
        return seen

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
        how, self.server.next_write = self.server.next_write, ""
        write = group, epoch, write_number, generation, dict(positions), vectors, deletions
        if how == "late" and self._run == self.server.run:
            self.server.late.append((self.server.run, write))
        elif how not in ("late", "lost"):
            answer = super().post(*write)
            if not how:
                return answer

        def unanswered() -> WriteResult:
            raise SinkDown("no answer came")

        return unanswered
