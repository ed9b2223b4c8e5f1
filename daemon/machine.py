"""What the machine, or the container, has."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory_limit(cgroup: Sequence[Path] = CGROUP) -> int:
    """Bytes: the machine's, or fewer where a container may have no more."""
    limit = int(psutil.virtual_memory().total)
    for file in cgroup:
        try:
            limit = min(limit, int(file.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return limit


def disk(folder: Path) -> tuple[int, int]:
    """Size and free bytes of the filesystem; zeros while there is no such folder."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return usage.total, usage.free
