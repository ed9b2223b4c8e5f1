"""The ring buffers against plain lists of records, whatever is done to them in whatever order.

A state of few slots: entities are evicted and come back; records come late and too late; some are deletions."""

from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.state import State
from schemas.published import anchored_window
from schemas.records import Decoded, Rows, contributions
from schemas.stream import Shape

SHAPE = Shape(2, 1, session_gap_us=1 << 40)  # sessions: tests/actors/test_state.py
SLOTS, WINDOW = 6, 8
NAMES = [f"e{i}" for i in range(10)]
pair = st.tuples(st.sampled_from(NAMES[:SLOTS]), st.integers(-12, 8))


class Row(NamedTuple):
    time: int
    position: int


def columns(rows: list[Row]) -> Rows:
    """Numbers and categories follow from the position."""
    time = np.array([r.time for r in rows], np.int64)
    position = np.array([r.position for r in rows], np.int64)
    numbers = np.stack([position * 0.5, np.where(position % 3 == 0, np.nan, -position)], 1)
    return Rows(
        time,
        position,
        numbers.astype(np.float32).reshape(-1, 2),
        (position * 7).reshape(-1, 1),
        (position % 5 == 0).reshape(-1, 1),
    )


def same(found: Rows, wanted: Rows) -> None:
    for name in ("time_us", "position", "numbers", "categories", "missing"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


class Rings(RuleBasedStateMachine):
    """`model`: of each resident entity all records since it came, in order of (time, position)."""

    @initialize()
    def empty(self) -> None:
        self.state = State(SHAPE, WINDOW, 3, SLOTS)
        self.model: dict[str, list[Row]] = {}
        self.now, self.position = 1000, 0

    def _apply(self, batch: list[tuple[str, int, bool]]) -> None:
        """(entity, time against now, whether it is a deletion)"""
        rows, deleted, gone = [], [], []
        for _, ago, dies in batch:
            self.now += max(ago, 1)
            rows.append(Row(self.now + min(ago, 0) * 3, self.position))
            deleted.append(dies)
            self.position += 1
        names = [name for name, _, _ in batch]
        flags = np.array(deleted, np.bool_)
        before = set(self.state.index)
        touched = self.state.apply(
            Decoded(columns(rows), names, flags, np.zeros(len(rows), np.int64))
        )
        for name, row, dies in zip(names, rows, deleted, strict=True):
            if dies:
                gone.append(name)
                self.model.pop(name, None)
            elif name in self.model:
                self.model[name] = sorted([*self.model[name], row])
            else:
                self.model[name] = [row]
        evicted = set(self.model) - set(self.state.index)
        assert evicted <= before - set(names), "evicted, though it was just touched"
        for name in evicted:
            del self.model[name]
        assert touched.accepted == len(batch)
        assert set(touched.deleted) == set(gone)
        reached = [self.state.names[slot] for slot in touched.slots.tolist()]
        assert sorted(reached) == sorted(set(names) & set(self.model))  # type: ignore[type-var]

    @rule(pairs=st.lists(pair, max_size=12))
    def records(self, pairs: list[tuple[str, int]]) -> None:
        self._apply([(name, ago, False) for name, ago in pairs])

    @rule(name=st.sampled_from(NAMES), n=st.integers(1, 2 * WINDOW + 1))
    def a_busy_entity(self, name: str, n: int) -> None:
        self._apply([(name, 1, False)] * n)

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    def others(self, names: list[str]) -> None:
        """More than there is room for, by and by."""
        self._apply([(name, 1, False) for name in names])

    @rule(pairs=st.lists(st.tuples(pair, st.booleans()), min_size=1, max_size=6))
    def deletions(self, pairs: list[tuple[tuple[str, int], bool]]) -> None:
        self._apply([(name, ago, dies) for (name, ago), dies in pairs])

    @rule(at=st.integers(0, SLOTS - 1), length=st.integers(1, WINDOW))
    def a_window_and_the_totals_before_it(self, at: int, length: int) -> None:
        if at >= len(self.state.index):
            return
        name, slot = sorted(self.state.index.items())[at]
        rows = self.model[name]
        length = min(length, len(rows), WINDOW)
        found, totals = self.state.padded(np.array([slot]), np.array([length]))
        wanted = columns(rows[-length:])
        same(Rows(*(getattr(found, n)[0, :length] for n in Rows.__slots__)), wanted)
        before = contributions(columns(rows[:-length]).numbers).sum(0)
        before[1] = 1.0
        np.testing.assert_allclose(totals[0], before, atol=1e-6)

    @invariant()
    def every_resident_entity_is_as_in_the_model(self) -> None:
        state = self.state
        assert set(state.index) == set(self.model) and len(self.model) <= SLOTS
        assert state.counts.entities == len(self.model)
        for name, rows in self.model.items():
            slot = state.index[name]
            assert state.names[slot] == name and slot not in state.free
            assert state.count[slot] == len(rows)
            assert (state.first_us[slot], state.last_us[slot]) == (rows[0].time, rows[-1].time)
            window = state.windows(np.array([slot]))
            same(window.rows, columns(rows[-WINDOW:]))
            totals = contributions(columns(rows).numbers).sum(0)
            totals[1] = 1.0
            np.testing.assert_allclose(state.totals[slot], totals, atol=1e-6)
            anchored = state.anchored(np.array([slot])).tolist()
            assert anchored == [min(anchored_window(len(rows), WINDOW), len(rows))]

    @invariant()
    def a_slot_is_used_or_free(self) -> None:
        used = set(self.state.index.values())
        assert not used & set(self.state.free)
        assert used | set(self.state.free) == set(range(len(self.state.names)))


Rings.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRings = Rings.TestCase
