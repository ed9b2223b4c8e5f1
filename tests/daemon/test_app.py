"""What the daemon says of its processes before any of them runs."""

import time

import pytest

from actors.processes import Status
from daemon.app import App, Child
from daemon.supervisor import Process
from schemas.stats import ShardStats
from tests.daemon.test_settings import MINIMAL, parse

HANG_S = parse(MINIMAL).service.hang_s


def app(**processes: tuple[float, Status | None]) -> App:
    """Processes by name: for how long they have stood still, and their last status."""
    made, now = App(parse(MINIMAL)), time.monotonic()
    for name, (still_s, status) in processes.items():
        process = Process(name.replace("_", "-"), now - 1000, 3, now - still_s)
        child = Child(process, start=None, handle=None, status=status)  # type: ignore[arg-type]
        made._children[process.name] = child
    return made


@pytest.mark.parametrize(
    ("name", "status", "allowed_s"),
    [
        ("shard_0", Status(3, ShardStats()), HANG_S / 2),
        ("shard_0", Status(0), HANG_S * 5 / 2),  # it restores
        ("publisher", Status(3), HANG_S * 5 / 2),  # it exports
        ("learner", Status(3), HANG_S * 5 / 2),
    ],
)
def test_a_stream_may_not_stand_still_for_as_long_as_an_export(
    name: str, status: Status, allowed_s: float
) -> None:
    assert app(**{name: (allowed_s - 5, status)}).health() == []
    (reason,) = app(**{name: (allowed_s + 5, status)}).health()
    assert "has not moved for" in reason


def test_a_shard_that_has_not_restored_is_not_ready() -> None:
    assert "shard-0 is being started" in app(shard_0=(0.0, None)).ready()
    assert "shard-0 is being started" in app(shard_0=(0.0, Status(0))).ready()
    assert "shard-0 is being started" not in app(shard_0=(0.0, Status(1, ShardStats()))).ready()
