"""`make bench`: speed and size, each beside its bar, as a table and as build/bench.json.

Ratios within one run are what counts: the machine is whatever it is. ARGS="NAME..." runs some."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks import (
    cas,
    freshness,
    graph_bench,
    growing,
    image_bench,
    image_decode,
    learner,
    monitor,
    releases,
    rollback,
    shard_path,
    sizes,
)  # fmt: skip
from benchmarks.apart import apart
from benchmarks.items import Item, at_least, shown
from daemon import servers

BUILD = Path(__file__).parents[1] / "build"


class Bench:
    """The measures, on one Kafka and one Redis that are started when first asked for."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder, self._found = stack, folder, list[Item]()
        self._servers: tuple[str, str] | None = None

    def servers(self) -> tuple[str, str]:
        if self._servers is None:
            broker = self._stack.enter_context(servers.kafka_server(self._folder / "kafka"))
            store = self._stack.enter_context(servers.redis_server(self._folder / "redis"))
            self._servers = broker.address, f"redis://{store.address}"
        return self._servers

    def measures(self) -> dict[str, Callable[[], list[Item]]]:
        return {
            "json": lambda: apart(shard_path.measure, *self.servers(), "json"),
            "arrow": lambda: apart(shard_path.measure, *self.servers(), "arrow"),
            "freshness": lambda: freshness.measure(*self.servers()),
            "monitor": lambda: monitor.measure(*self.servers()),
            "cas": self._cas,
            "swap": lambda: apart(releases.swap, *self.servers()),
            "rollback": lambda: rollback.measure(*self.servers()),
            "export": lambda: apart(releases.exports),
            "snapshot": lambda: apart(sizes.snapshot, self._folder),
            "restore": lambda: apart(sizes.restored, self._folder),
            "state": lambda: apart(sizes.memory),
            "growing": lambda: apart(growing.measure) + apart(growing.roomy),
            "learner": lambda: apart(_learner),
            "image-decode": lambda: apart(image_decode.measure),
            "image-learner": image_bench.measure,
            "graph-learner": graph_bench.learner,
            "graph-state": lambda: apart(graph_bench.memory),
            "graph-path": lambda: apart(graph_bench.path, *self.servers()),
            "graph-freshness": lambda: graph_bench.freshness_of(*self.servers()),
        }

    def run(self, names: Iterable[str], out: Console) -> list[Item]:
        for name, measure in self.measures().items():
            if name in names:
                began = time.monotonic()
                with out.status(f"Measuring: {name}"):
                    self._found += measure()
                out.print(f"{name} took {time.monotonic() - began:.0f} s", style="dim")
        return self._found

    def _cas(self) -> list[Item]:
        found = apart(cas.measure, self.servers()[1], 3)
        name = "fenced compare-and-set, d = 128, against plain HSET"
        return [
            at_least(name, found["ratio"], "ratio", cas.BAR),
            shown(f"{name} without redis-py's cost per command", found["bare_ratio"], "ratio"),
            shown("fenced compare-and-set", found["cas_per_s"], "writes/s"),
        ]


def _learner() -> list[Item]:
    return [Item(**item) for item in learner.measure()]  # type: ignore[typeddict-item]


def machine() -> str:
    """Model of the CPU, cores, memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if x[:5] == "model"), model)
        model = next((x.partition(":")[2].strip() for x in lines if "model name" in x), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB"


def table(items: list[Item]) -> Table:
    out = Table("measure", "value", "unit", "bar", "", title=machine())
    out.columns[1].justify = out.columns[3].justify = "right"
    for item in items:
        bar, ok = item["bar"], item["ok"]
        mark = "" if ok is None else "[green]ok[/]" if ok else "[red]misses[/]"
        out.add_row(
            item["name"], f"{item['value']:,.3g}" if item["value"] < 1000 else f"{item['value']:,.0f}",
            item["unit"], "" if bar is None else f"{bar:g}", mark,
        )  # fmt: skip
    return out


def main(asked: list[str]) -> None:
    out = Console(width=130)
    BUILD.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(dir=BUILD)))
        bench = Bench(stack, folder)
        unknown = set(asked) - set(bench.measures())
        if unknown:
            out.print(f"No measure {', '.join(unknown)}; there are: {', '.join(bench.measures())}.")
            sys.exit(2)
        items = bench.run(asked or bench.measures(), out)
    out.print(table(items))
    (BUILD / "bench.json").write_text(json.dumps(items, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
