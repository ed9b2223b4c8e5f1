"""What is said of vectors without labels, against plain words for it."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from learning.halves import ENTITIES, LEAST, halves, several
from learning.kinds import plain
from learning.quality import (
    MODE,
    alignment,
    coding_rate,
    effective_rank,
    lidar,
    modes,
    retrieval,
    spread,
)
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


def test_lidar_is_the_papers_formula() -> None:
    """Eigenvalues of the discriminant analysis, term by term."""
    z = unit(40 * 5, 6).reshape(40, 5, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.1, 0.1])
    x, delta = z.double().numpy(), 1e-4
    within, between = delta * np.eye(6), np.zeros((6, 6))
    for views in x:
        off = views.mean(0) - x.mean((0, 1))
        between += np.outer(off, off) / 40
        for view in views:
            within += np.outer(view - views.mean(0), view - views.mean(0)) / 200
    p = scipy.linalg.eigh(between, within, eigvals_only=True)
    p = p / p.sum()
    assert float(lidar(z)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_lidar_counts_what_tells_things_apart_and_not_how_their_views_differ() -> None:
    generator = torch.Generator().manual_seed(3)
    things = torch.zeros(200, 1, 8)
    things[..., :3] = torch.randn(200, 1, 3, generator=generator)
    views = things + 0.1 * torch.randn(200, 6, 8, generator=generator)
    assert 3.0 <= float(lidar(views)) < 3.5
    assert float(lidar(views[:, :1].expand(200, 6, 8))) == pytest.approx(
        float(effective_rank_of_variance(views[:, 0])), rel=1e-3
    ), "views that do not differ: all that is left is delta, the same in every direction"


def effective_rank_of_variance(z_BD: torch.Tensor) -> torch.Tensor:
    p = torch.linalg.eigvalsh(torch.cov(z_BD.double().T))
    return torch.special.entr(p / p.sum()).sum().exp()


def test_coding_rate_is_the_papers_formula_and_none_of_nothing() -> None:
    z = unit(50, 6)
    sign, value = np.linalg.slogdet(np.eye(6) + 6 / (50 * 0.5) * (z.T @ z).double().numpy())
    assert sign == 1
    assert float(coding_rate(z)) == pytest.approx(value / 2)
    assert float(coding_rate(torch.zeros(50, 6))) == 0.0
    assert coding_rate(unit(1, 6).repeat(50, 1)) < coding_rate(z)


def test_modes_are_the_directions_above_the_floor() -> None:
    generator = torch.Generator().manual_seed(4)
    deviation = torch.tensor([1.0, 0.5, 0.2, 0.01, 0.0])
    z = torch.randn(4000, 5, generator=generator) * deviation
    floor = MODE / 5
    assert modes(z) == int((deviation.square() > floor).sum()) == 3
    assert modes(unit(1, 8).repeat(50, 1)) == 0
    assert modes(unit(4000, 8)) == 8


def test_alignment_is_the_mean_squared_distance() -> None:
    a, b = unit(30, 5), unit(30, 5, seed=1)
    wanted = np.mean([np.sum((p - q) ** 2) for p, q in zip(a.numpy(), b.numpy(), strict=True)])
    assert float(alignment(a, b)) == pytest.approx(wanted, rel=1e-5)
    assert float(alignment(a, a)) == 0.0


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
    earlier, later = halves(windows, SHAPE.session_gap_us, between=False)
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


@pytest.mark.parametrize("seed", range(3))
def test_where_entities_have_several_sessions_they_are_cut_between_two(seed: int) -> None:
    windows = random_windows(np.random.default_rng(seed), 200, SHAPE, 12)
    steps = np.sort(np.diff(windows.rows.time_us))
    gap = int(steps[len(steps) * 3 // 4])  # one in four opens a session
    wanted = {}
    for at in range(len(windows)):
        lo, hi = windows.offsets[at : at + 2].tolist()
        times = windows.rows.time_us[lo:hi]
        opens = [i for i in range(2, hi - lo - 1) if times[i] - times[i - 1] > gap]
        if opens:
            wanted[int(windows.entity[at])] = min(opens, key=lambda i: (abs(2 * i - (hi - lo)), i))
    assert len(wanted) >= ENTITIES
    assert several(windows, gap)
    earlier, later = halves(windows, gap)
    rows = np.diff(earlier.offsets).tolist()
    assert dict(zip(earlier.entity.tolist(), rows, strict=True)) == wanted
    np.testing.assert_array_equal(later.entity, earlier.entity)
    opening = later.rows.time_us[later.offsets[:-1]] - earlier.rows.time_us[earlier.offsets[1:] - 1]
    assert (opening > gap).all()
    rows = np.diff(windows.offsets)[np.isin(windows.entity, earlier.entity)]
    np.testing.assert_array_equal(np.diff(earlier.offsets) + np.diff(later.offsets), rows)


def test_where_few_entities_have_several_sessions_all_are_cut_at_their_middle() -> None:
    windows = random_windows(np.random.default_rng(0), 40, SHAPE, 9)
    never = 1 << 60
    assert not several(windows, never)
    for ours, theirs in zip(
        halves(windows, never), halves(windows, never, between=False), strict=True
    ):
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)


def test_halves_of_an_image_are_two_parts_of_it() -> None:
    windows: Windows = windows_of(noise(np.random.default_rng(0), 5, 8))
    whole = plain(windows, 0)["pixels"]
    earlier, later = (plain(part, 0)["pixels"] for part in halves(windows, 0))
    assert earlier.shape == later.shape == (5, 6, 6, 3)
    assert torch.equal(earlier, whole[:, :6, :6])
    assert torch.equal(later, whole[:, 2:, 2:])
