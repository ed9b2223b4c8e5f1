"""Do months of learning add up? Online Retail by month: the release of each month on the data of each.

`make quality-months AFRESH_DATA=folder` prints tables and writes build/quality-months.json.

Of customers that are never learnt from: the first half of what each bought in one month is to be found among 250 by the
second half. Our learner goes on from month to month; beside it: frozen after the first month, another one each month
which learns from that alone (as many updates), without replay, and with distillation from the last release. And do the
vectors of two releases go together? Those of the newer one seek their own among the older one's."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.apart import PROCESSES, in_processes
from benchmarks.items import Item, at_least, gap, shown, spread
from benchmarks.month_pass import MONTHS, Job, Outcome, Size, work
from benchmarks.reference import BUILD
from schemas.records import F64

SEEDS = (0, 1, 2)
OUT = BUILD / "quality-months.json"
OURS, FROZEN = "continual", "frozen after the first month"
LEARNT = {
    OURS: {},
    "from scratch each month": {"anew": True},
    "without replay": {"replay": False},
    "with distillation": {"distil": True},
    "without replay, with distillation": {"replay": False, "distil": True},
}
ACROSS = 0.95
Found = dict[str, list[Outcome]]
"""By name, by seed."""


def jobs(seeds: Sequence[int]) -> list[Job]:
    return [Job(name, seed, **how) for seed in seeds for name, how in LEARNT.items()]


def frozen(outcome: Outcome) -> Outcome:
    """The first month's release of our learner, asked about all months."""
    recall = np.tile(outcome.recall[:1], (len(outcome.recall), 1))
    return outcome._replace(recall=recall, next_product=outcome.frozen)


def by_name(outcomes: Sequence[Outcome]) -> Found:
    out: Found = {}
    for outcome in sorted(outcomes, key=lambda o: (o.job.seed, list(LEARNT).index(o.job.name))):
        out.setdefault(outcome.job.name, []).append(outcome)
    return out | {FROZEN: [frozen(outcome) for outcome in out[OURS]]}


def measures(recall: F64) -> dict[str, F64]:
    """What a matrix of recalls [M, M] says, by month."""
    own, last = np.diagonal(recall), recall[-1]
    return {
        "its own month": own.copy(),
        "the next month": np.diagonal(recall, 1).copy(),
        "earlier months, at the end": last[:-1].copy(),
        "forgotten": own[:-1] - last[:-1],
    }


def matrix(name: str, outcomes: Sequence[Outcome]) -> Table:
    table = Table("release of", *(month[2:] for month in MONTHS))
    table.title = f"{name}: recall at 1 on the data of each month"
    mean = np.mean([outcome.recall for outcome in outcomes], axis=0)
    for month, row in zip(MONTHS, mean, strict=True):
        table.add_row(month, *(f"{value:.3f}" for value in row))
    return table


def summary(found: Found) -> Table:
    columns = [*measures(np.zeros((2, 2))), "next product, AUC", "recall at 10 across", "CPU s"]
    table = Table("", *columns)
    table.title = "Recall at 1 by the releases, mean over months, ± half the seeds' range"
    for name, outcomes in found.items():
        each = [measures(o.recall) for o in outcomes]
        cells = [spread([float(m[key].mean()) for m in each]) for key in each[0]]
        cells.append(spread([o.next_product for o in outcomes]))
        cells.append("" if name == FROZEN else spread([ratio(o) for o in outcomes]))
        seconds = "" if name == FROZEN else f"{np.mean([o.seconds for o in outcomes]):.0f}"
        table.add_row(name, *cells, seconds)
    return table


def ratio(outcome: Outcome) -> float:
    """Recall at 10 across two releases, of that within one."""
    return float(outcome.across.mean() / max(outcome.within.mean(), 1e-9))


def items(found: Found) -> list[Item]:
    out, ours = [], found[OURS]
    for name, outcomes in found.items():
        each = [measures(o.recall) for o in outcomes]
        for key in each[0]:
            value = float(np.mean([m[key].mean() for m in each]))
            out.append(shown(f"{name}: recall at 1, {key}", value, "share"))
        value = float(np.mean([o.next_product for o in outcomes]))
        out.append(shown(f"{name}: next product", value, "AUC"))
        if name != FROZEN:
            value = float(np.mean([ratio(o) for o in outcomes]))
            out.append(
                shown(f"{name}: recall at 10 across releases, of that within", value, "ratio")
            )
    for name in (FROZEN, "from scratch each month", "without replay"):
        for key in ("the next month", "earlier months, at the end"):
            mine, theirs = ([measures(o.recall)[key] for o in x] for x in (ours, found[name]))
            value, error = gap(mine, theirs)
            text = f"recall at 1, {key}: {OURS} over {name}, ± {2 * error:.3f}"
            out.append(Item(name=text, value=value, unit="share", bar=0.0, ok=value > 2 * error))
    value = float(np.mean([ratio(o) for o in ours]))
    text = f"{OURS}: recall at 10 across two releases, of that within the newer one"
    return [*out, at_least(text, value, "ratio", ACROSS)]


def described(outcome: Outcome) -> str:
    of = {key: value.mean() for key, value in measures(outcome.recall).items()}
    texts = [f"{key} {value:.3f}" for key, value in of.items()]
    texts.append(f"next product {outcome.next_product:.3f}, across {ratio(outcome):.3f}")
    job = outcome.job
    texts.append(f"{outcome.updates} updates ({outcome.seconds:.0f} s)")
    return f"{job.name}, seed {job.seed}: {', '.join(texts)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make quality-months")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 0 1 2")
    seeds = parser.parse_args().seeds
    folder = os.environ.get("AFRESH_DATA")
    if not folder or not (Path(folder) / "online_retail.parquet").exists():
        where = f"AFRESH_DATA is {folder!r}" if folder else "AFRESH_DATA is not set"
        needs = "it must name the folder with online_retail.parquet"
        sys.exit(f"{where}; {needs}: make quality-months AFRESH_DATA=folder")
    console = Console(width=None if sys.stdout.isatty() else 140)
    calls = [partial(work, job, folder, Size()) for job in jobs(seeds)]
    found = by_name(in_processes(calls, PROCESSES, console, described))
    for name, outcomes in found.items():
        console.print(matrix(name, outcomes))
    console.print(summary(found))
    written = items(found)
    for item in written:
        if item["bar"] is not None:
            word = "[green]yes[/green]" if item["ok"] else "[red]no[/red]"
            console.print(f"{word:>20}  {item['value']:+.3f}  {item['name']}")
    BUILD.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
