"""`make test-faults`: every fault for many rounds, as a table and as build/test-faults.json.

ARGS="NAME..." runs some. AFRESH_ROUNDS (20) is how often processes are killed, other faults a quarter of
it; AFRESH_SECONDS (600) how long the simulation runs; AFRESH_SOAK_S (1200) how long the soak does."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.faults import brokers, disks, poison, processes, simulation, soak, stores
from benchmarks.faults.outcome import Outcome, state_differs
from benchmarks.faults.service import Service, service
from benchmarks.items import Item, at_most
from daemon import servers
from daemon.children import Server

Fault = Callable[[Service, int, int], Outcome]
BUILD = Path(__file__).parents[2] / "build"
MOST, FEW = 4, 8
"""Of AFRESH_ROUNDS: the share of faults that are slow, and of those that last for a minute."""


def faults(rounds: int) -> dict[str, tuple[Fault, int]]:
    """name -> the fault and its rounds; the order leaves the service running after each."""
    some, few = max(rounds // MOST, 1), max(rounds // FEW, 1)
    kills = {
        f"kill-{what}": (partial(processes.kill_actor, what=what), rounds)
        for what in processes.ACTORS
    }
    rays = {
        f"kill-{what}": (partial(processes.kill_ray, what=what), some)
        for what in ("raylet", "gcs_server")
    }
    stalls = {f"stall-{s}": (partial(stores.stalled, seconds=float(s)), some) for s in (2, 8)}
    return {
        **kills,
        "kill-daemon": (processes.kill_driver, rounds),
        **rays,
        "freeze": (processes.freeze_daemon, some),
        "hang": (processes.hang_actor, few),
        "others": (processes.others_serve, some),
        "twice": (processes.twice, some),
        "silent-learner": (processes.silent_learner, few),
        "sigterm": (processes.stop_under_load, some),
        "rescale": (processes.rescale, few),
        "kafka-kill": (brokers.killed, some),
        "kafka-stop": (brokers.stopped, some),
        "aborted": (brokers.aborted, some),
        "redis-kill": (stores.killed, some),
        "redis-wipe": (stores.wiped, some),
        "redis-flush": (stores.flushed, some),
        "redis-older": (stores.older, some),
        **stalls,
        "redis-slow": (partial(stores.crawling, seconds=60.0), few),
        "poison": (poison.poisoned, few),
        "disk-damage": (disks.damaged, some),
        "disk-full": (disks.full, some),
    }


def graph_faults(rounds: int) -> dict[str, tuple[Fault, int]]:
    """Those in which edges could get lost, or count twice, between the groups of their two nodes."""
    some, few = max(rounds // MOST, 1), max(rounds // FEW, 1)
    return {
        "graph-kill": (partial(processes.kill_actor, what="ShardProcess"), rounds),
        "graph-kill-daemon": (processes.kill_driver, some),
        "graph-kafka-kill": (brokers.killed, some),
        "graph-kafka-stop": (brokers.stopped, some),
        "graph-freeze": (processes.freeze_daemon, few),
        "graph-sigterm": (processes.stop_under_load, some),
        "graph-rescale": (processes.rescale, few),
    }


def image_faults(rounds: int) -> dict[str, tuple[Fault, int]]:
    """Those that images meet otherwise: their state is large, their decoder meets the world."""
    some, few = max(rounds // MOST, 1), max(rounds // FEW, 1)
    kills = {
        f"images-kill-{name}": (partial(processes.kill_actor, what=what), rounds)
        for name, what in (
            ("shard", "ShardProcess"),
            ("learner", "LearnProcess"),
            ("publisher", "PublishProcess"),
        )
    }
    return {
        **kills,
        "images-kill-daemon": (processes.kill_driver, some),
        "images-poison": (poison.poisoned, few),
        "images-sigterm": (processes.stop_under_load, some),
    }


def many(folder: Path, kafka: Server, redis: Server, rounds: int) -> Outcome:
    """10,000 entities: how long until a killed shard has restored them and serves again."""
    with service(folder, kafka, redis, entities=10_000, topic="many") as of:
        outcome = processes.kill_actor(of, rounds, 0, "ShardProcess")
    outcome.fault += ", 10,000 entities"
    return outcome


def table(outcomes: list[Outcome]) -> Table:
    out = Table(
        "fault", "rounds", "sent", "lost", "doubled", "falls", "letters", "worst vector", "s to recover", ""
    )  # fmt: skip
    for o in outcomes:
        out.add_row(
            o.fault, str(o.rounds), f"{o.sent:,}", str(o.lost), str(o.doubled), str(o.falls), str(o.letters),
            f"{o.worst:.1e}", f"{o.recover_s:.1f}", o.note,
        )  # fmt: skip
    return out


def one_by_one(
    of: Service, chosen: dict[str, tuple[Fault, int]], done: Callable[[Outcome], None]
) -> list[Item]:
    """All faults, then a clean end: what was snapshotted is what was sent."""
    for seed, (fault, n) in enumerate(chosen.values()):
        done(fault(of, n, seed))
    code, differs = of.stop(), state_differs(of)
    return [
        at_most(f"{of.topic}: exit code after SIGTERM", code, "", 0),
        at_most(f"{of.topic}: entities whose state is not what was sent", len(differs), "", 0),
    ]


def every(
    wanted: list[str],
    rounds: int,
    out: Console,
    done: Callable[[Outcome], None],
    items: list[Item],
) -> None:
    if "simulation" in wanted:
        items += simulation.run(float(os.environ.get("AFRESH_SECONDS", "600")), out)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        kafka = stack.enter_context(servers.kafka_server(folder / "kafka"))
        redis = stack.enter_context(servers.redis_server(folder / "redis"))
        chosen = {name: fault for name, fault in faults(rounds).items() if name in wanted}
        if chosen:
            small = stack.enter_context(disks.small_disk(folder / "service" / "state"))
            if not small and "disk-full" in chosen:
                out.print(
                    "disk-full is left out: it needs the right to mount a small tmpfs (root)."
                )
                del chosen["disk-full"]
            with service(folder / "service", kafka, redis) as of:
                items += one_by_one(of, chosen, done)
        chosen = {name: fault for name, fault in graph_faults(rounds).items() if name in wanted}
        if chosen:
            with service(folder / "graph", kafka, redis, topic="graph", kind="graph") as of:
                items += one_by_one(
                    of, chosen, lambda o: done(replace(o, fault=f"graph: {o.fault}"))
                )
        chosen = {name: fault for name, fault in image_faults(rounds).items() if name in wanted}
        if chosen:
            with service(folder / "images", kafka, redis, topic="images", kind="images") as of:
                items += one_by_one(
                    of, chosen, lambda o: done(replace(o, fault=f"images: {o.fault}"))
                )
        if "many" in wanted:
            done(many(folder / "many", kafka, redis, max(rounds // FEW, 1)))
        if "soak" in wanted:
            with service(folder / "soak", kafka, redis, topic="soak") as of:
                outcome, more = soak.soak(of, float(os.environ.get("AFRESH_SOAK_S", "1200")))
                done(outcome)
                items += more


def main(asked: list[str]) -> None:
    out = Console(width=150)
    rounds = int(os.environ.get("AFRESH_ROUNDS", "20"))
    known = [
        *faults(rounds),
        *graph_faults(rounds),
        *image_faults(rounds),
        "many",
        "simulation",
        "soak",
    ]
    if unknown := set(asked) - set(known):
        out.print(f"No fault {', '.join(sorted(unknown))}; there are: {', '.join(known)}.")
        sys.exit(2)
    wanted = asked or known
    outcomes: list[Outcome] = []
    items: list[Item] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        items.extend(outcome.items())
        out.print(outcome, soft_wrap=True)

    try:
        every(wanted, rounds, out, done, items)
    finally:  # what was seen until something went wrong is worth an hour
        out.print(table(outcomes))
        BUILD.mkdir(exist_ok=True)
        (BUILD / "test-faults.json").write_text(json.dumps(items, indent=1))
    bad = [item["name"] for item in items if item["ok"] is False]
    if bad:
        out.print(f"[red]{len(bad)} misses:[/] {'; '.join(bad)}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
