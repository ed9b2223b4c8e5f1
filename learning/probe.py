"""What vectors say of labels that come beside the stream: probes, and how well they foretell before they are told.

NumPy alone, so that a process without torch can keep them. Shapes: N labelled entities, D dimensions, C classes."""

from dataclasses import dataclass

import numpy as np

from schemas.records import F32, F64, I64, Bool

RIDGE = 1.0  # vectors have unit length, and a probe is fitted on a few dozen at least
LEAST = 32  # labelled entities before anything is foretold
KEPT = 4096  # labelled entities that probes know, the newest
WINDOW = 1000  # the newest foretold labels, over which they are judged
REFIT = 0.05  # a probe is fitted anew when so large a share of what it knows is new
NEIGHBOURS = 10
PROBES = ("knn", "linear", "majority")


@dataclass(frozen=True)
class Linear:
    """Ridge regression on one-hot classes. Of several classes the one with the greatest score is foretold."""

    classes: I64  # [C]
    weights: F64  # [D + 1, C]

    @classmethod
    def fit(cls, z_ND: F32, label_N: I64) -> "Linear":
        classes, which = np.unique(label_N, return_inverse=True)
        x = _with_one(z_ND)
        y = np.eye(len(classes))[which]
        if len(x) >= x.shape[1]:
            weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
        else:  # as well, and cheaper where there are more dimensions than entities
            weights = x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), y)
        return cls(classes, np.asarray(weights, np.float64))

    def scores(self, z_MD: F32) -> F64:
        """[M, C]"""
        return np.asarray(_with_one(z_MD) @ self.weights)

    def predict(self, z_MD: F32) -> I64:
        return np.asarray(self.classes[self.scores(z_MD).argmax(1)])


def _with_one(z_ND: F32) -> F64:
    return np.column_stack([z_ND, np.ones(len(z_ND))]).astype(np.float64)


def nearest(z_MD: F32, own_M: I64, known_ND: F32, who_N: I64, label_N: I64) -> I64:
    """The label that most of the NEIGHBOURS nearest known entities have, by cosine; of an entity itself none is one.

    Needs more than NEIGHBOURS known entities."""
    cosine = z_MD @ known_ND.T
    cosine[own_M[:, None] == who_N] = -np.inf
    near = np.argpartition(-cosine, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    classes, which = np.unique(label_N, return_inverse=True)
    weight = np.take_along_axis(cosine, near, 1)
    votes = np.zeros((len(z_MD), len(classes)))
    rows = np.arange(len(z_MD))[:, None]
    np.add.at(votes, (rows, which[near]), np.where(np.isfinite(weight), 2.0 + weight, 0.0))
    return np.asarray(classes[votes.argmax(1)])


def average_precision(score_N: F64, positive_N: Bool) -> float:
    """Mean precision at each positive, by falling score. NaN where there are none, or nothing else."""
    if positive_N.all() or not positive_N.any():
        return float("nan")
    hits = positive_N[np.argsort(-score_N, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


class Prequential:
    """Each label is first foretold, then learnt from: Gama et al. 2013, doi:10.1007/s10994-012-5320-9.

    One label of each entity is known, the newest; of the newest WINDOW that were foretold accuracy is told."""

    def __init__(self) -> None:
        self.entity, self.label = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.time_us = np.zeros(0, np.int64)
        self.vector = np.zeros((0, 0), np.float32)
        self._linear: Linear | None = None
        self._new = 0  # since it was fitted
        self._right = np.zeros((0, len(PROBES)), np.bool_)
        self._told = np.zeros(0, np.int64)
        self._margin = np.zeros(
            0
        )  # of two classes, by how much the second scores more than the first

    def add(self, entity: I64, label: I64, time_us: I64, vector: F32) -> None:
        """M labels in the order in which they came. vector: [M, D] of unit length."""
        if vector.shape[1] != self.vector.shape[1]:
            self.keep(np.zeros(0, np.int64))  # what is known is of vectors of another size
            self.renew(np.zeros((0, vector.shape[1]), np.float32))
        if len(self.entity) >= LEAST:
            self._foretell(entity, label, vector)
        self._learn(entity, label, time_us, vector)

    def _foretell(self, entity: I64, label: I64, vector: F32) -> None:
        if self._linear is None or self._new > REFIT * len(self.entity):
            self._linear, self._new = Linear.fit(self.vector, self.label), 0
        classes, counts = np.unique(self.label, return_counts=True)
        foretold = np.column_stack(
            [
                nearest(vector, entity, self.vector, self.entity, self.label),
                self._linear.predict(vector),
                np.full(len(label), classes[counts.argmax()]),
            ]
        )
        margin = np.full(len(label), np.nan)
        if len(self._linear.classes) == 2:
            margin = np.diff(self._linear.scores(vector), axis=1)[:, 0]
        self._right = np.concatenate([self._right, foretold == label[:, None]])[-WINDOW:]
        self._told = np.concatenate([self._told, label])[-WINDOW:]
        self._margin = np.concatenate([self._margin, margin])[-WINDOW:]

    def _learn(self, entity: I64, label: I64, time_us: I64, vector: F32) -> None:
        """Of each entity the newest by time, of the same time the one that came last; the newest KEPT of all."""
        self.entity = np.concatenate([self.entity, entity])
        self.label = np.concatenate([self.label, label])
        self.time_us = np.concatenate([self.time_us, time_us])
        self.vector = np.concatenate([self.vector, vector])
        order = np.argsort(self.time_us, kind="stable")
        _, last = np.unique(self.entity[order][::-1], return_index=True)
        self.keep(np.sort(order[len(order) - 1 - last])[-KEPT:])
        self._new += len(entity)

    def keep(self, which: I64 | Bool) -> None:
        """Only these of what is known."""
        self.entity, self.label = self.entity[which], self.label[which]
        self.time_us, self.vector = self.time_us[which], self.vector[which]

    def renew(self, vector: F32) -> None:
        """The vectors [N, D] of all that are known, by another release."""
        self.vector, self._linear = vector, None

    @property
    def accuracy(self) -> dict[str, float]:
        """By probe; `majority` always foretells the most frequent label. Empty before anything was foretold."""
        if not len(self._right):
            return {}
        return dict(zip(PROBES, self._right.mean(0).tolist(), strict=True))

    @property
    def precision(self) -> float:
        """Average precision of the rarer of two classes, by the linear probe. NaN where there are not two."""
        there = ~np.isnan(self._margin)
        told, margin = self._told[there], self._margin[there]
        classes, counts = np.unique(told, return_counts=True)
        if len(classes) != 2:
            return float("nan")
        rarer = int(counts.argmin())
        return average_precision(margin if rarer else -margin, told == classes[rarer])
