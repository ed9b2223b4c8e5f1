"""Measures in processes of their own: what one allocates or imports does not touch the next."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PROCESSES = 2

P = ParamSpec("P")
T = TypeVar("T")


def apart(measure: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *args, **kwargs).result()


def in_processes(
    calls: Sequence[Callable[[], T]], processes: int, console: Console, said: Callable[[T], str]
) -> list[T]:
    """So many at a time, each in a process of its own; said as they come."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    done: list[T] = []
    with (
        Progress(*columns, console=console, speed_estimate_period=600) as progress,
        ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        task = progress.add_task("learners", total=len(calls))
        for future in as_completed([pool.submit(call) for call in calls]):
            done.append(future.result())
            progress.advance(task)
            progress.console.print(f"[dim]{said(done[-1])}[/dim]")
    return done
