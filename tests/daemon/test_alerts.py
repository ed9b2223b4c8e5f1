"""deploy/prometheus/ and docs/runbook.md: rules hold together, fire and stay silent as tested, and are explained."""

import re
from pathlib import Path

import pytest
import yaml

from daemon.metrics import NAMES
from tests.daemon.prometheus import ALERTS, DEPLOYED, ROOT, metrics_in, promtool, rules

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))


def test_promtool_finds_the_files_well() -> None:
    promtool("check", "config", DEPLOYED / "prometheus.yml")
    promtool("check", "rules", DEPLOYED / "rules.yml")


def test_every_alert_fires_and_stays_silent_as_its_cases_say() -> None:
    promtool("test", "rules", DEPLOYED / "rules_test.yml")


def test_a_broken_rule_is_found(tmp_path: Path) -> None:
    """The cases can fail: an alert that never fires does not pass them."""
    cases = yaml.safe_load((DEPLOYED / "rules_test.yml").read_text())
    cases["tests"] = [
        case for case in cases["tests"] if case["name"].startswith("AfreshSourceDown")
    ]
    (tmp_path / "rules_test.yml").write_text(yaml.safe_dump(cases))
    text = (DEPLOYED / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(
        text.replace("(afresh_source_up) == 0", "(afresh_source_up) == 7")
    )
    with pytest.raises(AssertionError, match="AfreshSourceDown fires"):
        promtool("test", "rules", tmp_path / "rules_test.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_case_for_firing_and_one_for_silence(alert: str) -> None:
    cases = yaml.safe_load((DEPLOYED / "rules_test.yml").read_text())["tests"]
    told = [
        test for case in cases for test in case["alert_rule_test"] if test["alertname"] == alert
    ]
    assert any(test["exp_alerts"] for test in told)
    assert any(not test["exp_alerts"] for test in told)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert list(SECTIONS) == list(ALERTS), "in the rules' order"


@pytest.mark.parametrize("alert", ALERTS)
def test_every_section_says_what_it_means_for_whom_and_what_to_do(alert: str) -> None:
    for part in ("**Means**:", "**Readers**:", "**Do**:", "**Silence**:"):
        assert SECTIONS[alert].count(part) == 1, part


def test_rules_name_only_metrics_that_there_are() -> None:
    used = {name for rule in rules() for name in metrics_in(rule["expr"])}
    assert used <= NAMES
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = {name for rule in rules() for name in re.findall(r"afresh:[\w:]+", rule["expr"])}
    assert named <= recorded


def test_the_runbook_names_only_metrics_that_there_are() -> None:
    assert metrics_in(RUNBOOK) <= NAMES
