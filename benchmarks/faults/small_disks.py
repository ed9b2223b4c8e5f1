"""A disk that fails at a chosen call, and snapshot writers that can be waited for until they rest.

`installed` puts both under actors/folders.py and actors/snapshot.py. A process that is killed, or loses its
power, in the middle of a write touches the disk no more: not even to clean up."""

import os
import shutil
import stat
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PosixPath
from queue import Queue
from types import TracebackType
from typing import Any, BinaryIO

import actors.folders
import actors.snapshot


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """The attribute is another while the block runs."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Disk:
    """One process's sight of the disk. `fail(calls, how)`: the how-manieth call from now fails.

    "full": that call, and the next few. "killed": the process is gone, before or after it. "power": so is
    what was not synced."""

    def __init__(self) -> None:
        self.dead = False
        self._left, self._how, self._after, self._cut = 0, "", False, False
        self._unsynced: dict[int, Path] = {}  # inode -> file
        self._renames: deque[tuple[Path, Path]] = deque()  # not yet in a synced folder

    def fail(self, calls: int, how: str, after: bool) -> None:
        self._left, self._how, self._after = calls, how, after

    def heal(self) -> None:
        self._left, self._how = 0, ""

    def call(self) -> bool:
        """Before every call. True: it is done, and the process dies after it."""
        if self.dead:
            raise OSError("the process is gone")
        if not self._how:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        if self._how == "full":
            if self._left < -3:
                self.heal()
            raise OSError(28, "No space left on device")
        self._cut = self._how == "power"
        if not self._after:
            self.die()
        return True

    def die(self) -> None:
        self.dead = True
        if self._cut:
            self.power_cut(undo=not self._after)
        raise OSError("the process is gone")

    def power_cut(self, undo: bool) -> None:
        """What was not synced is lost: half of each file; and the renames, or not."""
        self.dead = True
        while self._renames:
            source, target = self._renames.pop()
            if undo and target.exists():
                os.rename(target, source)
            elif not undo:
                self._unsynced = {
                    inode: target / path.name if path.parent == source else path
                    for inode, path in self._unsynced.items()
                }
        for path in self._unsynced.values():
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)

    def wrote(self, fd: int, path: Path) -> None:
        self._unsynced[os.fstat(fd).st_ino] = path

    def synced(self, fd: int) -> None:
        found = os.fstat(fd)
        self._unsynced.pop(found.st_ino, None)
        if stat.S_ISDIR(found.st_mode):
            self._renames.clear()

    def renamed(self, source: Path, target: Path) -> None:
        self._renames.append((source, target))


def _disk() -> Disk | None:
    """Of the process whose thread this is; None: the thread is the simulation's own."""
    return getattr(threading.current_thread(), "disk", None)


class SmallOs:
    """The os module, as far as snapshots are written with it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, fd: int) -> None:
        self._call(os.fsync, fd)
        if (disk := _disk()) is not None:
            disk.synced(fd)

    def rename(self, source: Path, target: Path) -> None:
        if (disk := _disk()) is not None and not disk.dead:
            disk.renamed(source, target)
        self._call(os.rename, source, target)

    def replace(self, source: Path, target: Path) -> None:
        self._call(os.replace, source, target)

    def open(self, path: Path, flags: int) -> int:
        self._call(lambda: None)
        return os.open(path, flags)

    def _call(self, function: Any, *args: Any) -> None:
        disk = _disk()
        dies = disk is not None and disk.call()
        function(*args)
        if dies and disk is not None:
            disk.die()


class SmallShutil:
    @staticmethod
    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        disk = _disk()
        if disk is None or not disk.dead:
            shutil.rmtree(path, ignore_errors)


class SmallPath(PosixPath):
    """Files that are written through the writer's disk."""

    def open(self, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "w" not in mode or _disk() is None:
            return super().open(mode, *args, **more)
        return SmallFile(self)


class SmallFile:
    def __init__(self, path: Path) -> None:
        self._disk = _disk()
        assert self._disk is not None
        self._dies = self._disk.call()
        self._file: BinaryIO = Path.open(Path(path), "wb")
        self._disk.wrote(self._file.fileno(), Path(path))

    def __enter__(self) -> "SmallFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        assert self._disk is not None
        if self._dies or self._disk.call():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._disk.die()
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


# -- threads that rest ----------------------------------------------------------------------------


class Writer(threading.Thread):
    """A snapshot's thread. `rest` returns once it waits for the stream, or has ended."""

    disk: Disk  # of the process that turns at the moment
    made: list["Writer"]

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.disk = type(self).disk
        self.idle, self.ended = threading.Event(), False
        self.queue: Queue[Any] | None = None
        self.made.append(self)

    def run(self) -> None:
        super().run()
        self.ended = True
        self.idle.set()

    def join(self, timeout: float | None = None) -> None:
        """Does not wait for time to pass where the thread rests."""
        self.rest()
        if self.ended:
            super().join(timeout)

    def rest(self) -> None:
        if self.ident is None:  # its process died before it began
            return
        if not self.idle.wait(30):
            raise RuntimeError("a snapshot's writer does not come to rest")

    def end(self) -> None:
        """Its process is gone."""
        self.rest()
        self.disk.dead = True
        if self.is_alive() and self.queue is not None:
            self.queue.put(None)
            self.join(30)


class Hand(Queue[Any]):
    """A queue that tells when its reader waits."""

    reader: Writer | None = None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        thread = threading.current_thread()
        if not isinstance(thread, Writer):
            return super().get(block, timeout)
        with self.not_empty:
            self.reader, thread.queue = thread, self
            while block and not self._qsize():
                thread.idle.set()
                self.not_empty.wait()
        return super().get(block, timeout)

    def _put(self, item: Any) -> None:
        if self.reader is not None:
            self.reader.idle.clear()
        super()._put(item)


@contextmanager
def installed(slab: int) -> Iterator[None]:
    """Under actors/folders.py and actors/snapshot.py, for the block. `slab`: slots of a slab."""
    Writer.made, Writer.disk = [], Disk()
    with ExitStack() as stack:
        for module, name, value in (
            (actors.folders, "os", SmallOs()),
            (actors.folders, "shutil", SmallShutil),
            (actors.snapshot, "Thread", Writer),
            (actors.snapshot, "Queue", Hand),
            (actors.snapshot, "slab_slots", lambda _: slab),
        ):
            stack.enter_context(replaced(module, name, value))
        try:
            yield
        finally:
            for writer in Writer.made:
                writer.end()
