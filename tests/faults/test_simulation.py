"""Shards under simulated faults keep their promises, and a simulation that does not look would be found out."""

import numpy as np
import pytest

from actors.embed import Releases, embed, encode_anew
from actors.state import State
from benchmarks.faults import planted, simulation
from benchmarks.faults.stand_ins import GAP_US, HIDDEN, SmallManifest, SmallRelease, Violation
from benchmarks.faults.world import STREAM, World
from schemas.records import Decoded, Rows

CHUNK = 20


@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_no_seed_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulation.simulate(seed)


@pytest.mark.parametrize("bug", planted.BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    assert simulation.hunt(bug, simulation.WITHIN) is not None


def test_a_seed_does_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[list[str]] = []
    settle = simulation.settle

    def settled(world: World) -> None:
        settle(world)
        positions = [
            (o.name, n, g.positions) for o in world.owners for n, g in o.shard.groups.items()
        ]
        traces.append([*world.trace, str(positions), str(world.clock.now)])

    monkeypatch.setattr(simulation, "settle", settled)
    for seed in (3, 3, 4, 4):
        simulation.simulate(seed)
    assert traces[0] == traces[1] != traces[2] == traces[3]


def test_a_violation_names_its_seed_and_tells_what_was_done() -> None:
    found = simulation.hunt("letters not flushed", simulation.WITHIN)
    assert found is not None
    with pytest.raises(Violation) as caught:
        simulation.simulate(found - 1, "letters not flushed")
    text = str(caught.value)
    assert text.startswith("seed ") and "with 'letters not flushed'" in text
    assert "opens groups at" in text


def test_the_small_releases_steps_and_windows_agree() -> None:
    """Else every vector would be a violation, or none."""
    rng = np.random.default_rng(0)
    n, window = 40, 8
    state = State(STREAM.shape, window, HIDDEN, 8)
    release = SmallRelease(SmallManifest(1))
    releases = Releases.__new__(Releases)
    releases.current, releases._loaded = release, {1: release}  # type: ignore[assignment,dict-item]
    for at in range(n):
        row = Rows(
            np.array([at * GAP_US // 2 + int(rng.integers(GAP_US))]).cumsum(),
            np.array([at]),
            rng.normal(size=(1, 2)).astype(np.float32),
            rng.integers(0, 99, (1, 1)),
            np.array([[at % 7 == 0]]),
        )
        touched = state.apply(Decoded(row, ["a"], np.zeros(1, np.bool_), np.zeros(1, np.int64)))
        stepped, _, _ = embed(state, touched, release, releases)  # type: ignore[arg-type]
        recurrent = state.recurrent.copy()
        anew = encode_anew(state, touched.slots, release)  # type: ignore[arg-type]
        np.testing.assert_allclose(stepped, anew, atol=1e-5)
        np.testing.assert_allclose(state.recurrent, recurrent, atol=1e-5)
