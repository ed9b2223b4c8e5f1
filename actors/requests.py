"""What an operator asks of the publisher, as files beside the releases: to go back, or to release now.

The publisher looks for them in its loop. After a rollback it holds releases until it is asked for one."""

from contextlib import suppress
from pathlib import Path

import msgspec

from actors.folders import write_file

ASKED, HELD, SNAPSHOT, RENEWAL, ADAPTATION = (
    "asked.json",
    "held",
    "snapshot-asked",
    "renewal-asked",
    "adaptation-asked",
)


class Request(msgspec.Struct, frozen=True):
    """rollback: to which release; 0: make one now. force: whatever the gates say, but for parity."""

    rollback: int = 0
    force: bool = False


def ask(releases: Path, request: Request) -> None:
    _made(releases)
    write_file(releases / ASKED, msgspec.json.encode(request))


def take(releases: Path) -> Request | None:
    """What is asked, once."""
    path = releases / ASKED
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Request)
    except (OSError, msgspec.MsgspecError):
        found = None
    with suppress(OSError):
        path.unlink()
    return found


def ask_learner(learner: Path, what: str) -> None:
    """In the learner's folder: a SNAPSHOT now, so that there is something to release, a RENEWAL of the
    reference that drift is measured against, or an ADAPTATION of the normaliser to what came last."""
    _made(learner)
    write_file(learner / what, b"")


def taken(learner: Path, what: str) -> bool:
    """Whether that is asked of the learner, once."""
    try:
        (learner / what).unlink()
    except OSError:
        return False
    return True


def begun(learner: Path, what: str) -> bool:
    """As `taken`, but what follows from it is in no snapshot before: until it is `done` it is `under_way`,
    also after a restart."""
    try:
        (learner / what).rename(_begun(learner, what))
    except OSError:
        return False
    return True


def under_way(learner: Path, what: str) -> bool:
    return _begun(learner, what).exists()


def done(learner: Path, what: str) -> None:
    with suppress(OSError):
        _begun(learner, what).unlink()


def _begun(learner: Path, what: str) -> Path:
    return learner / f"{what}.begun"


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
