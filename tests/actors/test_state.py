"""The state holds what a plain list of each entity's records would, whatever the order and the micro-batches."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.capacity import StateConfig, capacity
from actors.folders import Folder, newest
from actors.snapshot import GroupSnapshot, restore
from actors.state import Marks, State
from schemas.errors import SettingsError
from schemas.published import anchored_window
from schemas.records import Decoded, Rows, contributions
from schemas.stream import Shape

SHAPE = Shape(2, 1, session_gap_us=5)
WINDOW = 8


def decoded(records: list[tuple[str, int, int]], deleted: frozenset[int] = frozenset()) -> Decoded:
    """(entity, time, position) -> columns; numbers and categories follow from the position."""
    n = len(records)
    position = np.array([r[2] for r in records], np.int64)
    numbers = np.stack([position * 0.5, np.where(position % 3 == 0, np.nan, -position)], 1)
    return Decoded(
        Rows(
            np.array([r[1] for r in records], np.int64),
            position,
            numbers.astype(np.float32).reshape(n, 2),
            (position * 7).reshape(n, 1),
            (position % 5 == 0).reshape(n, 1),
        ),
        [r[0] for r in records],
        np.array([i in deleted for i in range(n)], np.bool_),
        np.zeros(n, np.int64),
    )


def make(slots: int = 16) -> State:
    return State(SHAPE, WINDOW, 3, slots)


def expected(records: list[tuple[str, int, int]], entity: str) -> dict[str, object]:
    mine = sorted((t, p) for e, t, p in records if e == entity)
    rows = decoded([(entity, t, p) for t, p in mine]).rows
    totals = contributions(rows.numbers).sum(0)
    totals[1] = 1 + np.count_nonzero(np.diff(rows.time_us) > SHAPE.session_gap_us)
    return {
        "count": len(mine),
        "positions": [p for _, p in mine[-WINDOW:]],
        "totals": totals,
        "first": mine[0][0],
        "last": mine[-1][0],
    }


events = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), min_size=1, max_size=60)


def batched(
    records: list[tuple[str, int, int]], cuts: list[int]
) -> list[list[tuple[str, int, int]]]:
    edges = [0, *sorted(c % (len(records) + 1) for c in cuts), len(records)]
    return [records[a:b] for a, b in itertools.pairwise(edges) if a < b]


@given(events, st.lists(st.integers(0, 60), max_size=8))
def test_in_order_records_fill_rings_and_totals(
    pairs: list[tuple[str, int]], cuts: list[int]
) -> None:
    times = sorted(t for _, t in pairs)
    records = [(e, t, i) for i, ((e, _), t) in enumerate(zip(pairs, times, strict=True))]
    state = make()
    for part in batched(records, cuts):
        state.apply(decoded(part))
    for entity in {e for e, _, _ in records}:
        check(state, entity, expected(records, entity))
    assert state.counts.late == state.counts.too_old == 0


@given(events, st.lists(st.integers(0, 60), max_size=8))
def test_late_records_are_placed_by_time(pairs: list[tuple[str, int]], cuts: list[int]) -> None:
    records = [(e, t, i) for i, (e, t) in enumerate(pairs)]
    state = make()
    for part in batched(records, cuts):
        state.apply(decoded(part))
    for entity in {e for e, _, _ in records}:
        want = expected(records, entity)
        if state.counts.too_old:  # what was older than the ring has no gaps: see late_rows
            want.pop("totals")
        check(state, entity, want)


def check(state: State, entity: str, want: dict[str, object]) -> None:
    slot = state.index[entity]
    windows = state.windows(np.array([slot]))
    assert state.count[slot] == want["count"]
    assert windows.rows.position.tolist() == want["positions"]
    assert (state.first_us[slot], state.last_us[slot]) == (want["first"], want["last"])
    again = decoded([(entity, 1, p) for p in windows.rows.position.tolist()]).rows
    np.testing.assert_array_equal(windows.rows.numbers, again.numbers)
    np.testing.assert_array_equal(windows.rows.categories, again.categories)
    np.testing.assert_array_equal(windows.rows.missing, again.missing)
    if "totals" in want:
        np.testing.assert_allclose(state.totals[slot], want["totals"], atol=1e-9)


@given(events, st.integers(1, WINDOW))
def test_totals_before_a_window_are_those_of_the_rows_before_it(
    pairs: list[tuple[str, int]], rows: int
) -> None:
    records = [(e, 3 * i, i) for i, (e, _) in enumerate(pairs)]
    state = make()
    state.apply(decoded(records))
    for entity in {e for e, _, _ in records}:
        mine = [r for r in records if r[0] == entity]
        length = min(rows, len(mine), WINDOW)
        _, totals = state.padded(np.array([state.index[entity]]), np.array([length]))
        before = expected([*mine[: len(mine) - length + 1]], entity)["totals"]
        first = contributions(decoded(mine[-length:][:1]).rows.numbers)[0]
        np.testing.assert_allclose(totals[0], before - first, atol=1e-9)  # its session stays


def test_the_anchor_rule_sets_how_much_is_encoded() -> None:
    state = make()
    for n in range(1, 5 * WINDOW):
        touched = state.apply(decoded([("a", n, n)]))
        assert state.anchored(touched.slots).tolist() == [anchored_window(n, WINDOW)]
        assert state.anew(touched).tolist() == [n % (WINDOW // 2) == 0]


def test_a_late_record_is_encoded_anew() -> None:
    state = make()
    state.apply(decoded([("a", 10, 0), ("b", 10, 1)]))
    touched = state.apply(decoded([("a", 5, 2), ("b", 11, 3)]))
    assert state.anew(touched).tolist() == [True, False]
    assert state.counts.late == 1


def test_the_least_recently_touched_are_evicted_and_start_clean() -> None:
    state = make(slots=4)
    for i, name in enumerate("abcd"):
        state.apply(decoded([(name, i + 1, i)]))
    state.apply(decoded([("a", 9, 9)]))
    state.apply(decoded([("e", 10, 10)]))
    assert set(state.index) == {"a", "c", "d", "e"} and state.counts.evicted == 1
    state.apply(decoded([("b", 11, 11)]))
    slot = state.index["b"]
    assert state.count[slot] == 1 and state.since_us[slot] == 11
    assert "c" not in state.index


def test_a_batch_of_more_entities_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"state\.max_memory_mb"):
        make(slots=2).apply(decoded([("a", 1, 1), ("b", 1, 2), ("c", 1, 3)]))


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"state\.max_memory_mb is 16"):
        capacity(StateConfig(max_memory_mb=16), 64, Shape(40, 40), 512, 64)


def test_a_null_value_forgets_the_entity_and_what_came_before_it() -> None:
    state = make()
    state.apply(decoded([("a", 1, 0), ("b", 1, 1)]))
    touched = state.apply(
        decoded(
            [("a", 2, 2), ("a", 0, 3), ("a", 3, 4), ("b", 4, 5), ("c", 0, 6)], frozenset({1, 4})
        )
    )
    assert touched.deleted == ["a", "c"] and touched.accepted == 5
    slot = state.index["a"]
    assert state.count[slot] == 1 and state.since_us[slot] == 3 and "c" not in state.index


def test_a_new_life_begins_later_than_any_that_ended() -> None:
    """The same record sent again after a deletion, and a late one after an eviction: `since` grows."""
    state = make()
    state.apply(decoded([("a", 5, 0), ("a", 6, 1), ("b", 9, 2)]))
    state.apply(decoded([("a", 5, 3), ("a", 5, 4)], frozenset({0})))
    assert state.since_us[state.index["a"]] == 6 and state.count[state.index["a"]] == 1
    state.apply(decoded([("b", 9, 5), ("b", 2, 6)], frozenset({0})))
    assert state.since_us[state.index["b"]] == 10


def restored(tmp_path, state: State) -> tuple[State, list[int]]:  # type: ignore[no-untyped-def]
    again = State(SHAPE, WINDOW, 3, state.slots)
    positions = newest(tmp_path, lambda folder: restore(folder, again))
    assert positions is not None
    return again, positions


@given(events, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_a_restored_group_reads_again_and_counts_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, int]], a: int, b: int, c: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("group")
    records = [(e, t, i) for i, (e, t) in enumerate(pairs)]
    start, copied, crash = sorted(x % (len(records) + 1) for x in (a, b, c))
    state = make()
    state.apply(decoded(records[:start]))
    snapshot = GroupSnapshot(tmp_path, "1-1", state, [start], {}, lambda: None)
    state.apply(decoded(records[start:copied]))  # the stream goes on while slabs are copied
    while not snapshot.done():
        if not snapshot.turn([copied]):
            snapshot.wait(0.01)
    snapshot.result()
    state.apply(decoded(records[copied:crash]))

    again, positions = restored(tmp_path, state)
    assert positions == [start]
    again.apply(decoded(records[start:]))
    whole = make()
    whole.apply(decoded(records))
    # where batches are cut decides what is too old, which opens no session
    assume(again.counts.too_old == whole.counts.too_old)
    for entity, slot in whole.index.items():
        mine = again.index[entity]
        assert again.count[mine] == whole.count[slot]
        np.testing.assert_allclose(again.totals[mine], whole.totals[slot], atol=1e-9)
        np.testing.assert_array_equal(
            again.windows(np.array([mine])).rows.position,
            whole.windows(np.array([slot])).rows.position,
        )


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_harmed_snapshot_is_noticed_and_the_one_before_is_used(tmp_path, harm: str) -> None:  # type: ignore[no-untyped-def]
    state = make()
    for n in (1, 2):
        state.apply(decoded([("a", n, n)]))
        snapshot = GroupSnapshot(tmp_path, f"1-{n}", state, [n], {}, lambda: None)
        while not snapshot.done():
            if not snapshot.turn([n]):
                snapshot.wait(0.01)
    victim = next((tmp_path / "1-2").glob("slab-*"))
    data = bytearray(victim.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif harm == "truncate":
        victim.write_bytes(data[:-1])
    else:
        victim.unlink()
    again, positions = restored(tmp_path, state)
    assert positions == [1] and again.count[again.index["a"]] == 1


@given(st.sampled_from((2, 4, 16, 64)), st.integers(1, 40), st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_a_ring_of_another_length_has_the_newest_rows(
    tmp_path_factory: pytest.TempPathFactory, window: int, before: int, after: int
) -> None:
    """A longer one fills with what comes."""
    tmp_path = tmp_path_factory.mktemp("group")
    records = [("a", i, i) for i in range(before + after)]
    state = make()
    state.apply(decoded(records[:before]))
    snapshot = GroupSnapshot(tmp_path, "1-1", state, [before], {}, lambda: None)
    while not snapshot.done():
        if not snapshot.turn([before]):
            snapshot.wait(0.01)
    again = State(SHAPE, window, 3, 16)
    restore(Folder.open(tmp_path / "1-1"), again)
    if after:
        again.apply(decoded(records[before:]))
    slots = np.array([again.index["a"]])
    held = min(before, WINDOW, window) + after
    newest = list(range(before + after))[-min(held, window) :]
    windows = again.windows(slots)
    assert (windows.rows.position & 0xFFFFFF).tolist() == newest
    whole = State(SHAPE, window, 3, 16)
    whole.apply(decoded(records))
    everything = again.totals[slots], whole.totals[[whole.index["a"]]]
    np.testing.assert_allclose(*everything, atol=1e-9)
    assert again.anchored(slots)[0] <= len(newest)


def test_marks_hold_only_what_a_slab_saw() -> None:
    marks = Marks(np.array([[5, 7]]), np.array([0, -1]))
    position = np.array([4, 5, (1 << 48) | 6, (1 << 48) | 7, 0])
    slots = np.array([0, 0, 0, 0, 1])
    assert marks.hold(slots, position).tolist() == [True, False, True, False, False]
