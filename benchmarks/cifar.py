"""CIFAR-10 as streams of images, and what is asked of vectors of it.

Shapes: N images of S = 32 pixels on a side, Q images asked about, D dimensions of a representation."""

import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from learning.held_out import mixed
from schemas.records import F32, I64, U8, Bool, ImageRows, Rows, Windows
from schemas.stream import LABEL, Shape

SIDE, CLASSES, TASKS = 32, 10, 5
SHAPE = Shape(0, 1, side=SIDE, keep="pixels")
FILES = ("cifar10_train.parquet", "cifar10_test.parquet")
NEIGHBOURS, TEMPERATURE = 20, 0.1
STRENGTHS = (0.001, 0.03, 1.0)  # C of the regression; each representation takes its best

Features: TypeAlias = npt.NDArray[np.floating]


class Part(NamedTuple):
    """Some images: pixels [N, S, S, 3], label [N] 0..9."""

    pixels: U8
    label: I64

    def take(self, at: I64) -> "Part":
        return Part(self.pixels[at], self.label[at])


class Cifar(NamedTuple):
    """What is streamed, what settings are chosen on, what is reported."""

    train: Part
    choosing: Part
    test: Part


class Missing(Exception):
    """The files are not there; the text says where they must be."""


def load(folder: Path, rows: int, choosing: int, tests: int) -> Cifar:
    """`rows` of the training file to stream, its last ones to choose on, `tests` of the test file."""
    import pyarrow.parquet as parquet

    if lacking := [name for name in FILES if not (folder / name).exists()]:
        needs = "columns jpeg and label; name their folder: make quality-images AFRESH_DATA=folder"
        raise Missing(f"{folder} has no {lacking[0]}; needed are {' and '.join(FILES)}, {needs}")
    train, test = (parquet.read_table(folder / name).to_pydict() for name in FILES)
    total = len(train["label"])
    names = np.unique(train["label"])
    rows = min(rows, total - choosing)
    return Cifar(
        _decoded(train, names, slice(0, rows)),
        _decoded(train, names, slice(total - choosing, total)),
        _decoded(test, names, slice(0, tests)),
    )


def _decoded(table: dict[str, list[Any]], names: npt.NDArray[Any], which: slice) -> Part:
    images = [np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in table["jpeg"][which]]
    return Part(np.stack(images), np.searchsorted(names, table["label"][which]).astype(np.int64))


def windows(part: Part, first: int = 0) -> Windows:
    """One of each image, which is an entity of its own; a second apart, from `first` on."""
    n = len(part.label)
    at = np.arange(first, first + n)
    rows = Rows.empty(SHAPE, n)
    assert isinstance(rows, ImageRows)
    rows.pixels[:] = part.pixels.reshape(n, -1)
    rows.time_us[:], rows.position[:] = at * 1_000_000, at
    rows.categories[:, LABEL], rows.missing[:] = part.label, False
    entity = mixed(at)
    return Windows(rows, np.arange(n + 1), np.zeros((n, SHAPE.totals)), rows.time_us.copy(), entity)


# -- orders -----------------------------------------------------------------------------------------


def by_task(label: I64, rng: np.random.Generator) -> tuple[I64, list[I64]]:
    """Class-incremental: which images each of five tasks has, two classes each, shuffled within; and the classes
    [5, 2], which are dealt anew by the generator."""
    classes = rng.permutation(CLASSES).reshape(TASKS, -1)
    return classes, [rng.permutation(np.flatnonzero(np.isin(label, pair))) for pair in classes]


def frames(part: Part, count: int, rng: np.random.Generator) -> Part:
    """`count` frames of each image, one image after the other: the camera drifts by up to a pixel from frame to
    frame, within 4 of the middle, while the light drifts by up to 3%."""
    n, margin = len(part.label), 4
    steps = rng.integers(-1, 2, (n, count, 2))
    place = np.clip(margin + np.cumsum(steps, 1), 0, 2 * margin)
    light = np.exp(np.cumsum(rng.uniform(-0.03, 0.03, (n, count)), 1)).astype(np.float32)
    wide = np.pad(part.pixels, ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)), mode="reflect")
    across = np.arange(SIDE)
    rows = (place[:, :, 0, None] + across)[:, :, :, None]
    columns = (place[:, :, 1, None] + across)[:, :, None, :]
    out = wide[np.arange(n)[:, None, None, None], rows, columns] * light[:, :, None, None, None]
    pixels = out.clip(0, 255).astype(np.uint8).reshape(n * count, SIDE, SIDE, 3)
    return Part(pixels, np.repeat(part.label, count))


# -- near-copies ------------------------------------------------------------------------------------


def cut(pixels: U8, rng: np.random.Generator) -> U8:
    """Of each image 28 × 28 pixels somewhere, at its size again."""
    kept, out = 28, np.empty_like(pixels)
    corner = rng.integers(0, SIDE - kept + 1, (len(pixels), 2))
    for i, (top, left) in enumerate(corner):
        part = Image.fromarray(pixels[i, top : top + kept, left : left + kept])
        out[i] = np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return out


def compressed(pixels: U8, rng: np.random.Generator) -> U8:
    """Each as a JPEG again, of a quality of 30 to 60."""
    out = np.empty_like(pixels)
    for i, quality in enumerate(rng.integers(30, 61, len(pixels))):
        file = io.BytesIO()
        Image.fromarray(pixels[i]).save(file, "JPEG", quality=int(quality))
        out[i] = np.asarray(Image.open(file))
    return out


def lit(pixels: U8, rng: np.random.Generator) -> U8:
    """Each brighter or darker, by 10 to 25%."""
    change = rng.uniform(0.1, 0.25, len(pixels)) * rng.choice([-1, 1], len(pixels))
    out = pixels * (1.0 + change)[:, None, None, None]
    return np.asarray(out.clip(0, 255).astype(np.uint8))


COPIES: dict[str, Callable[[U8, np.random.Generator], U8]] = {
    "crop": cut,
    "JPEG": compressed,
    "brightness": lit,
}


# -- probes -----------------------------------------------------------------------------------------


def raw(pixels: U8) -> F32:
    """Pixels as a representation [N, 3072]: centred, or all cosines would be high."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255.0 - 0.5


def knn(x_ND: Features, label: I64, asked_QD: Features, k: int = NEIGHBOURS) -> I64:
    """The class [Q] for which the k nearest by cosine vote, each with exp(cosine / 0.1).

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4."""
    x_ND, asked_QD = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x_ND, asked_QD))
    out, k = np.empty(len(asked_QD), np.int64), min(k, len(x_ND))
    for first in range(0, len(asked_QD), 500):
        with threadpool_limits(1):
            cosine = asked_QD[first : first + 500] @ x_ND.T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(cosine, near, 1) / TEMPERATURE)
        votes = np.zeros((len(cosine), int(label.max()) + 1))
        np.add.at(votes, (np.arange(len(cosine))[:, None], label[near]), weight)
        out[first : first + 500] = votes.argmax(1)
    return out


def linear(x_ND: Features, label: I64, choosing: tuple[Features, I64], asked: Features) -> I64:
    """The class [Q] by logistic regression on standardised features, of the strength that is best where one chooses."""
    scale = StandardScaler().fit(x_ND)
    best, found = -1.0, np.zeros(len(asked), np.int64)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=200).fit(scale.transform(x_ND), label)
            right = float(np.mean(model.predict(scale.transform(choosing[0])) == choosing[1]))
            if right > best:
                best, found = right, model.predict(scale.transform(asked)).astype(np.int64)
    return found


class Right(NamedTuple):
    """Which of the images asked about a probe names rightly: [Q] each."""

    knn: Bool
    linear: Bool


def probed(of: Cifar, representations: Iterable[Features]) -> Right:
    """Of the streamed images, those chosen on, and the test's."""
    train, choosing, asked = representations
    label, tests = of.train.label, of.test.label
    by_regression = linear(train, label, (choosing, of.choosing.label), asked)
    return Right(knn(train, label, asked) == tests, by_regression == tests)
