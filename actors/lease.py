"""One writer per service: a lease file in the state folder, and epochs that never come back.

The holder rewrites the file with a growing counter; whoever sees the counter unchanged for `lease_s` of its
own monotonic clock may take it, by creating `epoch-<n+1>` exclusively. No clock is compared between machines."""

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.folders import sync_folder, write_file
from actors.private import private_folder
from schemas.errors import LeaseHeld, LeaseLost

FILE = "lease.json"
_WIDTH = 512


@dataclass
class Lease:
    """The service's folder, held. `renew` at least every `lease_s / 3`."""

    folder: Path
    holder: str
    epoch: int
    counter: int = 0

    def renew(self) -> None:
        """Raises LeaseLost where a successor has taken a newer epoch."""
        self.check()
        self.counter += 1
        body = {
            "holder": self.holder,
            "epoch": self.epoch,
            "counter": self.counter,
            "process": _process(),
        }
        _write(self.folder / FILE, json.dumps(body).encode())
        self.check()

    def check(self) -> None:
        newest = newest_epoch(self.folder)
        if newest != self.epoch:
            raise LeaseLost(
                f"the lease on {self.folder} is held by epoch {newest}, ours was {self.epoch}: "
                "a successor took over while this process stood still. It stops and writes nothing more."
            )

    def release(self) -> None:
        """Says that the holder has gone, so that a successor need not wait."""
        with suppress(OSError, LeaseLost):
            self.check()
            body = {"holder": "", "epoch": self.epoch, "counter": self.counter + 1, "process": ""}
            write_file(self.folder / FILE, json.dumps(body).encode())


def newest_epoch(folder: Path) -> int:
    return max((int(p.name[6:]) for p in folder.glob("epoch-*")), default=0)


def refuse_replaced(folder: Path, lease: int, whose: str) -> None:
    """For those who work under a lease without holding it. Raises LeaseLost once a newer one was taken."""
    if newest_epoch(folder) > lease:
        raise LeaseLost(f"{folder}: a successor holds the lease; {whose} stops.")


def _write(file: Path, data: bytes) -> None:
    """On a full disk over what is there already: a holder that is well must not seem gone."""
    try:
        write_file(file, data)
    except OSError:
        with file.open("r+b") as f:
            f.write(data.ljust(_WIDTH))
            f.truncate()
            f.flush()
            os.fsync(f.fileno())


def _read(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / FILE).read_bytes())
    except OSError:
        return {}
    except ValueError:  # somebody is writing it at this moment
        return {"holder": "?"}
    return found if isinstance(found, dict) else {}


def _process(pid: int | None = None) -> str:
    """Names a process so that another on the same kernel can tell whether it lives; '' elsewhere."""
    pid = os.getpid() if pid is None else pid
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *after = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        if state in "ZX":
            return ""  # dead, and nobody has asked for its exit code
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}:{pid}:{after[18]}"
    except (OSError, IndexError):
        return ""


def _gone(process: object) -> bool:
    """Whether the named process ran on this very kernel and is dead."""
    if not isinstance(process, str) or not process:
        return False
    parts = process.rsplit(":", 2)
    return (
        process.rsplit(":", 2)[0] == _process().rsplit(":", 2)[0]
        and parts[1].isdigit()
        and _process(int(parts[1])) != process
    )


def take(
    folder: Path,
    *,
    lease_s: float,
    clock: Callable[[], float],
    wait: Callable[[float], object],
    standby: bool = False,
) -> Lease:
    """Takes the lease. A live holder: raises LeaseHeld, or with `standby` waits until it is gone.

    `wait(seconds)` passes time and may raise to give up."""
    private_folder(folder, "state_dir")
    holder = f"{socket.gethostname()}:{os.getpid()}"
    raced = False
    while True:
        epoch = 1 + _vacant(folder, lease_s, clock, wait, standby=standby, raced=raced)
        try:
            return _created(Lease(folder, holder, epoch))
        except (FileExistsError, LeaseLost) as error:
            if not standby:
                raise LeaseHeld(
                    f"{folder}: another daemon took the lease at the same moment. Stop one of them, or start "
                    "this one with --standby."
                ) from error
            raced = True


def _vacant(
    folder: Path,
    lease_s: float,
    clock: Callable[[], float],
    wait: Callable[[float], object],
    *,
    standby: bool,
    raced: bool,
) -> int:
    """The newest epoch as of when nobody held it: whoever took a newer one since has won.

    raced: somebody has just taken it, and the file may not say so yet: wait for it to be renewed."""
    epoch, seen, since = newest_epoch(folder), _read(folder), clock()
    while raced or (seen.get("holder") and not _gone(seen.get("process"))):
        if clock() - since >= lease_s:
            break
        wait(min(0.2, lease_s / 10))
        newest, now = newest_epoch(folder), _read(folder)
        if now.get("counter") != seen.get("counter") or now.get("epoch") != seen.get("epoch"):
            if now.get("holder") and not standby:
                raise LeaseHeld(
                    f"{folder} is held by {now['holder']} (epoch {now.get('epoch')}), which is alive. Stop it "
                    "first, start with --standby to take over when it goes, or set another state_dir or name."
                )
            epoch, seen, since, raced = newest, now, clock(), False
    return epoch


def _created(lease: Lease) -> Lease:
    """Takes the lease's epoch. Raises FileExistsError or LeaseLost where another was quicker."""
    folder = lease.folder
    file = folder / f"epoch-{lease.epoch}"
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    sync_folder(folder)
    for old in folder.glob("epoch-*"):
        if int(old.name[6:]) < lease.epoch:
            with suppress(OSError):
                old.unlink()
    lease.renew()
    return lease
