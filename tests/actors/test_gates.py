"""What a release must pass, on vectors that are made up."""

import numpy as np
import pytest
import torch
from torch import Tensor

from actors import gates
from actors.gates import GatesConfig
from learning.quality import spread
from schemas.published import Gate
from schemas.records import Windows
from tests.learning.streams import random_windows
from tests.services import STREAM

CONFIG = GatesConfig()


def vectors(n: int, d: int, noise: float = 1.0, seed: int = 0) -> Tensor:
    """Unit vectors around one direction: the less noise, the more alike."""
    rng = torch.Generator().manual_seed(seed)
    z = noise * torch.randn(n, d, generator=rng)
    z[:, 0] += 1.0 - noise
    return torch.nn.functional.normalize(z, dim=1)


def named(found: list[Gate]) -> dict[str, bool]:
    return {gate.name: gate.ok for gate in found}


def test_alone_only_what_has_collapsed_wholly_is_refused() -> None:
    assert named(gates.collapse(CONFIG, vectors(100, 16, 0.02))) == {"rank": True, "spread": True}
    assert named(gates.collapse(CONFIG, vectors(100, 16, 1e-4))) == {"rank": False, "spread": False}


def test_beside_what_was_there_before_a_collapse_is_seen_where_it_begins() -> None:
    before = [vectors(100, 16), vectors(100, 16, 0.5)]
    assert named(gates.collapse(CONFIG, vectors(100, 16, 0.4), before)) == {"rank": True, "spread": True}  # fmt: skip
    assert not named(gates.collapse(CONFIG, vectors(100, 16, 0.04), before))["spread"]
    line = vectors(100, 16) * torch.eye(16)[0] + 0.01 * vectors(100, 16)
    assert not named(gates.collapse(CONFIG, torch.nn.functional.normalize(line, dim=1), before))["rank"]  # fmt: skip


def test_step_by_step_it_comes_no_further_than_the_first_allows() -> None:
    first = served = vectors(100, 16)
    for step in range(30):
        candidate = vectors(100, 16, 0.8**step)
        if all(named(gates.collapse(CONFIG, candidate, [served, first])).values()):
            served = candidate
    assert CONFIG.kept * spread(first) <= spread(served) < 2 * CONFIG.kept * spread(first)


def test_a_rank_in_more_dimensions_is_no_measure() -> None:
    found = gates.collapse(CONFIG, vectors(100, 4), [vectors(100, 64)])
    assert named(found) == {"rank": True, "spread": True}


# -- labels -----------------------------------------------------------------------------------------

FITTED, JUDGED = (
    random_windows(np.random.default_rng(seed), n, STREAM.shape, 8)
    for seed, n in ((1, 300), (2, 100))
)
WINDOWS = FITTED, JUDGED
LABELS = {entity: entity % 2 for w in WINDOWS for entity in w.entity.tolist()}


def telling(share: float) -> "object":
    """Vectors of which so many tell the label."""

    def of(windows: Windows) -> Tensor:
        rng = np.random.default_rng(0)
        label = np.array([LABELS[e] for e in windows.entity.tolist()])
        told = np.where(rng.random(len(label)) < share, label, rng.integers(0, 2, len(label)))
        z = 0.3 * rng.normal(size=(len(label), 8)) + (2 * told[:, None] - 1)
        return torch.nn.functional.normalize(torch.tensor(z, dtype=torch.float32), dim=1)

    return of


@pytest.mark.parametrize(
    ("mine", "served", "ok"), [(0.9, 0.9, True), (0.9, 0.5, True), (0.4, 0.9, False)]
)
def test_labels_must_be_foretold_as_well_as_before(mine: float, served: float, ok: bool) -> None:
    (gate,) = gates.probe(CONFIG, LABELS, WINDOWS, telling(mine), telling(served))  # type: ignore[arg-type]
    assert gate.ok is ok
    assert gate.value > 0.6


def test_the_first_release_shows_how_well_it_foretells() -> None:
    (gate,) = gates.probe(CONFIG, LABELS, WINDOWS, telling(1.0), None)  # type: ignore[arg-type]
    assert (gate.ok, gate.threshold) == (True, 0.0)


def test_few_labels_or_of_one_kind_are_no_gate() -> None:
    of = telling(1.0)
    few = dict(list(LABELS.items())[: 300 + gates.LEAST - 1])
    assert gates.probe(CONFIG, few, WINDOWS, of, None) == []  # type: ignore[arg-type]
    assert gates.probe(CONFIG, {}, WINDOWS, of, None) == []  # type: ignore[arg-type]
    alike = dict.fromkeys(LABELS, 7)
    assert gates.probe(CONFIG, alike, WINDOWS, of, None) == []  # type: ignore[arg-type]
