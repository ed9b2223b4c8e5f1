"""What to do about a process, given what is seen of it: a pure function, tested as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


@dataclass(frozen=True)
class Alive:
    progress: int


@dataclass(frozen=True)
class Silent:
    """No answer to the status call."""


@dataclass(frozen=True)
class Dead:
    reason: str


@dataclass(frozen=True)
class Failed:
    """Its loop ended with an error; `exit_code` where starting it again cannot help."""

    reason: str
    exit_code: int | None = None


Seen = Alive | Silent | Dead | Failed


@dataclass(frozen=True)
class Process:
    """What the supervisor remembers of one process. Times are of its monotonic clock."""

    name: str
    started_at: float
    progress: int = -1
    progressed_at: float = 0.0
    restarts: int = 0  # since it last ran steadily
    restart_at: float | None = None  # down, to be started then


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Restart:
    reason: str


@dataclass(frozen=True)
class Stop:
    reason: str
    exit_code: int


Decision = Nothing | Restart | Stop


def decide(
    process: Process, seen: Seen | None, now: float, hang_s: float, steady_s: float
) -> tuple[Process, Decision]:
    """The process as it is remembered from now on, and what to do. `seen` is None while it is down.

    One that ran for steady_s is forgiven its earlier restarts."""
    if process.restart_at is not None:
        if now < process.restart_at:
            return process, Nothing()
        up = replace(process, restart_at=None, started_at=now, progress=-1, progressed_at=now)
        return up, Restart(f"{process.name} is started again")
    match seen:
        case Alive(progress) if progress != process.progress:
            restarts = 0 if now - process.started_at > steady_s else process.restarts
            return replace(
                process, progress=progress, progressed_at=now, restarts=restarts
            ), Nothing()
        case Failed(reason, int(code)):
            return process, Stop(reason, code)
        case Dead(reason) | Failed(reason):
            return _down(process, now), Nothing()
        case _ if now - max(process.progressed_at, process.started_at) > hang_s:
            return _down(process, now), Nothing()
    return process, Nothing()


def _down(process: Process, now: float) -> Process:
    wait = BACKOFF_S[min(process.restarts, len(BACKOFF_S) - 1)]
    return replace(process, restarts=process.restarts + 1, restart_at=now + wait)


def slowest_others(floors: Mapping[str, int | None]) -> dict[str, int | None]:
    """For each shard the event time of the slowest partition of all others; None: there is none to wait for."""
    return {
        name: min(
            (f for other, f in floors.items() if other != name and f is not None), default=None
        )
        for name in floors
    }
