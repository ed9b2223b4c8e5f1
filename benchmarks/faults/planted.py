"""Bugs that the simulation must find: each breaks one rule of the design while its block runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import actors.group
import actors.snapshot
from actors.encode import Release
from actors.folders import Folder
from actors.group import Group
from actors.ports import Batch
from actors.sink import Sink, WriteResult
from actors.skew import Piece
from actors.snapshot import GroupSnapshot
from actors.state import State
from benchmarks.faults.small_disks import SmallOs, replaced
from tests.fake_sink import Fence, MemorySink

Bug = Callable[[], AbstractContextManager[None]]


def _nothing(*args: object) -> None:
    del args


def no_fence() -> AbstractContextManager[None]:
    """The server takes writes of older epochs."""
    right = MemorySink.write

    def write(self: MemorySink, group: int, epoch: int, *args: Any) -> WriteResult:
        fence = self.server.groups.get(group)
        if fence is None or fence.epoch <= epoch:
            return right(self, group, epoch, *args)
        self.server.groups[group] = Fence(epoch, fence.write, fence.positions)
        try:
            return right(self, group, epoch, *args)
        finally:
            self.server.groups[group] = fence

    return replaced(MemorySink, "write", write)


def positions_after_vectors() -> AbstractContextManager[None]:
    """A write that stops halfway leaves vectors whose positions Redis does not know."""
    right = MemorySink.write

    def write(self: MemorySink, group: int, *args: Any) -> WriteResult:
        fence = self.server.groups.get(group)
        before = (fence.write, fence.positions) if fence else (0, {})
        try:
            return right(self, group, *args)
        except BaseException:
            if fence:
                fence.write, fence.positions = before
            raise

    return replaced(MemorySink, "write", write)


def no_silent_replay() -> AbstractContextManager[None]:
    """What is replayed is written, though readers have seen more."""
    right = Group.raise_fence

    def raise_fence(self: Group, sink: Sink) -> None:
        right(self, sink)
        self.silent_until = [0] * len(self.topics)

    return replaced(Group, "raise_fence", raise_fence)


def offsets_committed_early() -> AbstractContextManager[None]:
    """A snapshot's positions are those of its last slab, not of its first."""
    right = GroupSnapshot.turn

    def turn(self: GroupSnapshot, positions: list[int]) -> bool:
        self._meta["positions"] = list(positions)
        return right(self, positions)

    return replaced(GroupSnapshot, "turn", turn)


def no_marks() -> AbstractContextManager[None]:
    """A restored group counts again what its slabs already hold."""
    right = actors.snapshot.restore

    def restore(folder: Folder, state: State) -> list[int]:
        positions = right(folder, state)
        state.marks = None
        return positions

    return replaced(actors.group, "restore", restore)


def redelivered_batches_are_taken_again() -> AbstractContextManager[None]:
    right = Group.decode

    def decode(self: Group, batch: Batch, decoder: Any, reached: int) -> Any:
        del reached
        return right(self, batch, decoder, 0)

    return replaced(Group, "decode", decode)


def waiting_records_passed() -> AbstractContextManager[None]:
    """A partition stands behind records of it that wait for slower ones."""
    right = Piece.split

    def split(self: Piece, limit_us: int) -> tuple[Piece | None, Piece | None]:
        first, rest = right(self, limit_us)
        return first and first._replace(next_offset=self.next_offset), rest

    return replaced(Piece, "split", split)


def letters_not_flushed() -> AbstractContextManager[None]:
    """A snapshot passes bad records whose letters are not durable."""
    right = Group.begin_snapshot

    def begin_snapshot(self: Group, before_commit: Callable[[], None], *more: Any) -> None:
        del before_commit
        right(self, lambda: None, *more)

    return replaced(Group, "begin_snapshot", begin_snapshot)


def debts_forgotten() -> AbstractContextManager[None]:
    """A snapshot does not say what Redis lacks."""
    right = actors.snapshot.restore

    def restore(folder: Folder, state: State) -> list[int]:
        positions = right(folder, state)
        state.owed[:] = False
        return positions

    return replaced(actors.group, "restore", restore)


def swaps_not_counted() -> AbstractContextManager[None]:
    """Tags are trusted, however often the release was swapped in between (decision 0006)."""
    right = Group.owe_release

    def owe_release(self: Group, current: Release, swap: int) -> None:
        self.swap = swap
        right(self, current, swap)

    return replaced(Group, "owe_release", owe_release)


def refusals_ignored() -> AbstractContextManager[None]:
    """What Redis did not take is not written again."""
    return replaced(Group, "refused", _nothing)


def nothing_synced() -> AbstractContextManager[None]:
    """A power cut takes files that a manifest vouches for."""
    return replaced(SmallOs, "fsync", _nothing)


def losses_not_numbered() -> AbstractContextManager[None]:
    """A Redis that was emptied, and filled in part by a process that died, passes for full."""
    right = Group.owe_everything

    def owe_everything(self: Group) -> None:
        right(self)
        self.loss = 0

    return replaced(Group, "owe_everything", owe_everything)


BUGS: dict[str, Bug] = {
    "no fence": no_fence,
    "positions after vectors": positions_after_vectors,
    "no silent replay": no_silent_replay,
    "offsets committed early": offsets_committed_early,
    "no marks": no_marks,
    "redelivered batches are taken again": redelivered_batches_are_taken_again,
    "waiting records passed": waiting_records_passed,
    "letters not flushed": letters_not_flushed,
    "debts forgotten": debts_forgotten,
    "swaps not counted": swaps_not_counted,
    "refusals ignored": refusals_ignored,
    "losses not numbered": losses_not_numbered,
    "nothing synced": nothing_synced,
}
