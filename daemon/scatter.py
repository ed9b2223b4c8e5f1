"""A map of the newest embeddings for the status page: two axes that stay, so that what moves has moved.

No entity's name leaves it: colours are of prefixes that many share, else of clusters."""

import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from schemas.errors import AfreshError
from schemas.records import F32, I64

POINTS = 1500
FRESH_S = 30.0
FEWEST = 8
COLOURS = 7
SHARE = 0.02
"""A prefix is shown that so large a share of the entities have; one name alone never is."""
LOSES = 0.7
"""The axes are chosen anew once they show less than this of what the best two would."""
_PREFIX = re.compile(r"[^\W\d_]+")


class Sample(NamedTuple):
    """Entities as Redis has them: vectors [N, D]."""

    generation: int
    names: list[str]
    vectors: F32
    time_us: I64


@dataclass(frozen=True)
class Axes:
    """Principal components of a reference sample."""

    generation: int
    mean: F32  # [D]
    axes: F32  # [D, 2]
    centres: F32  # [C, D], of clusters
    reach: float  # of the farthest along them, which is drawn at the edge

    def on(self, vectors: F32) -> F32:
        return np.asarray((vectors - self.mean) @ self.axes, np.float32)

    def shown(self, vectors: F32) -> float:
        """Share of the variance that the two axes hold."""
        total = float(((vectors - vectors.mean(0)) ** 2).sum())
        seen = self.on(vectors)
        return float(((seen - seen.mean(0)) ** 2).sum()) / total if total else 0.0


class Scatter:
    """Asked at most once in FRESH_S, whoever looks on. `sample(n)` raises AfreshError."""

    def __init__(self, sample: Callable[[int], Sample], clock: Callable[[], float]) -> None:
        self._sample, self._clock = sample, clock
        self._axes: Axes | None = None
        self._lock = threading.Lock()
        self._told: dict[str, Any] = {}
        self._at = -FRESH_S

    def told(self) -> dict[str, Any]:
        with self._lock:
            if not self._told or self._clock() - self._at >= FRESH_S:
                self._told, self._at = self._look(), self._clock()
            return self._told

    def _look(self) -> dict[str, Any]:
        try:
            found = self._sample(POINTS)
        except AfreshError as error:
            return {"reason": str(error)}
        if len(found.names) < FEWEST:
            return {"reason": f"Redis has {len(found.names)} vectors yet, a map needs {FEWEST}."}
        best = fitted(found)
        old = self._axes
        if (
            old is None
            or old.generation != found.generation
            or old.shown(found.vectors) < LOSES * best.shown(found.vectors)
        ):
            self._axes = old = best
        colour, legend = coloured(found, old)
        at = np.rint(old.on(found.vectors) / old.reach * 1000).clip(-1000, 1000)
        points = np.column_stack([at, colour]).astype(int)
        shown = round(old.shown(found.vectors), 3)
        return {"points": points.tolist(), "legend": legend, "shown": shown}


def fitted(found: Sample) -> Axes:
    mean = found.vectors.mean(0)
    centred = (found.vectors - mean).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -1:-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])  # eigenvectors come with any sign
    axes = axes.astype(np.float32)
    reach = float(np.abs((found.vectors - mean) @ axes).max()) or 1.0
    return Axes(found.generation, mean, axes, _centres(found.vectors), reach)


def _centres(vectors: F32, rounds: int = 10) -> F32:
    """k-means, begun at vectors far from each other. [C, D]"""
    centres = vectors[:1]
    while len(centres) < min(COLOURS, len(vectors)):
        centres = np.concatenate([centres, vectors[[_distances(vectors, centres).min(1).argmax()]]])
    for _ in range(rounds):
        mine = _distances(vectors, centres).argmin(1)
        centres = np.stack(
            [
                vectors[mine == c].mean(0) if (mine == c).any() else centres[c]
                for c in range(len(centres))
            ]
        )
    return centres


def _distances(a: F32, b: F32) -> F32:
    """Squared, of each with each. [A, B]"""
    return (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None]  # type: ignore[no-any-return]


def coloured(found: Sample, axes: Axes) -> tuple[I64, list[str]]:
    """Of each entity the number of its colour, and what the colours mean; the last one is all others."""
    prefixes = [match[0] if (match := _PREFIX.match(name)) else "" for name in found.names]
    least = max(2, int(np.ceil(SHARE * len(prefixes))))
    common = [p for p, n in Counter(prefixes).most_common(COLOURS) if p and n >= least]
    covered = sum(prefix in common for prefix in prefixes)
    if len(common) > 1 and covered >= len(prefixes) / 2:
        number = {prefix: i for i, prefix in enumerate(common)}
        colour = np.array([number.get(prefix, len(common)) for prefix in prefixes])
        return colour, [*common, *(["others"] if covered < len(prefixes) else [])]
    clusters = _distances(found.vectors, axes.centres).argmin(1)
    return clusters, [f"cluster {i + 1}" for i in range(len(axes.centres))]
