"""What an entity may be like and still be itself: its windows, each changed in one way that its kind offers.

How near a window's vector stays says what the encoder ignores, and what it goes by. Shapes: B windows, N rows."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from learning.halves import newest_rows
from learning.kinds import pixels_view
from learning.kinds.images import Looks, boxes, looked
from learning.pixels import floats
from schemas.records import ImageRows, Windows
from schemas.stream import DIRECTION, ENDS, Shape

Transformation = Callable[[Windows, np.random.Generator], Windows]
DAY_US = 86_400_000_000
DROPPED = 0.2  # of the rows
KEPT = 0.5  # of the newest rows; of an image's area
FACTOR, TURN = 0.4, 0.1  # most that colours and hue change
BLUR = 1 / 32  # of an image's side


def transformations(shape: Shape) -> dict[str, Transformation]:
    """By name, those of the stream's kind."""
    if shape.unit == "image":
        return {name: partial(_looked, name) for name in ("crop", "flip", "colour", "grey", "blur")}
    found: dict[str, Transformation] = {
        "shift": shifted,
        "drop": dropped,
        "truncate": partial(truncated, gap_us=shape.session_gap_us),
    }
    own = _own(shape)
    return found | ({"mask": partial(masked, own=own)} if any(own) else {})


def _own(shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places of numbers and of categories that are no structure of a graph."""
    number = DIRECTION + 1 if shape.unit == "node" else 0
    category = 0 if not shape.graph else (ENDS.stop if shape.whole else 1) + shape.typed
    return tuple(range(number, shape.numbers)), tuple(range(category, shape.categories))


def shifted(windows: Windows, rng: np.random.Generator) -> Windows:
    """All of it earlier or later, up to a day."""
    by = rng.integers(-DAY_US, DAY_US, len(windows))
    rows = dataclasses.replace(
        windows.rows, time_us=windows.rows.time_us + np.repeat(by, np.diff(windows.offsets))
    )
    return dataclasses.replace(windows, rows=rows, first_us=windows.first_us + by)


def dropped(windows: Windows, rng: np.random.Generator) -> Windows:
    """Some rows were never there; the newest always is."""
    keep = rng.random(len(windows.rows)) >= DROPPED
    keep[windows.offsets[1:] - 1] = True
    ends = np.cumsum(keep)
    far = None if windows.far is None else windows.far.take(keep)
    offsets = np.concatenate([[0], ends[windows.offsets[1:] - 1]])
    return dataclasses.replace(windows, rows=windows.rows.take(keep), offsets=offsets, far=far)


def truncated(windows: Windows, _: np.random.Generator, gap_us: int) -> Windows:
    """The newest rows alone; what went before is in the totals."""
    n = np.diff(windows.offsets)
    length = np.maximum(np.rint(KEPT * n).astype(np.int64), 1)
    return newest_rows(windows, np.arange(len(windows)), length, gap_us)


def masked(
    windows: Windows, rng: np.random.Generator, own: tuple[tuple[int, ...], tuple[int, ...]]
) -> Windows:
    """One field each is missing, also from what is known of before. own: places of numbers, of categories."""
    numbers, categories = own
    which = rng.integers(0, len(numbers) + len(categories), len(windows))
    by_row = np.repeat(which, np.diff(windows.offsets))
    rows = dataclasses.replace(
        windows.rows, numbers=windows.rows.numbers.copy(), missing=windows.rows.missing.copy()
    )
    totals, width = windows.totals.copy(), windows.rows.numbers.shape[1]
    for at, place in enumerate(numbers):
        rows.numbers[by_row == at, place] = np.nan
        for block in range(3):
            totals[which == at, 2 + block * width + place] = 0.0
    for at, place in enumerate(categories, len(numbers)):
        rows.missing[by_row == at, place] = True
    return dataclasses.replace(windows, rows=rows, totals=totals)


def _looked(name: str, windows: Windows, rng: np.random.Generator) -> Windows:
    """Images, each with one look at it."""
    rows = windows.rows
    assert isinstance(rows, ImageRows)
    x = floats(pixels_view(windows)["pixels"])
    m, side = len(x), x.shape[2]
    scale = KEPT if name == "crop" else 1.0
    colours = rng.uniform(1 - FACTOR, 1 + FACTOR, (m, 3)) if name == "colour" else np.ones((m, 3))
    looks = Looks(
        box=boxes((scale, scale), (1.0, 1.0), side, rng.random((m, 4), np.float32)),
        flip=np.full(m, name == "flip"),
        colours=colours.astype(np.float32),
        hue=(rng.uniform(-TURN, TURN, m) * (name == "colour")).astype(np.float32),
        grey=np.full(m, name == "grey"),
        sigma=np.full(m, BLUR * side * (name == "blur"), np.float32),
        solarised=np.zeros(m, np.bool_),
        background=np.zeros(m, np.bool_),
    )
    seen = looked(x, looks, side).permute(0, 2, 3, 1).mul(255.0).round().to(torch.uint8)
    return dataclasses.replace(
        windows, rows=dataclasses.replace(rows, pixels=seen.reshape(m, -1).numpy())
    )
