import numpy as np
import pytest

from learning.config import GruConfig
from learning.contract import Needs
from learning.kinds.events import Events, columns, slices, subset, whole
from schemas.stream import Shape
from tests.learning.streams import random_windows, totals_of

SHAPES = [Shape(3, 2), Shape(0, 2), Shape(2, 0), Shape(0, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_totals_of_a_slice_are_those_of_counting_one_by_one(shape):
    rng = np.random.default_rng(1)
    windows = random_windows(rng, 20, shape)
    cut = slices(windows, Needs(3), shape.session_gap_us, rng)
    for owner, start, totals in zip(cut.owner, cut.start, cut.totals, strict=True):
        first = windows.offsets[owner]
        earlier = totals_of(windows.rows.take(slice(first, start)), shape)
        through = totals_of(windows.rows.take(slice(first, start + 1)), shape)
        expected = windows.totals[owner] + earlier
        expected[1] = windows.totals[owner, 1] + through[1] - 1  # the window counted its own first
        np.testing.assert_allclose(totals, expected, atol=1e-9)


def test_slices_are_a_share_of_the_rows_and_stay_in_their_window():
    rng = np.random.default_rng(2)
    windows = random_windows(rng, 200, Shape(1, 1), longest=40)
    cut = slices(windows, Needs(5, 0.2, 0.8), 10**9, rng)
    n = np.diff(windows.offsets)[cut.owner]
    assert (cut.length >= np.minimum(2, n)).all()
    assert (cut.length <= np.maximum(np.ceil(0.8 * n), np.minimum(2, n))).all()
    assert (cut.start >= windows.offsets[cut.owner]).all()
    assert (cut.start + cut.length <= windows.offsets[cut.owner + 1]).all()


def test_padding_repeats_the_last_row():
    windows = random_windows(np.random.default_rng(3), 7, Shape(2, 1))
    view = columns(windows, whole(windows), 4)
    assert view["valid_BT"].sum() == len(windows.rows)
    for b in range(7):
        n = view["length"][b]
        part = windows.rows.take(slice(windows.offsets[b], windows.offsets[b + 1]))
        np.testing.assert_array_equal(view["time_us"][b, :n], part.time_us)
        assert (view["time_us"][b, n:] == part.time_us[-1]).all()


def test_a_subset_keeps_order_and_rows():
    windows = random_windows(np.random.default_rng(4), 6, Shape(1, 1))
    part = subset(windows, np.array([4, 0]))
    assert part.entity.tolist() == windows.entity[[4, 0]].tolist()
    expected = windows.rows.time_us[windows.offsets[4] : windows.offsets[5]]
    np.testing.assert_array_equal(part.rows.time_us[: part.offsets[1]], expected)


def test_dropping_a_field_takes_its_history_away_too():
    shape = Shape(2, 1)
    config = GruConfig(field_dropout=0.999999, history_dropout=0.0, hidden=4)
    kind = Events(shape, config)
    windows = random_windows(np.random.default_rng(5), 5, shape)
    batch = kind.views(windows, Needs(2), np.random.default_rng(0), augment=True)
    view = batch.views["slices"]
    assert view["numbers"].isnan().all()
    assert view["missing"].all()
    assert (view["totals"][:, 2:] == 0).all()
    assert (view["totals"][:, 0] > 0).any()


def test_without_augmentation_the_same_generator_gives_the_same_batch():
    shape = Shape(2, 1)
    kind = Events(shape, GruConfig())
    windows = random_windows(np.random.default_rng(5), 5, shape)
    needs = Needs(2, window=True, following=True, masked=0.5)
    one, two = (
        kind.views(windows, needs, np.random.default_rng(0), augment=False) for _ in range(2)
    )
    assert set(one.views) == {"slices", "window", "masked", "next"}
    assert one.views["next"] is one.views["slices"]
    for name, view in one.views.items():
        for key, tensor in view.items():
            np.testing.assert_array_equal(tensor.numpy(), two.views[name][key].numpy())
