"""The learner's process: what it takes, what it snapshots, what it skips when restored."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from actors.candidate import ENCODER_FILE, RESIDENT_FILE, ReleaseConfig
from actors.folders import Folder, folders, write_folder
from actors.learn import Learn, Part
from actors.orders import Orders
from actors.requests import ADAPTATION, RENEWAL, ask_learner
from actors.served import set_current
from learning.config import LearnerConfig, ReplayConfig
from schemas.errors import SnapshotError
from schemas.published import Manifest
from schemas.records import Windows
from tests.learning import edge_streams
from tests.learning.edge_streams import CONFIG as EDGES
from tests.learning.edge_streams import ENCODER as NODES
from tests.learning.streams import random_windows
from tests.services import ENCODER, STREAM

SHAPE = STREAM.shape
CONFIG = LearnerConfig(
    batch_entities=8,
    min_entities=8,
    updates_per_record=1.0,
    warmup_updates=2,
    queue_bytes=1 << 16,
    replay=ReplayConfig(max_bytes=1 << 20),
)
NEVER = ReleaseConfig(first_s=1e9, every_s=1e9)
RELEASE = ReleaseConfig(first_s=5.0, every_s=60.0, every_updates=3)


class FakeClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def learn(folder: Path, clock: FakeClock | None = None, epoch: int = 1, **changed: object) -> Learn:
    encoder, release = changed.pop("encoder", ENCODER), changed.pop("release", RELEASE)
    config = LearnerConfig(**{n: getattr(CONFIG, n) for n in CONFIG.__struct_fields__} | changed)
    return Learn(config, encoder, SHAPE, folder, epoch, release, clock or FakeClock())  # type: ignore[arg-type]


def windows(seed: int, entities: int = 40) -> Windows:
    return random_windows(np.random.default_rng(seed), entities, SHAPE, ENCODER.window)


def part(position: int, seed: int = 0, group: int = 0, entities: int = 40) -> Part:
    return group, [position], windows(seed, entities)


def saved(folder: Path, file: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(Folder.open(folders(folder)[0]).read(file))


def names(folder: Path) -> list[str]:
    return [path.name for path in folders(folder)]


def test_it_waits_for_enough_to_learn_from(tmp_path: Path) -> None:
    learner = learn(tmp_path)
    assert not learner.turn()
    learner.offer([part(5, entities=3)])
    assert not learner.turn()
    assert learner.stats().received == 3
    learner.offer([part(9)])
    assert learner.turn()
    assert learner.stats().updates == 1
    assert learner.stats().progress == 3


def test_it_snapshots_when_a_release_is_due(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock)
    learner.offer([part(5)])
    for _ in range(4):
        learner.turn()
    assert not names(tmp_path), "not so soon"
    clock.now += 5.0
    learner.turn()
    assert names(tmp_path) == ["1-1"]
    assert learner.stats().snapshot == "1-1"
    clock.now += 59.0
    learner.turn()
    assert learner.stats().snapshot_age_s == 59.0
    clock.now += 1.0
    learner.turn()
    assert names(tmp_path) == ["1-1"], "too few updates since"
    learner.turn()
    assert names(tmp_path) == ["1-2", "1-1"]
    assert set(saved(tmp_path, ENCODER_FILE)) >= {"out.weight", "fields.mean"}
    assert Folder.open(folders(tmp_path)[0]).meta["updates"] == 8


def test_what_is_new_is_saved_at_the_end(tmp_path: Path) -> None:
    learner = learn(tmp_path)
    learner.offer([part(5)])
    turns = iter([False, False, True])
    learner.run(lambda: next(turns))
    assert Folder.open(folders(tmp_path)[0]).meta["updates"] == 2
    learner.run(lambda: True)
    assert names(tmp_path) == ["1-1"], "nothing is new"


def test_a_restored_one_continues(tmp_path: Path) -> None:
    first = learn(tmp_path)
    first.offer([part(5), part(7, seed=1, group=1)])
    turns = iter([False] * 4 + [True])
    first.run(lambda: next(turns))
    second = learn(tmp_path, epoch=2)
    assert second.stats().updates == first.stats().updates == 4
    for learner in (first, second):
        assert learner.turn()
    assert second.stats().gradient_norm == first.stats().gradient_norm
    second.run(lambda: True)
    assert names(tmp_path) == ["2-2", "1-1"], "the newest, whatever the epochs"


def test_a_restored_one_skips_what_it_has_learnt_from(tmp_path: Path) -> None:
    first = learn(tmp_path)
    first.offer([part(5), part(7, seed=1, group=1)])
    first.turn()
    first.run(lambda: True)
    second = learn(tmp_path, epoch=2)
    second.offer([part(5), part(6, seed=2), part(7, seed=1, group=1), part(1, group=2)])
    second.turn()
    assert second.stats().skipped == {"stale": 80}
    assert second.stats().received == 80


def test_a_full_inbox_says_so_and_takes_nothing(tmp_path: Path) -> None:
    learner = learn(tmp_path)
    large = part(5, entities=600)
    assert large[2].nbytes > 1 << 16
    assert learner.offer([large]), "one is taken whatever its size, or it would never be"
    assert not learner.offer([part(6, entities=1)])
    learner.turn()
    assert learner.stats().received == 600
    assert learner.offer([part(6, entities=1)])


def test_the_deleted_leave_the_replay(tmp_path: Path) -> None:
    learner = learn(tmp_path, held_out_share=0.0)
    taken = part(5)
    gone = int(taken[2].entity[3])
    learner.offer([taken])
    learner.turn()
    assert learner.forget([gone])
    learner.turn()
    learner.run(lambda: True)
    resident = saved(tmp_path, RESIDENT_FILE)["entity"]
    assert len(resident) == 39
    assert gone not in resident


def residents(folder: Path) -> set[int]:
    return set(saved(folder, RESIDENT_FILE)["entity"].tolist())


def test_a_deletion_reaches_windows_that_came_before_it_and_no_others(tmp_path: Path) -> None:
    learner = learn(tmp_path, held_out_share=0.0)
    taken, later = part(5), part(9, entities=1)
    gone, back = int(taken[2].entity[3]), int(later[2].entity[0])
    learner.offer([taken])
    assert learner.forget([gone, back])
    learner.offer([later])  # deleted, and seen again
    learner.turn()
    learner.run(lambda: True)
    assert gone not in residents(tmp_path)
    assert back in residents(tmp_path)


def test_many_deletions_are_one_pass_over_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a steady trickle of them takes all of the learner's time, though others' windows lie between."""
    learner = learn(tmp_path, held_out_share=0.0)
    passes, forget = list[list[int]](), learner._learner.forget

    def counted(entities: np.ndarray) -> None:
        passes.append(entities.tolist())
        forget(entities)

    monkeypatch.setattr(learner._learner, "forget", counted)
    taken = part(5)
    gone = [int(e) for e in taken[2].entity[1:4]]
    learner.offer([taken])
    for entity in gone:
        assert learner.forget([entity])
        learner.offer([part(9, entities=1)])
    learner.turn()
    assert passes == [gone]
    learner.run(lambda: True)
    assert not residents(tmp_path) & set(gone)


def test_a_deletion_outlives_a_crash_and_the_loss_of_the_newest_snapshot(tmp_path: Path) -> None:
    learner = learn(tmp_path, held_out_share=0.0)
    taken = part(5)
    gone = [int(e) for e in taken[2].entity[:4]]
    learner.offer([taken])
    learner.turn()
    learner.run(lambda: True)
    for number, entity in enumerate(gone, start=2):
        assert learner.forget([entity])
        after_a_crash = learn(tmp_path, epoch=50 + number, held_out_share=0.0)
        assert not residents_of(after_a_crash) & set(gone[: number - 1])
        learner.turn()
        learner.run(lambda: True)
        newest_file = folders(tmp_path)[0] / "learner.safetensors"
        whole = newest_file.read_bytes()
        newest_file.write_bytes(whole[:-1])
        without_the_newest = learn(tmp_path, epoch=60 + number, held_out_share=0.0)
        assert not residents_of(without_the_newest) & set(gone[: number - 1])
        aside = newest_file.parent.with_name(newest_file.parent.name + ".damaged")
        aside.rename(newest_file.parent)
        newest_file.write_bytes(whole)
    noted = json.loads((tmp_path / "forgotten.json").read_text())
    assert noted == gone[-1:], "what both kept snapshots have forgotten is not noted for ever"


def test_edges_that_are_offered_again_are_not_learnt_from_again(tmp_path: Path) -> None:
    """The far topic has gone on meanwhile, and a batch straddles what was taken."""
    graph = Learn(EDGES, NODES, edge_streams.SHAPE, tmp_path, 1, RELEASE, FakeClock())
    offered = edge_streams.edges([1, 2, 3], [4, 5, 6], [1, 2, 3])  # offsets 0 to 2 of topic 0
    graph.offer([(0, [3, 10], offered)])
    graph.offer([(0, [3, 11], offered)])
    more = edge_streams.edges([3, 7], [6, 8], [3, 4], first=2)
    graph.offer([(0, [4, 11], more)])
    graph.turn()
    assert graph._learner.received == 4
    assert graph.stats().skipped == {"stale": 4}


def residents_of(learner: Learn) -> set[int]:
    return set(learner._learner.replay.newest(4096).entity.tolist())


def test_a_snapshot_that_fails_is_counted_and_stops_nothing(tmp_path: Path) -> None:
    learner = learn(tmp_path / "learner")
    learner.offer([part(5)])
    learner.turn()
    (tmp_path / "learner").write_text("in the way")
    learner.run(lambda: True)
    assert learner.stats().snapshot_failures == 1
    assert learner.stats().snapshot == ""
    assert learner.turn()


def test_a_damaged_snapshot_gives_way_to_the_one_before(tmp_path: Path) -> None:
    learner = learn(tmp_path)
    learner.offer([part(5)])
    for _ in range(2):
        learner.turn()
        learner.run(lambda: True)
    file = tmp_path / "1-2" / "learner.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert learn(tmp_path, epoch=2).stats().updates == 1
    (tmp_path / "1-1" / "manifest.json").unlink()
    with pytest.raises(SnapshotError, match="move the folder away to begin again"):
        learn(tmp_path, epoch=3)


@pytest.mark.parametrize("window", [4, 16])
def test_with_another_encoder_it_begins_anew_from_what_it_remembers(
    tmp_path: Path, window: int
) -> None:
    first = learn(tmp_path)
    first.offer([part(5)])
    turns = iter([False] * 4 + [True])
    first.run(lambda: next(turns))
    wide = msgspec.structs.replace(ENCODER, dim=12, window=window, bucket_bits=5)
    second = learn(tmp_path, epoch=2, encoder=wide)
    assert second.stats().updates == 0
    assert second.turn(), "it need not wait for what comes"
    second.run(lambda: True)
    assert Folder.open(folders(tmp_path)[0]).meta["encoder"]["dim"] == 12
    assert len(residents(tmp_path)) > 30
    second.offer([part(5)])
    second.turn()
    assert second.stats().skipped == {"stale": 40}, "nor does it take again what it has"
    second.offer([part(6, seed=1)])  # rings are as long as the longer encoder's
    second.turn()
    assert second.stats().received == 40


def test_a_shorter_window_takes_the_newest_rows_of_what_was_kept_and_of_what_comes(
    tmp_path: Path,
) -> None:
    """Rings stay as long as what is served needs them, until its generation has gone."""
    first = learn(tmp_path)
    first.offer([part(5)])
    turns = iter([False] * 4 + [True])
    first.run(lambda: next(turns))
    short = msgspec.structs.replace(ENCODER, window=4)
    second = learn(tmp_path, epoch=2, encoder=short, held_out_share=0.0)
    later = part(9, seed=1)
    second.offer([later])
    assert second.turn()
    kept = second._learner.windows(100, held=False)
    assert np.diff(kept.offsets).max() == 4
    for entity, end in zip(later[2].entity, later[2].offsets[1:], strict=True):
        (at,) = np.flatnonzero(kept.entity == entity)
        lo, hi = kept.offsets[at : at + 2]
        newest = later[2].rows.position[end - (hi - lo) : end]
        np.testing.assert_array_equal(kept.rows.position[lo:hi], newest)


# -- what it says of the stream and of itself -------------------------------------------------------


STEADY = {"queue_bytes": 1 << 22, "updates_per_record": 0.01}


def fed(learner: Learn, clock: FakeClock, seed: int, entities: int = 300) -> None:
    """Of the same entities, and of later times with each seed."""
    for turn in range(8):
        offered = part(1000 * seed + turn, seed=1000 * seed + turn, entities=entities)
        offered[2].rows.time_us[:] += 10**14 * seed
        offered[2].first_us[:] += 10**14 * seed
        offered[2].entity[:] = np.random.default_rng(turn).integers(-(1 << 63), 1 << 63, entities)
        learner.offer([offered])
        clock.now += 2.0
        learner.turn()


def test_it_says_what_its_encoder_is_like_and_whether_the_stream_has_changed(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    learner = learn(tmp_path / "learner", clock, release=NEVER, **STEADY)
    fed(learner, clock, 1)
    learner._snapshot()
    s = learner.stats()
    assert set(s.invariance) == {"shift", "drop", "truncate", "mask"}
    assert s.dormant and 1.0 <= s.lidar <= ENCODER.dim and s.alignment > 0.0
    assert np.isnan(s.stability), "there is none before it"
    fed(learner, clock, 2)
    assert s.changes.entities_compared > 100
    assert s.changes.accuracy == pytest.approx(0.5, abs=0.1)
    assert s.drift_psi["inter-arrival"] < 0.1 if s.drift_psi else True
    learner._snapshot()
    assert 0.0 <= s.stability <= 1.0


def test_an_update_is_measured_now_and_then(tmp_path: Path) -> None:
    learner = learn(tmp_path, updates_per_record=10.0)
    learner.offer([part(5)])
    for _ in range(40):
        learner.turn()
    s = learner.stats()
    assert s.weight_norm > 0.0
    assert 0.0 < s.update_ratio < 0.1
    assert s.scalar_alarms == {"loss": 0, "gradient_norm": 0}


def test_a_renewed_reference_outlives_a_restart_before_the_next_snapshot(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock, release=NEVER, **STEADY)
    fed(learner, clock, 1)
    learner._snapshot()
    fed(learner, clock, 2)
    s = learner.stats()
    assert np.isfinite(s.changes.accuracy) and np.isfinite(s.changes.share_change)
    ask_learner(tmp_path, RENEWAL)
    clock.now += 2.0
    learner.turn()
    assert np.isnan(s.changes.share_change), "that was another reference"

    def known(of: Learn) -> tuple[int, bool]:
        return of._watching._drift._seen, of._watching._watch.complete

    assert known(learner) == (0, False)
    assert known(learn(tmp_path, epoch=2)) == (0, False), "killed"
    learner.offer([part(9999, seed=5)])
    learner._snapshot()
    seen = known(learner)
    assert known(learn(tmp_path, epoch=3)) == seen and seen[0] > 0, "it is in the snapshot now"


def test_windows_of_another_length_have_another_reference(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock, release=NEVER, **STEADY)
    fed(learner, clock, 1)
    learner._snapshot()
    longer = msgspec.structs.replace(ENCODER, window=2 * ENCODER.window)
    assert learn(tmp_path, epoch=2)._watching._watch.complete
    assert not learn(tmp_path, epoch=3, encoder=longer)._watching._watch.complete


def test_nodes_are_watched_as_they_are(tmp_path: Path) -> None:
    clock, rng = FakeClock(), np.random.default_rng(0)
    config = msgspec.structs.replace(EDGES, batch_entities=128, updates_per_record=1.0)
    graph = Learn(config, NODES, edge_streams.SHAPE, tmp_path, 1, NEVER, clock)
    for turn in range(60):
        offered = edge_streams.circles(rng, 64, 64 * turn, nodes=600)
        graph.offer([(0, [64 * turn + 64, 0], offered)])
        clock.now += 2.0
        graph.turn()
        if turn == 40:
            graph._snapshot()
    assert graph._watching._watch.complete
    assert np.isfinite(graph.stats().drift_embedding)
    assert graph.stats().changes.entities_compared > 64


def test_what_is_not_to_be_watched_is_not(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock, release=NEVER, watch=False, **STEADY)
    fed(learner, clock, 1, 40)
    learner._snapshot()
    fed(learner, clock, 2, 40)
    s = learner.stats()
    assert np.isnan(s.drift_embedding) and np.isnan(s.lidar) and np.isnan(s.changes.accuracy)


def manifest(snapshot: str) -> dict[str, object]:
    plain = Manifest(
        stream="s", release=1, generation=1, created_us=1, dim=8, window=8, entity="e", time="t", time_unit="s",
        fields=(), numbers=(), categories=(), session_gap_us=1, state=8, encode=(), encode_out=(),
        encode_sha256="", snapshot=snapshot,
    )  # fmt: skip
    found: dict[str, object] = msgspec.to_builtins(plain)
    return found


def test_the_release_that_is_served_ages(tmp_path: Path) -> None:
    """The one that is served, not the newest snapshot."""
    clock = FakeClock()
    learner = learn(tmp_path / "learner", clock, release=NEVER, **STEADY)
    fed(learner, clock, 1)
    learner._snapshot()
    watching = learner._watching
    (first,) = watching._ages
    write_folder(tmp_path / "releases", "1", iter([("encode.onnx", b"x")]), lambda: manifest(first))
    set_current(tmp_path / "releases", 1)
    for seed in (2, 3):
        fed(learner, clock, seed, 50)
        learner._snapshot()
    assert next(iter(watching._ages)) == first
    assert len(watching._ages) == 3, "it, the newest, and the one before"
    fed(learner, clock, 5)
    clock.now += 60.0
    learner.turn()
    assert np.isfinite(learner.stats().ageing)
    assert 0.0 <= learner.stats().retrieval <= 1.0


# -- what the daemon orders -------------------------------------------------------------------------


def test_paused_it_learns_nothing_of_what_comes_and_makes_no_release(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock)
    learner.offer([part(5)])
    for _ in range(4):
        learner.turn()
    updates, resident = learner.stats().updates, residents_of(learner)
    learner.orders = Orders(paused=True)
    clock.now += 1000.0
    poison = part(6, seed=3)
    learner.offer([poison])
    assert not learner.turn()
    assert (learner.stats().updates, names(tmp_path)) == (updates, [])
    assert learner.stats().skipped == {"paused": 40}
    learner.orders = Orders()
    assert learner.turn()
    assert names(tmp_path) == ["1-1"]
    assert residents_of(learner) == resident, "nor later"


def test_faster_means_more_updates_per_record_and_sooner_releases(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock, updates_per_record=0.02, cpu_share=1.0)
    learner.offer([part(1)])
    usual = exhausted(learner)
    learner.orders = Orders(pace=3.0, release_s=1.0)
    learner.offer([part(2, seed=1)])
    more = exhausted(learner)
    assert more > 2 * usual
    learner.orders = Orders()
    learner.offer([part(3, seed=2)])
    assert usual - 2 <= exhausted(learner) <= usual + 2, "what was ahead is no debt"
    learner.run(lambda: True)
    again = learn(tmp_path, clock, epoch=2, updates_per_record=0.02, cpu_share=1.0)
    again.offer([part(4, seed=4)])
    assert usual - 2 <= exhausted(again) <= usual + 2, "nor after a restart"


def test_a_release_comes_sooner_when_it_is_ordered(tmp_path: Path) -> None:
    clock = FakeClock()
    learner = learn(tmp_path, clock)
    learner.offer([part(5)])
    clock.now += 5.0
    while not names(tmp_path):
        learner.turn()
    learner.orders = Orders(release_s=2.0)
    clock.now += 2.0
    for _ in range(3):
        learner.turn()
    assert names(tmp_path) == ["1-2", "1-1"]


def test_a_normaliser_that_would_not_help_is_left(tmp_path: Path) -> None:
    learner = learn(tmp_path)
    learner.offer([part(5, entities=400)])
    learner.turn()
    ask_learner(tmp_path, ADAPTATION)
    learner.orders = Orders(paused=True)
    learner.turn()
    assert (tmp_path / ADAPTATION).exists(), "what came last may be poison: it waits"
    learner.orders = Orders()
    learner.turn()
    assert not (tmp_path / ADAPTATION).exists()
    assert not names(tmp_path)


def exhausted(learner: Learn) -> int:
    """How many updates what it has been given is worth."""
    before = learner.stats().updates
    while learner.turn():
        pass
    return learner.stats().updates - before
