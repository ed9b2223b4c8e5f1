"""Partitions far ahead in event time wait for the others, nobody waits for ever, and each record is taken once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ports import Batch
from actors.shard import Shard
from actors.skew import AHEAD_MS, PATIENCE_S, Part, Piece, Skew
from daemon.supervisor import slowest_others
from schemas.records import OFFSET_BITS, Decoded, Rows
from schemas.stream import Shape
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource, Record
from tests.services import make_shard, record

HOUR, DAY = 3600, 86_400
NOW_S = 2_000_000_000.0
SKEW_US = HOUR * 1_000_000
START = 1_700_000_000


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


# -- who may go on, as a table ----------------------------------------------------------------------


@dataclass
class World:
    """Partitions of group 0, one for each topic, whose records lie there until `feed` hands them over."""

    lanes: int
    max_us: int = SKEW_US
    exempt: tuple[int, ...] = ()
    idle: set[int] = field(default_factory=set)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        parts: dict[Part, bool] = {(0, t): t in self.exempt for t in range(self.lanes)}
        self.skew = Skew(self.max_us, parts, lambda _, t: t in self.idle, self.clock, lambda: NOW_S)
        self.offsets = [0] * self.lanes

    def feed(self, lane: int, hours: Sequence[float], made_s: float = 0, each: int = 1) -> None:
        """each: rows of one message."""
        n = len(hours)
        offsets = self.offsets[lane] + np.arange(n) // each
        self.offsets[lane] = int(offsets[-1]) + 1
        rows = Rows.empty(Shape(1, 1), n)
        rows.time_us[:] = START * 1_000_000 + np.array(hours) * SKEW_US
        rows.position[:] = (lane << OFFSET_BITS) | offsets
        made = np.full(n, int(made_s * 1000))
        decoded = Decoded(rows, [f"e{lane}"] * n, np.zeros(n, np.bool_), made)
        self.skew.put((0, lane), decoded, self.offsets[lane])

    def taken(self) -> dict[int, list[float]]:
        """lane -> hours of what may be taken now."""
        return hours_of(self.skew.ready())


def hours_of(pieces: Sequence[Piece]) -> dict[int, list[float]]:
    out: dict[int, list[float]] = {}
    for piece in pieces:
        hours = (piece.decoded.rows.time_us / 1e6 - START) / HOUR
        out.setdefault(piece.part[1], []).extend(hours.round(3).tolist())
    return out


def test_what_is_too_far_ahead_waits_until_the_slowest_has_come() -> None:
    world = World(2)
    world.feed(0, [0, 0.5])
    world.feed(1, [0.2, 0.9, 5, 9])
    assert world.taken() == {0: [0, 0.5], 1: [0.2, 0.9]}
    assert world.skew.waits((0, 1)) and not world.skew.waits((0, 0))
    assert world.skew.waiting(0) == (1, 2)
    assert world.skew.reached((0, 1), 2) == 4
    world.feed(0, [4.5, 20])
    assert world.taken() == {0: [4.5], 1: [5]}
    assert world.skew.more()
    assert world.taken() == {1: [9]}


def test_without_a_bound_nobody_waits() -> None:
    world = World(2, max_us=0)
    world.feed(1, [0, 1000])
    assert world.taken() == {1: [0, 1000]}
    assert world.skew.floor_us is None


def test_positions_stop_before_what_waits() -> None:
    world = World(2)
    world.feed(0, [0])
    world.feed(1, [0, 5])
    assert [(p.part[1], p.next_offset) for p in world.skew.ready()] == [(0, 1), (1, 1)]


def test_a_partition_that_has_not_said_anything_yet_is_waited_for() -> None:
    world = World(2)
    world.feed(1, [5])
    assert world.taken() == {} and world.skew.floor_us == 0
    world.feed(0, [4.5])
    assert world.taken() == {0: [4.5], 1: [5]}


def test_who_has_nothing_left_or_never_had_anything_holds_nobody_back() -> None:
    world = World(3, idle={0, 2})
    world.feed(0, [0])
    world.feed(1, [0, 100])
    world.taken()
    assert world.taken() == {1: [100]}


def test_who_wakes_far_ahead_is_where_its_next_record_is() -> None:
    """Not where its last one was: all would wait for it, and it for itself."""
    world = World(2)
    world.feed(0, [0])
    world.feed(1, [0])
    world.taken()
    world.feed(0, [100])
    world.feed(1, [100.5])
    assert world.taken() == {0: [100], 1: [100.5]}


def test_who_says_nothing_is_given_up_until_it_speaks() -> None:
    world = World(2)
    world.feed(0, [0])
    world.feed(1, [0, 5])
    world.taken()
    for world.clock.now in (1.0, PATIENCE_S - 0.1):
        assert world.taken() == {}
    world.clock.now = PATIENCE_S
    world.taken()
    assert world.taken() == {1: [5]}
    world.feed(1, [10])
    assert world.taken() == {1: [10]}, "it is not waited for again"
    world.feed(0, [1])
    world.feed(1, [12])
    assert world.taken() == {0: [1]}


def test_patience_is_not_spent_while_nothing_can_come() -> None:
    world = World(2)
    world.feed(0, [0])
    world.feed(1, [0, 5])
    world.taken()
    world.clock.now += 10 * PATIENCE_S
    world.skew.rest()
    assert world.taken() == world.taken() == {}


@pytest.mark.parametrize("made_s", [START, 0.0, 1e11], ids=["stamped", "unstamped", "both wrong"])
def test_a_mistaken_time_goes_along_and_counts_for_nothing(made_s: float) -> None:
    world = World(2)
    wrong = (7.26e9 - START) / HOUR  # the year 2200
    world.feed(0, [0, wrong, 0.5], made_s)
    world.feed(1, [0])
    assert world.taken() == {0: [0, pytest.approx(wrong), 0.5], 1: [0]}
    assert world.skew.floor_us == START * 1_000_000
    world.feed(0, [5], made_s=NOW_S)
    assert world.taken() == {}, "an honest one ahead waits"


def test_a_time_a_little_ahead_of_its_production_counts() -> None:
    world = World(2)
    hours = (AHEAD_MS / 1000 - 1) / HOUR
    world.feed(0, [hours], made_s=START)
    assert world.taken() == {}


def test_a_record_older_than_those_before_it_goes_with_them() -> None:
    world = World(2)
    world.feed(0, [5, 1, 6])
    world.feed(1, [4.5])
    assert world.taken() == {0: [5, 1], 1: [4.5]}


def test_rows_of_one_message_go_together() -> None:
    world = World(2)
    world.feed(0, [0])
    world.feed(1, [0, 5, 6, 7], each=2)
    assert [(p.part[1], p.next_offset) for p in world.skew.ready()] == [(0, 1), (1, 1)]
    assert hours_of(world.skew.ready()) == {}
    assert world.skew.waiting(0) == (1, 2)


def test_the_internal_topic_neither_waits_nor_is_waited_for() -> None:
    world = World(3, exempt=(2,))
    world.feed(0, [10])
    world.feed(1, [10])
    assert world.taken() == {0: [10], 1: [10]}
    world.feed(2, [0, 500])
    assert world.taken() == {2: [0, 500]}


def test_other_shards_are_waited_for_but_not_for_ever() -> None:
    world = World(1)
    world.skew.others(START * 1_000_000)
    world.feed(0, [0.5, 5])
    assert world.taken() == {0: [0.5]}
    world.skew.others((START + 4 * HOUR) * 1_000_000)
    assert world.taken() == {0: [5]}
    world.feed(0, [50])
    assert world.taken() == {}
    world.clock.now = PATIENCE_S
    world.taken()
    assert world.taken() == {0: [50]}
    world.skew.others((START + 51 * HOUR) * 1_000_000)
    world.feed(0, [60])
    assert world.taken() == {}, "they have spoken"
    world.skew.others(None)
    assert world.taken() == {0: [60]}


def test_each_shard_hears_of_the_slowest_of_the_others() -> None:
    assert slowest_others({"a": 3, "b": 7, "c": None}) == {"a": 7, "b": 3, "c": 3}
    assert slowest_others({"a": 3}) == {"a": None}


times = st.lists(st.floats(0, 40).map(lambda x: round(x, 3)), max_size=30)


@given(
    st.lists(times, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=40),
)
def test_each_record_is_taken_once_in_order_and_never_beyond_the_bound(
    streams: list[list[float]], feeds: list[tuple[int, int]]
) -> None:
    """Whatever comes when: late records, partitions that end, that begin late, that are empty."""
    world = World(len(streams))
    left = [list(s) for s in streams]
    out: list[list[float]] = [[] for _ in streams]
    turns = iter(feeds)
    for _ in range(10_000):
        lane, n = next(turns, (0, 0))
        for at in [lane % len(left)] if n else range(len(left)):
            if left[at] and not world.skew.waits((0, at)):
                world.feed(at, left[at][: n or 5])
                del left[at][: n or 5]
        world.idle = {at for at, rest in enumerate(left) if not rest}
        stands = {at: max(s[: len(out[at]) + 1]) for at, s in enumerate(streams) if out[at] != s}
        for at, hours in world.taken().items():
            slowest = min((x for other, x in stands.items() if other != at), default=np.inf)
            before = max(out[at], default=0.0)
            out[at] += hours
            assert max([before, *hours]) <= max(slowest + 1.001, before)
        if not any(left) and not world.skew.waiting(0)[0]:
            break
    assert out == streams


# -- in a shard -------------------------------------------------------------------------------------


def hourly(group: int, n: int, every_s: int = HOUR, first: int = START) -> list[Record]:
    """Records of one entity of the group, produced when they say."""
    return [record(f"g{group}", first + i * every_s)._replace(group=group) for i in range(n)]


def newest(shard: Shard) -> dict[int, int]:
    """Of each group the newest time in the state, in s."""
    return {n: int(g.state.last_us.max(initial=0)) // 1_000_000 for n, g in shard.groups.items()}


def counts(shard: Shard) -> list[int]:
    return [int(g.state.count.sum()) for g in shard.groups.values()]


def spread(shard: Shard, ahead: int, behind: int, most: int) -> int:
    """Turns until the one behind is read; how far the other was ahead at most, in s."""
    worst = 0
    for _ in range(500):
        if shard.turn(most) and not shard.source.lag(behind) and not shard.skew.waiting(behind)[0]:
            return worst
        at = newest(shard)
        worst = max(worst, at[ahead] - max(at[behind], START))
    raise AssertionError("the slow one is not read")


@pytest.mark.parametrize("bound", [0, DAY, 7 * DAY])
def test_a_partition_days_ahead_waits(tmp_path: Path, bound: int) -> None:
    source = MemorySource([*hourly(0, 400), *hourly(1, 400, 60)], groups=2)
    shard = make_shard(tmp_path, source, MemoryServer(), max_skew_us=bound * 1_000_000)
    worst = spread(shard, ahead=0, behind=1, most=50)
    assert worst <= bound if bound else worst > 7 * DAY
    while shard.turn(50):
        pass
    assert counts(shard) == [400, 400]
    assert not any(shard.skew.waiting(0))


def test_the_topics_of_one_group_wait_for_each_other(tmp_path: Path) -> None:
    items = [r._replace(topic=r.group, group=0) for r in [*hourly(0, 200), *hourly(1, 200, 60)]]
    source = MemorySource(items, ("one", "two"))
    shard = make_shard(tmp_path, source, MemoryServer(), max_skew_us=DAY * 1_000_000)
    worst, state = 0, shard.groups[0].state
    while source.lag(0) and shard.groups[0].positions[1] < 200:
        shard.turn(20)
        at = {name: int(state.last_us[slot]) for name, slot in state.index.items()}
        worst = max(worst, at.get("g0", 0) - at.get("g1", 0)) if len(at) == 2 else worst
    assert 0 < worst <= DAY * 1_000_000


def test_it_shows_what_waits(tmp_path: Path) -> None:
    source = MemorySource([*hourly(0, 100), *hourly(1, 100, 60)], groups=2)
    clock = Clock()
    shard = make_shard(tmp_path, source, MemoryServer(), max_skew_us=SKEW_US, clock=clock)
    shard.turn(20)
    shard.turn(20)
    clock.now += 1
    shard.turn(20)
    stats = shard.stats()
    assert [g.held_back for g in stats.groups] == [1, 0]
    assert stats.groups[0].lag + counts(shard)[0] == 100, "what waits is lag"
    assert stats.floor_us == newest(shard)[1] * 1_000_000


def test_an_idle_partition_and_a_mistaken_record_stop_nobody(tmp_path: Path) -> None:
    mistaken = record("g1", 7_260_000_000)._replace(group=1, time_ms=START * 1000)
    items = [*hourly(0, 300), *hourly(1, 1), mistaken, *hourly(1, 300)]
    source = MemorySource(items, groups=3)  # group 2 never has a record
    shard = make_shard(tmp_path, source, MemoryServer(), max_skew_us=SKEW_US)
    for _ in range(500):
        shard.turn(50)
    assert counts(shard) == [300, 302, 0]


def test_what_waited_is_read_again_after_a_crash(tmp_path: Path) -> None:
    """It is no part of the snapshot, and the positions do not pass it."""
    source = MemorySource([*hourly(0, 60), *hourly(1, 600, 60)], groups=2)
    shard = make_shard(tmp_path, source, MemoryServer(), max_skew_us=SKEW_US)
    while not shard.skew.waiting(0)[0]:
        shard.turn(20)
    shard.snapshots.finish()
    shard.drain()
    assert source.committed[0][0] < 20, "of the first batch some waited"
    again = make_shard(tmp_path, source, MemoryServer(), restarts=1, max_skew_us=SKEW_US)
    for _ in range(300):
        again.turn(20)
    assert counts(again) == [60, 600]


class Stuck(MemorySource):
    """Group 1 has records, and its broker does not hand them over."""

    stuck = True

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        before = set(self._paused)
        if self.stuck:
            self._paused.add((1, 0))
        try:
            return super().poll(max_records, timeout_s)
        finally:
            self._paused = before


def test_a_partition_that_does_not_answer_is_not_waited_for_for_long(tmp_path: Path) -> None:
    source, clock = Stuck([*hourly(0, 60), *hourly(1, 60, 60)], groups=2), Clock()
    shard = make_shard(tmp_path, source, MemoryServer(), max_skew_us=SKEW_US, clock=clock)
    for clock.now in np.arange(0.0, PATIENCE_S - 0.5, 0.5).tolist():
        shard.turn(20)
    assert counts(shard) == [0, 0]
    for clock.now in np.arange(PATIENCE_S - 0.5, PATIENCE_S + 5.0, 0.5).tolist():
        shard.turn(20)
    assert counts(shard) == [60, 0]
    source.stuck = False
    for _ in range(10):
        shard.turn(20)
    assert counts(shard) == [60, 60]


def test_two_shards_keep_step_by_what_the_daemon_tells_them(tmp_path: Path) -> None:
    logs = MemorySource([*hourly(0, 100), *hourly(1, 600, 600)], groups=2)
    shards: dict[str, Shard] = {}
    for number in (0, 1):
        mine = MemorySource(groups=2)
        mine._logs = {at: log for at, log in logs._logs.items() if at[0] == number}
        shards[f"shard-{number}"] = make_shard(
            tmp_path, mine, MemoryServer(), max_skew_us=DAY * 1_000_000
        )
    worst = 0
    for turn in range(200):
        if turn % 3 == 0:  # they are told now and then
            told = slowest_others({name: s.skew.floor_us for name, s in shards.items()})
            for name, shard in shards.items():
                shard.skew.others(told[name])
        for shard in shards.values():
            shard.turn(20)
        ahead, behind = (newest(s)[n] for n, s in enumerate(shards.values()))
        if shards["shard-1"].source.lag(1):
            worst = max(worst, ahead - behind)
    assert 0 < worst <= DAY
    assert [counts(s) for s in shards.values()] == [[100], [600]]
