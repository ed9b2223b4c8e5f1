"""Killed at every file-system call of a snapshot: run as a program, for it forks at each point.

Prints a JSON list of [name of the call, how many were made before, positions restored after the kill]."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.folders import newest
from actors.snapshot import GroupSnapshot, restore
from actors.state import State
from schemas.records import Decoded, Rows
from schemas.stream import Shape

SHAPE = Shape(1, 1)
OLD, NEW = 1, 3  # positions of the snapshot that is there, and of the one that is killed


def state_of(records: int) -> State:
    state = State(SHAPE, 8, 2, 64)
    rows = Rows.empty(SHAPE, records)
    rows.time_us[:] = rows.position[:] = np.arange(records)
    names = [f"e{i}" for i in range(records)]
    state.apply(Decoded(rows, names, np.zeros(records, np.bool_), np.zeros(records, np.int64)))
    return state


def snapshot(root: Path, number: int, records: int) -> None:
    taken = GroupSnapshot(root, f"1-{number}", state_of(records), [records], {}, lambda: None)
    while not taken.done():
        if not taken.turn([records]):
            taken.wait(0.001)
    taken.result()


class Points:
    """Counts the calls that reach the disk; the process ends at one of them, before, after or within it."""

    def __init__(self, at: int, after: bool) -> None:
        self._at, self._after, self.calls = at, after, list[str]()

    def watch(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._do(name, lambda: real(*args, **kwargs))

        setattr(owner, name, call)

    def watch_writes(self) -> None:
        real = Path.open

        def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
            file = self._do("open", lambda: real(path, *args, **kwargs))
            if "w" in "".join(map(str, args)):
                write = file.write
                file = _Half(file, lambda data: self._do("write", lambda: write(data)), self)
            return file

        Path.open = opened  # type: ignore[method-assign]

    @property
    def here(self) -> bool:
        return len(self.calls) == self._at

    def _do(self, name: str, call: Callable[[], Any]) -> Any:
        if self.here and not self._after:
            os._exit(9)
        self.calls.append(name)
        try:
            return call()
        finally:
            if len(self.calls) == self._at + 1 and self._after:
                os._exit(9)


class _Half:
    """A file whose process dies when half of a write has reached the system."""

    def __init__(self, file: Any, write: Callable[[bytes], Any], points: Points) -> None:
        self._file, self._write, self._points = file, write, points

    def write(self, data: bytes) -> Any:
        if self._points.here:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
        return self._write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Half":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def killed(root: Path, at: int, after: bool) -> list[str] | None:
    """The calls made, where it came to its end; None where it was killed."""
    read, write = os.pipe()
    if os.fork() == 0:
        points = Points(at, after)
        points.watch_writes()
        for owner, name in (
            (os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (shutil, "rmtree"),
        ):  # fmt: skip
            points.watch(owner, name)
        snapshot(root, 3, NEW)
        os.write(write, json.dumps(points.calls).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as told:
        text = told.read()
    return json.loads(text) if text else None


def main(folder: Path) -> None:
    found = []
    for after in (False, True):
        for at in range(10_000):
            root = folder / f"{after}-{at}"
            snapshot(root, 1, OLD)
            snapshot(root, 2, OLD + 1)
            calls = killed(root, at, after)
            if calls is not None:
                break
            state = State(SHAPE, 8, 2, 64)
            positions = newest(root, lambda f, s=state: restore(f, s))  # type: ignore[misc]
            found.append([at, after, positions, len(state.index)])
            snapshot(root, 4, NEW + 1)  # and the next one is not disturbed by what was left
            shutil.rmtree(root)
    sys.stdout.write(json.dumps({"killed": found, "calls": calls}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
