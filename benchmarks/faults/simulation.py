"""Seeded simulations of shards under faults: the real Shard, Group, State and snapshots, nothing else real.

A seed gives the stream, the actions and the faults, and thereby every result: what failed fails again. All
threads rest between two actions. `simulate` raises Violation with the seed and all that was done."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
from rich.console import Console

import actors.embed
from benchmarks.faults.actions import ACTIONS, TROUBLES
from benchmarks.faults.oracle import check, restored, settle
from benchmarks.faults.planted import BUGS
from benchmarks.faults.small_disks import installed, replaced
from benchmarks.faults.stand_ins import SmallRelease, Violation
from benchmarks.faults.world import World
from benchmarks.items import Item, at_most, shown

STEPS = 60
WITHIN = 400
"""Seeds in which a planted bug is to be found."""


def simulate(seed: int, bug: str | None = None) -> None:
    """One seed, with a planted bug or without. Raises Violation."""
    memory = Path("/dev/shm")  # noqa: S108
    with ExitStack() as stack:
        where = memory if memory.is_dir() else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="afresh-", dir=where)))
        world = World(seed, folder)
        stack.enter_context(quiet())
        stack.enter_context(replaced(actors.embed, "Release", SmallRelease))
        stack.enter_context(installed(slab=world.rng.randint(3, 9)))
        if bug is not None:
            stack.enter_context(BUGS[bug]())
        try:
            _run(world)
        except Exception as error:
            lines = "\n  ".join(world.trace)
            raise Violation(
                f"seed {seed}{f' with {bug!r}' if bug else ''}: {type(error).__name__}: {error}\n"
                f"{world.shape}\n  {lines}"
            ) from error


def _run(world: World) -> None:
    world.open_missing()
    often = world.rng.choice(TROUBLES)
    weights = [weight * 0.4 + 12.0 * (act in often) for act, weight in ACTIONS.items()]
    weights[0] = sum(weights[1:])  # turns
    steps = world.rng.randint(STEPS // 2, STEPS)
    chosen = world.rng.choices(list(ACTIONS), weights, k=steps)
    for action in chosen:
        action(world)
    settle(world)
    check(world)
    restored(world)


@contextmanager
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def hunt(bug: str, seeds: int, first: int = 0) -> int | None:
    """How many seeds it takes until the planted bug is found; None: more than that."""
    for n in range(seeds):
        try:
            simulate(first + n, bug)
        except Violation:
            return n + 1
    return None


def run(seconds: float, out: Console) -> list[Item]:
    """As many seeds as fit into the time, then a hunt for each planted bug."""
    began, seeds, failed = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        try:
            simulate(seeds)
        except Violation as violation:
            failed += 1
            out.print(str(violation), markup=False, soft_wrap=True)
        seeds += 1
    rate = seeds / (time.monotonic() - began)
    out.print(f"simulation: {seeds} seeds, {rate:.1f} a second, {failed} failed")
    items = [
        at_most("simulation: failed", failed, "seeds", 0),
        shown("simulation: seeds", seeds, ""),
        shown("simulation: speed", rate, "seeds/s"),
    ]
    for bug in BUGS:
        found = hunt(bug, WITHIN)
        out.print(f"simulation: {bug!r} is found after {found or f'more than {WITHIN}'} seeds")
        items.append(at_most(f"simulation: {bug}", found or WITHIN + 1, "seeds", WITHIN))
    return items
