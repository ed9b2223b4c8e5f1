"""Small streams of images for the tests."""

import numpy as np

from schemas.records import ImageRows, Rows, Windows, category_hash
from schemas.stream import Shape

SIDE = 16
SHAPE = Shape(0, 1, side=SIDE, keep="pixels")


def windows_of(pixels, entity=None, time_us=None, label=None) -> Windows:
    """Windows of one image each. pixels: [N, S, S, 3] uint8."""
    n, side = len(pixels), pixels.shape[1]
    rows = Rows.empty(Shape(0, 1, side=side, keep="pixels"), n)
    assert isinstance(rows, ImageRows)
    rows.pixels[:] = pixels.reshape(n, -1)
    rows.time_us[:] = np.arange(n) * 1_000_000 if time_us is None else time_us
    rows.position[:] = np.arange(n)
    if label is not None:
        rows.categories[:, 0], rows.missing[:] = label, False
    names = np.array([category_hash(f"image-{i}") for i in range(n)])
    entity = names if entity is None else np.asarray(entity, np.int64)
    return Windows(rows, np.arange(n + 1), np.zeros((n, 2)), rows.time_us.copy(), entity)


def noise(rng: np.random.Generator, n: int, side: int = SIDE) -> np.ndarray:
    return rng.integers(0, 256, (n, side, side, 3), np.uint8)


def textures(rng: np.random.Generator, n: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Stripes, checks and discs of random colours, sizes and places, and which of the three each is."""
    label = rng.integers(0, 3, n)
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    period = rng.uniform(3.0, 6.0, (n, 1, 1))
    phase = rng.uniform(0.0, period, (n, 1, 1))
    stripes = ((x + phase) // (period / 2)) % 2
    checks = (((x + phase) // (period / 2)) + ((y + phase) // (period / 2))) % 2
    centre = rng.uniform(0.35, 0.65, (2, n, 1, 1)) * side
    radius = rng.uniform(0.2, 0.35, (n, 1, 1)) * side
    disc = np.hypot(y - centre[0], x - centre[1]) < radius
    mask = np.choose(label[:, None, None], [stripes, checks, disc])[..., None]
    ink, paper = rng.uniform(0, 255, (2, n, 1, 1, 3))
    picture = mask * ink + (1 - mask) * paper + rng.normal(0, 12, (n, side, side, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), label
