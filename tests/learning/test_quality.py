"""What is said of vectors without labels, against plain words for it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.halves import LEAST, halves
from learning.kinds import plain
from learning.quality import effective_rank, retrieval, spread
from schemas.records import Windows
from schemas.stream import Shape
from tests.learning.images import noise, windows_of
from tests.learning.streams import random_windows

SHAPE = Shape(2, 1)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_spread_is_none_on_one_point_and_one_all_over() -> None:
    assert spread(unit(1, 8).repeat(50, 1)) < 1e-6
    assert spread(unit(5000, 8)) == pytest.approx(1.0, abs=0.01)
    z = unit(40, 6)
    apart = torch.cdist(z.double(), z.double()).square().mean()
    assert spread(z).square() == pytest.approx(float(apart) / 2), "half the mean squared distance"


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(unit(1, 8).repeat(50, 1)) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(torch.eye(8)) == pytest.approx(8.0)


def test_retrieval_is_the_share_that_finds_its_own() -> None:
    a = unit(30, 16)
    b = a.clone()
    assert retrieval(a, b) == 1.0
    b[:6] = -b[:6]
    near = (a @ b.T).numpy()
    wanted = np.mean([near[i].argmax() == i for i in range(30)])
    assert retrieval(a, b) == pytest.approx(wanted)
    assert retrieval(a[:1].repeat(30, 1), a[:1].repeat(30, 1)) == 0.0, "a collapse finds nothing"


def test_halves_are_the_earlier_and_the_later_rows() -> None:
    windows = random_windows(np.random.default_rng(0), 40, SHAPE, 9)
    earlier, later = halves(windows, SHAPE.session_gap_us)
    n = np.diff(windows.offsets)
    cut = np.flatnonzero(n >= LEAST)
    assert 0 < len(cut) < 40
    for m, at in enumerate(cut.tolist()):
        lo, hi = windows.offsets[at : at + 2]
        mine = np.concatenate(
            [part.rows.position[part.offsets[m] : part.offsets[m + 1]] for part in (earlier, later)]
        )
        np.testing.assert_array_equal(mine, windows.rows.position[lo:hi])
        assert np.diff(earlier.offsets)[m] == n[at] // 2
        assert later.totals[m, 0] == windows.totals[at, 0] + n[at] // 2
    np.testing.assert_array_equal(later.entity, windows.entity[cut])


def test_halves_of_an_image_are_two_parts_of_it() -> None:
    windows: Windows = windows_of(noise(np.random.default_rng(0), 5, 8))
    whole = plain(windows, 0)["pixels"]
    earlier, later = (plain(part, 0)["pixels"] for part in halves(windows, 0))
    assert earlier.shape == later.shape == (5, 6, 6, 3)
    assert torch.equal(earlier, whole[:, :6, :6])
    assert torch.equal(later, whole[:, 2:, 2:])
