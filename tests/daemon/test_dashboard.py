"""deploy/grafana/: the dashboard is what the code says, and asks only for what there is."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon import dashboard, generated
from daemon.metrics import NAMES, TABLE
from tests.daemon.prometheus import ROOT, metrics_in, promtool

GRAFANA = ROOT / "deploy" / "grafana"
FOUND = json.loads((GRAFANA / "afresh.json").read_text())
PANELS = [panel for panel in FOUND["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("path", generated.files(), ids=lambda path: path.name)
def test_what_is_made_of_the_code_is_not_behind_it(path: Path) -> None:
    assert path.read_text() == generated.files()[path], "make docs"


def test_every_expression_parses(tmp_path: Path) -> None:
    """As a file of rules: that is what promtool parses offline."""
    asked = dashboard.expressions(FOUND)
    assert len(asked) > len(PANELS)
    rules = [{"record": f"asked:{i}", "expr": expr} for i, expr in enumerate(asked)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", file)


def test_every_metric_is_one_of_ours_and_nearly_all_are_shown() -> None:
    used = {name for expr in dashboard.expressions(FOUND) for name in metrics_in(expr)}
    assert used <= NAMES
    assert NAMES - used <= {"afresh_build_info", "afresh_windows_sampled_total"}


def test_counters_are_rates_and_gauges_are_not() -> None:
    counters = {spec.name for spec in TABLE if spec.kind in ("counter", "histogram")}
    for expr in dashboard.expressions(FOUND):
        for name in metrics_in(expr) - {"afresh_updates_total"}:
            over_time = any(f"{f}({name}" in expr for f in ("rate", "increase"))
            assert over_time == (name in counters), expr


def test_every_panel_is_of_the_stream_explained_and_has_a_unit() -> None:
    assert [row["title"] for row in FOUND["panels"] if row["type"] == "row"] == list(dashboard.ROWS)
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["expr"].count('{stream="$stream"') == target["expr"].count("afresh_")


def test_no_two_panels_overlap() -> None:
    taken = [cell for panel in FOUND["panels"] for cell in cells(panel["gridPos"])]
    assert len(taken) == len(set(taken))
    assert all(x < dashboard.WIDTH for x, _ in taken)
    numbers = [panel["id"] for panel in FOUND["panels"]]
    assert len(set(numbers)) == len(numbers)


def cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(at["x"], at["x"] + at["w"]):
        for y in range(at["y"], at["y"] + at["h"]):
            yield x, y


@pytest.mark.parametrize(
    ("bounds", "down"), [((1, 10), False), ((2, 4), True), ((1,), True), ((), False)]
)
def test_thresholds_rise_from_the_lowest_up(bounds: tuple[float, ...], down: bool) -> None:
    steps = dashboard._steps(bounds, down)["steps"]
    assert [step["value"] for step in steps] == [None, *bounds]
    best = [step["color"] for step in steps].index("green")
    assert best == (len(bounds) if down else 0)
    assert all(a["color"] != b["color"] for a, b in pairwise(steps))


def test_what_grafana_is_provisioned_with_fits_together() -> None:
    def read(name: str) -> Any:
        return yaml.safe_load((GRAFANA / "provisioning" / name / "afresh.yml").read_text())

    (source,) = read("datasources")["datasources"]
    assert source["type"] == FOUND["templating"]["list"][0]["query"] == "prometheus"
    (provider,) = read("dashboards")["providers"]
    assert provider["options"]["path"]
