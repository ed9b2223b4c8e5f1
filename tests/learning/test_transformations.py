"""An entity changed in one way is otherwise the same, and what is said of an encoder goes by that."""

import numpy as np
import pytest
import torch

from learning import encoders
from learning.compatibility import mean_cosine
from learning.config import GruConfig
from learning.report import report
from learning.student import embed
from learning.transformations import DAY_US, transformations
from schemas.records import ImageRows, Windows
from schemas.stream import Shape
from tests.learning.edge_streams import SHAPE as EDGES
from tests.learning.images import SHAPE as IMAGES
from tests.learning.images import noise, windows_of
from tests.learning.streams import random_windows

SHAPE = Shape(2, 2)
CONFIG = GruConfig(dim=8, hidden=8, window=12, category_dim=4, bucket_bits=4)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def changed(name: str, windows: Windows, shape: Shape = SHAPE) -> Windows:
    return transformations(shape)[name](windows, np.random.default_rng(1))


def owners(windows: Windows) -> np.ndarray:
    return np.repeat(np.arange(len(windows)), np.diff(windows.offsets))


def test_a_shift_moves_a_window_as_a_whole(rng: np.random.Generator) -> None:
    windows = random_windows(rng, 30, SHAPE)
    found = changed("shift", windows)
    by = found.first_us - windows.first_us
    assert np.abs(by).max() <= DAY_US and len(np.unique(by)) > 20
    np.testing.assert_array_equal(found.rows.time_us - windows.rows.time_us, by[owners(windows)])
    np.testing.assert_array_equal(found.rows.numbers, windows.rows.numbers)


def test_dropped_rows_were_never_there_and_the_newest_stays(rng: np.random.Generator) -> None:
    windows = random_windows(rng, 50, SHAPE)
    found = changed("drop", windows)
    assert len(found.rows) < len(windows.rows)
    for at in range(50):
        before, after = (
            w.rows.position[w.offsets[at] : w.offsets[at + 1]] for w in (windows, found)
        )
        assert set(after) <= set(before) and after[-1] == before[-1]
    np.testing.assert_array_equal(found.totals, windows.totals)


def test_of_a_truncated_window_the_newest_half_is_left(rng: np.random.Generator) -> None:
    windows = random_windows(rng, 50, SHAPE)
    found = changed("truncate", windows)
    n, left = np.diff(windows.offsets), np.diff(found.offsets)
    np.testing.assert_array_equal(left, np.maximum(np.rint(n / 2), 1))
    np.testing.assert_array_equal(found.totals[:, 0], windows.totals[:, 0] + n - left)
    last = windows.rows.position[windows.offsets[1:] - 1]
    np.testing.assert_array_equal(found.rows.position[found.offsets[1:] - 1], last)


def test_one_field_of_each_window_is_masked(rng: np.random.Generator) -> None:
    windows = random_windows(rng, 60, SHAPE)
    windows.rows.numbers[:] = np.nan_to_num(windows.rows.numbers) + 1.0
    windows.rows.missing[:] = False
    found = changed("mask", windows)
    gone = np.concatenate([np.isnan(found.rows.numbers), found.rows.missing], 1)
    assert (gone.sum(1) == 1).all()
    which = gone.argmax(1)
    owner = owners(windows)
    assert all(len(np.unique(which[owner == at])) == 1 for at in range(60))
    assert len(np.unique(which)) == 4
    first = which[windows.offsets[:-1]]
    assert not found.totals[first == 0][:, [2, 4, 6]].any(), "and none is known of before"
    assert not np.isnan(windows.rows.numbers).any(), "what was given stays as it is"


def test_of_an_edge_no_structure_is_masked(rng: np.random.Generator) -> None:
    windows = random_windows(rng, 60, EDGES)
    windows.rows.numbers[:], windows.rows.missing[:] = 1.0, False
    found = changed("mask", windows, EDGES)
    assert not np.isnan(found.rows.numbers[:, 0]).any(), "direction"
    assert not found.rows.missing[:, :2].any(), "neighbour and type"
    plain = Shape(1, 1, graph=True)
    assert "mask" not in transformations(plain), "there is nothing else"


@pytest.mark.parametrize("name", ["crop", "flip", "colour", "grey", "blur"])
def test_images_are_changed_in_one_way(rng: np.random.Generator, name: str) -> None:
    windows = windows_of(noise(rng, 6))
    found = changed(name, windows, IMAGES)
    assert isinstance(found.rows, ImageRows) and isinstance(windows.rows, ImageRows)
    before, after = (r.pixels.reshape(6, 16, 16, 3).astype(int) for r in (windows.rows, found.rows))
    assert (before != after).mean() > 0.5
    if name == "flip":
        np.testing.assert_array_equal(after, before[:, :, ::-1])
    if name == "grey":
        assert (np.ptp(after, axis=3) == 0).all()
    if name == "blur":
        assert after.std() < 0.7 * before.std()


def test_what_is_said_of_an_encoder_is_what_its_vectors_say(rng: np.random.Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, other = (encoders.build(CONFIG, SHAPE).eval() for _ in range(2))
    windows = random_windows(rng, 80, SHAPE)
    found = report(one, one, windows, SHAPE)
    assert found.stability == 1.0
    assert set(found.invariance) == {"shift", "drop", "truncate", "mask"}
    again = np.random.default_rng(0)
    ways = {name: embed(one, way(windows, again)) for name, way in transformations(SHAPE).items()}
    assert found.invariance["mask"] == pytest.approx(
        mean_cosine(embed(one, windows), ways["mask"]), abs=1e-6
    )
    assert report(one, other, windows, SHAPE).stability < 0.9
    assert np.isnan(report(one, None, windows, SHAPE).stability)
    assert np.isnan(report(one, one, random_windows(rng, 1, SHAPE), SHAPE).lidar)
