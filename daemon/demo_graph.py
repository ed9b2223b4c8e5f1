"""What the demo prints of its graph: airports that the same planes fly to, and where a plane flies next."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from daemon.reading import Reader
from daemon.settings import Settings

AIRPORT = "MIA"
NEAREST, SHOWN = 5, 3
HOUR_US = 3_600_000_000


class GraphReport:
    def __init__(self, settings: Settings, table: pa.Table, known: int) -> None:
        """known: records of nodes."""
        self._reader = Reader(settings)
        self._flights = table.filter(pc.is_valid(table["tailnum"]))
        self._airports = sorted(set(self._flights["dest"].to_pylist()))
        # an edge is a row of both nodes, a dead letter one, what is said of a node another
        self.rows = len(table) + len(self._flights) + known

    def nearest(self, facts: Mapping[str, Any]) -> Table:
        """Airports by the cosine of their vectors, beside the share of planes that they have in common."""
        names, vectors = self._reader.everything()
        at = {name: i for i, name in enumerate(names)}
        here = [a for a in self._airports if a in at]
        mine = AIRPORT if AIRPORT in here else here[0]
        cosine = vectors[[at[a] for a in here]] @ vectors[at[mine]]
        best = [i for i in np.argsort(-cosine).tolist() if here[i] != mine][:NEAREST]
        table = Table(
            "airport", "cosine", "planes in common", title_justify="left",
            title=f"Airports nearest to {mine} of {len(here)}, after {facts['updates']:,} updates",
        )  # fmt: skip
        for i in best:
            table.add_row(here[i], f"{cosine[i]:.3f}", f"{self._common(mine, here[i]):.0%}")
        everyone = np.mean([self._common(mine, a) for a in here if a != mine])
        table.add_row("[dim]any airport[/dim]", "", f"[dim]{everyone:.0%}[/dim]")
        return table

    def next_flights(self) -> Table:
        """The pair scorer's guess for the plane that flew last."""
        plane = self._flights["tailnum"][-1].as_py()
        now_us = self._flights["time"][-1].as_py() * 1_000_000 + HOUR_US
        found = self._reader.score(plane, self._airports, now_us)
        logits = np.array([logit for _, logit, known in found if known])
        chances = np.exp(logits - np.logaddexp.reduce(logits))
        names = [name for name, _, known in found if known]
        flown = pc.value_counts(
            self._flights.filter(pc.equal(self._flights["tailnum"], plane))["dest"]
        ).to_pylist()
        times = {each["values"]: each["counts"] for each in flown}
        table = Table(
            "airport", "chance", "flown there in 2013", title_justify="left",
            title=f"Where {plane} flies next, by the pair scorer",
        )  # fmt: skip
        for i in np.argsort(-chances)[:SHOWN].tolist():
            table.add_row(names[i], f"{chances[i]:.0%}", f"{times.get(names[i], 0)} times")
        return table

    def _common(self, a: str, b: str) -> float:
        """Of the planes that fly to either the share that flies to both."""
        mine, others = self._planes(a), self._planes(b)
        return len(mine & others) / max(len(mine | others), 1)

    def _planes(self, airport: str) -> set[str]:
        which = pc.equal(self._flights["dest"], airport)
        return set(self._flights.filter(which)["tailnum"].to_pylist())
