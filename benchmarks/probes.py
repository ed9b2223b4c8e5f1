"""Linear probes: logistic regression across customers, AUC within cut-offs, paired bootstrap."""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from schemas.records import F64, I64, Bool

FOLDS = 5
STRENGTHS = (0.001, 0.01, 0.1)  # C of the regression; each representation takes its best
Features = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Task:
    """Q examples with one label or several; those of a customer stay in one fold."""

    label: Bool  # [Q, labels]
    cut: I64  # [Q] examples are ranked within their cut-off only
    customer: I64  # [Q]
    selection: Bool  # [Q] the half on which C is chosen; the other half is reported


def auc(score: F64, label: Bool, cut: I64) -> float:
    """Share of pairs (positive, negative) of one cut-off that are in order; ties count half."""
    above = pairs = 0.0
    for c in np.unique(cut):
        s, y = score[cut == c], label[cut == c]
        positives = int(y.sum())
        above += rankdata(s)[y].sum() - positives * (positives + 1) / 2
        pairs += positives * (len(y) - positives)
    return above / pairs if pairs else float("nan")


def scores(x: Features, task: Task, which: Bool, strength: float) -> F64:
    """Out-of-fold log odds of the chosen examples, [chosen, labels]."""
    x, label, customer = x[which], task.label[which], task.customer[which]
    fold = (customer * 2654435761 >> 8) % FOLDS
    out = np.zeros(label.shape)
    for f in range(FOLDS):
        scaler = StandardScaler().fit(x[fold != f])
        train, test = scaler.transform(x[fold != f]), scaler.transform(x[fold == f])
        for k in range(label.shape[1]):
            model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=30)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(train, label[fold != f, k])
            out[fold == f, k] = model.decision_function(test)
    return out


def macro(score: F64, task: Task, which: Bool) -> float:
    label, cut = task.label[which], task.cut[which]
    return float(np.mean([auc(score[:, k], label[:, k], cut) for k in range(label.shape[1])]))


def probe(x: Features, task: Task) -> tuple[float, float, F64]:
    """Macro AUC on the selection half and on the reported half, and the latter's scores."""
    tried = [
        (macro(scores(x, task, task.selection, c), task, task.selection), c) for c in STRENGTHS
    ]
    best, strength = max(tried)
    score = scores(x, task, ~task.selection, strength)
    return best, macro(score, task, ~task.selection), score


def paired(a: F64, b: F64, task: Task, draws: int = 200) -> tuple[float, float]:
    """95% interval of AUC(a) - AUC(b) on the reported half, customers drawn with replacement."""
    which = ~task.selection
    rng = np.random.default_rng(0)
    label, cut, customer = task.label[which], task.cut[which], task.customer[which]
    order = np.argsort(customer, kind="stable")
    names, start = np.unique(customer[order], return_index=True)
    rows = np.split(order, start[1:])
    gaps = []
    for _ in range(draws):
        at = np.concatenate([rows[i] for i in rng.integers(0, len(names), len(names))])
        each = [
            auc(a[at, k], label[at, k], cut[at]) - auc(b[at, k], label[at, k], cut[at])
            for k in range(label.shape[1])
        ]
        gaps.append(np.nanmean(each))
    low, high = np.quantile(gaps, [0.025, 0.975]).tolist()
    return low, high
