"""A group's snapshot, in a durable folder.

A base is written slab by slab while the stream goes on: each slab is copied between two micro-batches and
carries the positions of that moment (`Marks`); a restored group reads again from the positions at which the
first slab was copied, and each entity skips what its slab already holds."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from actors.capacity import entity_bytes
from actors.cut import Columns, exchange, moved
from actors.folders import Folder, prune, write_folder
from actors.graves import mark_dead
from actors.state import SLAB, Marks, State
from schemas.errors import SnapshotError
from schemas.records import I64, Bool, ImageRows

SLAB_BYTES = 8 << 20
NODE_BYTES = 1 << 20  # of nodes' features in a file: copied into new memory


def slab_slots(state: State) -> int:
    """Slots of one slab: what the stream waits for is a copy of bounded size, whatever a ring holds."""
    each = entity_bytes(state.shape, state.window, state.hidden)
    return min(max(SLAB_BYTES // each, 1), SLAB)


def _columns(state: State) -> dict[str, np.ndarray]:
    columns = {name: getattr(state.rows, name) for name in _row_columns(state)}
    return columns | {name: getattr(state, name) for name in SLOT_COLUMNS}


def _warm(state: State) -> dict[str, np.ndarray]:
    """Room for a raw copy of one slab, touched: copies into new memory are many times slower."""
    n = slab_slots(state)
    return {
        name: np.full_like(c[:1], 1, shape=(n, *c.shape[1:])) for name, c in _columns(state).items()
    }


def _row_columns(state: State) -> list[str]:
    return [f.name for f in fields(state.rows)]


SLOT_COLUMNS = (
    "placed", "count", "totals", "first_us", "last_us", "since_us", "touched", "tag", "owed", "recurrent",
    "gone",
)  # fmt: skip


def _compact(raw: dict[str, np.ndarray], names: list[str | None], state: State) -> bytes:
    """A slab as safetensors: used slots, the rows that their rings hold, their names."""
    window = state.window
    used = np.flatnonzero(raw["count"][: len(names)] > 0)
    out = {name: raw[name][used] for name in SLOT_COLUMNS}
    rows = np.minimum(raw["placed"][used], window)
    valid = np.arange(window) < rows[:, None]  # a ring that is not full has its rows at 0..n
    for name in _row_columns(state):
        out[name] = raw[name][used][valid]
    text = [(names[i] or "").encode() for i in used.tolist()]
    out["name_bytes"] = np.frombuffer(b"".join(text), np.uint8)
    out["name_ends"] = np.cumsum([len(t) for t in text], dtype=np.int64)
    return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in out.items()})


class GroupSnapshot:
    """One snapshot under way. The shard calls `turn` between micro-batches until it is `done`."""

    def __init__(
        self,
        root: Path,
        name: str,
        state: State,
        positions: list[int],
        meta: dict[str, Any],
        before_commit: Callable[[], None],
    ) -> None:
        self.name, self.positions = name, list(positions)
        self._state, self._at, self._slabs = state, 0, list[dict[str, Any]]()
        self._queue: Queue[Any] = Queue(maxsize=1)
        self._buffers: Queue[dict[str, np.ndarray]] = Queue()
        self._slots = slab_slots(state)
        self._node_at, self._node_files = 0, list[str]()
        self._result: Path | BaseException | None = None
        self._meta = meta | {
            "positions": self.positions, "window": state.window, "hidden": state.hidden,
            "numbers": state.shape.numbers, "categories": state.shape.categories,
            "node numbers": state.shape.node_numbers, "node categories": state.shape.node_categories,
            "side": state.shape.side, "sides": list(state.shape.sides), "keep": state.shape.keep,
        }  # fmt: skip
        self._thread = Thread(target=self._write, args=(root, before_commit), daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether `turn` would copy: the writer has room."""
        full = self._queue.full() or self._buffers.empty()
        return not full and self._at >= 0 and self._result is None

    def turn(self, positions: list[int]) -> bool:
        """Copies one slab if the writer has room. True where it did: the stream waited for it."""
        if not self.ready():
            return False
        state = self._state
        lo, hi = self._at, min(self._at + self._slots, len(state.names))
        if lo >= len(state.names):
            if state.nodes is not None and self._node_at < state.nodes.used:
                # not as of one position: what is read again says it again, and the newest counts
                step = max(NODE_BYTES // (state.shape.node_bytes + 32), 16)
                self._queue.put((state.nodes.part(self._node_at, self._node_at + step),))
                self._node_at += step
                return True
            self._at = -1
            counts = {
                name: getattr(state.counts, name)
                for name in ("evicted", "deleted", "late", "too_old")
            }
            self._queue.put({"clock": state.clock, "life_us": state.life_us, "counts": counts})
            return False
        raw = self._buffers.get()
        for name, column in _columns(state).items():
            raw[name][: hi - lo] = column[lo:hi]
        self._queue.put((raw, state.names[lo:hi], list(positions)))
        self._at = hi
        return True

    def done(self) -> bool:
        return self._result is not None and not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Gives the writer time when the stream has nothing else to do."""
        self._thread.join(seconds)

    def result(self) -> Path:
        """The written folder. Raises what went wrong."""
        self._thread.join()
        if isinstance(self._result, BaseException):
            raise SnapshotError(
                f"the snapshot {self.name} failed: {self._result}"
            ) from self._result
        assert self._result is not None
        return self._result

    def abandon(self) -> None:
        """Gives up what is not finished; what is on disk already stays as it was."""
        if self._thread.is_alive():
            self._result = SnapshotError("abandoned")
            with suppress(Empty):
                self._queue.get_nowait()  # a slab that waits would leave no room for the word to stop
            self._queue.put(None)
            self._thread.join(timeout=5)

    def _write(self, root: Path, before_commit: Callable[[], None]) -> None:
        def files() -> Iterator[tuple[str, bytes]]:
            for _ in range(2):  # one is written while the next is copied
                self._buffers.put(_warm(self._state))
            while not isinstance(item := self._queue.get(), dict):
                if item is None:
                    raise SnapshotError("abandoned")
                if len(item) == 1:
                    file = f"nodes-{len(self._node_files):06d}.safetensors"
                    self._node_files.append(file)
                    yield file, safetensors.numpy.save(item[0])
                    continue
                raw, names, positions = item
                file = f"slab-{len(self._slabs):06d}.safetensors"
                self._slabs.append({"file": file, "positions": positions})
                data = _compact(raw, names, self._state)
                self._buffers.put(raw)
                yield file, data
            self._meta.update(item)
            before_commit()

        try:
            self._result = write_folder(
                root,
                self.name,
                files(),
                lambda: self._meta | {"slabs": self._slabs, "nodes": self._node_files},
            )
            prune(root, keep=2, upto=self.name)  # here, for it can take a second
        except BaseException as error:
            self._result = error
            with suppress(Exception):
                self._queue.get_nowait()


def restore(folder: Folder, state: State, fields: Sequence[str] = ()) -> list[int]:
    """Fills an empty `state` from a group's snapshot; returns the positions to read again from.

    The settings may have changed: the recurrent state is kept if its width is the same; of a longer ring the newest
    rows; of other fields (now named `fields`) what both have; of another side the pixels resized; of more entities than
    there is room for the least recently touched are left out (as if evicted)."""
    meta, shape = folder.meta, state.shape
    before, now = Columns.saved(meta), Columns.of(fields, shape)
    change = None if before == now or not fields else (before, now)
    widths = ("numbers", shape.numbers), ("categories", shape.categories), ("side", shape.side)
    for key, wanted in (*(widths if change is None else ()), ("keep", shape.keep)):
        if meta.get(key, wanted) != wanted:  # those of images came later than the format
            raise SnapshotError(
                f"{folder.path} was written with {key} = {meta[key]}, the settings say {wanted}. These may not "
                "change over a snapshot (docs/operations.md has the table): set it back, or start a stream "
                "of another name from source.start."
            )
    positions: list[int] = meta["positions"]
    topics = max(len(positions), 1)
    marks = Marks(
        np.zeros((len(meta["slabs"]), topics), np.int64), np.full(state.slots, -1, np.int64)
    )
    for s, slab in enumerate(meta["slabs"]):
        marks.offsets[s] = slab["positions"] or [0]
        same = meta["hidden"] == state.hidden
        tensors = folder.tensors(slab["file"])
        if change is not None:
            _exchange(tensors, *change, pixels=shape.kept_pixels > 0)
        _fill(state, tensors, marks, s, same_state=same, window=meta["window"])
    state.clock, state.life_us = meta["clock"], max(meta["life_us"], state.life_us)
    left_out = state.counts.evicted
    for name, value in meta["counts"].items():
        setattr(state.counts, name, value)
    state.counts.evicted += left_out
    state.counts.entities = len(state.index)
    state.marks = marks if meta["slabs"] else None
    if state.shape.graph:
        mark_dead(state)
    if state.nodes is not None:
        for file in meta.get("nodes", []):
            tensors = folder.tensors(file)
            if change is not None:
                exchange(tensors, before.blocks[2:], now.blocks[2:])
            state.nodes.take_part(tensors)
    return list(positions)


def _fill(
    state: State,
    t: dict[str, np.ndarray],
    marks: Marks,
    slab: int,
    *,
    same_state: bool,
    window: int,
) -> None:
    """window: rows of the rings that these were in."""
    blob, ends = t["name_bytes"].tobytes(), t["name_ends"].tolist()
    names = [blob[a:b].decode() for a, b in itertools.pairwise([0, *ends])]
    keep = _room_for(state, names, t["touched"], marks)
    t.setdefault("gone", np.zeros(len(names), np.bool_))  # came later than the format
    # the same name in two slabs: the entity moved; the later copy holds
    slots = np.array(
        [
            state.index[name] if name in state.index else state.slot_for(name)
            for name in itertools.compress(names, keep)
        ],
        np.int64,
    )
    for column in SLOT_COLUMNS:
        if column != "recurrent" or same_state:
            getattr(state, column)[slots] = t[column][keep]
    if not same_state:
        state.tag[slots] = 0
    rows: I64 = np.minimum(t["placed"], window)
    each = np.repeat(np.arange(len(names)), rows)
    at = np.arange(len(each)) - np.repeat(np.cumsum(rows) - rows, rows)
    kept = keep[each]
    if window != state.window:  # laid anew; what is older than these has left the ring
        age = (t["placed"][each] - 1 - at) % window
        placed = np.where(rows > state.window, t["placed"], rows)
        gone = (t["placed"] > window) | t["gone"]
        kept &= age < state.window
        at = (placed[each] - 1 - age) % state.window
        state.placed[slots], state.gone[slots] = (
            placed[keep],
            (gone & (placed <= state.window))[keep],
        )
    to = slots[(np.cumsum(keep) - 1)[each[kept]]], at[kept]
    for column in _row_columns(state):
        if column != "vector" or same_state:
            getattr(state.rows, column)[to] = t[column][kept]
    if isinstance(state.rows, ImageRows) and not same_state:
        state.rows.release[to] = 0
    marks.slab[slots] = slab


def _exchange(t: dict[str, np.ndarray], before: Columns, now: Columns, *, pixels: bool) -> None:
    """A slab's rows and totals with other columns: all its rows lack what is new."""
    exchange(t, before.blocks[:2], now.blocks[:2])
    t["totals"] = moved(t["totals"], before.numbers, now.numbers)
    if pixels and before.sides != now.sides:
        from actors.pixels import resized  # Pillow, for images alone

        t["pixels"] = resized(t["pixels"], before.sides, now.sides)


def _room_for(state: State, names: list[str], touched: I64, marks: Marks) -> Bool:
    """Which of a slab's entities to take: of them and those here, the least recently touched have to go
    where there is no room for all."""
    keep = np.ones(len(names), np.bool_)
    new = np.flatnonzero([name not in state.index for name in names])
    excess = len(state.index) + len(new) - state.slots
    if excess <= 0:
        return keep
    here = np.array(list(state.index.values()), np.int64)
    oldest = np.argpartition(np.concatenate([state.touched[here], touched[new]]), excess - 1)[
        :excess
    ]
    for slot in here[oldest[oldest < len(here)]].tolist():
        state._release(slot)
        marks.slab[slot] = -1
    keep[new[oldest[oldest >= len(here)] - len(here)]] = False
    state.counts.evicted += excess
    return keep
