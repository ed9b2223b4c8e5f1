"""Prometheus' own tools, where Debian's package is installed."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.children import free_ports
from tests.helpers import eventually

ROOT = Path(__file__).parent.parent.parent
DEPLOYED = ROOT / "deploy" / "prometheus"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is in Debian's package prometheus")
    return found


def promtool(*arguments: str | Path, given: bytes = b"") -> str:
    """What it says. Fails the test where it finds something wrong."""
    done = subprocess.run(
        [tool("promtool"), *map(str, arguments)], check=False, input=given, capture_output=True, timeout=60
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def metrics_in(expr: str) -> set[str]:
    """Metrics of ours that an expression names; a histogram's series are the histogram."""
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bafresh_\w+", expr)}


def rules() -> list[dict[str, Any]]:
    """All rules of deploy/prometheus/rules.yml: records have `record`, alerts `alert`."""
    groups = yaml.safe_load((DEPLOYED / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A real one with our configuration, which scrapes `target` each second. Yields its address."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOYED / "rules.yml")]
    (job,) = config["scrape_configs"]
    job["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: answers(f"{address}/-/ready"), 60, "Prometheus answers")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        return bool(answer.status == 200)
    return False


def ask(address: str, path: str, **query: str) -> Any:
    """`data` of an answer of Prometheus' HTTP API."""
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        found = json.load(answer)
    assert found["status"] == "success", found
    return found["data"]
