"""Two processes at the same keys, several groups and generations, and data that are lost: compare-and-set
gives what a plain dict gives. (`test_sink_contract.py` has one writer whose writes come late and twice.)"""

from collections.abc import Callable
from contextlib import closing
from itertools import count

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.sink import Sink, Vectors, WriteResult
from schemas.errors import Fenced, SinkDown
from tests.fake_sink import MemoryServer, MemorySink

GROUPS, GENERATIONS = 2, 2
NAMES = "abcd"
runs = count()
who = st.integers(0, 1)
group = st.integers(0, GROUPS - 1)
kept = st.lists(st.sampled_from(NAMES), unique=True, max_size=4)


def vectors(names: list[str], value: int) -> Vectors:
    n = len(names)
    column = np.full(n, value, np.int64)
    return Vectors(names, np.full((n, 3), value, np.float32), column, column, column, column)


class Processes(RuleBasedStateMachine):
    """`fences`: group -> epoch, newest write number, positions. `entities`: -> epoch, write number, gone."""

    open: Callable[[str], tuple[Sink, Sink, Callable[[], None]]]
    """Two sinks on one server, and how its data are lost."""

    @initialize()
    def begin(self) -> None:
        first, second, self.lose_data = self.open(f"run{next(runs)}")
        self.sinks = first, second
        self.fences: dict[int, tuple[int, int, dict[str, int]]] = {}
        self.entities: dict[tuple[int, str], tuple[int, int, bool]] = {}
        self.epochs = [[0] * GROUPS, [0] * GROUPS]  # what each process believes to own
        self.writes = 0
        for sink in self.sinks:
            sink.ping()

    @rule(who=who, group=group, step=st.integers(-1, 2))
    def raise_fence(self, who: int, group: int, step: int) -> None:
        there = self.fences.get(group)
        epoch = max(1, (there[0] if there else self.epochs[who][group]) + step)
        if there and there[0] > epoch:
            with pytest.raises(Fenced):
                self.sinks[who].raise_fence(group, epoch)
            return
        assert self.sinks[who].raise_fence(group, epoch) == (there[2] if there else {})
        self.epochs[who][group] = epoch
        if there is None or there[0] < epoch:
            self.fences[group] = epoch, 0, there[2] if there else {}

    @rule(who=who, group=group, generation=st.integers(1, GENERATIONS), kept=kept, gone=kept)
    def write(
        self, who: int, group: int, generation: int, kept: list[str], gone: list[str]
    ) -> None:
        self.writes += 1
        kept = [f"{group}{name}" for name in kept]
        gone = [name for name in (f"{group}{n}" for n in gone) if name not in kept]
        self._arrive(who, group, self.writes, generation, (kept, gone))

    @rule(who=who, group=group, behind=st.integers(0, 3), generation=st.integers(1, GENERATIONS))
    def write_with_an_old_number(self, who: int, group: int, behind: int, generation: int) -> None:
        number = max(1, self.writes - behind)
        self._arrive(who, group, number, generation, ([f"{group}a"], [f"{group}b"]))

    def _arrive(
        self,
        who: int,
        group: int,
        number: int,
        generation: int,
        names: tuple[list[str], list[str]],
    ) -> None:
        epoch, fence = self.epochs[who][group], self.fences.get(group)
        positions = {"t": 1000 * epoch + number, "u": number}
        given = vectors(names[0], number)
        post = self.sinks[who].post
        answer = post(group, epoch, number, generation, positions, given, names[1])
        if fence is None or fence[0] < epoch:  # who owned it once finds its fence gone
            with pytest.raises(SinkDown):
                answer()
            assert self.sinks[who].server_changed()
            return
        if fence[0] > epoch:
            with pytest.raises(Fenced):
                answer()
            return
        every = [(generation, name) for name in names[0] + names[1]]
        newer = [at for at in every if self.entities.get(at, (-1, 0, True))[:2] < (epoch, number)]
        assert answer() == WriteResult(len(newer), len(every) - len(newer))
        for at in newer:
            self.entities[at] = epoch, number, at[1] in names[1]
        if number > fence[1]:
            self.fences[group] = epoch, number, positions

    @rule()
    def lose(self) -> None:
        """Each process notices with its next write, and once."""
        self.lose_data()
        self.fences.clear()
        self.entities.clear()
        for who, sink in enumerate(self.sinks):
            self._arrive(who, 0, self.writes + 1, 1, (["0a"], []))
            assert not sink.server_changed()

    @invariant()
    def readers_find_what_the_dict_has(self) -> None:
        names = [f"{g}{name}" for g in range(GROUPS) for name in NAMES]
        for generation in range(1, GENERATIONS + 1):
            found = self.sinks[0].read(generation, names)
            for name, stored in zip(names, found, strict=True):
                epoch, write, gone = self.entities.get((generation, name), (0, 0, True))
                assert (stored is None) == gone
                if stored is not None:
                    assert (stored.epoch, stored.write, stored.count) == (epoch, write, write)
                    assert stored.group == int(name[0]) and stored.vector.tolist() == [write] * 3


def check(open_sinks: Callable[[str], tuple[Sink, Sink, Callable[[], None]]]) -> None:
    machine = type("Machine", (Processes,), {"open": staticmethod(open_sinks)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_the_fake_is_a_dict_with_fences() -> None:
    def open_sinks(name: str) -> tuple[Sink, Sink, Callable[[], None]]:
        server = MemoryServer()
        return MemorySink(server), MemorySink(server), server.lose

    check(open_sinks)


def test_redis_is_a_dict_with_fences(any_redis: str, stream: str) -> None:
    made: list[RedisSink] = []
    with closing(redis.Redis.from_url(any_redis)) as client:

        def open_sinks(name: str) -> tuple[Sink, Sink, Callable[[], None]]:
            while made:
                made.pop().close()
            config = RedisConfig(url=any_redis, batch_keys=2)
            made.extend(RedisSink(config, f"{stream}-{name}") for _ in range(2))

            def lose() -> None:
                keys = [f"afresh:{stream}-{name}:group:{g}" for g in range(GROUPS)]
                for generation in range(1, GENERATIONS + 1):
                    keys += [
                        f"afresh:{stream}-{name}:g{generation}:{g}{n}"
                        for g in range(GROUPS)
                        for n in NAMES
                    ]
                client.delete(*keys)

            return made[0], made[1], lose

        check(open_sinks)
        while made:
            made.pop().close()
