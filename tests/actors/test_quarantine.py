"""A record that ends the process which decodes it does so twice at most; nothing else is lost or set aside."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import quarantine
from actors.decode import BadRecord, DecodeConfig, Decoder, make_decoder
from actors.folders import prune
from actors.ports import Batch, Headers
from actors.quarantine import KNOWN, MARKER, Quarantine
from actors.shard import Shard
from schemas.records import I64, Decoded
from tests.actors.messages import ipc
from tests.fake_sink import MemoryServer
from tests.fakes import Crash, Crashed, Letter, MemorySource, Record
from tests.services import STREAM, make_shard, record

MINE = b"boom!"


class Mined(Decoder):
    """Ends the process over a value that has a mine in it, and once at each of the named calls."""

    def __init__(self, form: str, kills: Sequence[int] = ()) -> None:
        self._real = make_decoder(STREAM, DecodeConfig(format=form))  # type: ignore[arg-type]
        self.sizes, self._kills = list[int](), set(kills)
        self.ended: Counter[bytes] = Counter()  # how often over which value

    def decode(
        self,
        topic_index: int,
        offsets: I64,
        timestamps_ms: I64,
        keys: Sequence[bytes | None],
        values: Sequence[Any],
        headers: Sequence[Headers] | None = None,
    ) -> tuple[Decoded, list[BadRecord]]:
        self.sizes.append(len(values))
        if len(self.sizes) in self._kills and len(values) > 1:
            raise Crashed
        for value in values:
            if value is not None and MINE in value:
                self.ended[value] += 1
                raise Crashed
        return self._real.decode(topic_index, offsets, timestamps_ms, keys, values, headers)


def message(form: str, number: int, mined: bool) -> tuple[bytes, list[str]]:
    """One message and whom it is of; a mined one is unlike any other."""
    what = f"{MINE.decode()}{number}" if mined else "x"
    if form == "json":
        return record(f"e{number % 5}", 1 + number, what=what).value or b"", [f"e{number % 5}"]
    names = [f"e{i % 5}" for i in range(number, number + 3)]
    rows = {"who": names, "at": [number + 1] * 3, "what": [what] * 3}
    return ipc(pa.RecordBatch.from_pydict(rows)), names


def opened(folder: Path, source: MemorySource, decoder: Decoder, restarts: int) -> Shard:
    shard = make_shard(folder, source, MemoryServer(), restarts)
    shard.decoder = decoder
    for group in shard.groups.values():
        group.quarantine = Quarantine(group.folder, source.topics)
    return shard


def run(
    folder: Path, source: MemorySource, decoder: Mined, sizes: list[int]
) -> tuple[Shard, list[Letter]]:
    """Starts again after each crash until all is read; the letters of all processes."""
    letters: list[Letter] = []
    for restarts in range(200):
        shard = opened(folder, source, decoder, restarts)
        try:
            turns = 0
            while any(source.lag(group) for group in shard.groups):
                shard.turn(sizes[turns % len(sizes)])
                turns += 1
        except Crashed:
            continue
        finally:
            for group in shard.groups.values():  # the threads of a process end with it
                if group.snapshot is not None:
                    group.snapshot.abandon()
            letters += shard.dead_letters.letters  # type: ignore[attr-defined]
        return shard, letters
    raise AssertionError("it crashes for ever")


def counts(shard: Shard) -> Counter[str]:
    found: Counter[str] = Counter()
    for group in shard.groups.values():
        for name, slot in group.state.index.items():
            found[name] += int(group.state.count[slot])
    return found


@given(
    form=st.sampled_from(["json", "arrow"]),
    mines=st.sets(st.integers(0, 59), max_size=4),
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=60, max_size=60),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    crashes=st.sets(st.integers(0, 59), max_size=3),
    kills=st.sets(st.integers(1, 40), max_size=3),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_two_crashes_for_each_such_record_and_nothing_else_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    mines: set[int],
    places: list[tuple[int, int]],
    sizes: list[int],
    crashes: set[int],
    kills: set[int],
) -> None:
    """Whatever the micro-batches, other crashes, and innocent kills of a process that decodes."""
    source = MemorySource((), ("one", "two"), 3)
    wanted: Counter[str] = Counter()
    mined: dict[tuple[int, int, int], bytes] = {}
    for number, (group, topic) in enumerate(places):
        value, names = message(form, number, number in mines)
        if number in mines:
            mined[group, topic, source._logs[group, topic].end] = value
        else:
            wanted.update(names)
        if number in crashes:
            source.put(Crash(group, topic))
        source.put(Record(value, b"k", group, topic))
    decoder = Mined(form, sorted(kills))
    shard, letters = run(tmp_path_factory.mktemp("state"), source, decoder, sizes)
    assert counts(shard) == wanted
    assert {letter.error for letter in letters} <= {"crashes_decoder"}
    found = {(b.group, b.topic, int(b.offsets[at])): b.values[at] for b, at, _, _, _ in letters}
    assert found == mined
    assert max(decoder.ended.values(), default=0) <= 2


def stream(n: int, mined: int) -> MemorySource:
    return MemorySource([Record(message("json", i, i == mined)[0], b"k") for i in range(n)])


def test_what_was_set_aside_is_not_decoded_when_an_older_snapshot_has_it_read_again(
    tmp_path: Path,
) -> None:
    source, decoder = stream(30, 12), Mined("json")
    run(tmp_path, source, decoder, [10])
    assert sum(decoder.ended.values()) == 2
    for folder in (tmp_path / "group-0").glob("*-*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    shard, letters = run(tmp_path, source, decoder, [7])
    assert sum(decoder.ended.values()) == 2, "it was decoded again"
    assert [letter.batch.offsets[letter.at] for letter in letters] == [12]
    assert sum(counts(shard).values()) == 29


def test_it_is_forgotten_once_every_kept_snapshot_is_past_it(tmp_path: Path) -> None:
    source, decoder = stream(30, 12), Mined("json")
    shard, _ = run(tmp_path, source, decoder, [10])
    known = tmp_path / "group-0" / KNOWN
    assert b'"aside":[["memory",12]]' in known.read_bytes()
    for _ in range(2):
        shard.groups[0].begin_snapshot(lambda: None, [])
        shard.snapshots.finish()
    opened(tmp_path, source, decoder, 100)
    assert b'"aside":[]' in known.read_bytes()


def test_an_innocent_kill_costs_one_slow_pass_and_is_forgotten(tmp_path: Path) -> None:
    source, decoder = stream(30, -1), Mined("json", kills=[2])
    shard, letters = run(tmp_path, source, decoder, [10])
    assert letters == [] and sum(counts(shard).values()) == 30
    assert decoder.sizes.count(1) == 10, "10 to 19 are decoded one at a time, once"
    assert b'"suspects":[]' in (tmp_path / "group-0" / KNOWN).read_bytes()


def test_the_marker_is_no_snapshot_and_survives_pruning(tmp_path: Path) -> None:
    source = stream(5, -1)
    shard = opened(tmp_path, source, Mined("json"), 0)
    folder = shard.groups[0].folder
    prune(folder, keep=0, upto="9-9")
    assert (folder / MARKER).exists()
    opened(tmp_path, source, Mined("json"), 1)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 100, b"\x02" + b"\x00" * 24, b"{"], ids=["none", "long", "like", "open"]
)
def test_what_is_no_marker_and_no_list_accuses_nobody(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MARKER).write_bytes(data)
    (tmp_path / KNOWN).write_bytes(data)
    watch = Quarantine(tmp_path, ("t",))
    assert watch._known == quarantine.Known()


def test_where_the_disk_takes_no_marker_decoding_goes_on(tmp_path: Path) -> None:
    (tmp_path / "group").write_text("a file where the folder should be")
    watch = Quarantine(tmp_path / "group", ("t",))
    value = message("json", 1, mined=False)[0]
    batch = Batch(0, 0, np.array([7]), np.array([1]), [None], [value], 8)
    decoded, bad = watch.decode(batch, make_decoder(STREAM, DecodeConfig()))
    assert decoded.entities == ["e1"] and not bad


def test_a_process_that_was_replaced_marks_nothing_in_its_successors_name(tmp_path: Path) -> None:
    """It was stopped while it decoded, and goes on after another has opened the group."""
    zombie, decoder = Quarantine(tmp_path, ("t",)), Mined("json")
    successor = Quarantine(tmp_path, ("t",))
    values = [message("json", i, mined=i == 1)[0] for i in range(2)]
    batch = Batch(0, 0, np.arange(2), np.arange(2), [None] * 2, list(values), 2)
    with pytest.raises(Crashed):
        zombie.decode(batch, decoder)
    assert Quarantine(tmp_path, ("t",))._known == quarantine.Known()
    del successor
