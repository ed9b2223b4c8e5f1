"""What an operator asks of the publisher, as files beside the releases: to go back, or to release now.

The publisher looks for them in its loop. After a rollback it holds releases until it is asked for one."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.folders import write_file

ASKED, HELD, SNAPSHOT, RENEWAL = (
    "asked.json",
    "held",
    "snapshot-asked",
    "renewal-asked",
)


@dataclass(frozen=True)
class Request:
    """rollback: to which release; 0: make one now. force: whatever the gates say, but for parity."""

    rollback: int = 0
    force: bool = False


def ask(releases: Path, request: Request) -> None:
    _made(releases)
    write_file(releases / ASKED, json.dumps(asdict(request)).encode())


def take(releases: Path) -> Request | None:
    """What is asked, once."""
    path, asked = releases / ASKED, None
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_bytes())
        asked = Request(int(found["rollback"]), bool(found["force"]))
    with suppress(OSError):
        path.unlink()
    return asked


def ask_learner(learner: Path, what: str) -> None:
    """In the learner's folder: a SNAPSHOT now, so that there is something to release, or a RENEWAL of the
    reference that drift is measured against."""
    _made(learner)
    write_file(learner / what, b"")


def taken(learner: Path, what: str) -> bool:
    """Whether that is asked of the learner, once."""
    try:
        (learner / what).unlink()
    except OSError:
        return False
    return True


def _made(folder: Path) -> None:
    """Before the first snapshot or release there is none."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def hold(releases: Path, reason: str) -> None:
    write_file(releases / HELD, reason.encode())


def resume(releases: Path) -> None:
    with suppress(OSError):
        (releases / HELD).unlink()


def held(releases: Path) -> str:
    """Why no release comes by itself; empty where they do."""
    try:
        return (releases / HELD).read_text()
    except OSError:
        return ""
