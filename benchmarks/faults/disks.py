"""The disk of the state folder is full for a while, or gives back other bytes than were written."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from actors.folders import Folder, folders
from actors.served import current_release
from benchmarks.faults.outcome import Outcome, rounds_of
from benchmarks.faults.service import GROUPS, Service, until


@contextmanager
def small_disk(folder: Path, megabytes: int = 256) -> Iterator[bool]:
    """A tmpfs at `folder`; False where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "afresh", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def full(of: Service, rounds: int, seed: int) -> Outcome:
    """Snapshots fail and are counted, the last ones stay whole, serving goes on; with room again, so do they."""
    filler = of.settings.folder / "filler"

    def act(rng: random.Random) -> None:
        before = [folders(of.settings.group_folder(g))[0].name for g in range(GROUPS)]
        failed = of.metric("afresh_snapshot_failures_total")
        _fill(filler)
        try:
            of.send(rng.randrange(200, 600))
            until(of.settled, 60, of)
            until(lambda: of.metric("afresh_snapshot_failures_total") > failed, 60, of)
            for group, name in enumerate(before):
                manifest = of.settings.group_folder(group) / name / "manifest.json"
                newer = folders(of.settings.group_folder(group))[0]
                assert manifest.exists() or newer.name != name
                Folder.open(newer)
        finally:
            filler.unlink()
        written = of.snapshots()
        until(lambda: of.snapshots() > written, 30, of)

    return rounds_of(of, "disk full", rounds, seed, act)


def _fill(path: Path) -> None:
    chunk = bytes(1 << 20)
    with suppress(OSError), path.open("wb") as f:
        while True:
            f.write(chunk)
            f.flush()
    with suppress(OSError), path.open("ab", buffering=0) as f:  # the last pages
        while True:
            f.write(chunk[:512])


def damaged(of: Service, rounds: int, seed: int) -> Outcome:
    """A bit flips in, or the end is lost of, a file of the newest snapshots and of the served release."""

    s, last = of.settings, 0

    def act(rng: random.Random) -> None:
        nonlocal last
        until(of.settled, 60, of)
        until(lambda: of.snapshots() >= 1, 30, of)  # else there is none but the one damaged before
        until(lambda: current_release(s.releases) > last, 60, of)
        before = of.epoch()
        assert of.stop() == 0
        newest = [folders(s.group_folder(g))[0] for g in range(GROUPS)]
        newest.append(folders(s.folder / "learner")[0])
        current = current_release(s.releases)
        others = [p for p in s.releases.iterdir() if p.name.isdigit() and int(p.name) < current]
        if others:
            newest.append(s.releases / str(current))
            last = current
        for folder in newest:
            damage(rng.choice(sorted(p for p in folder.iterdir() if p.is_file())), rng)
        of.send(rng.randrange(1, 200))
        of.start()
        until(partial(of.succeeded, before), 90, of)
        assert not others or current_release(s.releases) != current

    return rounds_of(of, "bits flip on disk", rounds, seed, act)


def damage(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5 and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(max(len(data), 1)) :]
    file.write_bytes(data)
    os.sync()
