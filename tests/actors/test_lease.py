"""One writer: whatever the order of takers, deaths and stalls, at most one holds the lease."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors import lease as leases
from actors.lease import FILE, Lease, newest_epoch
from schemas.errors import LeaseHeld, LeaseLost

LEASE_S = 10.0


@dataclass
class FakeClock:
    """Waiting passes time, and lets `meanwhile` happen."""

    now: float = 0.0
    meanwhile: Callable[[], object] = field(default=lambda: None)
    waited: int = 0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waited += 1
        self.meanwhile()


def take(folder: Path, clock: FakeClock | None = None, *, standby: bool = False) -> Lease:
    clock = clock or FakeClock()
    return leases.take(folder, lease_s=LEASE_S, clock=clock, wait=clock.wait, standby=standby)


def holder_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / FILE).read_text())
    return found


def elsewhere(folder: Path) -> None:
    """As if the holder ran on another machine: whether it lives is told by its counter alone."""
    (folder / FILE).write_text(json.dumps({**holder_of(folder), "process": ""}))


def test_the_first_takes_it_at_once(tmp_path: Path) -> None:
    clock = FakeClock()
    lease = take(tmp_path / "new", clock)
    assert (lease.epoch, clock.waited) == (1, 0)
    assert holder_of(tmp_path / "new")["holder"] == lease.holder
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_a_live_holder_keeps_it_and_is_named(tmp_path: Path) -> None:
    mine = take(tmp_path)
    with pytest.raises(LeaseHeld, match=rf"held by {mine.holder} \(epoch 1\).*--standby") as held:
        take(tmp_path, FakeClock(meanwhile=mine.renew))
    assert held.value.exit_code == 3
    mine.renew()


def test_one_that_was_released_is_free_at_once(tmp_path: Path) -> None:
    take(tmp_path).release()
    clock = FakeClock()
    assert (take(tmp_path, clock).epoch, clock.waited) == (2, 0)


def test_a_silent_holder_is_given_its_time(tmp_path: Path) -> None:
    silent = take(tmp_path)
    elsewhere(tmp_path)
    clock = FakeClock()
    assert take(tmp_path, clock).epoch == 2
    assert LEASE_S <= clock.now < LEASE_S + 2
    with pytest.raises(LeaseLost, match="held by epoch 2, ours was 1"):
        silent.renew()


def test_a_standby_waits_for_as_long_as_the_holder_lives(tmp_path: Path) -> None:
    mine, clock = take(tmp_path), FakeClock()

    def meanwhile() -> None:
        if clock.now < 100:
            mine.renew()
        elif clock.now < 101:
            mine.release()

    clock.meanwhile = meanwhile
    assert take(tmp_path, clock, standby=True).epoch == 2
    assert 100 <= clock.now < 102, "released: taken at once"


def test_a_standby_can_be_told_to_give_up(tmp_path: Path) -> None:
    mine = take(tmp_path)

    def give_up() -> None:
        raise LeaseHeld("stopped while waiting")

    with pytest.raises(LeaseHeld, match="stopped"):
        take(tmp_path, FakeClock(meanwhile=give_up), standby=True)
    mine.renew()


HOLD = """
import sys, time
from pathlib import Path
from actors import lease
lease.take(Path(sys.argv[1]), lease_s=10, clock=time.monotonic, wait=lambda _: None)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a dead holder is waited for")
@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_dead_holder_on_this_machine_is_not_waited_for(tmp_path: Path, reaped: bool) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        clock = FakeClock()
        assert (take(tmp_path, clock).epoch, clock.waited) == (2, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the counter alone tells")
def test_a_holder_that_stands_still_is_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        clock = FakeClock()
        assert take(tmp_path, clock).epoch == 2
        assert clock.now >= LEASE_S
        process.kill()


def test_of_two_at_one_moment_one_wins(tmp_path: Path) -> None:
    """The second comes between the first's look at the holder and its taking of the epoch."""
    silent = take(tmp_path)
    elsewhere(tmp_path)
    first, second = FakeClock(), FakeClock()
    won: list[Lease] = []

    def overtake() -> None:
        if first.now >= LEASE_S and not won:
            won.append(take(tmp_path, second))
            elsewhere(tmp_path)
            # what the first has seen before
            (tmp_path / FILE).write_text(before)

    before = (tmp_path / FILE).read_text()
    first.meanwhile = overtake
    with pytest.raises(LeaseHeld, match="at the same moment"):
        take(tmp_path, first)
    won[0].renew()
    assert newest_epoch(tmp_path) == won[0].epoch == 2
    with pytest.raises(LeaseLost):
        silent.check()


RACE = """
import sys, time
from pathlib import Path
from actors import lease
from schemas.errors import LeaseHeld, LeaseLost
print("ready", flush=True)
sys.stdin.readline()
try:
    mine = lease.take(Path(sys.argv[1]), lease_s=10, clock=time.monotonic, wait=lambda _: None)
    print("took", flush=True)
    sys.stdin.readline()
    mine.renew()
    print("holds", flush=True)
except (LeaseHeld, LeaseLost) as error:
    print(type(error).__name__, flush=True)
"""


def test_a_full_disk_does_not_make_a_holder_seem_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = take(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leases, "write_file", full)
    for counter in range(2, 12):
        lease.renew()
        assert json.loads((tmp_path / FILE).read_text())["counter"] == counter


def test_a_lease_that_is_being_written_is_held(tmp_path: Path) -> None:
    lease = take(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:20])
    clock = FakeClock()

    def renewed() -> None:
        if clock.waited == 2:
            (tmp_path / FILE).write_bytes(whole)
            lease.renew()

    clock.meanwhile = renewed
    with pytest.raises(LeaseHeld, match="which is alive"):
        take(tmp_path, clock)


def test_of_many_at_one_moment_one_holds_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    with contextlib.ExitStack() as stack:
        pipe = subprocess.PIPE
        racers = [
            stack.enter_context(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
            )
            for _ in range(4)
        ]
        said = [say(racer) for racer in racers]
        assert said == ["ready"] * 4
        for racer in racers:
            tell(racer)
        said = [say(racer) for racer in racers]
        assert "took" in said
        for racer, what in zip(racers, said, strict=True):
            if what == "took":
                tell(racer)
        said = [
            say(racer) if what == "took" else what for racer, what in zip(racers, said, strict=True)
        ]
        assert said.count("holds") == 1, said


def say(racer: "subprocess.Popen[str]") -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


def tell(racer: "subprocess.Popen[str]") -> None:
    assert racer.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has been refused and is gone
        racer.stdin.write("go\n")


def test_of_two_standbys_the_loser_waits_on(tmp_path: Path) -> None:
    mine = take(tmp_path)
    first, second = FakeClock(), FakeClock()
    won: list[Lease] = []

    def meanwhile() -> None:
        if not won:
            mine.release()
            won.append(take(tmp_path, second, standby=True))
        elif first.now < 50:
            won[0].renew()
        elif first.now < 51:
            won[0].release()

    first.meanwhile = meanwhile
    assert take(tmp_path, first, standby=True).epoch == 3
    assert first.now >= 50


def test_a_lost_lease_is_noticed_and_left_alone(tmp_path: Path) -> None:
    lost = take(tmp_path)
    elsewhere(tmp_path)
    successor = take(tmp_path)
    before = holder_of(tmp_path)
    for attempt in (lost.renew, lost.check):
        with pytest.raises(LeaseLost) as error:
            attempt()
        assert error.value.exit_code == 4
    lost.release()
    assert holder_of(tmp_path) == before
    successor.renew()


def test_epochs_never_come_back(tmp_path: Path) -> None:
    for epoch in range(1, 5):
        lease = take(tmp_path)
        assert lease.epoch == epoch
        lease.release()
    assert [p.name for p in tmp_path.glob("epoch-*")] == ["epoch-4"]


def test_a_file_that_cannot_be_read_holds_nobody_up(tmp_path: Path) -> None:
    take(tmp_path)
    (tmp_path / FILE).write_bytes(b"\xff{")
    assert take(tmp_path).epoch == 2
