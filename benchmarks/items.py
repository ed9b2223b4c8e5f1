"""What every measuring target writes: a list of {name, value, unit, bar, ok}; `bar` null where there is none."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt


class Item(TypedDict):
    name: str
    value: float
    unit: str
    bar: float | None
    ok: bool | None


def at_least(name: str, value: float, unit: str, bar: float) -> Item:
    return Item(name=name, value=value, unit=unit, bar=bar, ok=value >= bar)


def at_most(name: str, value: float, unit: str, bar: float) -> Item:
    return Item(name=name, value=value, unit=unit, bar=bar, ok=value <= bar)


def shown(name: str, value: float, unit: str) -> Item:
    return Item(name=name, value=value, unit=unit, bar=None, ok=None)


def gap(
    ours: Sequence[npt.NDArray[Any]], others: Sequence[npt.NDArray[Any]]
) -> tuple[float, float]:
    """Mean difference of two measures, seed by seed, and its standard error: of seeds and of what was asked about.
    Either is, for each seed, what each thing asked about got."""
    each = np.array([a.astype(float) - others[i % len(others)] for i, a in enumerate(ours)])
    of_seeds = each.mean(1).std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0.0
    of_asked = each.mean(0).std(ddof=1) / each.shape[1] ** 0.5
    return float(each.mean()), float(np.hypot(of_seeds, of_asked))


def spread(values: Sequence[float]) -> str:
    """Their mean, and half their range."""
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")
