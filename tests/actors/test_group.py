"""A group takes its own records and says which are not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import actors.generation
from actors.decode import DecodeConfig, make_decoder
from actors.group import Group
from actors.partitioner import partition_of
from actors.ports import Batch
from actors.state import State
from tests.actors.messages import ipc
from tests.services import STREAM, record


def names(home: int, n: int, partitions: int = 3) -> list[str]:
    """Entities of this partition."""
    found = (f"e{i}" for i in range(1000) if partition_of(b"e%d" % i, partitions) == home)
    return [next(found) for _ in range(n)]


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_a_message_with_misplaced_rows_makes_one_letter(tmp_path: Path, form: str) -> None:
    """However many they are; its other rows are taken."""
    mine, others = names(1, 4), names(2, 4)
    if form == "arrow":
        rows = [mine[0], others[0], mine[1], others[1], others[2]]
        all_mine = ipc(pa.RecordBatch.from_pydict({"who": mine[2:], "at": [1, 2]}))
        mixed = ipc(pa.RecordBatch.from_pydict({"who": rows, "at": [1, 2, 3, 4, 5]}))
        values = [all_mine, mixed, mixed]
    else:
        values = [record(name, 1).value for name in (mine[0], others[0], others[1])]
    state = State(STREAM.shape, 8, 8, 64)
    group = Group(1, 1, ("t",), state, [10], tmp_path, partitions=3)
    n = len(values)
    batch = Batch(1, 0, np.arange(n) * 2 + 10, np.arange(n), [None] * n, values, 10 + 2 * n)
    _, decoded, bad = group.decode(batch, make_decoder(STREAM, DecodeConfig(format=form)), 0)  # type: ignore[arg-type]
    assert [(b.at, b.error, b.row) for b in bad] == [(1, "misplaced", None), (2, "misplaced", None)]
    assert all(repr(others[0]) in b.reason for b in bad[: 1 + (form == "arrow")])
    assert all(("2 more rows" in b.reason) == (form == "arrow") for b in bad)
    taken = [*mine[2:], *mine[:2], *mine[:2]] if form == "arrow" else mine[:1]
    assert decoded.entities == taken and len(decoded.rows) == len(taken)


def test_who_is_owed_gets_its_turn_though_others_are_owed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something new of a node of very many neighbours owes all of them a vector, every second."""
    monkeypatch.setattr(actors.generation, "QUEUE", 8)
    state = State(STREAM.shape, 8, 8, 64)
    group = Group(0, 1, ("t",), state, [0], tmp_path)
    state.touched[:40] = np.arange(40)
    owed, seen = np.arange(40), set[int]()
    for _ in range(12):
        queue = group.served.next_owed(owed).tolist()
        assert len(queue) <= 8 and queue[0] == 39, "the most recently touched first"
        seen |= set(queue)
    assert seen == set(range(40))
    monkeypatch.setattr(actors.generation, "QUEUE", 64)
    assert group.served.next_owed(owed).tolist() == owed[::-1].tolist()
