"""Can what came lately be told from the reference, and by what? A second opinion, slower than learning/mmd.py.

Classifier two-sample test, Lopez-Paz & Oquab 2017, arXiv:1610.06545: a logistic regression learns to tell the samples
apart; where they are the same it is right half of the time on what it has not seen. One window of each entity, and
entities that are learnt from are not judged: else it would know a busy entity again and call that a change.

Shapes: A and B windows of the samples, D dimensions, P features."""

import math
from dataclasses import dataclass

import numpy as np

from learning.held_out import mixed
from schemas.records import F32, F64, I64

LEAST = 64  # entities of either sample
RIDGE, STEPS = 10.0, 8
SURE = 0.01  # chance that a field is named though it is the same, over all fields


@dataclass
class Told:
    """accuracy: of the judgements, 0.5 is none. p: how likely that is by chance. score [B]: how new each of the second
    sample's rows looked to who had not seen it."""

    accuracy: float
    p: float
    score: F64


def told_apart(then: F32 | F64, now: F32 | F64, entities: tuple[I64, I64]) -> Told:
    """Of features [A, P] and [B, P] and whose each row is. Two folds: entities' hashes halve them. Each is judged by
    who learnt from the other, so that it has a chance of its own; of the two the smaller counts, twice."""
    x = np.concatenate([then, now]).astype(np.float64)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    y = np.repeat([0.0, 1.0], [len(then), len(now)])
    fold = mixed(mixed(np.concatenate(entities))) & 1
    score, right, chances = np.zeros(len(x)), 0, []
    for each in (0, 1):
        judged = fold == each
        if not judged.any() or judged.all():
            continue
        score[judged] = _logits(x[judged], _fitted(x[~judged], y[~judged]))
        good = (score[judged] > 0) == (y[judged] > 0)
        chances.append(chance(int(good.sum()), len(good)))
        right += int(good.sum())
    p = min(1.0, 2.0 * min(chances, default=1.0))
    return Told(right / len(x), p, score[len(then) :])


def alone(entity: I64) -> I64:
    """The newest row of each entity."""
    _, last = np.unique(entity[::-1], return_index=True)
    return np.sort(len(entity) - 1 - last)


def chance(right: int, n: int) -> float:
    """Of at least so many right of n fair coins."""
    ways = sum(math.comb(n, k) for k in range(right, n + 1))
    return float(ways / 2**n)


def _fitted(x: F64, y: F64) -> F64:
    """Weights and bias of a logistic regression with a ridge, by Newton's method. Both samples weigh the same: else
    the fold that has more of one would be told to say so of the other, which has fewer."""
    x = np.column_stack([x, np.ones(len(x))])
    many = np.array([max(np.count_nonzero(y == c), 1) for c in (0, 1)])
    weight = (len(y) / 2 / many)[y.astype(np.int64)]
    w = np.zeros(x.shape[1])
    ridge = np.full(x.shape[1], RIDGE)
    ridge[-1] = 1e-6
    for _ in range(STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ w, -30.0, 30.0)))
        gradient = x.T @ (weight * (p - y)) + ridge * w
        curvature = (x * (weight * p * (1.0 - p))[:, None]).T @ x + np.diag(ridge)
        w -= np.linalg.solve(curvature, gradient)
    return w


def _logits(x: F64, w: F64) -> F64:
    return np.asarray(x @ w[:-1] + w[-1])
