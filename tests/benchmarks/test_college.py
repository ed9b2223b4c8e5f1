from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import college as c
from benchmarks.college import College, Queries
from schemas.records import I64

DATA = c.made_up(edges=3_000, nodes=300, seed=3)


@pytest.fixture(scope="module")
def asked() -> Queries:
    return c.queries(DATA)


def stream(*edges: tuple[int, int, int]) -> College:
    src, dst, time_s = np.array(edges, np.int64).T
    return College(src, dst, time_s)


def earlier(i: int, sender: int) -> set[int]:
    return set(DATA.dst[:i][DATA.src[:i] == sender].tolist())


def seen(i: int) -> set[int]:
    return set(DATA.src[:i].tolist()) | set(DATA.dst[:i].tolist())


def test_a_file_is_read_in_its_order_and_ids_become_small(tmp_path: Path) -> None:
    (tmp_path / "college_msg.txt").write_text("7 900 5\n900 3 5\n3 7 9\n")
    read = c.load(tmp_path)
    assert read.src.tolist() == [1, 2, 0] and read.dst.tolist() == [2, 0, 1]
    assert read.time_s.tolist() == [5, 5, 9] and read.nodes == 3


def test_the_first_query_is_at_seven_tenths() -> None:
    assert c.FIRST == 41_884 == c.made_up().first


def test_candidates_were_known_before_and_none_comes_twice(asked: Queries) -> None:
    assert asked.edge.tolist() == list(range(2_100, 3_000))
    assert (asked.candidates[:, 0] == DATA.dst[asked.edge]).all()
    for i, row in zip(asked.edge[::29].tolist(), asked.candidates[::29].tolist(), strict=True):
        others, u = row[1:], int(DATA.src[i])
        assert len(set(row)) == 101 and u not in others
        assert set(others) <= seen(i)
        known = earlier(i, u) - {row[0]}
        assert set(others[: min(len(known), 50)]) <= known
        if len(known) <= 50:
            assert known <= set(others)


def test_a_busy_sender_gets_fifty_earlier_receivers() -> None:
    rows = [(0, 1 + i % 200, i) for i in range(400)]
    asked = c.queries(stream(*rows))
    drawn = Counter(len(set(row[1:51])) for row in asked.candidates.tolist())
    assert drawn == {50: 120}
    assert not (asked.candidates[0, 1:51] == asked.candidates[1, 1:51]).all()


def test_kinds_tell_repeated_pairs_from_answers_and_strangers() -> None:
    crowd = [(i, i + 1, 0) for i in range(100, 300)]
    fresh = [(1, 2, 1), (1, 2, 2), (2, 1, 3), (1, 3, 4), (2, 1, 5)]
    tail = fresh + [(4, 5, 6)] * 80
    asked = c.queries(stream(*crowd, *tail))
    assert asked.edge[0] < 200
    kinds = asked.kind[asked.edge >= 200].tolist()
    assert kinds[:5] == [c.NEVER, c.REPEATED, c.ANSWERED, c.NEVER, c.REPEATED]
    assert kinds[5:7] == [c.NEVER, c.REPEATED]


def test_too_small_a_crowd_is_refused() -> None:
    with pytest.raises(ValueError, match="need 102"):
        c.queries(stream(*((i % 20, 20 + i % 30, i) for i in range(100))))


def test_negatives_are_half_earlier_receivers_and_never_the_true_one() -> None:
    drawn = c.negatives(DATA, k=20, seed=1)
    none = drawn[:, 0] < 0
    assert (drawn[none] == -1).all() and (drawn[~none] >= 0).all()
    first = int(np.argmin(none))
    assert not none[first:].any() and len(seen(first)) >= 30 > len(seen(first - 1))
    assert (drawn[~none] != DATA.dst[~none, None]).all()
    for i in range(first, 3_000, 41):
        assert set(drawn[i].tolist()) <= seen(i)
        known = earlier(i, int(DATA.src[i])) - {int(DATA.dst[i])}
        if len(known) > 30:
            assert sum(x in known for x in drawn[i].tolist()) >= 8
        if not known:
            assert int(DATA.src[i]) not in drawn[i]


def test_the_same_seed_draws_the_same_and_another_one_does_not(asked: Queries) -> None:
    again, other = c.queries(DATA), c.queries(DATA, seed=1)
    assert (again.candidates == asked.candidates).all()
    assert not (other.candidates == asked.candidates).all()
    assert (other.kind == asked.kind).all()
    assert (c.negatives(DATA, seed=2) == c.negatives(DATA, seed=2)).all()
    assert not (c.negatives(DATA, seed=2) == c.negatives(DATA, seed=3)).all()


def test_ties_take_their_mean_rank() -> None:
    scores = np.array([[2.0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 2, 0], [0, 1, 2, 3]])
    assert c.reciprocal_ranks(scores).tolist() == [1.0, 1 / 2.5, 1 / 2.5, 1 / 4]


def test_no_number_is_no_rank() -> None:
    with pytest.raises(ValueError, match="not a number"):
        c.reciprocal_ranks(np.array([[np.nan, 1.0]]))


def test_the_summary_is_by_kind(asked: Queries) -> None:
    three = Queries(asked.edge[:4], asked.candidates[:4], np.array([0, 1, 2, 2]))
    assert c.summary(np.array([1.0, 0.5, 0.25, 0.75]), three) == (0.625, 1.0, 0.5, 0.5)


def test_the_interval_holds_the_difference_and_narrows() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.random(4_000), rng.normal(0.02, 0.1, 4_000)
    low, high = c.paired(a + noise, a, seed=1)
    assert low < noise.mean() < high and low > 0
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(4_000), rel=0.1)
    assert (low, high) == c.paired(a + noise, a, seed=1)
    assert c.paired(a, a) == (0.0, 0.0)


def test_edgebank_knows_whom_the_sender_wrote_to_and_for_how_long() -> None:
    data = stream((0, 1, 10), (1, 2, 15), (0, 3, 20), (0, 1, 30))
    asked = one_query(3, [1, 2, 3, 0])
    assert c.edgebank(data, asked).tolist() == [[1, 0, 1, 0]]
    assert c.edgebank(data, asked, window_s=10).tolist() == [[0, 0, 1, 0]]
    assert c.edgebank(data, asked, window_s=20).tolist() == [[1, 0, 1, 0]]
    assert c.edgebank(data, asked, stale=1).tolist() == [[1, 0, 0, 0]]
    assert c.edgebank(data, asked, stale=200).tolist() == [[0, 0, 0, 0]]


def test_last_contact_goes_both_ways_and_strangers_follow_by_popularity() -> None:
    week = c.WEEK_S
    data = stream((4, 5, 0), (4, 5, 1), (3, 0, 5), (0, 1, 6), (1, 6, week), (0, 6, week + 2))
    # 3 and 1 were in contact, 1 later; 6 received one of late; 5 two, but a week ago.
    got = c.last_contact(data, one_query(5, [6, 1, 3, 5, 2]))[0]
    assert got[1] > got[2] >= 0 > got[0] > got[3] == got[4]


def one_query(edge: int, nodes: list[int]) -> Queries:
    row: I64 = np.array([nodes])
    return Queries(np.array([edge]), row, np.zeros(1, np.int64))


@pytest.mark.parametrize("stale", [0, 1, 20])
def test_what_is_stale_equals_a_stream_without_the_newest(stale: int) -> None:
    asked = c.queries(DATA)
    scores = c.last_contact(DATA, asked, stale)
    for q in range(0, 900, 97):
        i = int(asked.edge[q])
        keep = np.r_[: i - stale, i]
        short = College(DATA.src[keep], DATA.dst[keep], DATA.time_s[keep])
        alone = one_query(i - stale, asked.candidates[q].tolist())
        pad = College(*(np.append(x, y) for x, y in zip(
            (short.src, short.dst, short.time_s), (DATA.nodes - 1, 0, DATA.time_s[-1]), strict=True
        )))  # fmt: skip
        np.testing.assert_array_equal(c.last_contact(pad, alone)[0], scores[q])
