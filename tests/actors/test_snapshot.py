"""Folders on disk: whole or not at all, whatever happens while they are written or after."""

import json
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.folders import Folder, newest, write_folder
from actors.served import current_release, set_current, usable_release
from actors.snapshot import SLAB_BYTES, GroupSnapshot, restore, slab_slots
from actors.state import State, entity_bytes
from schemas.errors import ReleaseError, SnapshotError
from schemas.published import Manifest
from schemas.records import Decoded, Rows
from schemas.stream import Shape
from tests.actors.snapshot_kills import NEW, OLD, SHAPE, snapshot


def test_a_kill_at_any_call_to_the_disk_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.actors.snapshot_kills", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"open", "write", "fsync", "replace", "rename", "mkdir", "rmtree"} <= set(told["calls"])
    assert len(told["killed"]) == 2 * len(told["calls"]), "before or within each call, and after it"
    for at, after, positions, entities in told["killed"]:
        assert positions in ([OLD + 1], [NEW]), (at, after)
        assert entities == positions[0], "the state is of the positions that it names"
    assert {p[0] for _, _, p, _ in told["killed"]} == {OLD + 1, NEW}


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_bit_or_a_lost_end_of_any_file_is_noticed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    snapshot(tmp_path, 1, OLD)
    snapshot(tmp_path, 2, NEW)
    file = rng.choice(sorted((tmp_path / "1-2").iterdir()))
    data = bytearray(file.read_bytes())
    if seed % 2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    file.write_bytes(data)
    state = State(SHAPE, 8, 2, 64)
    assert newest(tmp_path, lambda folder: restore(folder, state)) == [OLD]
    assert list(state.index) == ["e0"]


def test_what_is_damaged_does_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    def load() -> list[int] | None:
        return newest(tmp_path, lambda folder: restore(folder, State(SHAPE, 8, 2, 64)))

    snapshot(tmp_path, 1, OLD)
    for number in range(2, 8):  # each time but one snapshot is written before the next damage
        snapshot(tmp_path, number, NEW)
        (tmp_path / f"1-{number}" / "manifest.json").write_bytes(b"{")
        assert load() == [OLD]
    for number in (8, 9):
        snapshot(tmp_path, number, NEW)
    assert load() == [NEW]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-8", "1-9"]


def test_what_others_leave_in_the_folder_is_not_taken_for_a_snapshot(tmp_path: Path) -> None:
    snapshot(tmp_path, 1, OLD)
    for name in ("5-7.bak", "lost+found", "x"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path, lambda folder: restore(folder, State(SHAPE, 8, 2, 64))) == [OLD]


def test_with_less_room_the_most_recently_touched_are_restored(tmp_path: Path) -> None:
    state = State(SHAPE, 8, 2, 64)
    for i in range(60):  # one micro-batch each: the later, the more recently touched
        rows = Rows.empty(SHAPE, 1)
        rows.time_us[:] = rows.position[:] = i
        state.apply(Decoded(rows, [f"e{i}"], np.zeros(1, np.bool_), np.zeros(1, np.int64)))
    taken = GroupSnapshot(tmp_path, "1-1", state, [60], {}, lambda: None)
    while not taken.done():
        if not taken.turn([60]):
            taken.wait(0.001)
    smaller = State(SHAPE, 8, 2, 20)
    newest(tmp_path, lambda folder: restore(folder, smaller))
    assert set(smaller.index) == {f"e{i}" for i in range(40, 60)}
    assert smaller.counts.evicted == 40
    assert all(smaller.last_us[slot] == int(name[1:]) for name, slot in smaller.index.items())


def test_a_format_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_folder(tmp_path, "1-1", [], dict)
    text = (tmp_path / "1-1" / "manifest.json").read_text()
    (tmp_path / "1-1" / "manifest.json").write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(SnapshotError):
        Folder.open(tmp_path / "1-1")


def some_manifest(number: int) -> Manifest:
    empty = dict.fromkeys(("stream", "entity", "time", "time_unit"), "")
    empty |= dict.fromkeys(("encode_sha256", "step_sha256"), "of a graph")
    lists = dict.fromkeys(
        ("fields", "numbers", "categories", "encode", "encode_out", "step", "step_out"), ()
    )
    whole = dict.fromkeys(("created_us", "dim", "window", "session_gap_us", "state"), 1)
    return Manifest(release=number, generation=1, **empty, **lists, **whole)  # type: ignore[arg-type]


def test_a_damaged_release_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for number in (1, 2):
        meta = msgspec.to_builtins(some_manifest(number))
        write_folder(
            tmp_path,
            str(number),
            [("encode.onnx", b"graph"), ("step.onnx", b"graph")],
            lambda m=meta: m,
        )  # type: ignore[misc]
    set_current(tmp_path, 2)
    file = tmp_path / "2" / "encode.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    assert usable_release(tmp_path) == current_release(tmp_path) == 1
    set_current(tmp_path, 2)
    (tmp_path / "1" / "step.onnx").unlink()
    with pytest.raises(ReleaseError, match="none of the releases up to 2 is whole"):
        usable_release(tmp_path)
    assert usable_release(tmp_path / "nowhere") == 0


@pytest.mark.parametrize(("side", "window"), [(8, 1), (64, 4), (224, 64), (1024, 256)])
def test_a_slab_is_small_whatever_a_ring_holds(side: int, window: int) -> None:
    """Two copies of one are held, and the stream waits for each: two of 16 large rings would be gigabytes."""
    state = State(Shape(0, 1, side=side, keep="pixels"), window, 8, 1)
    each = entity_bytes(state.shape, window, 8)
    assert slab_slots(state) * each <= max(SLAB_BYTES, each)
