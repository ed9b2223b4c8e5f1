"""Do months of learning add up? Online Retail by month: the release of each month on the data of each.

`make quality-months AFRESH_DATA=folder` prints tables and writes build/quality-months.json.

Of customers that are never learnt from: the first part of what each bought in one month is to be found by the second
part, either of other purchases, as the gates ask (among 60), or by halves of the rows (among 250). And which product
does a customer buy next? Our learner goes on from month to month; beside it: frozen after the first month, another one
each month which learns from that alone (as many updates), without replay, and with distillation from the last release.
And do the vectors of two releases go together? Those of the newer one seek their own among the older one's."""

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
PARTS = {"purchases": "by purchases", "halves": "by halves"}
Found = dict[str, list[Outcome]]
"""By name, by seed."""


def jobs(seeds: Sequence[int]) -> list[Job]:
    return [Job(name, seed, **how) for seed in seeds for name, how in LEARNT.items()]


def frozen(outcome: Outcome) -> Outcome:
    """The first month's release of our learner, asked about all months."""
    rows, again = (np.tile(m[:1], (len(m), 1)) for m in (outcome.halves, outcome.purchases))
    return outcome._replace(halves=rows, purchases=again, next_product=outcome.frozen)


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


def of(outcomes: Sequence[Outcome], part: str) -> list[dict[str, F64]]:
    return [measures(getattr(outcome, part)) for outcome in outcomes]


def matrix(name: str, part: str, outcomes: Sequence[Outcome]) -> Table:
    table = Table("release of", *(month[2:] for month in MONTHS))
    table.title = f"{name}: recall at 1 {PARTS[part]}, on the data of each month"
    mean = np.mean([getattr(outcome, part) for outcome in outcomes], axis=0)
    for month, row in zip(MONTHS, mean, strict=True):
        table.add_row(month, *(f"{value:.3f}" for value in row))
    return table


def summary(found: Found, part: str) -> Table:
    table = Table("", *measures(np.zeros((2, 2))))
    table.title = f"Recall at 1 {PARTS[part]}, mean over months, ± half the seeds' range"
    for name, outcomes in found.items():
        each = of(outcomes, part)
        table.add_row(name, *(spread([float(m[key].mean()) for m in each]) for key in each[0]))
    return table


def others(found: Found) -> Table:
    table = Table("", "next product, AUC", "recall at 10 across, of within", "within", "CPU s")
    for name, outcomes in found.items():
        cells = ["", "", ""]
        if name != FROZEN:
            cells = [spread([ratio(o) for o in outcomes])]
            cells.append(spread([float(o.within.mean()) for o in outcomes]))
            cells.append(f"{np.mean([o.seconds for o in outcomes]):.0f}")
        table.add_row(name, spread([o.next_product for o in outcomes]), *cells)
    return table


def ratio(outcome: Outcome) -> float:
    """Recall at 10 across two releases, of that within one."""
    return float(outcome.across.mean() / max(outcome.within.mean(), 1e-9))


def items(found: Found) -> list[Item]:
    out, ours = [], found[OURS]
    for name, outcomes in found.items():
        for part, text in PARTS.items():
            each = of(outcomes, part)
            for key in each[0]:
                value = float(np.mean([m[key].mean() for m in each]))
                out.append(shown(f"{name}: recall at 1 {text}, {key}", value, "share"))
        value = float(np.mean([o.next_product for o in outcomes]))
        out.append(shown(f"{name}: next product", value, "AUC"))
        if name != FROZEN:
            value = float(np.mean([ratio(o) for o in outcomes]))
            out.append(shown(f"{name}: recall at 10 across releases, of within", value, "ratio"))
    for name in found:
        if name != OURS:
            out += against(name, ours, found[name])
    value = float(np.mean([ratio(o) for o in ours]))
    text = f"{OURS}: recall at 10 across two releases, of that within the newer one"
    return [*out, at_least(text, value, "ratio", ACROSS)]


def against(name: str, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[Item]:
    """By how much ours is above; lost or won only beyond two standard errors."""
    out = []
    for part, words in PARTS.items():
        for key in ("the next month", "earlier months, at the end"):
            a, b = ([m[key] for m in of(x, part)] for x in (ours, theirs))
            value, error = gap(a, b)
            text = f"recall at 1 {words}, {key}: {OURS} over {name}, ± {2 * error:.3f}"
            out.append(Item(name=text, value=value, unit="share", bar=0.0, ok=value > -2 * error))
    each = np.array([a.next_product - b.next_product for a, b in zip(ours, theirs, strict=True)])
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else 0.0
    text = f"next product: {OURS} over {name}, ± {2 * error:.3f} over seeds"
    value = float(each.mean())
    return [*out, Item(name=text, value=value, unit="AUC", bar=0.0, ok=value > -2 * error)]


def described(outcome: Outcome) -> str:
    keys = ("the next month", "earlier months, at the end")
    texts = [f"{PARTS[p]} {k} {of([outcome], p)[0][k].mean():.3f}" for p in PARTS for k in keys]
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
    for part in PARTS:
        for name, outcomes in found.items():
            console.print(matrix(name, part, outcomes))
        console.print(summary(found, part))
    console.print(others(found))
    written = items(found)
    for item in written:
        if item["bar"] is not None:
            word = "[green]yes[/green]" if item["ok"] else "[red]no[/red]"
            console.print(f"{word:>20}  {item['value']:+.3f}  {item['name']}")
    BUILD.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
