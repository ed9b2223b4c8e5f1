"""What a graph stream's model knows, part by part: all of them, or those that are named.

`make quality-graph AFRESH_DATA=folder ARGS="college cora"` prints tables and writes build/quality-graph-<part>.json.
College: CollegeMsg in one pass, whom does each message go to? Settings were chosen on the ranking of messages 50% to
70%; what is reported are the last 30%. Cora: what do vectors know of a paper's field? See cora.py."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import college as college_msg
from benchmarks import cora as cora_papers
from benchmarks import motifs as small_graphs
from benchmarks import tgn
from benchmarks.college import College, Queries
from benchmarks.graph_baselines import BASELINES, STALE, mlp
from benchmarks.graph_pass import ENCODER, OTHERS, PAIRS, VECTORS, one_pass
from benchmarks.items import Item, shown
from benchmarks.reference import BUILD, Missing
from schemas.records import F32, F64

SEEDS = (0, 1, 2)
OURS, VECTOR, MLP = "afresh, pair scorer", "afresh, vectors alone", "MLP on pair features"


class Bench:
    def __init__(self, data: College, console: Console) -> None:
        self.data, self.console = data, console
        self.asked: Queries = college_msg.queries(data)
        self.ranks: dict[tuple[str, str], list[F64]] = {}
        self.seconds: dict[tuple[str, str], float] = {}

    def add(self, name: str, stale: str, scores: F32 | F64, seconds: float) -> None:
        """Called once for each seed."""
        found = college_msg.reciprocal_ranks(scores)
        self.ranks.setdefault((name, stale), []).append(found)
        self.seconds[name, stale] = seconds
        self.console.print(f"[dim]{name}, {stale} edges stale: {found.mean():.3f}[/dim]")

    def table(self) -> Table:
        out = Table("model", "edges stale", "all", *college_msg.KINDS, "CPU s")
        out.title = f"CollegeMsg, MRR of {len(self.asked.edge)} queries among 101 nodes, one pass"
        for (name, stale), seeds in self.ranks.items():
            means = np.array([college_msg.summary(ranks, self.asked) for ranks in seeds])
            cells = [f"{mean:.3f}" for mean in means.mean(0)]
            if len(seeds) > 1:
                cells[0] += f" ± {np.ptp(means[:, 0]) / 2:.3f}"
            out.add_row(name, stale, *cells, f"{self.seconds[name, stale]:.0f}")
        return out

    def items(self) -> list[Item]:
        out = [
            shown(f"MRR, {name}, {stale} edges stale", float(np.mean(seeds)), "MRR")
            for (name, stale), seeds in self.ranks.items()
        ]
        for ours, other in zip(self.ranks[OURS, "0"], self.ranks[MLP, "0"], strict=True):
            low, high = college_msg.paired(ours, other)
            name = f"MRR, {OURS} over {MLP}, 95% {low:+.3f} to {high:+.3f}"
            gap = float((ours - other).mean())
            out.append(Item(name=name, value=gap, unit="MRR", bar=0.0, ok=low > 0.0))
        return out


def run_ours(bench: Bench) -> None:
    for seed in SEEDS:
        stale = STALE if seed == 0 else (0,)
        done = one_pass(bench.data, bench.asked, PAIRS, ENCODER, seed, stale)
        for s, scores in done.scores.items():
            bench.add(OURS, str(s), scores, done.learn_s)
    done = one_pass(bench.data, bench.asked, VECTORS)
    bench.add(VECTOR, "0", done.scores[0], done.learn_s)
    for name, encoder in OTHERS.items():
        done = one_pass(bench.data, bench.asked, VECTORS, encoder)
        bench.add(f"afresh, {name}'s vectors", "0", done.scores[0], done.learn_s)


def run_baselines(bench: Bench) -> None:
    for name, baseline in BASELINES.items():
        for stale in STALE:
            began = time.process_time()
            scores = baseline(bench.data, bench.asked, stale)
            bench.add(name, str(stale), scores, time.process_time() - began)
    for seed in SEEDS[1:]:
        began = time.process_time()
        scores = mlp(bench.data, bench.asked, seed)
        bench.add(MLP, "0", scores, time.process_time() - began)
    for batch in tgn.BATCHES:
        try:
            found, seconds = tgn.scores(bench.data, bench.asked, batch)
            bench.add(f"PyG's TGN, batches of {batch}", f"0 to {batch - 1}", found, seconds)
        except Missing as why:
            bench.console.print(f"Without TGN: {why}")


def college(folder: Path, console: Console) -> list[Item]:
    bench = Bench(college_msg.load(folder), console)
    run_ours(bench)
    run_baselines(bench)
    console.print(bench.table())
    return bench.items()


def cora(folder: Path, console: Console) -> list[Item]:
    return cora_papers.measure(cora_papers.load(folder), console)


def motifs(_: Path, console: Console) -> list[Item]:
    return small_graphs.run(console)


# What measures each part, and the file that it needs.
PARTS = {
    "college": (college, "college_msg.txt"),
    "cora": (cora, "cora.npz"),
    "motifs": (motifs, ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make quality-graph")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parts = parser.parse_args().part or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    folder = os.environ.get("AFRESH_DATA")
    for _, file in map(PARTS.__getitem__, parts):
        if file and (not folder or not (Path(folder) / file).exists()):
            found = f"AFRESH_DATA is {folder!r}" if folder else "AFRESH_DATA is not set"
            sys.exit(
                f"{found}; it must name the folder with {file}: "
                "make quality-graph AFRESH_DATA=folder"
            )
    torch.set_num_threads(1)
    console = Console()
    BUILD.mkdir(exist_ok=True)
    for part in parts:
        items = PARTS[part][0](Path(folder or ""), console)
        for item in items:
            if item["bar"] is not None:
                word = "[green]yes[/green]" if item["ok"] else "[red]no[/red]"
                console.print(f"{word:>20}  {item['value']:+.4f}  {item['name']}")
        (BUILD / f"quality-graph-{part}.json").write_text(json.dumps(items, indent=1))


if __name__ == "__main__":
    main()
