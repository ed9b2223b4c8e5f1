"""What is decided about a process, as a table."""

import pytest

from daemon.supervisor import (
    BACKOFF_S,
    Alive,
    Dead,
    Decision,
    Failed,
    Nothing,
    Process,
    Restart,
    Seen,
    Silent,
    Stop,
    decide,
)

HANG_S, STEADY_S = 60.0, 300.0
P = Process("p", started_at=100.0, progress=7, progressed_at=150.0)
AGAIN = Restart("p is started again")


def up(progress: int, at: float, restarts: int = 0, started: float = 100.0) -> Process:
    return Process("p", started, progress, at, restarts)


def down(until: float, restarts: int, started: float = 100.0) -> Process:
    return Process("p", started, 7, 150.0, restarts, until)


TABLE: list[tuple[str, Process, Seen | None, float, Process, Decision]] = [
    ("it moves", P, Alive(8), 160.0, up(8, 160.0), Nothing()),
    ("a new process may count from below", P, Alive(0), 160.0, up(0, 160.0), Nothing()),
    ("it stands still, not for long", P, Alive(7), 209.0, P, Nothing()),
    ("it stands still for too long", P, Alive(7), 211.0, down(211.0, 1), Nothing()),
    ("it does not answer, not for long", P, Silent(), 209.0, P, Nothing()),
    ("it does not answer for too long", P, Silent(), 211.0, down(211.0, 1), Nothing()),
    ("it died", P, Dead("kill"), 151.0, down(151.0, 1), Nothing()),
    ("its loop failed", P, Failed("bug"), 151.0, down(151.0, 1), Nothing()),
    ("its loop failed for good", P, Failed("gone", 5), 151.0, P, Stop("gone", 5)),
    ("it died again", up(7, 150.0, 2), Dead("kill"), 151.0, down(153.0, 3), Nothing()),
    ("it may wait still", down(153.0, 3), None, 152.0, down(153.0, 3), Nothing()),
    ("it is due", down(153.0, 3), None, 153.0, Process("p", 153.0, -1, 153.0, 3), AGAIN),
    ("a slow start is no hang", Process("p", 100.0), Silent(), 159.0, Process("p", 100.0), Nothing()),
    (
        "one that ran long is forgiven",
        up(7, 399.0, 5), Alive(8), 101.0 + STEADY_S, up(8, 101.0 + STEADY_S, 0), Nothing(),
    ),
    ("one that has just started is not", up(7, 399.0, 5), Alive(8), 399.0, up(8, 399.0, 5), Nothing()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "seen", "now", "after", "decision"),
    [row[1:] for row in TABLE],
    ids=[r[0] for r in TABLE],
)
def test_decisions(
    before: Process, seen: Seen | None, now: float, after: Process, decision: Decision
) -> None:
    assert decide(before, seen, now, HANG_S, STEADY_S) == (after, decision)


def test_one_that_dies_at_once_again_and_again_is_started_ever_more_seldom() -> None:
    process, now, waits = Process("p", 0.0), 0.0, []
    for _ in range(len(BACKOFF_S) + 2):
        process, _ = decide(process, Dead("kill"), now, HANG_S, STEADY_S)
        assert process.restart_at is not None
        waits.append(process.restart_at - now)
        now = process.restart_at
        process, decision = decide(process, None, now, HANG_S, STEADY_S)
        assert isinstance(decision, Restart)
    assert waits == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
