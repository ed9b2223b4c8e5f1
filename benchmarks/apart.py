"""Measures in processes of their own: what one allocates or imports does not touch the next."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(measure: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *args, **kwargs).result()
