"""What every sink promises: the fake, the newest server at hand, Redis 6.2."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.sink import Current, Sink, Stored, Vectors, WriteResult
from schemas.errors import Fenced, SinkDown
from tests.fake_sink import MemoryServer, MemorySink

Make = Callable[[], Sink]
DIM = 4


def vectors(*names: str, value: float = 1.0, count: int = 1) -> Vectors:
    n = len(names)
    column = np.arange(n)
    return Vectors(
        list(names), np.full((n, DIM), value, np.float32) + column[:, None].astype(np.float32),
        np.full(n, 3), column + 10**15, np.full(n, count), column + 5,
    )  # fmt: skip


@pytest.fixture(params=["memory", "redis_server", "redis62"])
def make(request: pytest.FixtureRequest, stream: str) -> Iterator[Make]:
    """Makes sinks that share one server."""
    made: list[Sink] = []
    server = MemoryServer()
    url = "" if request.param == "memory" else request.getfixturevalue(request.param)

    def new() -> Sink:
        config = RedisConfig(url=url or "redis://localhost", batch_keys=3)
        made.append(RedisSink(config, stream) if url else MemorySink(server))
        return made[-1]

    yield new
    for sink in made:
        sink.close()


def put(sink: Sink, epoch: int, write: int, *names: str, **more: float) -> WriteResult:
    given = vectors(*names, **more)  # type: ignore[arg-type]
    return sink.write(0, epoch, write, 1, {"t": 100 * epoch + write}, given, [])


def get(sink: Sink, name: str) -> Stored | None:
    return sink.read(1, [name])[0]


def test_what_is_written_is_read(make: Make) -> None:
    sink = make()
    assert sink.raise_fence(0, 7) == {}
    names = [f"e{i}" for i in range(8)] + ["", "a b", "ü\n\0"]
    given = vectors(*names, value=0.5)
    assert sink.write(0, 7, 1, 1, {"t": 4, "u": 9}, given, []) == WriteResult(len(names), 0)
    for at, found in enumerate(sink.read(1, names)):
        assert found is not None
        np.testing.assert_array_equal(found.vector, given.vector[at])
        assert (found.release, found.time_us, found.count) == (3, 10**15 + at, 1)
        assert (found.since, found.epoch, found.write, found.group) == (5 + at, 7, 1, 0)
    assert sink.read(2, names[:2]) == [None, None]
    assert sink.read(1, ["nobody"]) == [None]
    assert make().raise_fence(0, 8) == {"t": 4, "u": 9}


def test_a_pair_that_is_not_newer_is_refused(make: Make) -> None:
    sink = make()
    sink.raise_fence(0, 7)
    assert put(sink, 7, 5, "a", "b") == WriteResult(2, 0)
    assert put(sink, 7, 5, "a", value=9.0) == WriteResult(0, 1)
    assert put(sink, 7, 4, "a", "c", value=9.0) == WriteResult(1, 1)
    found = get(sink, "a")
    assert found is not None
    assert found.vector[0] == 1.0
    assert sink.raise_fence(0, 7) == {"t": 705}  # the older write took none back


def test_an_older_owner_is_fenced(make: Make) -> None:
    zombie, owner = make(), make()
    zombie.raise_fence(0, 7)
    put(zombie, 7, 5, "a")
    assert owner.raise_fence(0, 8) == {"t": 705}
    for names in (("a",), ("new",), ()):
        with pytest.raises(Fenced):
            put(zombie, 7, 6, *names)
    with pytest.raises(Fenced):
        zombie.raise_fence(0, 7)
    assert get(owner, "new") is None
    assert put(owner, 8, 1, "a") == WriteResult(1, 0)
    assert owner.raise_fence(1, 2) == {}  # another group's fence is its own


def test_writing_without_a_fence_is_a_loss(make: Make) -> None:
    """The fence is what we wrote first: where it is gone, so is the rest."""
    sink = make()
    with pytest.raises(SinkDown):
        put(sink, 7, 1, "a")
    assert sink.server_changed()
    assert not sink.server_changed()
    sink.raise_fence(0, 7)
    assert put(sink, 7, 2, "a") == WriteResult(1, 0)


def test_deletions_leave_a_marker(make: Make) -> None:
    sink = make()
    sink.raise_fence(0, 7)
    put(sink, 7, 1, "a", "b", "c")
    gone = ["a", "b", "d", "e"]
    assert sink.write(0, 7, 3, 1, {"t": 1}, vectors("c"), gone) == WriteResult(5, 0)
    assert sink.read(1, ["a", "b", "d"]) == [None] * 3
    assert put(sink, 7, 2, "a", "d") == WriteResult(0, 2)  # late retries resurrect nothing
    assert get(sink, "a") is None
    assert sink.write(0, 7, 3, 1, {"t": 1}, vectors(), ["a"]) == WriteResult(0, 1)
    assert put(sink, 7, 4, "a") == WriteResult(1, 0)
    assert get(sink, "a") is not None
    assert sink.write(0, 7, 3, 1, {"t": 1}, vectors(), ["a"]) == WriteResult(0, 1)
    assert get(sink, "a") is not None


def test_positions_alone(make: Make) -> None:
    sink = make()
    sink.raise_fence(0, 7)
    assert sink.write(0, 7, 1, 1, {"t": 44}, vectors(), []) == WriteResult(0, 0)
    assert sink.raise_fence(0, 8) == {"t": 44}


def test_releases_are_fenced_by_the_lease(make: Make) -> None:
    sink, successor = make(), make()
    assert sink.read_current() is None
    sink.publish_release(1, 1, {"onnx": b"\0\xff", "sha256": "ab"}, "{}", epoch=4)
    assert sink.set_current(Current(1, 1, DIM), epoch=4)
    assert not sink.set_current(Current(1, 1, DIM), epoch=4)
    assert sink.read_current() == Current(1, 1, DIM, "float32", 4)
    successor.publish_release(2, 1, {"onnx": b""}, "{}", epoch=5)
    assert successor.set_current(Current(2, 1, DIM), epoch=5)
    with pytest.raises(Fenced):
        sink.publish_release(3, 1, {}, "{}", epoch=4)
    with pytest.raises(Fenced):
        sink.set_current(Current(1, 1, DIM), epoch=4, kind="rollback")
    with pytest.raises(Fenced):
        sink.drop_release(2, epoch=4)
    assert successor.set_current(Current(1, 1, DIM), epoch=5, kind="rollback")
    successor.drop_release(2, epoch=5)
    successor.drop_release(2, epoch=5)
    assert sink.read_current() == Current(1, 1, DIM, "float32", 5)


def test_the_server_is_known_by_its_run(make: Make) -> None:
    sink = make()
    sink.ping()
    assert sink.check() == []
    assert sink.run_id() == make().run_id()
    assert not sink.server_changed()


def test_numbers_beyond_lua_are_refused(make: Make, stream: str) -> None:
    sink = make()
    if isinstance(sink, MemorySink):
        pytest.skip("Python's integers have no end")
    sink.raise_fence(0, 7)
    with pytest.raises(ValueError, match="Lua"):
        put(sink, 7, 1 << 53, "a")
    with pytest.raises(ValueError, match="Lua"):
        put(sink, 7, 1, "a", count=1 << 53)


runs = count()


class Writers(RuleBasedStateMachine):
    """Owners of growing epochs, whose writes arrive late, twice and out of order."""

    make: Callable[[str], Sink]

    def __init__(self) -> None:
        super().__init__()
        self.sink = self.make(f"run{next(runs)}")
        self.fence, self.write = 0, 0
        self.model: dict[str, tuple[int, int, bool]] = {}
        self.sent: list[tuple[int, int, list[str], list[str]]] = []
        self.positions = 0
        self.take_over(1)

    @rule(step=st.integers(1, 3))
    def take_over(self, step: int) -> None:
        self.fence += step
        self.write = 0
        self.highest = 0
        assert self.sink.raise_fence(0, self.fence).get("t", 0) == self.positions

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """A new write; it may be lost on its way, and come later."""
        names = data.draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=6))
        split = data.draw(st.integers(0, len(names)))
        self.write += 1
        self.sent.append((self.fence, self.write, names[:split], names[split:]))
        if data.draw(st.booleans()):
            self._arrive(self.sent[-1])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self._arrive(data.draw(st.sampled_from(self.sent)))

    def _arrive(self, sent: tuple[int, int, list[str], list[str]]) -> None:
        epoch, write, kept, gone = sent
        given = vectors(*kept, count=1000 * epoch + write)
        position = 1000 * epoch + write
        if epoch < self.fence:
            with pytest.raises(Fenced):
                self.sink.write(0, epoch, write, 1, {"t": position}, given, gone)
            return
        newer = [n for n in kept + gone if self.model.get(n, (0, 0, False)) < (epoch, write)]
        result = self.sink.write(0, epoch, write, 1, {"t": position}, given, gone)
        assert result == WriteResult(len(newer), len(kept) + len(gone) - len(newer))
        self.model |= {name: (epoch, write, name in gone) for name in newer}
        if write > self.highest:
            self.highest, self.positions = write, position

    @invariant()
    def readers_see_the_newest_pair(self) -> None:
        names = list("abcdef")
        for name, found in zip(names, self.sink.read(1, names), strict=True):
            epoch, write, gone = self.model.get(name, (0, 0, True))
            if gone:
                assert found is None
            else:
                assert found is not None
                assert (found.epoch, found.write) == (epoch, write)
                assert found.count == 1000 * epoch + write


@pytest.mark.parametrize("kind", ["memory", "redis_server", "redis62"])
def test_a_stored_pair_never_decreases(
    kind: str, request: pytest.FixtureRequest, stream: str
) -> None:
    url = "" if kind == "memory" else request.getfixturevalue(kind)
    made: list[Sink] = []

    class Machine(Writers):
        @staticmethod
        def make(name: str) -> Sink:
            config = RedisConfig(url=url or "redis://localhost", batch_keys=2)
            made.append(RedisSink(config, f"{stream}-{name}") if url else MemorySink())
            return made[-1]

        def teardown(self) -> None:
            made.pop().close()

    quick = settings(
        max_examples=60,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Machine, settings=quick)
