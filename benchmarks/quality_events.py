"""What embeddings of events know: Online Retail in one pass, probed at monthly cut-offs.

`make quality-events AFRESH_DATA=folder` prints the table and writes build/quality-events.json.
Settings were chosen on one half of the customers; what is reported is the other half."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import one_pass, reference, retail
from benchmarks.learner import ranks
from benchmarks.probes import Features, Task, paired, probe
from benchmarks.retail import STREAM, Queries, Retail
from learning.compatibility import untrained_vectors
from learning.config import GruConfig, LearnerConfig
from schemas.records import F32, F64, Windows

SEEDS = (0, 1, 2)
ENCODER = GruConfig(bucket_bits=13, window=128)  # 3,684 products: few share a bucket
LEARNER = LearnerConfig(updates_per_record=0.01)
TASKS = {"a": "returns within 90 days", "b": "which of 20 products next"}
OURS, RANDOM, PTLS = "afresh, one pass", "same encoder, untrained", "pytorch-lifestream CoLES"
OUT = reference.BUILD / "quality-events.json"


@dataclass
class Row:
    """One representation: per task its AUC by seed, and the first seed's scores."""

    auc: dict[str, list[float]] = field(default_factory=lambda: {"a": [], "b": []})
    selection: dict[str, list[float]] = field(default_factory=lambda: {"a": [], "b": []})
    score: dict[str, list[F64]] = field(default_factory=lambda: {"a": [], "b": []})

    def mean(self, task: str) -> float:
        return float(np.mean(self.auc[task]))


class Bench:
    def __init__(self, data: Retail, console: Console) -> None:
        self.data, self.console = data, console
        self.asked: Queries = retail.queries(data)
        q, back = self.asked, self.asked.returns
        self.tasks = {
            "a": (np.ones(len(back), np.bool_), Task(back[:, None], q.cut, q.customer, q.selection)),
            "b": (back, Task(q.buys[back], q.cut[back], q.customer[back], q.selection[back])),
        }  # fmt: skip
        self.rows: dict[str, Row] = {}
        self.aggregates = retail.aggregates(data, q, richer=False)

    def add(self, name: str, x: Features) -> None:
        """Probes a representation [Q, features]; called once for each seed."""
        row = self.rows.setdefault(name, Row())
        x = np.concatenate([x, self.asked.age], 1)
        for task, (which, examples) in self.tasks.items():
            selection, reported, score = probe(x[which], examples)
            row.auc[task].append(reported)
            row.selection[task].append(selection)
            row.score[task].append(score)
        self.console.print(f"[dim]{name}: a {row.auc['a'][-1]:.3f}, b {row.auc['b'][-1]:.3f}[/dim]")

    def both(self, name: str, vectors: F32) -> None:
        """A learnt representation alone, and beside the aggregates."""
        self.add(name, vectors)
        self.add(f"{name} + aggregates", np.concatenate([vectors, self.aggregates], 1))

    def gap(self, name: str, other: str, task: str) -> tuple[float, float, float]:
        """Mean difference of AUC over the seeds, and the interval of the first one's bootstrap
        around it."""
        a, b, examples = self.rows[name], self.rows[other], self.tasks[task][1]
        low, high = paired(a.score[task][0], b.score[task][0], examples)
        mean = a.mean(task) - b.mean(task)
        shift = mean - (a.auc[task][0] - b.auc[task][0])
        return mean, low + shift, high + shift


def run_references(bench: Bench) -> None:
    data, asked = bench.data, bench.asked
    bench.add("age alone", np.zeros((len(asked.cut), 0)))
    bench.add("aggregates", bench.aggregates)
    bench.add("richer aggregates", retail.aggregates(data, asked, richer=True))
    bench.both("SVD-64 of product counts", retail.svd(data, asked))
    span = ENCODER.window * 3 // 4
    bench.add(f"SVD-64 of the last {span} rows", retail.svd(data, asked, window=span))


def run_ours(bench: Bench) -> list[dict[str, Any]]:
    seconds, updates, windows = [], 0, None
    for seed in SEEDS:
        began = time.process_time()
        config = LearnerConfig(
            seed=seed, objective=LEARNER.objective, updates_per_record=LEARNER.updates_per_record
        )
        done = one_pass.run(bench.data, bench.asked, config, ENCODER, seed)
        seconds.append(time.process_time() - began)
        bench.both(OURS, done.vectors)
        updates, windows = done.updates, windows or Windows.concat(done.windows)
        bench.both(RANDOM, untrained_vectors(ENCODER, STREAM.shape, windows, seed))
    return [
        _item("CPU time of one pass", float(np.mean(seconds)), "s"),
        _item("updates in one pass", updates, "updates"),
        _item("sequences per update", LEARNER.batch_entities, "entities"),
    ]


def run_lifestream(bench: Bench) -> list[dict[str, Any]]:
    """Its 30 epochs see all rows before the last cut-off, also for the earlier ones."""
    data, asked = bench.data, bench.asked
    k = data.before(retail.cut_offs()[-1])
    order = np.argsort(data.customer[:k], kind="stable")
    who, day = data.customer[order], data.time_us[order] / retail.DAY_US
    quantity, price = (np.sign(x) * np.log1p(np.abs(x)) for x in (data.quantity, data.price))
    countries = np.unique(data.table["Country"].to_numpy().astype(str), return_inverse=True)[1]
    start = np.searchsorted(who, asked.customer)
    end = start.copy()
    for cut, now in enumerate(retail.cut_offs()):
        seen = np.bincount(data.customer[: data.before(now)], minlength=len(data.names))
        end[asked.cut == cut] += seen[asked.customer[asked.cut == cut]]
    columns = {
        "entity": who, "time": day, "start": start, "end": end,
        "category_0": ranks(data.product[order]), "category_1": ranks(countries[order]),
        "number_0": quantity[order], "number_1": price[order],
    }  # fmt: skip
    try:
        bench.console.print("[dim]pytorch-lifestream: 30 epochs, some 10 minutes once[/dim]")
        answer = np.load(reference.LIFESTREAM.ask("train", columns, ".npz"))
    except reference.Missing as why:
        bench.console.print(f"Without {PTLS}: {why}")
        return []
    bench.both(PTLS, answer["vectors"])
    return [_item("time of pytorch-lifestream's epochs", float(answer["seconds"]), "s")]


def results(bench: Bench) -> list[dict[str, Any]]:
    out = []
    for name, row in bench.rows.items():
        for task in TASKS:
            out.append(_item(f"({task}) AUC, {name}", row.mean(task), "AUC"))
            if len(row.auc[task]) > 1:
                spread = max(row.auc[task]) - min(row.auc[task])
                out.append(_item(f"({task}) spread over seeds, {name}", spread, "AUC"))
    bars = [
        ("a", OURS, "aggregates"),
        ("a", f"{OURS} + aggregates", "aggregates"),
        ("b", OURS, "aggregates"),
        ("b", OURS, "SVD-64 of product counts"),
        ("b", f"{OURS} + aggregates", "SVD-64 of product counts"),
    ]
    if PTLS in bench.rows:
        bars += [("a", OURS, PTLS), ("b", OURS, PTLS)]
    for task, ours, other in bars:
        gap, low, high = bench.gap(ours, other, task)
        # (a) is lost when the whole interval lies below; (b) is won when the mean lies above.
        ok = bool(high >= 0.0 if task == "a" else gap > 0.0)
        name = f"({task}) {ours} over {other}, 95% {low:+.3f} to {high:+.3f}"
        out.append({"name": name, "value": gap, "unit": "AUC", "bar": 0.0, "ok": ok})
    return out


def _item(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "bar": None, "ok": None}


def show(bench: Bench, items: list[dict[str, Any]], console: Console) -> None:
    table = Table("representation", *(f"({t}) {text}" for t, text in TASKS.items()))
    table.title = f"Online Retail, AUC within cut-offs, {len(SEEDS)} seeds"
    for name, row in bench.rows.items():
        cells = []
        for task in TASKS:
            half = (max(row.auc[task]) - min(row.auc[task])) / 2
            cells.append(f"{row.mean(task):.3f}" + (f" ± {half:.3f}" if half else ""))
        table.add_row(name, *cells)
    console.print(table)
    for item in items:
        if item["bar"] is not None:
            word = "[green]yes[/green]" if item["ok"] else "[red]no[/red]"
            console.print(f"{word:>20}  {item['value']:+.4f}  {item['name']}")
        elif item["unit"] != "AUC":
            console.print(f"           {item['value']:8.1f}  {item['name']} ({item['unit']})")


def main() -> None:
    folder = os.environ.get("AFRESH_DATA")
    if not folder or not (Path(folder) / "online_retail.parquet").exists():
        found = f"AFRESH_DATA is {folder!r}" if folder else "AFRESH_DATA is not set"
        sys.exit(
            f"{found}; it must name the folder with online_retail.parquet: "
            "make quality-events AFRESH_DATA=folder"
        )
    one_pass.one_thread()
    console = Console()
    bench = Bench(retail.load(Path(folder)), console)
    run_references(bench)
    items = [*run_ours(bench), *run_lifestream(bench)]
    items = [*results(bench), *items]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(items, indent=1))
    show(bench, items, console)
    console.print(f"Written to {OUT.relative_to(OUT.parents[1])}.")


if __name__ == "__main__":
    main()
