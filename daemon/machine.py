"""What the machine, or the container, has."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def limits(mine: str, root: Path = CGROUPS) -> list[Path]:
    """Files that may hold a limit: of each control group that the process is in. mine: its /proc/self/cgroup."""
    found = [root / "memory" / "memory.limit_in_bytes"]  # of version 1
    for line in mine.splitlines():
        if line.startswith("0::"):  # version 2
            folder = root / line[3:].strip("/")
            found += [f / "memory.max" for f in (folder, *folder.parents) if f.is_relative_to(root)]
    return found


def memory_limit(files: Iterable[Path] | None = None) -> int:
    """Bytes: the machine's, or fewer where a container or a service may have no more."""
    if files is None:
        mine = ""
        with suppress(OSError):
            mine = Path("/proc/self/cgroup").read_text()
        files = limits(mine)
    limit = int(psutil.virtual_memory().total)
    for file in files:
        with suppress(OSError, ValueError):  # not there, or "max"
            limit = min(limit, int(file.read_text()))
    return limit


def disk(folder: Path) -> tuple[int, int]:
    """Size and free bytes of the filesystem; zeros while there is no such folder."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return usage.total, usage.free
